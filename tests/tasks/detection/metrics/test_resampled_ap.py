from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from drawn_results import random_results
from reldistill.report.draws import draws, interval_of_draws
from reldistill.tasks.detection.metrics.coco_ap import coco_scores
from reldistill.tasks.detection.metrics.detection_results import ImageResult
from reldistill.tasks.detection.metrics.resampled_ap import average_precisions, match

CLASSES = 3


@pytest.mark.parametrize("seed", range(6))
def test_each_image_once_is_cocos_average_precision(seed: int) -> None:
    images = random_results(12, classes=CLASSES, seed=seed, ties=seed % 2 > 0)
    found = average_precisions(match(images, classes=CLASSES), np.ones((1, len(images)), int))
    assert found[0] == pytest.approx(coco_scores(images, classes=CLASSES).values["ap"], abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_a_draw_is_cocos_average_precision_of_the_drawn_images(seed: int) -> None:
    images = random_results(
        12, classes=CLASSES, seed=seed, ties=False
    )  # of equal scores COCO takes one copy of the image after the other
    times = draws(len(images), count=5, seed=seed)
    found = average_precisions(match(images, classes=CLASSES), times)
    for row, value in zip(times, found, strict=True):
        drawn = [image for image, count in zip(images, row, strict=True) for _ in range(count)]
        assert value == pytest.approx(coco_scores(drawn, classes=CLASSES).values["ap"], abs=1e-9)


def test_a_draw_without_objects_says_nothing() -> None:
    images = random_results(12, classes=CLASSES)
    matches = match(images, classes=CLASSES)
    assert np.isnan(average_precisions(matches, np.zeros((1, len(images)), int))).all()


def test_nothing_found_is_zero() -> None:
    bare = [
        type(i)(i.index, np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), *_there(i))
        for i in random_results(12, classes=CLASSES, seed=1)
    ]
    assert average_precisions(match(bare, classes=CLASSES), np.ones((1, len(bare)), int)) == [0.0]


def _there(image) -> tuple[np.ndarray, ...]:
    return image.true_boxes, image.true_labels, image.ignored, image.areas


def test_draws_hold_as_many_images_and_repeat() -> None:
    found = draws(17, count=50, seed=3)
    assert (found.sum(axis=1) == 17).all()
    assert np.array_equal(found, draws(17, count=50, seed=3))
    assert not np.array_equal(found, draws(17, count=50, seed=4))


def test_interval_is_the_middle_of_draws_around_the_observed() -> None:
    values = np.append(np.arange(1001.0), np.nan)
    assert interval_of_draws(values, observed=500.0) == pytest.approx((25.0, 975.0))


def test_interval_moves_against_the_bias_of_the_draws() -> None:
    low, high = interval_of_draws(np.arange(1001.0), observed=300.0)
    assert low < 25.0
    assert high < 975.0
    assert low <= 300.0 <= high


def test_interval_of_equal_draws_is_a_point() -> None:
    assert interval_of_draws(np.zeros(50), observed=0.0) == (0.0, 0.0)


def test_interval_moves_by_twice_the_bias() -> None:
    """0.98 deviations below the middle: 2 * 0.98 = 1.96 further down, so that the upper end is the middle itself."""
    below = round(1e5 * float(stats.norm.cdf(-0.98)))
    low, high = interval_of_draws(np.arange(100_001.0), observed=below)
    assert high == pytest.approx(50_000, abs=10)
    assert low == pytest.approx(1e5 * float(stats.norm.cdf(-3.92)), abs=0.1)


@pytest.mark.parametrize("turned", [False, True])
def test_of_objects_that_fit_alike_the_last_is_taken_as_coco_does(turned: bool) -> None:
    """The best detection lies half way between two objects; the next one fits the left of them only."""
    objects = [[0.0, 0.0, 10.0, 10.0], [2.0, 0.0, 12.0, 10.0]]
    image = ImageResult(
        0,
        boxes=np.array([[1.0, 0.0, 11.0, 10.0], [-3.0, 0.0, 7.0, 10.0]]),
        scores=np.array([0.9, 0.8]),
        labels=np.zeros(2, np.int64),
        true_boxes=np.array(objects[::-1] if turned else objects),
        true_labels=np.zeros(2, np.int64),
        ignored=np.zeros(2, bool),
        areas=np.full(2, 100.0),
    )
    matches = match([image], classes=1)
    assert matches.right[:, 0].tolist() == [True, not turned]
    found = average_precisions(matches, np.ones((1, 1), int))
    assert found[0] == pytest.approx(coco_scores([image], classes=1).values["ap"], abs=1e-9)
