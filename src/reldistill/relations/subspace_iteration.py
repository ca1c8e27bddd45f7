"""The lowest eigenvectors of a large channel graph, found from those of the step before instead of from nothing.

A block of p > k vectors goes through a Chebyshev filter that lets the wanted end of the spectrum grow, and is brought
to order by a small eigenproblem (Rayleigh–Ritz); again, until a bound on the projector's error is met. All matrices
that are multiplied are C × p. The gradient needs none of the dropped eigenvectors either: it solves for them with
conjugate gradients. Where the block does not converge, `torch.linalg.eigh` answers.

In terms of 𝓛 of `spectrum`, everything here is about S = I − 𝓛 − q qᵀ, q the trivial eigenvector: what is smallest in
𝓛 is largest in S.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reldistill.relations.precision import full_precision

SMALLEST = 256
"""Graphs of fewer channels are left to `eigh`, which takes a few milliseconds there."""

_TOLERANCE = {torch.float32: 5e-4, torch.float64: 1e-10}
_ROUNDS = {torch.float32: 8, torch.float64: 24}
_DEGREE = 5
_TOO_FAR = 0.5
"""Error of the start from which on it is no start: a filter could miss directions that are all but absent from it."""
_SOLVER_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
_SOLVER_STEPS = 60
_TRIVIAL = -2.0
"""Where q is thought to lie in S, as `spectrum.DEFLATION` has it: it is known, and always dropped."""


def block_size(channels: int, rank: int) -> int:
    """p for k, or 0 where a graph of so many channels is better left to `eigh`."""
    size = max(2 * rank, rank + 8)
    return size if channels >= max(SMALLEST, 8 * size) else 0


class Leading(NamedTuple):
    """Eigenvectors of S, largest eigenvalue first.

    Args:
        vectors: (G, C, p), orthonormal; the first k to the tolerance, the others roughly.
        values: (G, p).
        fell_back: (G,), whether the start was too far off or the block did not converge, so that `eigh` had to answer.
    """

    vectors: Tensor
    values: Tensor
    fell_back: Tensor


def leading(matrix: Tensor, start: Tensor, *, rank: int, semidefinite: bool) -> Leading:
    """Largest eigenvalues and their vectors.

    Args:
        matrix: S, (G, C, C).
        start: (G, C, p), the vectors of a similar matrix; with no entries on the first call.
        rank: k < p.
        semidefinite: whether S has no negative eigenvalue.
    """
    size = block_size(matrix.shape[-1], rank)
    if start.shape != (*matrix.shape[:-1], size) or not bool(start.isfinite().all() & matrix.isfinite().all()):
        vectors, values = _by_eigh(matrix, size)
        return Leading(vectors, values, torch.zeros(len(matrix), dtype=torch.bool, device=matrix.device))
    block = start.to(matrix.dtype, copy=True)
    # A direction that all of the start is orthogonal to would never be seen.
    block[..., -1] = torch.arange(1.0, matrix.shape[-1] + 1, dtype=matrix.dtype, device=matrix.device).square().cos()
    for round_ in range(_ROUNDS[matrix.dtype] + 1):
        vectors, image, values = _rayleigh_ritz(matrix, block)
        error = _error(vectors, image, values, rank)
        if not round_:
            far = ~(error <= _TOO_FAR)
            if bool(far.any()):
                block[far] = _by_eigh(matrix[far], size)[0]
                vectors, image, values = _rayleigh_ritz(matrix, block)
        # At least one filter, so that a direction that was not there before can show.
        if round_ and bool((error <= _TOLERANCE[matrix.dtype]).all()):
            break
        block = _filtered(matrix, vectors, image, values, semidefinite=semidefinite)
    bad = ~(error <= _TOLERANCE[matrix.dtype])
    if bool(bad.any()):
        vectors[bad], values[bad] = _by_eigh(matrix[bad], size)
    return Leading(vectors, values, bad | far)


def _by_eigh(matrix: Tensor, size: int) -> tuple[Tensor, Tensor]:
    finite = matrix.isfinite().all(dim=-1).all(dim=-1)[:, None, None]
    values, vectors = torch.linalg.eigh(torch.where(finite, matrix, 0.0))
    vectors, values = vectors[..., -size:].flip(-1), values[..., -size:].flip(-1)
    return torch.where(finite, vectors, torch.nan), torch.where(finite[..., 0], values, torch.nan)


def _rayleigh_ritz(matrix: Tensor, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best approximations in the span of the block: vectors X, S X, and values, largest first."""
    basis = torch.linalg.qr(block)[0]
    image = matrix @ basis
    small = basis.mT @ image
    values, turn = torch.linalg.eigh(torch.where(small.isfinite(), (small + small.mT) / 2, 0.0))
    turn = turn.flip(-1)
    return basis @ turn, image @ turn, values.flip(-1)


