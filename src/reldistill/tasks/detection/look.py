"""The one look at the test images of detection: what is kept of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from reldistill.core.types import Batch
from reldistill.data.images import test_loader
from reldistill.networks.saved import OpenedNetwork
from reldistill.report.draws import draws
from reldistill.tasks.detection.boxes import Boxes
from reldistill.tasks.detection.images import DetectionData
from reldistill.tasks.detection.metrics.average_precision import AveragePrecision
from reldistill.tasks.detection.metrics.resampled_ap import average_precisions, match
from reldistill.tasks.looks import device_of
from reldistill.training.settings import TrainSettings

_COUNTED = 4


class BoxLook:
    """What is found in whole images, in full precision: see `tasks.base.Look`."""

    calibration_error: float | None = None

    def __init__(self, network: OpenedNetwork, images: DetectionData, training: TrainSettings) -> None:
        test = test_loader(images)
        device = device_of(training)
        extractor: Any = network.extractor.to(device).eval()
        measured = AveragePrecision(images.classes)
        for batch in test:
            measured.update(extractor, batch.to(device))
        self.score = measured.values()["AP"]
        self._images, self._classes = measured.metrics.images, len(images.classes)

    def arrays(self) -> dict[str, np.ndarray]:
        """The APs of draws of the images, the same draws for all."""
        return {"drawn": average_precisions(match(self._images, classes=self._classes), draws(len(self._images)))}

    def reference_arrays(self) -> dict[str, np.ndarray]:
        """The same."""
        return self.arrays()

    def beside(self, teacher: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        """Nothing: two sets of boxes have no share that agrees."""
        return {"agreement": None, "calibration_error": None, "correlation_gap": None}

    @classmethod
    def features_of(
        cls, network: OpenedNetwork, images: DetectionData, training: TrainSettings
    ) -> Iterator[np.ndarray]:
        """None."""
        yield from ()

    @staticmethod
    def run_once(extractor: Any, side: int) -> None:
        """Boxes in a square image."""
        extractor.detect(Batch(torch.rand(1, 3, side, side)))

    @staticmethod
    def some_batch(images: DetectionData) -> Batch:
        """Noise with an object each."""
        side = -(-images.image_size // 32) * 32
        pixels = torch.rand(_COUNTED, 3, side, side, generator=torch.Generator().manual_seed(0))
        indices = torch.arange(_COUNTED)
        corners = torch.tensor([[0.25, 0.25, 0.75, 0.75]]).repeat(_COUNTED, 1) * side
        sizes = torch.full((_COUNTED, 2), side)
        return Batch(pixels, Boxes(corners, indices % len(images.classes), indices, sizes), indices)
