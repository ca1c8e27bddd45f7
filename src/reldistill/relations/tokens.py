"""Feature maps as tokens, tokens as maps."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from reldistill.core.checks import check_axes
from reldistill.relations.precision import full_precision

Grid = tuple[int, int]
Pooling = Literal["average", "max", "none"]
_POOLINGS: tuple[str, ...] = get_args(Pooling)


def map_to_tokens(feature_map: Shaped[Tensor, "B C H W"]) -> Shaped[Tensor, "B HW C"]:
    """(B, C, H, W) → (B, H·W, C), row by row.

    Example:
        >>> import torch
        >>> map_to_tokens(torch.zeros(2, 5, 3, 4)).shape
        torch.Size([2, 12, 5])
    """
    check_axes(feature_map, "B C H W", name="feature_map")
    return feature_map.flatten(2).transpose(1, 2)


def tokens_to_map(tokens: Shaped[Tensor, "B N D"], *, grid: Grid) -> Shaped[Tensor, "B D H W"]:
    """(B, N, D) → (B, D, H, W), the inverse of `map_to_tokens`.

    Args:
        tokens: (B, N, D) patch tokens, class and register tokens removed.
        grid: (H, W) with H·W = N.

    Raises:
        ValueError: the grid does not hold N tokens.
    """
    check_axes(tokens, "B N D", name="tokens", N=grid[0] * grid[1])
    return tokens.transpose(1, 2).unflatten(2, grid)


def home_cells(tokens: int, cells: int) -> list[int]:
    """Along one axis, the cell of a coarser grid in which each token's centre lies."""
    return [(2 * i + 1) * cells // (2 * tokens) for i in range(tokens)]


def average_pool(feature_map: Float[Tensor, "B C H W"], grid: Grid) -> Float[Tensor, "B C h w"]:
    """`adaptive_avg_pool2d` whose gradient a GPU repeats bit by bit, on which exact resume rests.

    Args:
        feature_map: (B, C, H, W).
        grid: (h, w).

    Returns:
        (B, C, h, w).
    """
    height, width = feature_map.shape[2:]
    if feature_map.device.type != "cuda":
        return F.adaptive_avg_pool2d(feature_map, grid)
    if height % grid[0] == 0 and width % grid[1] == 0:
        cells = feature_map.unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1))
        return cells.mean(dim=(3, 5))
    rows, columns = (_means(*sizes, like=feature_map) for sizes in zip((height, width), grid, strict=True))
    return _along(_along(feature_map, columns).mT, rows).mT


def _along(lines: Float[Tensor, "B C L n"], matrix: Float[Tensor, "m n"]) -> Float[Tensor, "B C L m"]:
    """As one product per image; one for each channel takes far longer."""
    return (lines.flatten(1, 2) @ matrix.mT).unflatten(1, lines.shape[1:3])


def _means(size: int, cells: int, *, like: Tensor) -> Float[Tensor, "cells size"]:
    """The means over the windows that adaptive pooling takes of a line."""
    place, cell = (torch.arange(count, device=like.device) for count in (size, cells))
    starts, ends = cell * size // cells, -(-(cell + 1) * size // cells)
    inside = (place >= starts[:, None]) & (place < ends[:, None])
    return inside.to(like.dtype) / (ends - starts)[:, None]


@full_precision
def tokenise(
    feature_map: Float[Tensor, "B C H W"], *, pooling: Pooling = "average", largest_grid: int = 16
) -> Float[Tensor, "B C h w"]:
    """A convolutional map pooled until it is as small as a grid of patches.

    Height and width are halved (odd sizes rounded up) until neither is above `largest_grid`.

    Args:
        feature_map: (B, C, H, W).
        pooling: `average`, `max`, or `none` for the map as it is.
        largest_grid: the largest height and width to leave.

    Returns:
        (B, C, h, w).

    Raises:
        ValueError: an unknown pooling, or a grid below 1.
    """
    check_axes(feature_map, "B C H W", name="feature_map")
    check_tokeniser(pooling, largest_grid)
    if pooling == "none":
        return feature_map
    pool = F.adaptive_max_pool2d if pooling == "max" else average_pool
    while max(feature_map.shape[2:]) > largest_grid:
        height, width = feature_map.shape[2:]
        feature_map = pool(feature_map, (-(-height // 2), -(-width // 2)))
    return feature_map


@full_precision
def on_common_grid(
    student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B Ct Ht Wt"]
) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B Ct h w"]]:
    """Two maps (B, C, H, W), average-pooled to the coarser of their grids along each axis where they differ.

    Example:
        >>> import torch
        >>> [tuple(pooled.shape) for pooled in on_common_grid(torch.rand(2, 5, 8, 3), torch.rand(2, 7, 4, 6))]
        [(2, 5, 4, 3), (2, 7, 4, 3)]
    """
    grid = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    ours, theirs = (side if tuple(side.shape[2:]) == grid else average_pool(side, grid) for side in (student, teacher))
    return ours, theirs


def check_tokeniser(pooling: str, largest_grid: int, *, name: str = "pooling") -> None:
    """Raise ValueError unless `tokenise` knows these settings; `name` is what the message calls the first."""
    if pooling not in _POOLINGS:
        raise ValueError(f"{name} must be one of {', '.join(_POOLINGS)}, got {pooling!r}")
    if largest_grid < 1:
        raise ValueError(f"largest_grid must be at least 1, got {largest_grid}")
