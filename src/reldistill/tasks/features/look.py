"""The one look at the test images of a student of features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from reldistill.core.types import Batch
from reldistill.data.image_data import ImageData
from reldistill.data.images import test_loader
from reldistill.networks.saved import OpenedNetwork
from reldistill.report.agreement import agreement, similarities
from reldistill.report.draws import draws, means, spread
from reldistill.tasks.features.metrics import KEPT
from reldistill.tasks.looks import device_of, kept, outputs
from reldistill.tasks.neighbours import neighbours_right
from reldistill.training.settings import TrainSettings


class FeatureLook:
    """Pooled vectors of some test images: see `tasks.base.Look`. A network agrees with itself by 100 %.

    With a probe the score is what the features' nearest neighbours get right of its test images.
    """

    calibration_error: float | None = None

    def __init__(self, network: OpenedNetwork, images: ImageData, training: TrainSettings) -> None:
        test, extractor = test_loader(images), network.extractor.to(device_of(training)).eval()
        self.shown = spread(test.images, KEPT)
        looked = outputs(extractor, test, training, logits=False)
        self.features = np.concatenate([kept(batch, features, self.shown) for batch, features in looked])
        self.right: np.ndarray | None = None
        if images.probe is not None:
            probe = images.probe
            self.right = neighbours_right(extractor, probe, device=device_of(training), held_out=test_loader(probe))
        if self.right is None:
            self.score, self.drawn = 100.0, np.full(len(draws(len(self.features))), 100.0)
        else:
            self.score, self.drawn = 100 * float(self.right.mean()), means(self.right)

    def arrays(self) -> dict[str, np.ndarray]:
        """Scores of draws of the images, and features."""
        return {"drawn": self.drawn, "features": self.features.astype(np.float32)}

    def reference_arrays(self) -> dict[str, np.ndarray]:
        """Features, and of which images."""
        return {"shown": self.shown, "features": self.features}

    def beside(self, teacher: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        """Nothing but the score, which without a probe is the agreement with the teacher."""
        if self.right is not None:
            return {"agreement": None, "calibration_error": None, "correlation_gap": None}
        own, theirs = similarities(self.features), similarities(teacher["features"])
        self.score = float(agreement(own, theirs)[0])
        self.drawn = agreement(own, theirs, draws(len(own)))
        return {"agreement": None, "calibration_error": None, "correlation_gap": None}

    @classmethod
    def features_of(cls, network: OpenedNetwork, images: ImageData, training: TrainSettings) -> Iterator[np.ndarray]:
        """One array."""
        yield cls(network, images, training).features

    @staticmethod
    def run_once(extractor: nn.Module, side: int) -> None:
        """A pooled vector."""
        extractor(torch.rand(1, 3, side, side))

    @staticmethod
    def some_batch(images: Any) -> Batch:
        """Noise."""
        random = torch.Generator().manual_seed(0)
        pixels = torch.rand(4, 3, images.image_size, images.image_size, generator=random)
        return Batch(pixels, None, torch.arange(4))