def _error(vectors: Tensor, image: Tensor, values: Tensor, rank: int) -> Tensor:
    """Estimate of ‖P − P̂‖ (Frobenius) of the projector on the first k, by its residuals.

    What leaks out of the block is residual / gap to what lies outside; a kept and a dropped vector of the block mix in
    second order, by the product of their residuals over both gaps. Mixing below the rounding of S is no error: `eigh`
    does not know better.
    """
    residual = image - vectors * values[:, None]
    tiny = torch.finfo(values.dtype).tiny
    outside = (values[:, :rank] - values[:, -1:]).clamp_min(tiny)
    leak = residual[..., :rank] / outside[:, None]
    mixed = leak.mT @ residual[..., rank:]
    rounding = 4 * torch.finfo(values.dtype).eps * values.abs().amax(dim=-1)[:, None, None]
    gap = (values[:, :rank, None] - values[:, None, rank:]).clamp_min(tiny)
    mixed = torch.where(mixed.abs() <= rounding, 0.0, mixed) / gap
    return (2 * (leak.square().sum(dim=(1, 2)) + mixed.square().sum(dim=(1, 2)))).sqrt()


def _filtered(matrix: Tensor, vectors: Tensor, image: Tensor, values: Tensor, *, semidefinite: bool) -> Tensor:
    """A Chebyshev polynomial of S on the block: small on the unwanted interval, large above it. Columns of length 1.

    Its degree is lowered where it would let the first vector grow so much above the last that rounding errors along the
    first drown the last: there the wanted end of the spectrum stands out far enough for a low degree.
    """
    top = values[:, -1].clamp_min(torch.finfo(values.dtype).tiny)[:, None, None]
    centre, half = (top / 2, top / 2) if semidefinite else (torch.zeros_like(top), top)
    growth = 2 * (values[:, :1, None] - centre) / half  # T_d grows about as growth^d / 2
    degree = int(math.log(0.2 / torch.finfo(values.dtype).eps) / math.log(max(float(growth.max()), 2.0)))
    before, now = vectors, (image - centre * vectors) / half
    for _ in range(min(max(degree, 1), _DEGREE) - 1):
        scaled = now * (2 / half)
        before, now = now, torch.baddbmm(before, matrix, scaled, beta=-1.0).sub_(centre * scaled)
    return now / torch.linalg.vector_norm(now, dim=1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)


def complement_solve(
    matrix: Tensor, vectors: Tensor, values: Tensor, pull: Tensor, *, rank: int, broadening: float
) -> Tensor:
    """Y = Σ_j u_j (u_jᵀ g_i) / (λ_i − λ_j) over the dropped j, for each kept i, by conjugate gradients.

    1 / gap is broadened to gap / (gap² + ε²): for the roughly known u_j of the block one by one, for all others as at
    the smallest of their gaps, which is where it matters most. Preconditioned by the block.

    Args:
        matrix: S, (G, C, C).
        vectors: (G, C, p) of `leading`.
        values: (G, p) of `leading`.
        pull: g, (G, C, k), orthogonal to q.
        rank: k.
        broadening: ε.
    """
    kept, guard = vectors[..., :rank], vectors[..., rank:]
    tiny = torch.finfo(values.dtype).tiny
    # A gap below ε / 100 would make the system stiff, and counts for next to nothing anyway.
    gap = (values[:, None, :rank] - values[:, rank:, None]).clamp_min(broadening / 100)
    outside = (values[:, :rank] - values[:, -1:]).clamp_min(broadening / 100)[:, None]
    extra = broadening**2 / outside
    shift = values[:, None, :rank] + extra
    stiff, soft = broadening**2 / gap - extra, 1 / (gap + broadening**2 / gap)

    def project(x: Tensor) -> Tensor:
        return x - kept @ (kept.mT @ x)

    def apply(x: Tensor) -> Tensor:
        return project(shift * x - matrix @ x + guard @ (stiff * (guard.mT @ x)))

    def precondition(x: Tensor) -> Tensor:
        inner = guard.mT @ x
        return project(x / shift.clamp_min(tiny) + guard @ (soft * inner - inner / shift.clamp_min(tiny)))

    residual = project(pull)
    bound = _SOLVER_TOLERANCE[values.dtype] * torch.linalg.vector_norm(residual, dim=1, keepdim=True)
    solution = torch.zeros_like(residual)
    better = precondition(residual)
    direction = better
    product = (residual * better).sum(dim=1, keepdim=True)
    for _ in range(_SOLVER_STEPS):
        active = torch.linalg.vector_norm(residual, dim=1, keepdim=True) > bound
        if not bool(active.any()):
            break
        image = apply(direction)
        curvature = (direction * image).sum(dim=1, keepdim=True)
        # A column that is done stands still: its next direction would be made of rounding errors.
        step = torch.where(active & (curvature > 0), product / curvature, 0.0)
        solution = solution + step * direction
        residual = residual - step * image
        better = precondition(residual)
        last, product = product, (residual * better).sum(dim=1, keepdim=True)
        direction = better + torch.where(active & (last > 0), product / last, 0.0) * direction
    return solution


