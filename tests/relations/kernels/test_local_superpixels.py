from __future__ import annotations

import itertools

import pytest
import torch

from reldistill.relations.kernels.local_superpixels import (
    around,
    cells_of,
    filled,
    gather_around,
    join,
    largest_of_column,
    split,
    spread_around,
)
from reldistill.relations.tokens import home_cells

# Of tokens and cells: even, uneven, one cell, a token each.
GRIDS = pytest.mark.parametrize(
    ("grid", "cells"), [((4, 6), (2, 3)), ((7, 5), (4, 3)), ((3, 4), (1, 1)), ((3, 3), (3, 3))], ids=str
)


@GRIDS
def test_split_puts_every_token_into_its_cell_once(grid, cells):
    layout = cells_of(grid, cells)
    tokens = torch.arange(grid[0] * grid[1]).view(1, *grid, 1)
    by_cell = split(tokens, layout)[0, ..., 0]
    own = filled(layout, torch.device("cpu"))
    assert by_cell.shape == own.shape
    assert sorted(by_cell[own].tolist()) == list(range(grid[0] * grid[1]))
    homes = home_cells(grid[0], cells[0]), home_cells(grid[1], cells[1])
    for row, column in itertools.product(range(cells[0]), range(cells[1])):
        for token in by_cell[row, column].tolist():
            assert (homes[0][token // grid[1]], homes[1][token % grid[1]]) == (row, column)


@GRIDS
def test_join_undoes_split(grid, cells):
    layout, tokens = cells_of(grid, cells), torch.randn(2, *grid, 3)
    assert torch.equal(join(split(tokens, layout), layout), tokens)


def test_around_is_the_3x3_with_zeros_beyond_the_border():
    grid = torch.arange(1.0, 13).view(1, 3, 4)
    assert around(grid)[0, 0, 0].tolist() == [0, 0, 0, 0, 1, 2, 0, 5, 6]
    assert around(grid)[0, 1, 2].tolist() == [2, 3, 4, 6, 7, 8, 10, 11, 12]
    assert torch.equal(around(grid.unsqueeze(3)).squeeze(4), around(grid))


@pytest.mark.parametrize("size", [(3, 4), (1, 1), (1, 5)])
def test_gathering_is_the_transpose_of_spreading(size):
    grid = torch.randn(2, *size, 3, dtype=torch.float64, requires_grad=True)
    parts = torch.randn(2, *size, 9, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close((spread_around(grid) * parts).sum(), (grid * gather_around(parts)).sum())
    assert torch.autograd.gradcheck(spread_around, grid)
    assert torch.autograd.gradcheck(gather_around, parts)


def test_largest_of_column_takes_the_largest_that_would_be_gathered():
    parts = torch.randn(2, 3, 4, 9)
    expected = torch.full((2, 5, 6), -torch.inf)
    for b, y, x, slot in itertools.product(range(2), range(3), range(4), range(9)):
        there = (b, y + slot // 3, x + slot % 3)
        expected[there] = torch.maximum(expected[there], parts[b, y, x, slot])
    assert torch.equal(largest_of_column(parts), expected[:, 1:-1, 1:-1])
