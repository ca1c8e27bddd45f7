from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reldistill.losses.reviewkd import ReviewKD, context_loss, reviewkd_loss

SHAPES = (2, 3, 8, 8), (2, 2, 4, 4), (2, 2, 3, 3), (2, 5)


def maps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES] for _ in range(2)]


def cells(size, count):
    """The rows (or columns) that each of `count` pooled ones covers."""
    return [range(i * size // count, math.ceil((i + 1) * size / count)) for i in range(count)]


def pooled(plane, count):
    size = len(plane)
    spans = cells(size, count)
    return [
        [math.fsum(plane[y][x] for y in rows for x in columns) / (len(rows) * len(columns)) for columns in spans]
        for rows in spans
    ]


def context(ours, theirs):
    size = ours.shape[2]
    weights = {size: 1.0}
    weight = 1.0
    for side in (4, 2, 1):
        if side < size:
            weight /= 2
            weights[side] = weight
    total = 0.0
    for side, share in weights.items():
        squares = []
        for s, t in zip(ours.flatten(0, 1).tolist(), theirs.flatten(0, 1).tolist(), strict=True):
            for row, other in zip(pooled(s, side), pooled(t, side), strict=True):
                squares += [(a - b) ** 2 for a, b in zip(row, other, strict=True)]
        total += share * math.fsum(squares) / len(squares)
    return total / sum(weights.values())


def test_matches_the_loop():
    student, teacher = maps()
    pairs = [[one[(...,) + (None,) * (4 - one.ndim)] for one in pair] for pair in zip(student, teacher, strict=True)]
    expected = [context(*pair) for pair in pairs]
    for pair, value in zip(pairs, expected, strict=True):
        assert context_loss(*pair).item() == pytest.approx(value, rel=1e-9)
    assert reviewkd_loss(student, teacher).item() == pytest.approx(sum(expected), rel=1e-9)


def test_a_vector_is_a_map_of_one_pixel():
    student, teacher = maps()
    ours, theirs = student[3], teacher[3]
    torch.testing.assert_close(reviewkd_loss([ours], [theirs]), (ours - theirs).square().mean(), rtol=1e-12, atol=0)


def test_what_the_pyramid_sees():
    """A difference that averages out counts less than one that does not."""
    teacher = torch.zeros(1, 1, 8, 8)
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    assert context_loss(board[None, None], teacher).item() == pytest.approx(1 / 1.875)
    assert context_loss(torch.ones(1, 1, 8, 8), teacher).item() == pytest.approx(1.0)


@given(seed=st.integers(0, 2**31), shift=st.floats(-10, 10))
@settings(max_examples=20, deadline=None)
def test_order_channels_and_a_common_shift(seed, shift):
    student, teacher = maps(seed)
    moved = [[one.flip(0, 1) + shift for one in side] for side in (student, teacher)]
    torch.testing.assert_close(reviewkd_loss(*moved), reviewkd_loss(student, teacher), rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="equally many maps: 1 and 2"):
        ReviewKD()([torch.zeros(2, 3)], [torch.zeros(2, 3)] * 2)
    with pytest.raises(ValueError, match=r"one shape .*\(2, 3, 4, 4\) in the student, \(2, 3, 2, 2\) in the teacher"):
        ReviewKD()([torch.zeros(2, 3, 4, 4)], [torch.zeros(2, 3, 2, 2)])