def _normalised(adjacency: Tensor, weights: str) -> tuple[Tensor, Tensor, Tensor]:
    """S, q (G, C, 1) and d^{−1/2} (G, C, 1)."""
    edge = torch.where(adjacency < 0, 0.0, adjacency) if weights == "positive" else (1.0 + adjacency) / 2.0
    degree = edge.sum(dim=-1, keepdim=True)
    linked = degree > 0
    inverse = torch.where(linked, degree, 1.0).rsqrt() * linked
    trivial = degree.sqrt() / degree.sum(dim=-2, keepdim=True).clamp_min(1e-30).sqrt()
    matrix = edge.mul_(inverse).mul_(inverse.mT) if edge is not adjacency else edge * inverse * inverse.mT
    return matrix.baddbmm_(trivial, trivial.mT, alpha=-1.0), trivial, inverse


@torch.library.custom_op(
    "reldistill::leading_vectors",
    mutates_args=(),
    schema="(Tensor adjacency, Tensor start, int rank, str weights) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _leading_vectors(adjacency: Tensor, start: Tensor, rank: int, weights: str) -> tuple[Tensor, ...]:
    with torch.autocast(adjacency.device.type, enabled=False):
        matrix = _normalised(adjacency, weights)[0]
        # A mean of Gram matrices, as (1 + A) / 2 still is, has no negative eigenvalue; clipping may add one.
        semidefinite = weights == "shifted" or not bool((adjacency < 0).any())
        found = leading(matrix, start, rank=rank, semidefinite=semidefinite)
    if bool(found.fell_back.any()):
        _warn()
    return (
        found.vectors[..., :rank].clone(),
        found.vectors.contiguous(),
        found.values.contiguous(),
        found.fell_back.sum(),
    )


@_leading_vectors.register_fake
def _(adjacency: Tensor, start: Tensor, rank: int, weights: str) -> tuple[Tensor, ...]:
    graphs, channels, _ = adjacency.shape
    size = block_size(channels, rank)
    new = adjacency.new_empty
    count = new((), dtype=torch.int64)
    return new((graphs, channels, rank)), new((graphs, channels, size)), new((graphs, size)), count


def _warn() -> None:
    warnings.warn(
        "a channel graph's low eigenvectors differ too much from the last step's, or did not converge, and were taken "
        "from a full eigendecomposition, which is slow (SEKD counts this in `fallbacks`): larger batches make graphs "
        "that move less; where there is no gap after eigenvalue number `rank`, another rank helps",
        stacklevel=2,
    )


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    adjacency, _, rank, weights = inputs
    _, vectors, values, fell_back = output
    ctx.mark_non_differentiable(vectors, values, fell_back)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(adjacency, vectors, values)
    ctx.rank, ctx.weights = rank, weights


def _backward(ctx, grad_kept, *_):  # type: ignore[no-untyped-def]
    if torch.is_grad_enabled():
        raise RuntimeError("eigenvectors have no second derivative here: call backward without create_graph")
    return _pull(*ctx.saved_tensors, grad_kept, ctx.rank, ctx.weights), None, None, None


_leading_vectors.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op(
    "reldistill::leading_vectors_backward",
    mutates_args=(),
    schema="(Tensor adjacency, Tensor vectors, Tensor values, Tensor grad_kept, int rank, str weights) -> Tensor",
)
def _pull(adjacency: Tensor, vectors: Tensor, values: Tensor, grad_kept: Tensor, rank: int, weights: str) -> Tensor:
    """The gradient by S has rank 2k and is never formed; that by A is written once."""
    with torch.autocast(adjacency.device.type, enabled=False):
        matrix, trivial, inverse = _normalised(adjacency, weights)
        kept = vectors[..., :rank]
        along = trivial.mT @ grad_kept
        grad_kept = grad_kept - trivial * along
        epsilon = torch.finfo(values.dtype).eps ** 0.5
        solved = complement_solve(matrix, vectors, values, grad_kept, rank=rank, broadening=epsilon)
        # q is a dropped vector with the eigenvalue −2 of S − 2 q qᵀ; it moves with the degrees.
        gap = values[:, None, :rank] - _TRIVIAL
        pull = solved + trivial * (along * gap / (gap * gap + epsilon**2))
        # d⟨G, S⟩ = Σ_ij G_ij d(N − 3 q qᵀ)_ij with G = ½ (pull keptᵀ + kept pullᵀ), N = D^−½ W D^−½.
        return _to_adjacency(adjacency, matrix, trivial, inverse, kept, pull, weights)


@_pull.register_fake
def _(adjacency: Tensor, *_: object) -> Tensor:
    return torch.empty_like(adjacency)


def _to_adjacency(
    adjacency: Tensor, matrix: Tensor, trivial: Tensor, inverse: Tensor, kept: Tensor, pull: Tensor, weights: str
) -> Tensor:
    """Through N = D^{−½} W D^{−½} and q = D^{½} 1 / ‖·‖ to the adjacency."""

    def normalised(x: Tensor) -> Tensor:
        return matrix @ x + trivial * (trivial.mT @ x)

    # ∂/∂d_i = −(G ∘ N) 1 / d_i, by N applied to both factors of G.
    rows = (pull * normalised(kept) + kept * normalised(pull)).sum(dim=-1, keepdim=True) / 2
    to_degree = -rows * inverse * inverse
    # −3 q qᵀ: gradient by q is −6 G q; q_i = √d_i / √Σd.
    to_trivial = -3.0 * (pull * (kept.mT @ trivial).mT + kept * (pull.mT @ trivial).mT).sum(dim=-1, keepdim=True)
    total = inverse.square().reciprocal().masked_fill(inverse == 0, 0.0).sum(dim=-2, keepdim=True).clamp_min(1e-30)
    to_trivial = to_trivial - trivial * (trivial * to_trivial).sum(dim=-2, keepdim=True)
    to_degree = to_degree + to_trivial * inverse / (2 * total.sqrt())
    left = torch.cat([inverse * kept, inverse * pull], dim=-1) / 2
    right = torch.cat([inverse * pull, inverse * kept], dim=-1)
    gradient = torch.baddbmm(to_degree.expand_as(adjacency), left, right.mT)
    return torch.where(adjacency < 0, 0.0, gradient) if weights == "positive" else gradient / 2


class TrackedSubspaces(nn.Module):
    """The low eigenvectors of a student's and a teacher's channel graph, from step to step.

    What the last step found, where the next one starts, is a buffer: saved and restored with the module, so that a run
    goes on exactly as if it had not been interrupted. It moves on in training mode only.

    Args:
        rank: k.
        weights: see `spectrum.graph_weights`.
    """

    basis: Tensor
    fallbacks: Tensor

    def __init__(self, *, rank: int, weights: str) -> None:
        super().__init__()
        self.rank = rank
        self.weights = weights
        self.register_buffer("basis", torch.empty(0))
        self.register_buffer("fallbacks", torch.zeros((), dtype=torch.int64))

    def suits(self, adjacency: Tensor) -> bool:
        """Whether graphs of that size are for this module: smaller ones are faster by `eigh`."""
        return block_size(adjacency.shape[-1], self.rank) > 0

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Adjacencies (G, C, C) → embeddings U (G, C, k), each in some basis of its span.

        The teacher's has no gradient; the student's is for functions of the span, as `spectrum.embedding_distance` is.
        """
        known = len(self.basis) > 0
        ours, our_block, _, our_failures = _leading_vectors(
            student, self.basis[0] if known else self.basis, self.rank, self.weights
        )
        theirs, their_block, _, their_failures = _leading_vectors(
            teacher.detach(), self.basis[1] if known else self.basis, self.rank, self.weights
        )
        if self.training:
            self.basis = torch.stack([our_block, their_block])
            self.fallbacks = self.fallbacks + our_failures + their_failures
        return ours, theirs

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The basis has no size before the first step, and older checkpoints have none.
        found = state_dict.setdefault(prefix + "basis", self.basis)
        state_dict.setdefault(prefix + "fallbacks", self.fallbacks)
        self.basis = self.basis.new_empty(found.shape, dtype=found.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)
