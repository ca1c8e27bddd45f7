"""Pascal VOC's average precision of boxes, in percent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from reldistill.tasks.detection.metrics.detection_results import ImageResult, overlaps, precision_curve

OVERLAP = 0.5


@dataclass(frozen=True)
class VocScores:
    """Average precision at IoU 0.5, in percent, of each class; nan for classes without objects.

    Args:
        eleven_points: the mean of the precision at recall 0, 0.1 … 1, as of 2007.
        area: the area under the curve of precision over recall, as from 2010 on.
    """

    eleven_points: tuple[float, ...]
    area: tuple[float, ...]

    @property
    def values(self) -> dict[str, float]:
        """The means over classes."""
        return {"voc_ap_11": _mean(self.eleven_points), "voc_ap": _mean(self.area)}


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def voc_scores(images: Sequence[ImageResult], *, classes: int) -> VocScores:
    """A detection is right where the object of its class that it overlaps most is overlapped by at least 0.5.

    The second detection of an object is wrong, however well it fits. A detection of an ignored (difficult) object is
    neither right nor wrong. Precision at a recall is the best at this recall or any higher one. Recalls are compared
    with tenths exactly, as the definition has it; programs that add up 0.1 in floats miss 0.3, 0.6 and 0.7 (three of
    ten objects found by three detections are 36.4 here and 27.3 there).

    Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 2010, and its development kit.
    """
    judged = [_judge(image) for image in images]
    right = np.concatenate([np.zeros(0, bool), *(one for one, _ in judged)])
    counted = np.concatenate([np.zeros(0, bool), *(one for _, one in judged)])
    scores = np.concatenate([np.zeros(0), *(image.scores for image in images)])
    labels = np.concatenate([np.zeros(0, np.int64), *(image.labels for image in images)])
    there = np.concatenate([np.zeros(0, np.int64), *(image.true_labels[~image.ignored] for image in images)])
    eleven, area = [], []
    for label in range(classes):
        mine = counted & (labels == label)
        found, precision = precision_curve(right[mine], scores[mine])
        objects = int((there == label).sum())
        eleven.append(100 * _eleven_points(found, precision, objects) if objects else float("nan"))
        area.append(100 * _area(found, precision, objects) if objects else float("nan"))
    return VocScores(tuple(eleven), tuple(area))


def _judge(image: ImageResult) -> tuple[Bool[np.ndarray, "m"], Bool[np.ndarray, "m"]]:
    """Whether each detection is right, and whether it counts at all."""
    right = np.zeros(len(image.scores), dtype=bool)
    counted = np.ones(len(image.scores), dtype=bool)
    if not len(image.true_labels) or not len(right):
        return right, counted
    overlap = overlaps(image.boxes, image.true_boxes)
    overlap[image.labels[:, None] != image.true_labels[None, :]] = -1.0
    best = overlap.argmax(axis=1)
    fits = overlap.max(axis=1) >= OVERLAP
    counted[fits & image.ignored[best]] = False
    order = np.argsort(-image.scores, kind="stable")
    candidates = order[(fits & counted)[order]]
    _, firsts = np.unique(best[candidates], return_index=True)
    right[candidates[firsts]] = True
    return right, counted


def _eleven_points(found: Int64[np.ndarray, "m"], precision: Float64[np.ndarray, "m"], objects: int) -> float:
    # recall ≥ tenths / 10 in whole numbers, since 3 / 10 and 3 * 0.1 differ
    return float(np.mean([precision[10 * found >= tenths * objects].max(initial=0.0) for tenths in range(11)]))


def _area(found: Int64[np.ndarray, "m"], precision: Float64[np.ndarray, "m"], objects: int) -> float:
    return float((precision * np.diff(found, prepend=0)).sum() / objects)  # recall rises by 1 / objects at each hit
