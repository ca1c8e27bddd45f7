from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from drawn_results import random_results
from reldistill.tasks.detection.metrics.detection_results import ImageResult
from reldistill.tasks.detection.metrics.voc_ap import voc_scores


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> float:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    shared = wide * high
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slowly(images: list[ImageResult], label: int) -> tuple[float, float]:
    """(11 points, area) as the development kit's text says it, one detection after the other."""
    detections = []
    for place, image in enumerate(images):
        for i in range(len(image.scores)):
            if image.labels[i] == label:
                detections.append((-image.scores[i], place, i))
    objects = sum(int(((i.true_labels == label) & ~i.ignored).sum()) for i in images)
    taken: set[tuple[int, int]] = set()
    right = wrong = 0
    curve = []
    for _, place, i in sorted(detections):
        image = images[place]
        best, chosen = -1.0, -1
        for j in range(len(image.true_labels)):
            overlap = intersection_over_union(image.boxes[i], image.true_boxes[j])
            if image.true_labels[j] == label and overlap > best:
                best, chosen = overlap, j
        if best >= 0.5:
            if image.ignored[chosen]:
                continue
            if (place, chosen) in taken:
                wrong += 1
            else:
                taken.add((place, chosen))
                right += 1
        else:
            wrong += 1
        curve.append((Fraction(right, objects), Fraction(right, right + wrong)))
    eleven = [max((p for r, p in curve if r >= Fraction(t, 10)), default=Fraction(0)) for t in range(11)]
    recalls = [Fraction(0), *(r for r, _ in curve)]
    area = Fraction(0)
    for i, (recall, _) in enumerate(curve):
        area += (recall - recalls[i]) * max(p for _, p in curve[i:])
    return 100 * float(sum(eleven) / 11), 100 * float(area)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_as_the_slow_reference(seed: int, ties: bool) -> None:
    images = random_results(25, seed=seed, ties=ties)
    found = voc_scores(images, classes=3)
    expected = [slowly(images, label) for label in range(3)]
    np.testing.assert_allclose(found.eleven_points, [eleven for eleven, _ in expected], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.area, [area for _, area in expected], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.values["voc_ap"], np.mean(found.area))
    np.testing.assert_allclose(found.values["voc_ap_11"], np.mean(found.eleven_points))
    assert all(5 < area < 95 for area in found.area)


def result(found: list[tuple[float, tuple]], there: list[tuple], difficult: tuple[int, ...] = ()) -> ImageResult:
    """One image of one class: (score, box) found and the boxes there."""
    return ImageResult(
        0,
        np.array([box for _, box in found], dtype=float).reshape(-1, 4),
        np.array([score for score, _ in found]),
        np.zeros(len(found), dtype=np.int64),
        np.array(there, dtype=float).reshape(-1, 4),
        np.zeros(len(there), dtype=np.int64),
        np.isin(np.arange(len(there)), difficult),
        np.ones(len(there)),
    )


A, B, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (50, 50, 60, 60)


def test_cases_by_hand() -> None:
    def area(*images: ImageResult) -> float:
        return voc_scores(images, classes=1).area[0]

    assert area(result([(0.9, A), (0.8, B)], [A, B])) == 100
    assert area(result([(0.9, A)], [A, B])) == 50
    assert area(result([(0.9, FAR), (0.8, A)], [A])) == 50
    assert area(result([(0.9, A), (0.8, FAR)], [A])) == 100  # what comes after the last hit costs nothing
    assert area(result([(0.9, A), (0.8, A), (0.7, B)], [A, B])) == pytest.approx(100 * (0.5 + 0.5 * 2 / 3))
    assert area(result([(0.9, A), (0.8, A), (0.7, B)], [A, B], difficult=(0,))) == 100  # nor do difficult ones
    assert area(result([(0.9, (0, 0, 10, 5))], [A])) == 100  # an overlap of exactly a half is enough
    assert area(result([(0.9, (0, 0, 10, 4.9))], [A])) == 0
    assert (
        area(result([(0.9, (0, 0, 10, 8)), (0.8, A)], [A])) == 100
    )  # the first is right, the better fitting a duplicate
    assert area(result([], [A])) == 0


def test_eleven_points_are_exact() -> None:
    """Recall 3 / 10 reaches the point 0.3, though 3 * 0.1 > 0.3 in floating point."""
    there = [(20 * i, 0, 20 * i + 10, 10) for i in range(10)]
    found = voc_scores([result([(0.9, box) for box in there[:3]], there)], classes=1)
    assert found.eleven_points[0] == pytest.approx(100 * 4 / 11)
    assert found.area[0] == pytest.approx(30)


def test_a_class_without_objects_has_no_score() -> None:
    images = [result([(0.9, A)], [A], difficult=(0,))]
    found = voc_scores(images, classes=2)
    assert np.isnan(found.area).all()
    assert np.isnan(found.values["voc_ap"])
    assert np.isnan(voc_scores([], classes=1).values["voc_ap_11"])
    assert voc_scores([result([(0.9, A)], [A])], classes=2).values["voc_ap"] == 100
