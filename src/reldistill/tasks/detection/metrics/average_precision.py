"""How a detector is measured while it trains and afterwards: by what it would find when deployed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from reldistill.core.safe_files import write_arrays
from reldistill.core.types import Batch
from reldistill.tasks.detection.boxes import Boxes
from reldistill.tasks.detection.metrics.detection_metrics import DetectionMetrics
from reldistill.tasks.detection.metrics.detection_results import to_arrays

DETECTIONS_FILE = "val_detections.npz"


@runtime_checkable
class FindsObjects(Protocol):
    """A network that finds objects: see `tasks.detection.networks.detector_extract.DetectorExtractor`."""

    def detect(self, batch: Batch) -> list[dict[str, Tensor]]:
        """For each image `boxes`, `labels` and `scores`."""
        ...


class AveragePrecision:
    """COCO's and VOC's average precision and recall in percent, by `detect` in full precision on whole images.

    Args:
        classes: names of the data's classes.
    """

    score = "AP"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.start("cpu")

    def start(self, device: torch.device | str) -> None:
        """Forget everything."""
        self.metrics = DetectionMetrics(self.classes)
        self.found: dict[str, float] = {}

    @torch.no_grad()
    def update(self, network: FindsObjects, batch: Batch) -> None:
        """Measure one batch of images at their own size."""
        boxes = batch.targets_as(Boxes)
        if batch.indices is None:
            raise ValueError("a detector is measured on batches with indices: give Batch(images, boxes, indices)")
        # half precision would move the corners of large boxes by pixels
        with torch.autocast(batch.images.device.type, enabled=False):
            self.metrics.update(network.detect(batch), boxes, batch.indices)

    def values(self) -> dict[str, float]:
        """`AP`, `AP50`, … by name, without those for which there is no object; every process has to call it."""
        self.metrics.gather()
        self.found = {_shown(name): value for name, value in self.metrics.compute().items() if math.isfinite(value)}
        return self.found

    def write(self, folder: Path) -> str:
        """Keep detections and objects, image by image, for resampling the images."""
        write_arrays(folder / DETECTIONS_FILE, **to_arrays(self.metrics.images))
        return DETECTIONS_FILE


def _shown(name: str) -> str:
    """`ap_small` → `AP small`: as papers write it.

    >>> _shown("ap50"), _shown("ar_small"), _shown("voc_ap_11")
    ('AP50', 'AR small', 'VOC AP 11')
    """
    return " ".join(word.upper() if word[:2] in ("ap", "ar", "vo") else word for word in name.split("_"))
