from __future__ import annotations

import numpy as np
import pytest

from drawn_results import random_results
from reldistill.tasks.detection.metrics.coco_ap import coco_scores
from reldistill.tasks.detection.metrics.detection_errors import KINDS, SIZES, DetectionErrors, detection_errors
from reldistill.tasks.detection.metrics.detection_results import ImageResult

A, B = (0, 0, 40, 40), (100, 0, 140, 40)  # medium
FAR = (200, 200, 220, 220)  # small
SHIFTED = (0, 20, 40, 60)  # a third of A
CLOSE = (0, 4, 40, 44)  # more than a half of A


def errors(
    found: list[tuple[float, int, tuple]], there: list[tuple[int, tuple]], *, crowds: tuple[int, ...] = ()
) -> DetectionErrors:
    """One image of two classes: (score, class, box) found and (class, box) there."""
    boxes = np.array([box for _, box in there], dtype=float).reshape(-1, 4)
    image = ImageResult(
        0,
        np.array([box for _, _, box in found], dtype=float).reshape(-1, 4),
        np.array([score for score, _, _ in found]),
        np.array([label for _, label, _ in found], dtype=np.int64),
        boxes,
        np.array([label for label, _ in there], dtype=np.int64),
        np.isin(np.arange(len(there)), crowds),
        (boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
    )
    return detection_errors([image], classes=2)


def counted(found: DetectionErrors) -> dict[str, int]:
    return {kind: sizes["all"] for kind, sizes in found.counts.items() if sizes["all"]}


def test_one_case_of_each_kind() -> None:
    there = [(0, A), (1, B)]
    right = [(0.9, 0, A), (0.9, 1, B)]
    assert counted(errors(right, there)) == {}
    assert errors(right, there).ap50 == pytest.approx(100)
    cases: list[tuple[list[tuple[float, int, tuple]], dict[str, int]]] = [
        ([*right, (0.5, 0, CLOSE)], {"duplicate": 1}),
        ([*right, (0.5, 0, FAR)], {"background": 1}),
        ([*right, (0.5, 1, SHIFTED)], {"both": 1}),
        ([*right, (0.5, 0, SHIFTED)], {"localisation": 1}),
        ([*right, (0.5, 1, A)], {"classification": 1}),
        ([(0.9, 0, A)], {"missed": 1}),
        ([(0.9, 0, A), (0.8, 0, B)], {"classification": 1}),  # B is covered by that error, so not missed as well
        ([(0.9, 0, SHIFTED), (0.9, 1, B)], {"localisation": 1}),
        ([(0.9, 1, SHIFTED), (0.9, 1, B)], {"both": 1, "missed": 1}),
        ([], {"missed": 2}),
    ]
    for found, expected in cases:
        assert counted(errors(found, there)) == expected
    assert counted(errors([(0.9, 0, A)], [])) == {"background": 1}


def test_the_better_score_takes_the_object() -> None:
    found = errors([(0.5, 0, A), (0.9, 0, CLOSE)], [(0, A)])
    assert counted(found) == {"duplicate": 1}
    assert found.ap50 == pytest.approx(100)


def test_costs_by_hand() -> None:
    """What the average precision would be if the errors of one kind were fixed, the others left."""
    there = [(0, A), (1, B)]
    halved = errors([(0.9, 0, FAR), (0.8, 0, A), (0.9, 1, B)], there)
    assert halved.ap50 == pytest.approx(75)
    assert halved.costs["background"]["all"] == pytest.approx(25)
    assert halved.costs["background"]["small"] == pytest.approx(25)
    assert halved.costs["background"]["medium"] == 0
    shifted = errors([(0.9, 0, SHIFTED), (0.9, 1, B)], there)
    assert shifted.ap50 == pytest.approx(50)
    assert shifted.costs["localisation"]["all"] == shifted.costs["localisation"]["medium"] == pytest.approx(50)
    named = errors([(0.9, 1, A), (0.8, 1, B)], there)  # fixed, the first is right for class 0, no longer wrong for 1
    assert named.ap50 == pytest.approx(25)
    assert named.costs["classification"]["all"] == pytest.approx(75)
    twice = errors([(0.9, 0, SHIFTED), (0.8, 0, SHIFTED), (0.9, 1, B)], there)
    assert counted(twice) == {"localisation": 2}
    assert twice.costs["localisation"]["all"] == pytest.approx(50)  # one of them takes A, the other goes
    lost = errors([(0.9, 0, A)], [(0, A), (0, B)])
    assert lost.ap50 == pytest.approx(100 * 51 / 101)
    assert lost.costs["missed"]["all"] == pytest.approx(100 * 50 / 101)
    spare = errors([(0.9, 0, SHIFTED), (0.8, 0, A)], [(0, A), (0, B)])  # A is taken: the fix removes the other
    assert counted(spare) == {"localisation": 1, "missed": 1}
    assert spare.ap50 + spare.costs["localisation"]["all"] == pytest.approx(100 * 51 / 101)
    again = errors([(0.9, 0, A), (0.8, 0, CLOSE), (0.7, 0, B)], [(0, A), (0, B)])
    assert again.costs["duplicate"]["all"] == pytest.approx(100 - again.ap50)


def test_crowds_are_neither() -> None:
    there = [(0, A), (0, (100, 0, 200, 100))]
    found = [(0.9, 0, A), (0.95, 0, (110, 10, 130, 30)), (0.7, 0, (120, 20, 140, 40)), (0.6, 1, (120, 20, 140, 40))]
    judged = errors(found, there, crowds=(1,))
    assert counted(judged) == {"background": 1}  # only the one of another class than the crowd's
    assert judged.ap50 == pytest.approx(100)
    assert counted(errors([], there, crowds=(1,))) == {"missed": 1}


def test_sizes_are_of_the_object_or_of_the_stray_detection() -> None:
    large = (0, 200, 100, 300)
    judged = errors([(0.9, 0, FAR), (0.8, 0, (0, 260, 100, 360))], [(0, large), (1, (300, 300, 310, 310))])
    of_size = {
        (kind, size): n for kind, sizes in judged.counts.items() for size, n in sizes.items() if n and size != "all"
    }
    assert of_size == {("background", "small"): 1, ("localisation", "large"): 1, ("missed", "small"): 1}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_on_random_detections(seed: int, ties: bool) -> None:
    images = random_results(30, seed=seed, ties=ties)
    judged = detection_errors(images, classes=4)
    assert judged.ap50 == pytest.approx(coco_scores(images, classes=4).values["ap50"], abs=1e-9)
    assert list(judged.counts) == list(judged.costs) == list(KINDS)
    for kind in KINDS:
        assert list(judged.counts[kind]) == list(judged.costs[kind]) == list(SIZES)
        assert judged.counts[kind]["all"] == sum(judged.counts[kind][size] for size in SIZES[1:]) > 0
        assert all(0 <= cost <= 100 - judged.ap50 + 1e-9 for cost in judged.costs[kind].values())
        assert judged.costs[kind]["all"] > 0


def test_where_there_is_nothing() -> None:
    judged = detection_errors([], classes=2)
    assert np.isnan(judged.ap50)
    assert counted(judged) == {}


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(32, 31.9, "small"), (32, 32, "medium"), (96, 96, "medium"), (96, 96.1, "large")],
)
def test_limits_of_size_are_coco_s(width: float, height: float, size: str) -> None:
    """32² and 96² pixels are both medium."""
    box = (0, 0, width, height)
    stray, lost = errors([(0.9, 0, box)], []), errors([], [(0, box)])
    for found, kind in ((stray, "background"), (lost, "missed")):
        assert [name for name in SIZES[1:] if found.counts[kind][name]] == [size]


def test_an_overlap_of_exactly_a_half_fits_and_one_of_a_tenth_touches() -> None:
    half, tenth = (0, 0, 40, 20), (0, 0, 40, 4)
    assert counted(errors([(0.9, 0, half)], [(0, A)])) == {}
    assert counted(errors([(0.9, 1, half)], [(0, A)])) == {"classification": 1}
    assert counted(errors([(0.9, 0, tenth)], [(0, A)])) == {"localisation": 1}
    assert counted(errors([(0.9, 1, tenth)], [(0, A)])) == {"background": 1, "missed": 1}
