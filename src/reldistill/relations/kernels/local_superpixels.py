"""Superpixels of tokens that see the 3×3 cells around them only, at a cost of O(9·N) instead of O(N·M).

Tokens are put in the order of the cells they lie in, so that a cell's tokens meet its nine neighbours in one product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from reldistill.relations.tokens import Grid, home_cells


def likeness(
    tokens: Float[Tensor, "B N D"], superpixels: Float[Tensor, "B M D"], token_grid: Grid, superpixel_grid: Grid
) -> Float[Tensor, "B N 9"]:
    """⟨t, s⟩ of each token and the superpixels of the cells around its own; 0 for those beyond the border."""
    cells = cells_of(token_grid, superpixel_grid)
    near = spread_around(superpixels.unflatten(1, superpixel_grid))
    return join(split(tokens.unflatten(1, token_grid), cells) @ near.mT, cells).flatten(1, 2)


def merged(
    log_weights: Float[Tensor, "B N 9"],
    feature_map: Float[Tensor, "B D H W"],
    mass: Float[Tensor, "H W"] | None,
    token_grid: Grid,
    superpixel_grid: Grid,
) -> Float[Tensor, "B M D"]:
    """Q̂ᵀ T, with Q̂ the columns of Q scaled to sum 1, each token counted `mass` times (once, if None).

    Args:
        log_weights: log Q, −∞ beyond the border.
        feature_map: the tokens on their grid, which is Q's.
        mass: of each token.
        token_grid: (H, W).
        superpixel_grid: (h, w), h·w = M.
    """
    cells = cells_of(token_grid, superpixel_grid)
    log_weights = split(log_weights.unflatten(1, token_grid), cells)
    log_weights = log_weights.masked_fill(~filled(cells, log_weights.device)[..., None], -torch.inf)
    largest = largest_of_column(log_weights.detach().amax(dim=3))
    weights = (log_weights - around(largest).unsqueeze(3)).exp()
    found = gather_around(weights.mT @ split(feature_map.permute(0, 2, 3, 1), cells))
    masses = weights if mass is None else weights * split(mass[None, :, :, None], cells)
    return (found / gather_around(masses.sum(dim=3).unsqueeze(4))).flatten(1, 2)


class Cells(NamedTuple):
    """Which tokens lie in which cell of a grid; cells of uneven size are filled up to the largest by repeated tokens.

    Args:
        superpixel_grid: (h, w).
        sides: of the largest cell, in tokens.
        members: along each axis, the tokens of each cell.
        even: whether the grids divide, so that nothing is filled up.
    """

    superpixel_grid: Grid
    sides: list[int]
    members: list[list[list[int]]]
    even: bool


def cells_of(token_grid: Grid, superpixel_grid: Grid) -> Cells:
    """The cells of a grid of superpixels over one of tokens."""
    sides, members = [], []
    for tokens, cells in zip(token_grid, superpixel_grid, strict=True):
        home = home_cells(tokens, cells)
        members.append([[i for i in range(tokens) if home[i] == cell] for cell in range(cells)])
        sides.append(max([len(cell) for cell in members[-1]]))
    even = all(len(cell) == side for axis, side in zip(members, sides, strict=True) for cell in axis)
    return Cells(superpixel_grid, sides, members, even)


def split(tokens: Shaped[Tensor, "B H W X"], cells: Cells) -> Shaped[Tensor, "B h w P X"]:
    """P tokens per cell."""
    (h, w), (rows, columns) = cells.superpixel_grid, cells.sides
    if not cells.even:
        for axis, side in enumerate(cells.sides):
            taken = [(cell + cell[:1] * side)[i] for cell in cells.members[axis] for i in range(side)]
            tokens = tokens.index_select(1 + axis, torch.tensor(taken, device=tokens.device))
    shape = (len(tokens), h, rows, w, columns, tokens.shape[3])
    return tokens.reshape(shape).transpose(2, 3).flatten(3, 4)


def join(by_cell: Shaped[Tensor, "B h w P X"], cells: Cells) -> Shaped[Tensor, "B H W X"]:
    """The way back, the fillings left out."""
    (h, w), (rows, columns) = cells.superpixel_grid, cells.sides
    tokens = by_cell.unflatten(3, (rows, columns)).transpose(2, 3).reshape(len(by_cell), h * rows, w * columns, -1)
    if not cells.even:
        for axis, side in enumerate(cells.sides):
            put = [cell * side + i for cell, inside in enumerate(cells.members[axis]) for i in range(len(inside))]
            tokens = tokens.index_select(1 + axis, torch.tensor(put, device=tokens.device))
    return tokens


def filled(cells: Cells, device: torch.device) -> Bool[Tensor, "h w P"]:
    """Whether a place of a cell holds a token of its own."""
    rows, columns = (
        torch.tensor([[i < len(cell) for i in range(side)] for cell in axis], device=device)
        for axis, side in zip(cells.members, cells.sides, strict=True)
    )
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2)


def around(grid: Float[Tensor, "B h w *X"]) -> Float[Tensor, "B h w 9 *X"]:
    """The 3×3 around each, zeros beyond the border."""
    h, w = grid.shape[1:3]
    beyond = (0, 0) * (grid.ndim - 3) + (1, 1, 1, 1)
    padded = F.pad(grid, beyond)
    return torch.stack([padded[:, y : y + h, x : x + w] for y in range(3) for x in range(3)], dim=3)


def _gathered(parts: Float[Tensor, "B h w 9 X"]) -> Float[Tensor, "B h w X"]:
    batch, h, w, _, width = parts.shape
    padded = parts.new_zeros(batch, h + 2, w + 2, width)
    for slot in range(9):
        padded[:, slot // 3 : slot // 3 + h, slot % 3 : slot % 3 + w] += parts[:, :, :, slot]
    return padded[:, 1:-1, 1:-1]


def largest_of_column(parts: Float[Tensor, "B h w 9"]) -> Float[Tensor, "B h w"]:
    """The largest number that any cell has for this superpixel."""
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


def spread_around(grid: Float[Tensor, "B h w X"]) -> Float[Tensor, "B h w 9 X"]:
    """`around`, with a gradient."""
    spread: Tensor = _SpreadAround.apply(grid)
    return spread


def gather_around(parts: Float[Tensor, "B h w 9 X"]) -> Float[Tensor, "B h w X"]:
    """The transpose of `around`: each part is added to the neighbour it is for."""
    gathered: Tensor = _GatherAround.apply(parts)
    return gathered
