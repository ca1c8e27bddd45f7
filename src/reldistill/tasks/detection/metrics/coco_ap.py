"""COCO's average precision and recall of boxes, in percent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from reldistill.tasks.detection.metrics.detection_results import ImageResult

NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


@dataclass(frozen=True)
class CocoScores:
    """COCO's summary.

    Args:
        values: name → percent, see NAMES; nan where there is no object to find, e.g. no small one.
        by_class: average precision of each class in percent; nan for classes without objects.
    """

    values: dict[str, float]
    by_class: tuple[float, ...]


def coco_scores(images: Sequence[ImageResult], *, classes: int) -> CocoScores:
    """Mean of average precision over IoU 0.5, 0.55 … 0.95 and over classes, and its relatives.

    Ignored objects are COCO's crowds: any number of detections may lie in one, and count for nothing. An object is
    small below 32² pixels and large above 96² by the area of the object itself. At most the 100 best detections of a
    class and image count. Images may come several times, as in a bootstrap.

    Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014, arXiv:1405.0312, and its evaluation code, which
    the package faster-coco-eval reproduces.
    """
    true, found = _dataset(images, classes, found=False), _dataset(images, classes, found=True)
    if not images or not true.anns:
        return CocoScores(dict.fromkeys(NAMES, np.nan), (np.nan,) * classes)
    evaluation = COCOeval_faster(true, found, "bbox", print_function=_nowhere)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    stats = [100 * float(stat) if stat >= 0 else np.nan for stat in evaluation.stats[: len(NAMES)]]
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; of all areas, at most 100 each
    means = np.where((precision >= 0).all(axis=(0, 1)), 100 * precision.mean(axis=(0, 1)), np.nan)
    return CocoScores(dict(zip(NAMES, stats, strict=True)), tuple(float(mean) for mean in means))


def _nowhere(*_: object) -> None:
    pass


def _dataset(images: Sequence[ImageResult], classes: int, *, found: bool) -> COCO:
    """The detections, or the objects there, as the package takes them; ids begin at 1, since it takes 0 for none."""
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, 1):
        boxes, labels = (image.boxes, image.labels) if found else (image.true_boxes, image.true_labels)
        sides = boxes[:, 2:] - boxes[:, :2]
        areas = sides.prod(axis=1) if found else image.areas
        crowds = np.zeros(len(boxes), dtype=bool) if found else image.ignored
        rows = np.concatenate([boxes[:, :2], sides], axis=1).tolist()
        for i, (label, box, area, crowd) in enumerate(
            zip(labels.tolist(), rows, areas.tolist(), crowds.tolist(), strict=True)
        ):
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1}
            annotation |= {"bbox": box, "area": area, "iscrowd": int(crowd)}
            if found:
                annotation["score"] = float(image.scores[i])
            annotations.append(annotation)
    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": number} for number in range(1, len(images) + 1)],
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": str(label)} for label in range(classes)],
    }
    dataset.createIndex()
    return dataset
