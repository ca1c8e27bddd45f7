"""COCO's and VOC's scores and TIDE's kinds of errors, by loops over their definitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from drawn_results import random_results
from reldistill.tasks.detection.metrics.coco_ap import NAMES, coco_scores
from reldistill.tasks.detection.metrics.detection_errors import KINDS, detection_errors
from reldistill.tasks.detection.metrics.detection_results import ImageResult
from reldistill.tasks.detection.metrics.resampled_ap import average_precisions, match
from reldistill.tasks.detection.metrics.voc_ap import voc_scores

CLASSES = 3
IOUS = [0.5 + 0.05 * step for step in range(10)]
SIZES = {"": (0, np.inf), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}


def area(box: np.ndarray) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def iou(one: np.ndarray, other: np.ndarray, *, crowd: bool = False) -> float:
    """Of a detection and an object; in a crowd any number fit, so it is how much of the detection lies in it."""
    shared = area(np.concatenate([np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])]))
    return shared / (area(one) if crowd else area(one) + area(other) - shared)


def coco_class(
    images: list[ImageResult], label: int, least: float, size: str, most: int, points: int = 101
) -> tuple[float, float] | None:
    """Average precision and recall of one class at one IoU; None where there is no object of that size."""
    low, high = SIZES[size]
    judged, objects = [], 0
    for image in images:
        mine = [m for m in np.argsort(-image.scores, kind="stable") if image.labels[m] == label][:most]
        there = [n for n in range(len(image.true_labels)) if image.true_labels[n] == label]
        aside = {n: bool(image.ignored[n]) or not low <= image.areas[n] <= high for n in there}
        there.sort(key=lambda n: aside[n])
        objects += sum(not aside[n] for n in there)
        taken: set[int] = set()
        for m in mine:
            best, chosen = min(least, 1 - 1e-10), None
            for n in there:
                if n in taken and not image.ignored[n]:
                    continue
                if chosen is not None and not aside[chosen] and aside[n]:
                    break
                overlap = iou(image.boxes[m], image.true_boxes[n], crowd=bool(image.ignored[n]))
                if overlap >= best:
                    best, chosen = overlap, n
            if chosen is not None:
                taken.add(chosen)
                judged.append((image.scores[m], not aside[chosen], aside[chosen]))
            else:
                judged.append((image.scores[m], False, not low <= area(image.boxes[m]) <= high))
    if not objects:
        return None
    judged = [one for one in sorted(judged, key=lambda one: -one[0]) if not one[2]]
    right = np.cumsum([one[1] for one in judged]) if judged else np.zeros(0)
    precision = right / np.arange(1, len(right) + 1)
    reached = [
        max([p for p, r in zip(precision, right / objects, strict=True) if r >= recall], default=0.0)
        for recall in np.linspace(0, 1, points)
    ]
    return float(np.mean(reached)), float(right[-1] / objects) if len(right) else 0.0


def coco(images: list[ImageResult], name: str) -> float:
    """One of COCO's twelve numbers, in percent."""
    kind, _, size = name.partition("_")
    ious = {"ap50": [0.5], "ap75": [0.75]}.get(kind, IOUS)
    most = {"ar1": 1, "ar10": 10}.get(kind, 100)
    scores = [coco_class(images, label, least, size, most) for label in range(CLASSES) for least in ious]
    return 100 * float(np.mean([one[kind.startswith("ar")] for one in scores if one is not None]))


@pytest.mark.parametrize("seed", [1, 2])
def test_coco(seed: int) -> None:
    images = random_results(16, classes=CLASSES, seed=seed)
    found = coco_scores(images, classes=CLASSES).values
    for name in NAMES:
        assert found[name] == pytest.approx(coco(images, name), abs=1e-9), name
    assert len({round(value, 3) for value in found.values()}) >= 9, "numbers that tell"


def test_ap_of_resampled_images() -> None:
    images = random_results(8, classes=CLASSES, seed=3)
    times = np.array([[1, 1, 1, 1, 1, 1, 1, 1], [0, 2, 1, 3, 0, 0, 1, 1]])
    found = average_precisions(match(images, classes=CLASSES), times)
    for draw, one in zip(times, found, strict=True):
        drawn = [image for image, count in zip(images, draw, strict=True) for _ in range(count)]
        assert one == pytest.approx(coco(drawn, "ap"), abs=1e-9)


def voc(images: list[ImageResult], label: int) -> tuple[float, float] | None:
    """By eleven points and by area (Everingham et al. 2010, §4.2; the development kit of 2010)."""
    detections = sorted(
        (
            (-image.scores[m], place, m)
            for place, image in enumerate(images)
            for m in range(len(image.scores))
            if image.labels[m] == label
        )
    )
    objects = sum(int(((image.true_labels == label) & ~image.ignored).sum()) for image in images)
    if not objects:
        return None
    taken: set[tuple[int, int]] = set()
    right, wrong, curve = 0, 0, []
    for _, place, m in detections:
        image = images[place]
        fits = [
            (iou(image.boxes[m], box), n) for n, box in enumerate(image.true_boxes) if image.true_labels[n] == label
        ]
        best, n = max(fits, default=(0.0, -1), key=lambda one: one[0])
        if best >= 0.5 and image.ignored[n]:
            continue
        if best >= 0.5 and (place, n) not in taken:
            taken.add((place, n))
            right += 1
        else:
            wrong += 1
        curve.append((right, right / (right + wrong)))

    def best_from(least: int) -> float:
        """The best precision once so many tenths of the objects, in whole numbers, are found."""
        return max([p for found, p in curve if 10 * found >= least], default=0.0)

    eleven = np.mean([best_from(tenth * objects) for tenth in range(11)])
    under = sum(best_from(10 * count) for count in range(1, objects + 1)) / objects
    return 100 * float(eleven), 100 * float(under)


