from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reldistill.report.intervals import paired_difference
from reldistill.report.seeds import (
    bootstrap_interval,
    difference_of_draws,
    difference_over_seeds,
    mean_and_deviation,
    t_interval,
)


def made(seeds: int, images: int, *, gain: float, noise: float, random: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Hits of two methods that share how hard each image is; the gain differs by seed."""
    hard = random.normal(0, 1, images)
    shift = gain + noise * random.normal(0, 1, (seeds, 1))
    own, other = (hard + random.normal(0, 0.5, (seeds, images)) for _ in range(2))
    return own + shift > -0.5, other > -0.5


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=8))
def test_t_interval_is_that_of_scipy(values: list[float]) -> None:
    if np.std(values) < 1e-6:
        return
    expected = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert t_interval(values) == pytest.approx(tuple(expected), abs=1e-9)


def test_bootstrap_is_the_loop_it_stands_for() -> None:
    """Seeds and images drawn one by one; both are Monte Carlo, so they agree to the third figure."""
    random = np.random.default_rng(3)
    hits, others = made(3, 60, gain=0.3, noise=0.3, random=random)
    change = hits.astype(int) - others.astype(int)
    means = []
    for _ in range(6000):
        images = random.integers(60, size=60)
        chosen = random.integers(3, size=3)
        means.append(100 * np.mean([change[seed][images].mean() for seed in chosen]))
    expected = np.quantile(means, [0.025, 0.975])
    width = expected[1] - expected[0]
    assert bootstrap_interval(change) == pytest.approx(tuple(expected), abs=0.06 * width)


def test_bootstrap_with_two_images_by_hand() -> None:
    """One seed, differences 1 and 0: the mean of two draws is 0, 50, 100 with 1/4, 1/2, 1/4."""
    assert bootstrap_interval(np.array([[1, 0]])) == (0.0, 100.0)
    assert bootstrap_interval(np.array([[1, 1, 1]])) == (100.0, 100.0)


def test_with_one_seed_only_the_images_are_drawn() -> None:
    hits, others = made(1, 200, gain=0.5, noise=0.0, random=np.random.default_rng(0))
    found = difference_over_seeds(hits, others)
    expected = paired_difference(int((hits & ~others).sum()), int((others & ~hits).sum()), 200)
    assert (found.points, found.low, found.high) == (expected.points, expected.low, expected.high)
    assert found.over_seeds is None


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(2, 4))
def test_interval_reaches_as_far_as_the_farther_and_turns_with_the_sign(seed: int, seeds: int) -> None:
    hits, others = made(seeds, 50, gain=0.2, noise=0.2, random=np.random.default_rng(seed))
    found, turned = difference_over_seeds(hits, others), difference_over_seeds(others, hits)
    assert found.over_seeds is not None
    assert found.low == min(found.over_seeds[0], found.over_images[0])
    assert found.high == max(found.over_seeds[1], found.over_images[1])
    assert found.points == pytest.approx(np.mean(found.by_seed)) == pytest.approx(100 * (hits.mean() - others.mean()))
    assert turned.over_seeds == pytest.approx((-found.over_seeds[1], -found.over_seeds[0]))
    # Bootstrap draws do not mirror, so its ends agree up to its resolution.
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=4)


def test_order_of_seeds_and_images_does_not_matter() -> None:
    hits, others = made(3, 40, gain=0.2, noise=0.2, random=np.random.default_rng(5))
    own = difference_over_seeds(hits, others)
    images = np.random.default_rng(0).permutation(40)
    assert difference_over_seeds(hits[:, images], others[:, images]) == own


@pytest.mark.slow
def test_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """200 comparisons of two methods that are equal on average, with chance from images and from seeds."""
    random = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        found = difference_over_seeds(*made(3, 250, gain=0.0, noise=0.12, random=random))
        held += found.low <= 0 <= found.high
    assert held >= 186, f"{held} of 200"


def test_a_clear_gain_is_beyond_noise_and_none_is_not() -> None:
    random = np.random.default_rng(2)
    assert difference_over_seeds(*made(3, 2000, gain=0.5, noise=0.02, random=random)).beyond_noise
    assert not difference_over_seeds(*made(3, 2000, gain=0.0, noise=0.1, random=random)).beyond_noise


def test_mean_and_deviation() -> None:
    assert mean_and_deviation([90.0]) == (90.0, None)
    values = [90.0, 91.0, 95.0]
    mean, deviation = mean_and_deviation(values)
    by_pairs = sum((a - b) ** 2 for a, b in itertools.combinations(values, 2)) / 6
    assert (mean, deviation) == pytest.approx((92.0, by_pairs**0.5))


def test_draws_of_one_seed_are_their_middle() -> None:
    drawn, others = np.arange(1001.0)[None] / 10, np.zeros((1, 1001))
    found = difference_of_draws([60.0], [8.0], drawn, others, images=20)
    assert (found.points, found.low, found.high) == (52.0, 2.5, 97.5)
    assert found.over_seeds is None
    assert found.beyond_noise


def test_draws_of_several_seeds_reach_as_far_as_the_seeds_do() -> None:
    random = np.random.default_rng(0)
    drawn = 50 + random.normal(0, 0.1, (3, 500))
    found = difference_of_draws([50.0, 60.0, 70.0], [49.0, 56.0, 61.0], drawn, drawn - 3, images=20)
    assert found.points == pytest.approx((1 + 4 + 9) / 3)
    assert (found.low, found.high) == pytest.approx(t_interval([1.0, 4.0, 9.0]))
    same = difference_of_draws([50.0, 60.0], [47.0, 57.0], drawn[:2], drawn[:2] - 3, images=20)
    assert (same.low, same.high) == pytest.approx((3.0, 3.0))


def test_draws_of_several_seeds_draw_the_seeds_too() -> None:
    """Two seeds on which images have no say: their mean is 0, 5, 10 with 1/4, 1/2, 1/4, when they are drawn again."""
    change = np.array([[0.0], [10.0]]) + np.zeros((2, 500))
    found = difference_of_draws([60.0, 70.0], [60.0, 60.0], 60 + change, np.full((2, 500), 60.0), images=20)
    assert found.over_images == (0.0, 10.0)
