"""Superpixel tokens: patch tokens merged by what they show (SeRKD, arXiv 2503.21269).

The assignment of tokens to superpixels is kept as a logarithm. With activations as large as real ones, the softmax
leaves some superpixel without any token that float32 could tell from none; its column still has a largest entry, and
scaling the columns in the logarithm finds it, where dividing by the column's sum would divide 0 by 0.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reldistill.core.checks import check_axes
from reldistill.relations.kernels import local_superpixels, switch
from reldistill.relations.precision import full_precision
from reldistill.relations.tokens import Grid, average_pool, home_cells, map_to_tokens

Neighbourhood = Literal["all", "local"]
_NEIGHBOURHOODS: tuple[str, ...] = get_args(Neighbourhood)


def superpixel_grid(grid: Grid, *, cell: int = 2) -> Grid:
    """The grid of superpixels over a grid of tokens, one for each cell×cell tokens, sizes rounded up.

    Example:
        >>> superpixel_grid((14, 7))
        (7, 4)
    """
    if cell < 1:
        raise ValueError(f"cell must be at least 1, got {cell}")
    return -(-grid[0] // cell), -(-grid[1] // cell)


def common_grid(student_grid: Grid, teacher_grid: Grid) -> Grid:
    """The coarser of two superpixel grids, along each axis, on which student and teacher are compared."""
    return min(student_grid[0], teacher_grid[0]), min(student_grid[1], teacher_grid[1])


@full_precision
def initial_superpixels(feature_map: Float[Tensor, "B D H W"], *, grid: Grid) -> Float[Tensor, "B M D"]:
    """The mean of each cell of the grid, S⁰.

    Args:
        feature_map: (B, D, H, W), tokens laid out on their grid.
        grid: (h, w) of the superpixels, h ≤ H and w ≤ W.

    Returns:
        (B, M, D) with M = h·w.
    """
    check_axes(feature_map, "B D H W", name="feature_map")
    _check_grid(_token_grid(feature_map), grid)
    return map_to_tokens(average_pool(feature_map, grid))


class Assignment(NamedTuple):
    """To which superpixels the tokens of each image belong.

    Args:
        log_weights: log Q, (B, N, M), −∞ where a token does not see a superpixel; or (B, N, 9), a fast kernel's, of
            each token's neighbours only, −∞ beyond the border.
        token_grid: (H, W) of the N tokens.
        superpixel_grid: (h, w) of the M superpixels.
        neighbours: (N, 9) superpixel index of each entry of such an assignment, −1 beyond the border; None when dense.
    """

    log_weights: Float[Tensor, "B N seen"]
    token_grid: Grid
    superpixel_grid: Grid
    neighbours: Int[Tensor, "N 9"] | None = None

    def detach(self) -> Assignment:
        """The same, a constant."""
        return Assignment(self.log_weights.detach(), self.token_grid, self.superpixel_grid, self.neighbours)

    def dense(self) -> Float[Tensor, "B N M"]:
        """Q as (B, N, M), its rows summing to 1: for looking at, not for large grids."""
        if self.neighbours is None:
            return self.log_weights.exp()
        count = self.superpixel_grid[0] * self.superpixel_grid[1]
        q = self.log_weights.new_zeros(*self.log_weights.shape[:2], count)
        index = self.neighbours.clamp_min(0).expand(self.log_weights.shape)
        return q.scatter_add(2, index, self.log_weights.exp())

    def labels(self) -> Int[Tensor, "B H W"]:
        """(B, H, W) index of each token's heaviest superpixel: the superpixel map to draw."""
        best = self.log_weights.argmax(dim=2)
        if self.neighbours is not None:
            best = self.neighbours.expand(len(best), -1, -1).gather(2, best.unsqueeze(2)).squeeze(2)
        return best.unflatten(1, self.token_grid)