@pytest.mark.parametrize("seed", [4, 5])
def test_voc(seed: int) -> None:
    images = random_results(15, classes=CLASSES, seed=seed)
    found = voc_scores(images, classes=CLASSES)
    for label in range(CLASSES):
        assert (found.eleven_points[label], found.area[label]) == pytest.approx(voc(images, label), abs=1e-9)


def line(objects: int, found: int, stray: int = 0, *, label: int = 0) -> ImageResult:
    """Objects of one class side by side, of which the first so many are found exactly, after so many strays."""
    left = 50.0 * np.arange(objects)
    boxes = np.stack([left, 0 * left, left + 40, 0 * left + 40], axis=1)
    nowhere = np.array([[0.0, 500 + 50 * place, 40, 540 + 50 * place] for place in range(stray)]).reshape(-1, 4)
    labels = np.full(objects, label)
    return ImageResult(
        0, np.concatenate([nowhere, boxes[:found]]), np.linspace(1, 0.1, stray + found), np.full(stray + found, label),
        boxes, labels, np.zeros(objects, bool), np.full(objects, 1600.0),
    )  # fmt: skip


def test_eleven_points_at_exact_tenths() -> None:
    """Three of ten found reach the recalls 0, 0.1, 0.2 and 0.3; a sum of floats calls 0.3 more than 3/10."""
    assert 3 * 0.1 > 3 / 10
    assert voc_scores([line(10, 3)], classes=1).eleven_points[0] == pytest.approx(100 * 4 / 11)
    assert voc_scores([line(10, 7)], classes=1).eleven_points[0] == pytest.approx(100 * 8 / 11)


def kinds(image: ImageResult) -> dict[str, int]:
    """Bolya et al. 2020, §2.2, of one image without ignored objects."""
    order = np.argsort(-image.scores, kind="stable")
    count = len(image.true_labels)
    overlap = np.array([[iou(image.boxes[m], image.true_boxes[n]) for n in range(count)] for m in range(len(order))])
    taken: dict[int, int] = {}
    for m in order:
        free = [n for n in range(count) if image.true_labels[n] == image.labels[m] and n not in taken]
        best = max(free, key=lambda n: overlap[m, n], default=None)
        if best is not None and overlap[m, best] >= 0.5:
            taken[best] = m
    found, covered = dict.fromkeys(KINDS, 0), set()
    for m in set(order) - set(taken.values()):
        mine = [n for n in range(count) if image.true_labels[n] == image.labels[m]]
        others = [n for n in range(count) if n not in mine]
        near = max(mine, key=lambda n: overlap[m, n], default=None)
        other = max(others, key=lambda n: overlap[m, n], default=None)
        if near is not None and 0.1 <= overlap[m, near] <= 0.5:
            found["localisation"] += 1
            covered.add(near)
        elif other is not None and overlap[m, other] >= 0.5:
            found["classification"] += 1
            covered.add(other)
        elif any(overlap[m, n] >= 0.5 and n in taken for n in mine):
            found["duplicate"] += 1
        elif max(overlap[m], default=0.0) <= 0.1:
            found["background"] += 1
        else:
            found["both"] += 1
    found["missed"] = sum(n not in taken and n not in covered for n in range(count))
    return found


def test_kinds_of_errors() -> None:
    images = [replace(image, ignored=np.zeros_like(image.ignored)) for image in random_results(40, classes=2, seed=6)]
    expected = [kinds(image) for image in images]
    counts = detection_errors(images, classes=2).counts
    for kind in KINDS:
        assert counts[kind]["all"] == sum(one[kind] for one in expected) > 0


@pytest.mark.parametrize("stray", [0, 60, 99, 100, 130])
def test_only_the_hundred_best_of_a_class_and_image_count(stray: int) -> None:
    """COCO's limit holds for the errors too, so that the AP50 they start from is the reported one."""
    first, second = line(4, 4, stray), line(4, 4, 40, label=1)
    both = ImageResult(
        0,
        *(np.concatenate([getattr(one, name) for one in (first, second)]) for name in ("boxes", "scores", "labels")),
        *(np.concatenate([getattr(one, name) for one in (first, second)])
          for name in ("true_boxes", "true_labels", "ignored", "areas")),
    )  # fmt: skip
    judged = detection_errors([both], classes=2)
    assert judged.ap50 == pytest.approx(coco_scores([both], classes=2).values["ap50"], abs=1e-9)
    assert judged.counts["background"]["all"] == min(stray, 100) + 40
    assert judged.counts["missed"]["all"] == 4 - max(0, min(4, 100 - stray))
