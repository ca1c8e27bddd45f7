"""What kinds of errors a detector makes, and what average precision each kind costs.

Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors, ECCV 2020, arXiv:2008.08115.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from reldistill.tasks.detection.metrics.detection_results import (
    LARGE,
    SMALL,
    ImageResult,
    best_of_class,
    overlaps,
    precision_curve,
)

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
SIZES = ("all", "small", "medium", "large")
RIGHT = len(KINDS)  # the kind of a correct detection
FITS, TOUCHES = 0.5, 0.1  # IoU from which a detection fits an object, and from which it is about one at all


@dataclass(frozen=True)
class DetectionErrors:
    """How often each kind of error happens, and how much AP at IoU 0.5 would rise without it.

    Args:
        ap50: average precision at IoU 0.5, in percent.
        counts: kind → size → number of errors.
        costs: kind → size → percentage points of AP that fixing these errors alone would gain.
    """

    ap50: float
    counts: dict[str, dict[str, int]]
    costs: dict[str, dict[str, float]]


@dataclass(frozen=True)
class _Outcomes:
    """Every detection, then every missed object, of all images.

    Args:
        kind: position in KINDS, or RIGHT.
        size: position in SIZES, 1 … 3.
        score: of the detection.
        label: class of the detection, or of the missed object.
        corrected: class that it would be right for once fixed; -1 where the fix removes it.
    """

    kind: Int64[np.ndarray, "m"]
    size: Int64[np.ndarray, "m"]
    score: Float64[np.ndarray, "m"]
    label: Int64[np.ndarray, "m"]
    corrected: Int64[np.ndarray, "m"]


def detection_errors(images: Sequence[ImageResult], *, classes: int) -> DetectionErrors:
    """Sort every wrong detection and every missed object into one kind.

    A detection that takes no object of its class with IoU ≥ 0.5 (best scores first) is, in this order: *localisation*,
    an object of its class has IoU 0.1 … 0.5; *classification*, one of another class has IoU ≥ 0.5; *duplicate*, an
    object of its class with IoU ≥ 0.5 is taken by a better one; *background*, no object has IoU above 0.1; else *both*
    class and place are wrong. *Missed* is an object that no detection took and that no error of localisation or
    classification is about. Detections of which at least half lies in an ignored object of their class are neither
    right nor wrong.

    To fix an error of localisation or classification is to let the best such detection of a free object take it, and
    to remove the others; a missed object is fixed by not counting it; everything else by removing it. An error
    is as large as the object it is about (classification, localisation, missed) or as the detection itself. Rises
    below zero, which rounding to 101 recalls can make, are zero.

    As in COCO's evaluation at most the 100 best detections of a class and image count, so that `ap50` is the AP50
    reported beside it; the toolbox takes the 100 best of an image, whatever their classes.
    """
    outcomes = _joined([_sort(image) for image in images])
    there = np.concatenate([np.zeros(0, np.int64), *(image.true_labels[~image.ignored] for image in images)])
    objects = np.bincount(there, minlength=classes)
    ap50 = _mean_ap(outcomes, objects, np.zeros(len(outcomes.kind), dtype=bool))
    counts: dict[str, dict[str, int]] = {}
    costs: dict[str, dict[str, float]] = {}
    for kind, name in enumerate(KINDS):
        counts[name], costs[name] = {}, {}
        for size, word in enumerate(SIZES):
            chosen = outcomes.kind == kind
            if size:
                chosen &= outcomes.size == size
            counts[name][word] = int(chosen.sum())
            costs[name][word] = max(0.0, _mean_ap(outcomes, objects, chosen) - ap50) if chosen.any() else 0.0
    return DetectionErrors(ap50, counts, costs)


def _joined(parts: Sequence[_Outcomes]) -> _Outcomes:
    empty: dict[str, Any] = {"score": np.zeros(0)}
    names = ("kind", "size", "score", "label", "corrected")
    return _Outcomes(
        *(
            np.concatenate([empty.get(name, np.zeros(0, np.int64)), *(getattr(part, name) for part in parts)])
            for name in names
        )
    )


def _sizes(areas: Float64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """1 small, 2 medium, 3 large."""
    return 1 + (areas >= SMALL).astype(np.int64) + (areas > LARGE)


def _sort(image: ImageResult) -> _Outcomes:
    order = best_of_class(image.scores, image.labels)
    boxes, labels, scores = image.boxes[order], image.labels[order], image.scores[order]
    real = ~image.ignored
    true_labels, areas = image.true_labels[real], image.areas[real]
    overlap = overlaps(boxes, image.true_boxes[real])
    same = labels[:, None] == true_labels[None, :]
    taker = _take(np.where(same, overlap, -1.0))
    taken = taker >= 0
    kinds = np.full(len(boxes), KINDS.index("background"))
    about = np.full(len(boxes), -1)  # the object that an error of localisation or classification is about
    if len(true_labels):
        kinds, about = _kinds(overlap, same, taken)
    kinds[taker[taken]] = RIGHT
    about[taker[taken]] = -1
    kept = (kinds == RIGHT) | ~_in_ignored(image, boxes, labels)
    corrected = np.full(len(boxes), -1)
    firsts, at = np.unique(np.where(kept, about, -1), return_index=True)
    for target, first in zip(firsts, at, strict=True):
        if target >= 0 and not taken[target]:
            corrected[first] = true_labels[target]
    own = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    sizes = _sizes(np.where(about >= 0, areas[about] if len(areas) else own, own))
    missed = ~taken & ~np.isin(np.arange(len(true_labels)), about[kept])
    found = _Outcomes(kinds[kept], sizes[kept], scores[kept], labels[kept], corrected[kept])
    count = int(missed.sum())
    lost = _Outcomes(
        np.full(count, KINDS.index("missed")),
        _sizes(areas[missed]),
        np.full(count, -np.inf),
        true_labels[missed],
        np.full(count, -1),
    )
    return _joined([found, lost])


def _take(overlap: Float64[np.ndarray, "m n"]) -> Int64[np.ndarray, "n"]:
    """Which detection takes each object, or -1: in their order, each the object it overlaps most of those left."""
    left = overlap.copy()
    taker = np.full(overlap.shape[1], -1)
    for detection in np.flatnonzero((overlap >= FITS).any(axis=1)):
        target = int(left[detection].argmax())
        if left[detection, target] >= FITS:
            taker[target] = detection
            left[:, target] = -1.0
    return taker


def _kinds(
    overlap: Float64[np.ndarray, "m n"], same: Bool[np.ndarray, "m n"], taken: Bool[np.ndarray, "n"]
) -> tuple[Int64[np.ndarray, "m"], Int64[np.ndarray, "m"]]:
    """The kind of error of each detection, as if none were right, and the object it is about."""
    of_class, of_others = np.where(same, overlap, 0.0), np.where(same, 0.0, overlap)
    conditions = {
        "localisation": (of_class.max(axis=1) >= TOUCHES) & (of_class.max(axis=1) <= FITS),
        "classification": of_others.max(axis=1) >= FITS,
        "duplicate": (of_class * taken).max(axis=1) >= FITS,
        "background": overlap.max(axis=1) <= TOUCHES,
    }
    kinds = np.select(list(conditions.values()), [KINDS.index(name) for name in conditions], KINDS.index("both"))
    about = np.select(
        [kinds == KINDS.index("localisation"), kinds == KINDS.index("classification")],
        [of_class.argmax(axis=1), of_others.argmax(axis=1)],
        -1,
    )
    return kinds, about


def _in_ignored(
    image: ImageResult, boxes: Float64[np.ndarray, "m 4"], labels: Int64[np.ndarray, "m"]
) -> Bool[np.ndarray, "m"]:
    """Whether each detection lies by at least half in an ignored object of its class."""
    inside = overlaps(boxes, image.true_boxes[image.ignored], over_first=True) >= FITS
    return (inside & (labels[:, None] == image.true_labels[image.ignored][None, :])).any(axis=1)


def _mean_ap(outcomes: _Outcomes, objects: Int64[np.ndarray, "classes"], fixed: Bool[np.ndarray, "m"]) -> float:
    """Average precision at IoU 0.5 and 101 recalls, in percent, over the classes with objects, some errors `fixed`."""
    missed = outcomes.kind == KINDS.index("missed")
    fewer = np.bincount(outcomes.label[missed & fixed], minlength=len(objects))
    right = (outcomes.kind == RIGHT) | (fixed & (outcomes.corrected >= 0))
    labels = np.where(fixed & (outcomes.corrected >= 0), outcomes.corrected, outcomes.label)
    kept = ~missed & ~(fixed & (outcomes.corrected < 0))
    values = [
        _ap(right[kept & (labels == label)], outcomes.score[kept & (labels == label)], int(count - fewer[label]))
        for label, count in enumerate(objects)
        if count
    ]
    return 100 * float(np.mean(values)) if values else float("nan")


def _ap(right: Bool[np.ndarray, "m"], scores: Float64[np.ndarray, "m"], objects: int) -> float:
    if not objects or not len(right):
        return 0.0
    found, precision = precision_curve(right, scores)
    at = np.searchsorted(found / objects, np.linspace(0, 1, 101))
    return float(np.append(precision, 0.0)[at].mean())