@full_precision
def assign(
    tokens: Float[Tensor, "B N D"],
    superpixels: Float[Tensor, "B M D"],
    *,
    neighbourhood: Neighbourhood = "all",
    token_grid: Grid,
    superpixel_grid: Grid,
) -> Assignment:
    """Q = softmax over the superpixels of T Sᵀ / √D.

    Args:
        tokens: T, (B, N, D).
        superpixels: S, (B, M, D).
        neighbourhood: `all`, or `local` for a softmax over the up to 3×3 nearest superpixels only, which costs O(9·N)
            in place of O(N·M) by the fast kernels.
        token_grid: (H, W) of the tokens, H·W = N.
        superpixel_grid: (h, w) of the superpixels, h·w = M, h ≤ H and w ≤ W.

    Returns:
        The assignment; `dense()` is Q.
    """
    check_neighbourhood(neighbourhood)
    check_axes(tokens, "B N D", name="tokens", N=token_grid[0] * token_grid[1])
    count = superpixel_grid[0] * superpixel_grid[1]
    check_axes(superpixels, "B M D", name="superpixels", B=tokens.shape[0], M=count, D=tokens.shape[2])
    _check_grid(token_grid, superpixel_grid)
    scaled = superpixels / tokens.shape[2] ** 0.5  # there are fewer of them than tokens
    if neighbourhood == "all":
        return Assignment((tokens @ scaled.mT).log_softmax(dim=2), token_grid, superpixel_grid)
    neighbours = nearest_superpixels(token_grid, superpixel_grid, device=tokens.device)
    if switch.enabled():
        likeness = local_superpixels.likeness(tokens, scaled, token_grid, superpixel_grid)
        log_weights = likeness.masked_fill(neighbours < 0, -torch.inf).log_softmax(dim=2)
        return Assignment(log_weights, token_grid, superpixel_grid, neighbours)
    near = (neighbours.unsqueeze(2) == torch.arange(count, device=tokens.device)).any(dim=1)
    likeness = (tokens @ scaled.mT).masked_fill(~near, -torch.inf)
    return Assignment(likeness.log_softmax(dim=2), token_grid, superpixel_grid)


@full_precision
def merge(feature_map: Float[Tensor, "B D H W"], assignment: Assignment) -> Float[Tensor, "B M D"]:
    """The superpixel tokens Q̂ᵀ T, with Q̂ the assignment's columns scaled to sum 1.

    A map on another grid than the assignment's is merged by the assignment resampled bilinearly to the map's grid.
    Resampling Q is a product U Q, and (U Q)ᵀ T = Qᵀ (Uᵀ T): the map is laid on the assignment's grid instead,
    which costs no (N, M) matrix.

    Args:
        feature_map: (B, D, H, W).
        assignment: of its own tokens, or of another network's.

    Returns:
        (B, M, D).
    """
    check_axes(feature_map, "B D H W", name="feature_map", B=assignment.log_weights.shape[0])
    log_weights, mass = assignment.log_weights, None
    if _token_grid(feature_map) != assignment.token_grid:
        rows, columns = (
            _resampler(here, there, like=feature_map)
            for here, there in zip(_token_grid(feature_map), assignment.token_grid, strict=True)
        )
        feature_map = torch.einsum("bdhw,hp,wq->bdpq", feature_map, rows, columns)
        mass = rows.sum(dim=0)[:, None] * columns.sum(dim=0)
        # A token of the assignment's grid that no token of the map falls on must not set a column's scale.
        log_weights = log_weights.masked_fill(mass.flatten()[:, None] <= 0, -torch.inf)
    if assignment.neighbours is not None:
        grids = assignment.token_grid, assignment.superpixel_grid
        return local_superpixels.merged(log_weights, feature_map, mass, *grids)
    tokens = map_to_tokens(feature_map)
    if mass is None:
        return log_weights.softmax(dim=1).mT @ tokens
    weights = (log_weights - log_weights.detach().amax(dim=1, keepdim=True)).exp()
    return (weights.mT @ tokens) / (weights.mT @ mass.flatten()).unsqueeze(2)


