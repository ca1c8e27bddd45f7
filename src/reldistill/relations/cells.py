"""Tokens in the order of the cells of a grid, and what passes between a cell and the 3×3 cells around it."""

from __future__ import annotations

from typing import Any, no_type_check

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]


def home_cells(tokens: int, cells: int) -> list[int]:
    """Along one axis, the cell in which each token's centre lies."""
    return [(2 * i + 1) * cells // (2 * tokens) for i in range(tokens)]


@no_type_check  # see `superpixels.Assignment`
class Cells:
    """Tokens in the order of the cells they lie in, so that a cell's tokens meet its neighbours in one small product.

    Cells of uneven size, where the grids do not divide, are filled up to the largest with repeated tokens.
    """

    def __init__(self, token_grid: Grid, superpixel_grid: Grid) -> None:
        self.superpixel_grid = superpixel_grid
        self.sides: list[int] = []
        self.members: list[list[list[int]]] = []
        for tokens, cells in zip(token_grid, superpixel_grid, strict=True):
            home = home_cells(tokens, cells)
            members = [[i for i in range(tokens) if home[i] == cell] for cell in range(cells)]
            self.members.append(members)
            self.sides.append(max([len(cell) for cell in members]))
        self.even = all(len(cell) == side for axis, side in zip(self.members, self.sides, strict=True) for cell in axis)

    def split(self, tokens: Tensor) -> Tensor:
        """(B, H, W, X) → (B, h, w, P, X), P tokens a cell."""
        (h, w), (rows, columns) = self.superpixel_grid, self.sides
        if not self.even:
            for axis, side in enumerate(self.sides):
                taken = [(cell + cell[:1] * side)[i] for cell in self.members[axis] for i in range(side)]
                tokens = tokens.index_select(1 + axis, torch.tensor(taken, device=tokens.device))
        shape = (len(tokens), h, rows, w, columns, tokens.shape[3])
        return tokens.reshape(shape).transpose(2, 3).flatten(3, 4)

    def join(self, by_cell: Tensor) -> Tensor:
        """(B, h, w, P, X) → (B, H, W, X), the fillings left out."""
        (h, w), (rows, columns) = self.superpixel_grid, self.sides
        tokens = by_cell.unflatten(3, (rows, columns)).transpose(2, 3).reshape(len(by_cell), h * rows, w * columns, -1)
        if not self.even:
            for axis, side in enumerate(self.sides):
                put = [cell * side + i for cell, inside in enumerate(self.members[axis]) for i in range(len(inside))]
                tokens = tokens.index_select(1 + axis, torch.tensor(put, device=tokens.device))
        return tokens

    def filled(self, device: torch.device) -> Tensor:
        """(h, w, P) whether a place of a cell holds a token of its own."""
        rows, columns = (
            torch.tensor([[i < len(cell) for i in range(side)] for cell in axis], device=device)
            for axis, side in zip(self.members, self.sides, strict=True)
        )
        return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2)


def around(grid: Tensor) -> Tensor:
    """(B, h, w, X) → (B, h, w, 9, X) or (B, h, w) → (B, h, w, 9): the 3×3 around each, zeros beyond the border."""
    h, w = grid.shape[1:3]
    beyond = (0, 0) * (grid.ndim - 3) + (1, 1, 1, 1)
    padded = F.pad(grid, beyond)
    return torch.stack([padded[:, y : y + h, x : x + w] for y in range(3) for x in range(3)], dim=3)


def _gathered(parts: Tensor) -> Tensor:
    batch, h, w, _, width = parts.shape
    padded = parts.new_zeros(batch, h + 2, w + 2, width)
    for slot in range(9):
        padded[:, slot // 3 : slot // 3 + h, slot % 3 : slot % 3 + w] += parts[:, :, :, slot]
    return padded[:, 1:-1, 1:-1]


def largest_of_column(parts: Tensor) -> Tensor:
    """(B, h, w, 9) → (B, h, w), the largest number that any cell has for this superpixel."""
    h, w = parts.shape[1:3]
    padded = F.pad(parts, (0, 0, 1, 1, 1, 1), value=-torch.inf)
    seen = [padded[:, 2 - s // 3 : 2 - s // 3 + h, 2 - s % 3 : 2 - s % 3 + w, s] for s in range(9)]
    return torch.stack(seen).amax(dim=0)


# Each is the other's derivative; as chains of slices they would cost a whole tensor a slice in the backward pass.
class _SpreadAround(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grid: Tensor) -> Tensor:
        return around(grid)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return gather_around(grads[0])


class _GatherAround(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor) -> Tensor:
        return _gathered(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return spread_around(grads[0])


def spread_around(grid: Tensor) -> Tensor:
    """`around` of (B, h, w, X), with a gradient."""
    spread: Tensor = _SpreadAround.apply(grid)
    return spread


def gather_around(parts: Tensor) -> Tensor:
    """(B, h, w, 9, X) → (B, h, w, X), the transpose of `around`: each part is added to the neighbour it is for."""
    gathered: Tensor = _GatherAround.apply(parts)
    return gathered
