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
from reldistill.report.draws import draws, spread
from reldistill.tasks.features.metrics import KEPT
from reldistill.tasks.looks import device_of, kept, outputs
from reldistill.training.settings import TrainSettings


class FeatureLook:
    """Pooled vectors of some test images: see `tasks.base.Look`. A network agrees with itself by 100 %."""

    calibration_error: float | None = None

    def __init__(self, network: OpenedNetwork, images: ImageData, training: TrainSettings) -> None:
        test, extractor = test_loader(images), network.extractor.to(device_of(training)).eval()
        self.shown = spread(test.images, KEPT)
        looked = outputs(extractor, test, training, logits=False)
        self.features = np.concatenate([kept(batch, features, self.shown) for batch, features in looked])
        self.score = 100.0
        self.drawn = np.full(len(draws(len(self.features))), 100.0)

    def arrays(self) -> dict[str, np.ndarray]:
        """Scores of draws of the images, and features."""
        return {"drawn": self.drawn, "features": self.features.astype(np.float32)}

    def reference_arrays(self) -> dict[str, np.ndarray]:
        """Features, and of which images."""
        return {"shown": self.shown, "features": self.features}

    def beside(self, teacher: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        """Nothing but the score, which is the agreement with the teacher."""
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
