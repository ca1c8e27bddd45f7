"""What a detector found in each image, beside what is there: plain arrays that metrics and resampling work on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float64, Int64

SMALL, LARGE = 32.0**2, 96.0**2  # COCO's limits of area, in pixels
MOST = 100  # COCO's limit of detections of a class in an image


@dataclass(frozen=True)
class ImageResult:
    """One image.

    Args:
        index: its position in its data set.
        boxes: (m, 4) found, left, top, right, bottom in pixels, float64.
        scores: (m,) float64.
        labels: (m,) class index, int64.
        true_boxes: (n, 4) there, float64.
        true_labels: (n,) int64.
        ignored: (n,) bool: finding or missing these is neither right nor wrong.
        areas: (n,) pixels of the objects themselves, float64.
    """

    index: int
    boxes: Float64[np.ndarray, "m 4"]
    scores: Float64[np.ndarray, "m"]
    labels: Int64[np.ndarray, "m"]
    true_boxes: Float64[np.ndarray, "n 4"]
    true_labels: Int64[np.ndarray, "n"]
    ignored: Bool[np.ndarray, "n"]
    areas: Float64[np.ndarray, "n"]


FOUND, THERE = ("boxes", "scores", "labels"), ("true_boxes", "true_labels", "ignored", "areas")


def to_arrays(images: Sequence[ImageResult]) -> dict[str, np.ndarray]:
    """All images in a few arrays, for a file: every field joined, and how many boxes each image has."""
    arrays = {"index": np.array([image.index for image in images], dtype=np.int64)}
    for counts, names in (("found", FOUND), ("there", THERE)):
        arrays[counts] = np.array([len(getattr(image, names[0])) for image in images], dtype=np.int64)
        for name in names:
            arrays[name] = np.concatenate([getattr(image, name) for image in images])
    return arrays


def from_arrays(arrays: Mapping[str, np.ndarray]) -> list[ImageResult]:
    """The images that `to_arrays` joined."""
    parts: dict[str, list[np.ndarray]] = {}
    for counts, names in (("found", FOUND), ("there", THERE)):
        ends = np.cumsum(arrays[counts])[:-1]
        parts |= {name: np.split(arrays[name], ends) for name in names}
    rows = zip(*(parts[field.name] for field in fields(ImageResult)[1:]), strict=True)
    return [ImageResult(int(index), *row) for index, row in zip(arrays["index"], rows, strict=True)]


def overlaps(
    boxes: Float64[np.ndarray, "m 4"], others: Float64[np.ndarray, "n 4"], *, over_first: bool = False
) -> Float64[np.ndarray, "m n"]:
    """(m, n) intersection over union of (m, 4) and (n, 4) boxes; with `over_first` over the area of the first alone."""
    corner = np.maximum(boxes[:, None, :2], others[None, :, :2])
    opposite = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(opposite - corner, 0, None).prod(axis=2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None]
    whole = area if over_first else area + (others[:, 2:] - others[:, :2]).prod(axis=1)[None, :] - shared
    return shared / np.maximum(whole, np.finfo(np.float64).tiny)


def best_of_class(
    scores: Float64[np.ndarray, "m"], labels: Int64[np.ndarray, "m"], most: int = MOST
) -> Int64[np.ndarray, "kept"]:
    """Positions of an image's detections that count, best scores first: at most `most` of each class.

    >>> best_of_class(np.array([0.1, 0.9, 0.5, 0.2]), np.array([0, 0, 0, 1]), most=2).tolist()
    [1, 2, 3]
    """
    order = np.argsort(-scores, kind="stable")
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.searchsorted(labels[by_class], labels[by_class])
    kept = np.zeros(len(scores), dtype=bool)
    kept[by_class[np.arange(len(scores)) - starts < most]] = True
    return order[kept[order]]


def precision_curve(
    right: Bool[np.ndarray, "m"], scores: Float64[np.ndarray, "m"]
) -> tuple[Int64[np.ndarray, "m"], Float64[np.ndarray, "m"]]:
    """Down the detections of a class, best scores first: how many were right, and the best precision from there on."""
    found = np.cumsum(right[np.argsort(-scores, kind="stable")])
    precision = found / np.arange(1, len(found) + 1)
    return found, np.maximum.accumulate(precision[::-1])[::-1]
