from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reldistill.relations import tokens
from reldistill.relations.tokens import map_to_tokens, on_common_grid, tokenise, tokens_to_map


def test_token_n_is_row_by_row():
    feature_map = torch.randn(2, 3, 4, 5)
    tokens = map_to_tokens(feature_map)
    for y in range(4):
        for x in range(5):
            assert torch.equal(tokens[:, y * 5 + x], feature_map[:, :, y, x])


@given(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)))
@settings(max_examples=20, deadline=None)
def test_map_and_tokens_are_inverse(shape):
    feature_map = torch.randn(shape)
    assert torch.equal(tokens_to_map(map_to_tokens(feature_map), grid=shape[2:]), feature_map)


@pytest.mark.usefixtures("unchecked_types")
def test_grid_must_hold_the_tokens():
    with pytest.raises(ValueError, match=r"tokens: expected N = 6 in \(B, N, D\)"):
        tokens_to_map(torch.zeros(1, 7, 2), grid=(2, 3))


@pytest.mark.parametrize(
    ("size", "largest_grid", "expected"),
    [
        ((16, 16), 16, (16, 16)),
        ((17, 17), 16, (9, 9)),
        ((56, 56), 16, (14, 14)),
        ((64, 8), 16, (16, 2)),
        ((33, 1), 4, (3, 1)),
        ((5, 7), 1, (1, 1)),
    ],
)
@pytest.mark.parametrize("pooling", ["average", "max"])
def test_halves_until_small_enough(size, largest_grid, expected, pooling):
    assert tokenise(torch.randn(2, 3, *size), pooling=pooling, largest_grid=largest_grid).shape == (2, 3, *expected)


def slow_halving(row, pool):
    """One halving of a line of numbers: cell c of ⌈n/2⌉ covers ⌊c·n/m⌋ to ⌈(c+1)·n/m⌉."""
    n, m = len(row), -(-len(row) // 2)
    return [pool(row[c * n // m : -(-(c + 1) * n // m)]) for c in range(m)]


@pytest.mark.parametrize("length", [6, 7, 13])
@pytest.mark.parametrize("pooling", ["average", "max"])
def test_pools_as_a_loop_does(length, pooling):
    row = torch.randn(length, dtype=torch.float64)
    pool = max if pooling == "max" else lambda cell: sum(cell) / len(cell)
    expected = row.tolist()
    while len(expected) > 3:
        expected = slow_halving(expected, pool)
    found = tokenise(row.view(1, 1, 1, length), pooling=pooling, largest_grid=3)
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_none_leaves_the_map():
    feature_map = torch.randn(1, 2, 40, 40)
    assert torch.equal(tokenise(feature_map, pooling="none"), feature_map)


def test_half_precision_is_lifted():
    feature_map = torch.full((1, 2, 64, 64), 6e4, dtype=torch.float16)
    pooled = tokenise(feature_map)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, torch.full((1, 2, 16, 16), float(feature_map[0, 0, 0, 0])))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "mean"}, "pooling must be one of average, max, none, got 'mean'"),
        ({"largest_grid": 0}, "largest_grid"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        tokenise(torch.zeros(1, 1, 4, 4), **arguments)


def test_maps_meet_on_the_coarser_grid_of_each_axis():
    student, teacher = torch.rand(2, 3, 4, 2), torch.rand(2, 5, 2, 6)
    ours, theirs = on_common_grid(student, teacher)
    assert ours.shape == (2, 3, 2, 2)
    assert theirs.shape == (2, 5, 2, 2)
    torch.testing.assert_close(ours[:, :, 1, 0], student[:, :, 2:, 0].mean(dim=2))
    torch.testing.assert_close(theirs[:, :, 0, 1], teacher[:, :, 0, 3:].mean(dim=2))


def test_maps_on_one_grid_are_left_alone():
    student, teacher = torch.rand(2, 3, 4, 3), torch.rand(2, 5, 4, 3)
    ours, theirs = on_common_grid(student, teacher)
    assert ours is student
    assert theirs is teacher


@pytest.mark.parametrize("grid", [(4, 3), (7, 5), (9, 2)])
def test_means_of_windows_are_those_of_adaptive_pooling(grid):
    given = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    rows, columns = (tokens._means(*sizes, like=given) for sizes in zip((7, 5), grid, strict=True))
    found = tokens._along(tokens._along(given, columns).mT, rows).mT
    torch.testing.assert_close(found, torch.nn.functional.adaptive_avg_pool2d(given, grid))