def nearest_superpixels(
    token_grid: Grid, superpixel_grid: Grid, *, device: torch.device | None = None
) -> Int[Tensor, "N 9"]:
    """The superpixel in whose cell a token's centre lies, and those around it: (N, 9) indices, −1 beyond the border."""
    axes = []
    for tokens, cells in zip(token_grid, superpixel_grid, strict=True):
        home = torch.tensor(home_cells(tokens, cells), device=device)
        near = home[:, None] + torch.arange(-1, 2, device=device)
        axes.append(near.masked_fill((near < 0) | (near >= cells), -1))
    rows, columns = axes[0][:, None, :, None], axes[1][None, :, None, :]
    index = (rows * superpixel_grid[1] + columns).masked_fill((rows < 0) | (columns < 0), -1)
    return index.reshape(-1, 9)


@full_precision
def superpixel_tokens(
    feature_map: Float[Tensor, "B D H W"],
    *,
    grid: Grid,
    iterations: int = 1,
    neighbourhood: Neighbourhood = "all",
    assignment: Assignment | None = None,
) -> Float[Tensor, "B M D"]:
    """The tokens of a map merged into superpixels: Sᵗ = (Q̂ᵗ)ᵀ T, Qᵗ from S^{t−1}, S⁰ the means of the grid's cells.

    Args:
        feature_map: (B, D, H, W).
        grid: (h, w) of the superpixels.
        iterations: how often tokens are assigned anew; 0 leaves the plain means of the cells.
        neighbourhood: see `assign`.
        assignment: merge by this one, another network's, instead of the map's own.

    Returns:
        (B, M, D).
    """
    if assignment is not None:
        if assignment.superpixel_grid != grid:
            raise ValueError(f"assignment: its grid is {assignment.superpixel_grid}, expected {grid}")
        return merge(feature_map, assignment)
    superpixels, _ = superpixels_and_assignment(
        feature_map, grid=grid, iterations=iterations, neighbourhood=neighbourhood
    )
    return superpixels


@full_precision
def superpixels_and_assignment(
    feature_map: Float[Tensor, "B D H W"], *, grid: Grid, iterations: int = 1, neighbourhood: Neighbourhood = "all"
) -> tuple[Float[Tensor, "B M D"], Assignment | None]:
    """`superpixel_tokens`, and the last assignment that made them (None without any iteration).

    Example:
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator ...>
        >>> superpixels, assignment = superpixels_and_assignment(torch.randn(2, 8, 6, 6), grid=(3, 3))
        >>> superpixels.shape, assignment.labels().shape
        (torch.Size([2, 9, 8]), torch.Size([2, 6, 6]))
    """
    check_neighbourhood(neighbourhood)
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0, got {iterations}")
    superpixels = initial_superpixels(feature_map, grid=grid)
    tokens, assignment = map_to_tokens(feature_map), None
    for _ in range(iterations):
        assignment = assign(
            tokens,
            superpixels,
            neighbourhood=neighbourhood,
            token_grid=_token_grid(feature_map),
            superpixel_grid=grid,
        )
        superpixels = merge(feature_map, assignment)
    return superpixels, assignment


def check_neighbourhood(neighbourhood: str) -> None:
    """Raise ValueError unless `assign` knows this setting."""
    if neighbourhood not in _NEIGHBOURHOODS:
        raise ValueError(f"neighbourhood must be one of {', '.join(_NEIGHBOURHOODS)}, got {neighbourhood!r}")


def _token_grid(feature_map: Tensor) -> Grid:
    return feature_map.shape[2], feature_map.shape[3]


def _check_grid(token_grid: Grid, superpixel_grid: Grid) -> None:
    if any(not 1 <= s <= t for t, s in zip(token_grid, superpixel_grid, strict=True)):
        raise ValueError(f"a grid of {token_grid} tokens cannot hold {superpixel_grid} superpixels")


def _resampler(here: int, there: int, *, like: Tensor) -> Float[Tensor, "here there"]:
    """Matrix that resamples a line of `there` values to `here` values, bilinearly."""
    basis = torch.eye(there, dtype=like.dtype, device=like.device)
    return F.interpolate(basis.unsqueeze(0), size=here, mode="linear", align_corners=False)[0].T
