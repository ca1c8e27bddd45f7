"""The one look at the test images of a student of features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from reldistill.core.types import Batch, Wanted
from reldistill.data.image_data import ImageData
from reldistill.data.images import test_loader
from reldistill.networks.saved import OpenedNetwork
from reldistill.report.agreement import agreement, similarities
from reldistill.report.draws import draws
from reldistill.tasks.features.metrics import KEPT, spread
from reldistill.training.settings import TrainSettings
from reldistill.training.trainer import has_gpu, resolve_precision


class FeatureLook:
    """Pooled vectors of some test images: see `tasks.base.Look`. A network agrees with itself by 100 %."""

    calibration_error: float | None = None

    @torch.no_grad()
    def __init__(self, network: OpenedNetwork, images: ImageData, training: TrainSettings) -> None:
        test = test_loader(images)
        device = torch.device("cuda" if has_gpu(training.accelerator) else "cpu")
        precision = resolve_precision(training.precision, training.accelerator)
        extractor = network.extractor.to(device).eval()
        self.shown = spread(test.images, KEPT)
        features = []
        for batch in test:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
                said = extractor.ask(batch.images.to(device), Wanted(logits=False, pooled=True)).pooled
            if said is None or batch.indices is None:
                raise ValueError("a look needs pooled vectors and the images' indices")
            features.append(said.float().cpu().numpy()[np.isin(batch.indices.cpu().numpy(), self.shown)])
        self.features = np.concatenate(features)
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
