"""The largest eigenvalues of a symmetric matrix and their vectors, found from those of a similar one, or from nothing.

A block of p > k vectors goes through a Chebyshev filter that lets the wanted end of the spectrum grow, and is brought
to order by a small eigenproblem (Rayleigh–Ritz); again, until a bound on the projector's error is met. All matrices
that are multiplied are C × p. The gradient needs none of the dropped eigenvectors either, see `complement_solve`.
Where the block does not converge, the result says so, and a full decomposition takes over.

Some columns of every start are fixed pseudo-random ones, and nothing is accepted before a filter has let them grow: a
direction that all other columns are orthogonal to comes up in these.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reldistill.relations.eigenproblems import guarded_eigh
from reldistill.relations.kernels.replay import Replayed

SMALLEST = 256
"""Graphs of fewer channels are left to `eigh`, which takes a few milliseconds there."""

_TOLERANCE = {torch.float32: 5e-4, torch.float64: 1e-10}
_HIGHEST_DEGREE = {torch.float32: 12, torch.float64: 40}
"""Of a filter between two Rayleigh–Ritz steps."""
_MOST_DEGREES = {torch.float32: 72, torch.float64: 200}
"""Of all filters: what takes more is left to `eigh`, which then costs less."""
_LEAST_GROWTH = 50.0
"""Of the last wanted vector over the unwanted ones, in all filters together, before anything is accepted."""
_FLATTEST = 0.1
"""Logarithm of the growth per degree below which there is no gap to work with."""


def block_size(channels: int, rank: int) -> int:
    """p for k, or 0 where a graph of so many channels is better left to `eigh`."""
    # Wider products take longer, but with the unwanted values further away fewer are needed. Of 2 k, 2.5 k, 3 k and
    # 3.5 k, 3 k took the least time on graphs of 2048 channels, and no more than the others on those of 512.
    size = max(3 * rank, rank + 24)
    return size if channels >= max(SMALLEST, 5 * size) else 0


def _fresh_columns(size: int) -> int:
    """How many of a start's p columns are pseudo-random. So many values at the end are not to be relied on."""
    return max(2, size // 16)


def _levels(
    values: Float[Tensor, "G p"], rank: int, before: Float[Tensor, "G 4"] | None = None
) -> Float[Tensor, "G 4"]:
    """The first value, the last wanted one, the edge of the unwanted ones, the last of all.

    A filter keeps everything below its edge alike, so where its edge was a little too high, the last columns are a
    mixture of all that, with values far too low: hence the edge falls by little at a time.
    """
    last_wanted = values[:, rank - 1]
    edge = values[:, values.shape[-1] - _fresh_columns(values.shape[-1]) - 1]
    if before is not None:
        edge = torch.maximum(edge, torch.minimum(0.9 * before[:, 2], 0.8 * last_wanted))
    return torch.stack([values[:, 0], last_wanted, edge, values[:, -1]], dim=-1)


class Start(NamedTuple):
    """What is known of a similar matrix.

    Args:
        vectors: (G, C, p).
        levels: (G, 4), see `Leading`.
        degree: of the filters that it took.
    """

    vectors: Float[Tensor, "G C p"]
    levels: Float[Tensor, "G 4"]
    degree: int


class Leading(NamedTuple):
    """Eigenvectors of S, largest eigenvalue first.

    Args:
        vectors: (G, C, p), orthonormal; the first k to the tolerance, the others roughly.
        images: S · vectors, (G, C, p).
        values: (G, p).
        levels: (G, 4): the first value, the last wanted one, the edge of the unwanted ones, the last of all.
        degree: of the filters that it took, or would have taken if the last one had been just high enough.
        fell_back: (G,), whether the block did not converge, so that `eigh` has to answer.
    """

    vectors: Float[Tensor, "G C p"]
    images: Float[Tensor, "G C p"]
    values: Float[Tensor, "G p"]
    levels: Float[Tensor, "G 4"]
    degree: int
    fell_back: Bool[Tensor, " G"]


def leading(matrix: Float[Tensor, "G C C"], start: Start | None, *, rank: int, semidefinite: bool) -> Leading:
    """Largest eigenvalues and their vectors.

    Args:
        matrix: S, (G, C, C), finite.
        start: of a similar matrix, if one is known.
        rank: k < p.
        semidefinite: whether S has no negative eigenvalue.
    """
    size, target = block_size(matrix.shape[-1], rank), _TOLERANCE[matrix.dtype]
    images: Tensor | None = None
    if start is None:
        first = _rayleigh_ritz(matrix, matrix @ _pseudo_random(matrix, size), None, rank, semidefinite)
        vectors, images, levels, interval = first.vectors, first.images, first.levels, first.interval
        degree = _HIGHEST_DEGREE[matrix.dtype] // 2
    else:
        fresh = _pseudo_random(matrix, _fresh_columns(size))
        vectors = torch.cat([start.vectors[..., : -fresh.shape[-1]], fresh], dim=-1)
        levels, degree = start.levels, start.degree
        centre, half, growth = _interval(levels, semidefinite)
        interval = Interval.of(centre, half, *growth.tolist())
    total, wanted_growth = 0, math.log(_LEAST_GROWTH)
    while True:
        degree = max(1, min(max(degree, math.ceil(wanted_growth / interval.slowest)), _HIGHEST_DEGREE[matrix.dtype]))
        total += degree
        wanted_growth -= degree * interval.slowest
        block = _filtered(matrix, vectors, images, interval, degree)
        vectors, images, values, levels, error, interval, worst = _rayleigh_ritz(
            matrix, block, levels, rank, semidefinite
        )
        if math.isnan(worst):
            break
        # Of the filter that would just do after this one; below 0 where this one was higher than needed.
        degree = math.ceil(math.log(min(max(2 * worst / target, 1e-9), 1e6)) / interval.slowest)
        good = worst <= target and wanted_growth <= 0
        if good or total >= _MOST_DEGREES[matrix.dtype] or interval.slowest <= _FLATTEST:
            break
    return Leading(vectors, images, values, levels, max(total + degree, 1), ~(error <= target))


def by_eigh(matrix: Float[Tensor, "G C C"], *, rank: int) -> Leading:
    """The same from a full eigendecomposition; NaN where S is not finite."""
    values, vectors = guarded_eigh(matrix)
    size = block_size(matrix.shape[-1], rank)
    vectors, values = vectors[..., -size:].flip(-1), values[..., -size:].flip(-1)
    everywhere = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    levels, degree = _levels(values, rank), _HIGHEST_DEGREE[matrix.dtype]
    return Leading(vectors, vectors * values[:, None], values, levels, degree, everywhere)


def _pseudo_random(matrix: Float[Tensor, "G C C"], columns: int) -> Float[Tensor, "G C columns"]:
    """The same every time."""
    place = torch.arange(1.0, matrix.shape[-1] + 1, dtype=torch.float64, device=matrix.device)[:, None]
    column = torch.arange(1.0, columns + 1, dtype=torch.float64, device=matrix.device)
    waves = (place.square() * (math.sqrt(2) + math.sqrt(3) * column)).cos()
    return waves.to(matrix.dtype).expand(len(matrix), -1, -1)


class Interval(NamedTuple):
    """Where the unwanted eigenvalues are thought to lie, and how wanted ones grow when it is kept at 1.

    Args:
        centre: (G, 1, 1).
        half: (G, 1, 1), half its length.
        slowest: logarithm of the growth per degree of the last wanted vector.
        fastest: that of the first one.
    """

    centre: Float[Tensor, "G 1 1"]
    half: Float[Tensor, "G 1 1"]
    slowest: float
    fastest: float

    @classmethod
    def of(cls, centre: Tensor, half: Tensor, slowest: float, fastest: float) -> Interval:
        """Of what `_interval` says, looked at."""
        return cls(centre, half, max(slowest, _FLATTEST), fastest)

    def degrees_at_once(self, dtype: torch.dtype) -> int:
        """As many as leave the rounding errors along the first vector below the last one of the block."""
        return max(1, int(-math.log(torch.finfo(dtype).eps) / max(self.fastest, 1e-3)))


@Replayed
def _interval(levels: Tensor, semidefinite: bool) -> tuple[Tensor, ...]:
    """Centre and half length of the `Interval` below the edge, and the growth of the last wanted and the first vector.

    It is never so short that the first one's growth is immense.
    """
    first, last_wanted, edge, lowest = levels.unbind(dim=-1)
    # Four times, so that half of it is not a denormal number, which some processes take for 0.
    least = 4 * torch.finfo(levels.dtype).tiny
    shortest = (0.05 * last_wanted).clamp_min(1e-3 * first).clamp_min(least)
    top = torch.maximum(edge, shortest)
    low = torch.zeros_like(top) if semidefinite else torch.minimum(lowest, -top)
    centre, half = (top + low) / 2, (top - low) / 2
    slowest = ((last_wanted - centre) / half).clamp_min(1.0).acosh().amin()
    fastest = ((first - centre) / half).clamp_min(1.0).acosh().amax()
    return centre[:, None, None], half[:, None, None], torch.stack([slowest, fastest])


def _filtered(
    matrix: Float[Tensor, "G C C"],
    block: Float[Tensor, "G C p"],
    images: Float[Tensor, "G C p"] | None,
    interval: Interval,
    degree: int,
) -> Float[Tensor, "G C p"]:
    """Chebyshev polynomials of S on the block, orthonormalised between: small on the interval, large above it."""
    pieces = math.ceil(degree / interval.degrees_at_once(matrix.dtype))
    for piece in range(pieces):
        if piece:
            block, images = torch.linalg.qr(block)[0], None
        images = matrix @ block if images is None else images
        (block,) = _chebyshev(matrix, block, images, interval.centre, interval.half, (degree + piece) // pieces)
    return block


@Replayed
def _chebyshev(
    matrix: Tensor, block: Tensor, images: Tensor, centre: Tensor, half: Tensor, degree: int
) -> tuple[Tensor, ...]:
    before, now = block, (images - centre * block).div_(half)
    for _ in range(degree - 1):
        scaled = now * (2 / half)
        before, now = now, torch.baddbmm(before, matrix, scaled, beta=-1.0).sub_(centre * scaled)
    return (now,)


class _Ritz(NamedTuple):
    """The best approximations in the span of a block, largest first, and what follows from them; see `Leading`."""

    vectors: Float[Tensor, "G C p"]
    images: Float[Tensor, "G C p"]
    values: Float[Tensor, "G p"]
    levels: Float[Tensor, "G 4"]
    error: Float[Tensor, " G"]
    interval: Interval
    worst: float


def _rayleigh_ritz(
    matrix: Float[Tensor, "G C C"],
    block: Float[Tensor, "G C p"],
    before: Float[Tensor, "G 4"] | None,
    rank: int,
    semidefinite: bool,
) -> _Ritz:
    """`before` are the levels so far."""
    basis = torch.linalg.qr(block)[0]
    image, small = _projected(matrix, basis)
    values, turn = guarded_eigh(small)
    turned = _turned(basis, image, values, turn, before, rank, semidefinite)
    vectors, images, values, levels, error, centre, half, seen = turned
    # All at once: every number that is looked at means waiting for a GPU.
    slowest, fastest, worst = seen.tolist()
    return _Ritz(vectors, images, values, levels, error, Interval.of(centre, half, slowest, fastest), worst)


@Replayed
def _projected(matrix: Tensor, basis: Tensor) -> tuple[Tensor, ...]:
    image = matrix @ basis
    small = basis.mT @ image
    return image, (small + small.mT) / 2


@Replayed
def _turned(
    basis: Tensor, image: Tensor, values: Tensor, turn: Tensor, before: Tensor | None, rank: int, semidefinite: bool
) -> tuple[Tensor, ...]:
    turn, values = turn.flip(-1), values.flip(-1)
    vectors, images, levels = basis @ turn, image @ turn, _levels(values, rank, before)
    error = _error(vectors, images, values, rank, levels[:, 2:3])
    centre, half, growth = _interval(levels, semidefinite)
    return vectors, images, values, levels, error, centre, half, torch.cat([growth, error.amax()[None]])


def _error(
    vectors: Float[Tensor, "G C p"],
    images: Float[Tensor, "G C p"],
    values: Float[Tensor, "G p"],
    rank: int,
    edge: Float[Tensor, "G 1"],
) -> Float[Tensor, " G"]:
    """Estimate of ‖P − P̂‖ (Frobenius) of the projector on the first k, by its residuals.

    What leaks out of the block is residual / gap to what lies outside; a kept and a dropped vector of the block mix in
    second order, by the product of their residuals over both gaps. Mixing below the rounding of S does not count:
    `eigh` does not know better. At least 1 where a dropped vector is so rough that it may yet rise above the last kept
    one.
    """
    residual = images - vectors * values[:, None]
    tiny = torch.finfo(values.dtype).tiny
    outside = (values - edge).clamp_min(tiny)
    leak = residual[..., :rank] / outside[:, None, :rank]
    mixed = leak.mT @ residual[..., rank:]
    rounding = 4 * torch.finfo(values.dtype).eps * values.abs().amax(dim=-1, keepdim=True)
    gap = (values[:, :rank, None] - values[:, None, rank:]).clamp_min(tiny)
    mixed = torch.where(mixed.abs() <= rounding[..., None], 0.0, mixed) / gap
    error = (2 * (leak.square().sum(dim=(1, 2)) + mixed.square().sum(dim=(1, 2)))).sqrt()
    # An eigenvalue lies no further from a value than its residual, nor than its square over the gap to all others.
    length = torch.linalg.vector_norm(residual[..., rank:], dim=1)
    reach = values[:, rank:] + torch.minimum(length, length.square() / outside[:, rank:])
    may_rise = (reach > values[:, rank - 1 : rank] + rounding).any(dim=-1)
    return torch.where(may_rise, error.clamp_min(1.0), error)
