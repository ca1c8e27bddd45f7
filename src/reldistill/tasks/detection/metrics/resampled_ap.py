"""COCO's average precision under another draw of images: detections are matched once and weighed many times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from reldistill.tasks.detection.metrics.detection_results import MOST, ImageResult, overlaps

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
_NUMBERS = 1 << 22  # held at a time


@dataclass(frozen=True)
class Matches:
    """Every detection, judged at each IoU, and the objects there are.

    Args:
        image: (m,) which image, in their order.
        label: (m,) class index.
        score: (m,).
        right: (m, 10) whether it takes an object, at each of `IOUS`.
        counted: (m, 10) whether it is right or wrong at all: one that takes an ignored object is neither.
        objects: (images, classes) how many objects are to be found.
    """

    image: Int64[np.ndarray, "m"]
    label: Int64[np.ndarray, "m"]
    score: Float64[np.ndarray, "m"]
    right: Bool[np.ndarray, "m 10"]
    counted: Bool[np.ndarray, "m 10"]
    objects: Int64[np.ndarray, "images classes"]


def match(images: Sequence[ImageResult], *, classes: int) -> Matches:
    """Judge every detection as COCO's evaluation does: best scores first, each takes the free object it fits best."""
    objects = np.zeros((len(images), classes), dtype=np.int64)
    parts: list[tuple[np.ndarray, ...]] = []
    for number, image in enumerate(images):
        np.add.at(objects[number], image.true_labels[~image.ignored], 1)
        for label in np.unique(image.labels):
            mine = np.flatnonzero(image.labels == label)
            mine = mine[np.argsort(-image.scores[mine], kind="stable")][:MOST]
            right, counted = _judge(image, mine, int(label))
            parts.append((np.full(len(mine), number), image.labels[mine], image.scores[mine], right, counted))
    empty = (np.zeros(0, int), np.zeros(0, int), np.zeros(0), np.zeros((0, 10), bool), np.zeros((0, 10), bool))
    joined = [np.concatenate(columns) for columns in zip(empty, *parts, strict=True)]
    return Matches(joined[0], joined[1], joined[2], joined[3], joined[4], objects)


def _judge(
    image: ImageResult, mine: Int64[np.ndarray, "m"], label: int
) -> tuple[Bool[np.ndarray, "m 10"], Bool[np.ndarray, "m 10"]]:
    """(detections, 10) right and counted, of one class in one image."""
    right, counted = np.zeros((len(mine), len(IOUS)), bool), np.ones((len(mine), len(IOUS)), bool)
    there = np.flatnonzero(image.true_labels == label)
    there = there[np.argsort(image.ignored[there], kind="stable")]  # those to be found come first
    if not len(there):
        return right, counted
    ignored = image.ignored[there]
    overlap = overlaps(image.boxes[mine], image.true_boxes[there])
    if ignored.any():
        overlap[:, ignored] = overlaps(image.boxes[mine], image.true_boxes[there[ignored]], over_first=True)
    for place, least in enumerate(IOUS):
        free = np.ones(len(there), bool)
        for row in range(len(mine)):
            fitting = free & (overlap[row] >= min(least, 1 - 1e-10))
            if not fitting.any():
                continue
            # an object to be found goes before an ignored one; of equals COCO takes the last
            kind = fitting & ~ignored if (fitting & ~ignored).any() else fitting
            values = np.where(kind, overlap[row], -1.0)
            chosen = len(values) - 1 - int(values[::-1].argmax())
            counted[row, place] = not ignored[chosen]
            right[row, place] = not ignored[chosen]
            free[chosen] = ignored[chosen]  # any number of detections may lie in an ignored one
    return right, counted


def average_precisions(matches: Matches, times: Int64[np.ndarray, "draws images"]) -> Float64[np.ndarray, "draws"]:
    """AP in percent of draws of images.

    Args:
        matches: of `match`.
        times: (draws, images) how often each image is in a draw.

    Returns:
        (draws,); nan for a draw without objects.
    """
    total, present = np.zeros(len(times)), np.zeros(len(times))
    for label in range(matches.objects.shape[1]):
        there = times @ matches.objects[:, label]
        mine = np.flatnonzero(matches.label == label)
        mine = mine[np.argsort(-matches.score[mine], kind="stable")]
        present += there > 0
        if len(mine):
            size = max(1, _NUMBERS // (len(mine) * len(IOUS)))
            for start in range(0, len(times), size):
                part = slice(start, start + size)
                total[part] += _of_class(matches, mine, times[part], there[part])
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * total / present


def _of_class(
    matches: Matches,
    mine: Int64[np.ndarray, "m"],
    times: Int64[np.ndarray, "draws images"],
    there: Int64[np.ndarray, "draws"],
) -> Float64[np.ndarray, "draws"]:
    """(draws,) of one class, its detections best first; 0 where it has no object."""
    weight = times[:, matches.image[mine], None].astype(np.float64)
    right = np.cumsum(weight * matches.right[mine], axis=1)
    counted = np.cumsum(weight * matches.counted[mine], axis=1)
    precision = right / np.maximum(counted, np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # the precision at a recall belongs to the first detection that reaches it
    reached = np.searchsorted(RECALLS, right / np.maximum(there, 1)[:, None, None], side="right")
    new = np.diff(reached, axis=1, prepend=0)
    return np.where(there > 0, (new * best).sum(axis=1).mean(axis=1) / len(RECALLS), 0.0)
