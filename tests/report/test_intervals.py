from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reldistill.report.intervals import Z95, mcnemar_p_value, paired_difference, unpaired_difference, wilson_interval


def test_wilson_against_published_and_hand_computed_values() -> None:
    assert wilson_interval(81, 263) == pytest.approx((25.53, 36.62), abs=0.005)  # Newcombe 1998, table I
    assert wilson_interval(15, 148) == pytest.approx((6.24, 16.05), abs=0.005)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 16.11), abs=0.005)
    # 9 of 10 by hand: (0.9 + 0.19207 ± 1.96·√(0.009 + 0.0096037)) / 1.38415 with z² = 3.84146
    assert wilson_interval(9, 10) == pytest.approx((59.585, 98.213), abs=0.005)
    assert wilson_interval(20, 20)[1] == 100.0


@given(st.integers(1, 2000), st.data())
def test_wilson_holds_the_accuracy_and_stays_a_percentage(images: int, data) -> None:
    hits = data.draw(st.integers(0, images))
    low, high = wilson_interval(hits, images)
    assert 0 <= low <= 100 * hits / images <= high <= 100
    assert wilson_interval(images - hits, images) == pytest.approx((100 - high, 100 - low))


def test_unpaired_by_hand() -> None:
    # 56 and 48 of 80: Wilson (0.59994, 0.78958) and (0.49047, 0.70036), by Newcombe's square-and-add
    found = unpaired_difference(56, 48, 80)
    low = 10 - math.hypot(70 - 59.234, 70.044 - 60)
    high = 10 + math.hypot(78.923 - 70, 60 - 49.046)
    assert (found.points, found.paired) == (pytest.approx(10.0), False)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05)
    assert not found.resolved


def test_unpaired_is_near_the_normal_approximation_where_that_holds() -> None:
    found = unpaired_difference(8640, 8450, 10_000)
    normal = 100 * Z95 * math.sqrt(0.864 * 0.136 / 10_000 + 0.845 * 0.155 / 10_000)
    assert found.margin == pytest.approx(normal, rel=2e-3)
    assert found.resolved


def test_unpaired_does_not_claim_certainty_at_the_ends() -> None:
    both = unpaired_difference(360, 360, 360)
    assert both.points == 0
    assert both.low == pytest.approx(-1.0558, abs=1e-3)
    assert both.high == pytest.approx(1.0558, abs=1e-3)


def test_exact_mcnemar_by_hand() -> None:
    assert mcnemar_p_value(0, 0) == 1.0
    assert mcnemar_p_value(1, 7) == pytest.approx(2 * (1 + 8) / 256)
    assert mcnemar_p_value(7, 1) == mcnemar_p_value(1, 7)
    assert mcnemar_p_value(5, 5) == 1.0
    assert mcnemar_p_value(6000, 6400) == pytest.approx(math.erfc(399 / math.sqrt(12_400) / math.sqrt(2)), rel=1e-2)


def test_paired_against_a_published_example() -> None:
    # 7 against 1 of 21 pairs (Bentur et al. 2009, as worked in Fagerland, Lydersen and Laake's text): -0.517 to -0.026
    found = paired_difference(1, 7, 21)
    assert found.points == pytest.approx(-100 * 6 / 21)
    assert (found.low, found.high) == pytest.approx((-51.7, -2.6), abs=0.05)
    assert found.p_value == pytest.approx(0.0703, abs=1e-4)
    assert not found.resolved, "the exact test does not reject, so the interval alone does not decide"


def test_paired_without_disagreement_has_a_closed_form() -> None:
    found = paired_difference(0, 0, 360)
    assert (found.low, found.high) == pytest.approx((-100 * Z95**2 / (360 + Z95**2), 100 * Z95**2 / (360 + Z95**2)))


def score_by_search(only_this: int, only_other: int, images: int, d: float) -> float:
    """Tango's statistic with the likeliest shares under the difference `d` found by trying them all."""
    q = np.linspace(max(0.0, -d), (1 - d) / 2, 400_001)[1:-1]
    p = q + d
    rest = images - only_this - only_other
    likelihood = np.full_like(q, 0.0)
    for counted, share in ((only_this, p), (only_other, q), (rest, 1 - p - q)):
        with np.errstate(divide="ignore"):
            likelihood += counted * np.log(share) if counted else 0.0
    best = q[int(np.argmax(likelihood))]
    return (only_this - only_other - images * d) / math.sqrt(images * (2 * best + d * (1 - d)))


@pytest.mark.parametrize(("only_this", "only_other", "images"), [(12, 5, 360), (3, 9, 80), (40, 20, 160), (2, 30, 500)])
def test_paired_ends_are_where_the_score_test_turns(only_this: int, only_other: int, images: int) -> None:
    found = paired_difference(only_this, only_other, images)
    assert score_by_search(only_this, only_other, images, found.low / 100) == pytest.approx(Z95, abs=1e-3)
    assert score_by_search(only_this, only_other, images, found.high / 100) == pytest.approx(-Z95, abs=1e-3)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 400))
def test_paired_mirrors_when_the_networks_swap(only_this: int, only_other: int, rest: int) -> None:
    images = only_this + only_other + rest
    if images == 0:
        return
    found, swapped = (paired_difference(*pair, images) for pair in ((only_this, only_other), (only_other, only_this)))
    assert -100 <= found.low <= found.points + 1e-9
    assert found.points - 1e-9 <= found.high <= 100
    assert (swapped.points, swapped.low, swapped.high) == pytest.approx(
        (-found.points, -found.high, -found.low), abs=1e-6
    )
    assert swapped.p_value == found.p_value


def test_pairing_narrows_the_interval_of_networks_that_fail_together() -> None:
    paired = paired_difference(10, 3, 360)  # 340 against 333, of which 330 in common
    unpaired = unpaired_difference(340, 333, 360)
    assert paired.points == pytest.approx(unpaired.points)
    assert paired.margin < 0.7 * unpaired.margin


@pytest.mark.slow
def test_intervals_cover_the_truth_about_19_times_in_20() -> None:
    random = np.random.default_rng(0)
    both, this, other, images, trials = 0.85, 0.06, 0.03, 360, 1500
    counts = random.multinomial(images, [both, this, other, 1 - both - this - other], size=trials)
    truth = 100 * (this - other)
    paired = [paired_difference(int(c[1]), int(c[2]), images) for c in counts]
    unpaired = [unpaired_difference(int(c[0] + c[1]), int(c[0] + c[2]), images) for c in counts]
    assert 0.935 <= np.mean([d.low <= truth <= d.high for d in paired]) <= 0.97
    assert np.mean([d.low <= truth <= d.high for d in unpaired]) > 0.99
