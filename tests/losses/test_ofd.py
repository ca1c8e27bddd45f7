from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_helpers import run_on_ranks
from reldistill.losses.ofd import OFD, margins, ofd_loss

SEEDS = st.integers(0, 2**31)
SHAPES = (4, 3, 4, 2), (4, 2, 2, 2), (4, 5, 1, 2)


def maps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES] for _ in range(2)]


def loop(student, teacher):
    total = 0.0
    for level, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
        images, channels = theirs.shape[:2]
        for channel in range(channels):
            negative = [x for x in theirs[:, channel].flatten().tolist() if x < 0]
            margin = math.fsum(negative) / len(negative) if negative else 0.0
            pairs = zip(ours[:, channel].flatten().tolist(), theirs[:, channel].flatten().tolist(), strict=True)
            for s, t in pairs:
                t = max(t, margin)
                if not s <= t <= 0:
                    total += (t - s) ** 2 / images * 2.0 ** (level + 1 - len(student))
    return total


@pytest.mark.parametrize("seed", range(3))
def test_matches_the_loop(seed):
    student, teacher = maps(seed)
    assert ofd_loss(student, teacher).item() == pytest.approx(loop(student, teacher), rel=1e-9)


def test_rectified_maps_have_no_margin():
    student, teacher = maps()
    teacher = [one.relu() for one in teacher]
    assert all(not margins(one).any() for one in teacher)
    assert ofd_loss(student, teacher).item() == pytest.approx(loop(student, teacher), rel=1e-9)
    positive = [one.abs() + 0.1 for one in student]
    expected = sum((s - t).square().sum() / 4 * w for s, t, w in zip(positive, teacher, (0.25, 0.5, 1), strict=True))
    torch.testing.assert_close(ofd_loss(positive, teacher), expected, rtol=1e-9, atol=0)


@given(seed=SEEDS, drop=st.floats(0, 100))
@settings(max_examples=25, deadline=None)
def test_free_below_what_is_not_positive(seed, drop):
    student, teacher = maps(seed)
    lowered = []
    for ours, theirs in zip(student, teacher, strict=True):
        target = torch.maximum(theirs, margins(theirs)[:, None, None])
        free = (target <= 0) & (ours <= target)
        lowered.append(ours - drop * free)
    torch.testing.assert_close(ofd_loss(lowered, teacher), ofd_loss(student, teacher), rtol=1e-12, atol=0)


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_order_positions_and_channels(seed):
    student, teacher = maps(seed)
    moved = [[one.flip(0, 1, 2, 3) for one in side] for side in (student, teacher)]
    torch.testing.assert_close(ofd_loss(*moved), ofd_loss(student, teacher), rtol=1e-10, atol=0)


def halves(rank, world_size):
    student, teacher = ([one.chunk(world_size)[rank] for one in side] for side in maps())
    return {"margins": margins(teacher[0]), "value": ofd_loss(student, teacher)}


@pytest.mark.slow
def test_margins_are_those_of_all_ranks():
    student, teacher = maps()
    ranks = run_on_ranks(halves)
    for rank in ranks:
        torch.testing.assert_close(rank["margins"], margins(teacher[0]), rtol=1e-12, atol=0)
    mean = (ranks[0]["value"] + ranks[1]["value"]) / 2
    torch.testing.assert_close(mean, ofd_loss(student, teacher), rtol=1e-12, atol=0)


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="equally many maps: 1 and 2"):
        OFD()([torch.zeros(2, 3, 2, 2)], [torch.zeros(2, 3, 2, 2)] * 2)
    with pytest.raises(ValueError, match="teacher: expected C = 3"):
        OFD()([torch.zeros(2, 3, 2, 2)], [torch.zeros(2, 4, 2, 2)])
