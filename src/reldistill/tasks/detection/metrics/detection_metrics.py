"""How well a detector does on a data set, gathered batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, distributed

from reldistill.tasks.detection.boxes import Boxes
from reldistill.tasks.detection.metrics.coco_ap import CocoScores, coco_scores
from reldistill.tasks.detection.metrics.detection_errors import DetectionErrors, detection_errors
from reldistill.tasks.detection.metrics.detection_results import ImageResult
from reldistill.tasks.detection.metrics.voc_ap import VocScores, voc_scores


class DetectionMetrics:
    """COCO's and VOC's average precision, and kinds of errors, of detections in any number of images.

    What was found in each image is kept (`images`), so that scores can be resampled over images later.

    Args:
        classes: the class names; a label is a position in them.

    >>> boxes = Boxes(
    ...     torch.tensor([[0.0, 0, 40, 40]]), torch.tensor([0]), torch.tensor([0]), torch.tensor([[64, 64]])
    ... )
    >>> found = {"boxes": torch.tensor([[0.0, 0, 40, 38]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
    >>> metrics = DetectionMetrics(["cat"])
    >>> metrics.update([found], boxes, torch.tensor([5]))
    >>> round(metrics.compute()["ap50"], 6)
    100.0
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._images: dict[int, ImageResult] = {}

    @property
    def images(self) -> list[ImageResult]:
        """Every image so far, in the order of the data set."""
        return [self._images[index] for index in sorted(self._images)]

    def update(self, detections: Sequence[Mapping[str, Tensor]], boxes: Boxes, indices: Tensor) -> None:
        """Add the images of one batch.

        Args:
            detections: for each image `boxes` (m, 4), left, top, right, bottom in pixels of the batch's images,
                `scores` (m,) and `labels` (m,), class indices 0 … K − 1, as torchvision's detectors give them but
                for the labels. Boxes or scores that are not finite are left out.
            boxes: the objects that are there, the ignored ones included.
            indices: (B,) position of each image in its data set; one that was there before is replaced.

        Raises:
            ValueError: if there are not as many detections as images, or a label is none of the classes'.
        """
        if not len(detections) == len(indices) == len(boxes.sizes):
            raise ValueError(
                f"detections: expected one entry for each of {len(boxes.sizes)} images (and {len(indices)} indices), "
                f"got {len(detections)}"
            )
        there = _arrays(boxes)
        for row, (index, found) in enumerate(zip(indices.tolist(), detections, strict=True)):
            mine = there["images"] == row
            corners, scores = _array(found["boxes"]).reshape(-1, 4), _array(found["scores"])
            labels = _array(found["labels"]).astype(np.int64)
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
                raise ValueError(
                    f"labels: expected class indices 0 … {len(self.classes) - 1}, got {labels.min()} … {labels.max()}"
                )
            sound = np.isfinite(corners).all(axis=1) & np.isfinite(scores)
            self._images[index] = ImageResult(
                index,
                corners[sound],
                scores[sound],
                labels[sound],
                *(there[name][mine] for name in ("corners", "labels", "ignored", "areas")),
            )

    def merge(self, images: Iterable[ImageResult]) -> None:
        """Add images that were gathered elsewhere."""
        self._images |= {image.index: image for image in images}

    def gather(self) -> None:
        """Have the images of all processes; every process of a distributed run has to call it."""
        if distributed.is_available() and distributed.is_initialized():
            parts: list[list[ImageResult]] = [[] for _ in range(distributed.get_world_size())]
            distributed.all_gather_object(parts, self.images)
            for part in parts:
                self.merge(part)

    def compute(self) -> dict[str, float]:
        """COCO's twelve numbers (`coco_ap.NAMES`), `voc_ap` and `voc_ap_11`, in percent; nan where there is nothing."""
        return {**self.coco().values, **self.voc().values}

    def coco(self) -> CocoScores:
        """COCO's scores, by class as well."""
        return coco_scores(self.images, classes=len(self.classes))

    def voc(self) -> VocScores:
        """VOC's scores, by class as well."""
        return voc_scores(self.images, classes=len(self.classes))

    def errors(self) -> DetectionErrors:
        """How often each kind of error happens and what it costs, by size of the object."""
        return detection_errors(self.images, classes=len(self.classes))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _arrays(boxes: Boxes) -> dict[str, np.ndarray]:
    corners = _array(boxes.corners).reshape(-1, 4)
    areas = (corners[:, 2:] - corners[:, :2]).prod(axis=1) if boxes.areas is None else _array(boxes.areas)
    ignored = np.zeros(len(corners), bool) if boxes.ignored is None else _array(boxes.ignored).astype(bool)
    labels, images = (_array(part).astype(np.int64) for part in (boxes.labels, boxes.images))
    return {"corners": corners, "labels": labels, "ignored": ignored, "areas": areas, "images": images}
