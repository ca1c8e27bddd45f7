"""Superpixel tokens by dense matrices of tokens × superpixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def superpixel_tokens(
    feature_map: Tensor, *, grid: tuple[int, int], iterations: int = 1, allowed: Tensor | None = None
) -> Tensor:
    """(B, D, H, W) → (B, M, D) with M = h·w.

    Args:
        feature_map: the tokens on their grid.
        grid: (h, w) of the superpixels.
        iterations: how often tokens are assigned.
        allowed: (N, M) which superpixels a token may belong to; by default all.
    """
    tokens = feature_map.flatten(2).transpose(1, 2)
    superpixels = F.adaptive_avg_pool2d(feature_map, grid).flatten(2).transpose(1, 2)
    for _ in range(iterations):
        likeness = tokens @ superpixels.mT / tokens.shape[2] ** 0.5
        if allowed is not None:
            likeness = likeness.masked_fill(~allowed, -torch.inf)
        assignment = likeness.softmax(dim=2)
        superpixels = (assignment / assignment.sum(dim=1, keepdim=True)).mT @ tokens
    return superpixels


def nearby(token_grid: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """(N, M): whether a superpixel is the one in whose cell a token's centre lies, or next to that."""
    axes = []
    for tokens, cells in zip(token_grid, grid, strict=True):
        home = ((torch.arange(tokens) + 0.5) * cells / tokens).floor()
        axes.append((home[:, None] - torch.arange(cells)).abs() <= 1)
    rows, columns = axes
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)
