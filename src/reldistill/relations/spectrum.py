"""Spectra of channel graphs, compared so that neither the sign of an eigenvector nor the basis of a repeated eigenvalue
matters.

`adjacency` is (…, C, C), symmetric, with 1 on the diagonal, as `channel_graph` makes it. `rank` is k, how many
eigenvectors are kept; it is clamped to C − 1, all there are beside the trivial one. At k = 0 every distance is 0.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reldistill.relations.normalised_graph import DEFLATION, gradient_by_edges, inverse_root_degree, trivial_vector
from reldistill.relations.precision import full_precision

Weights = Literal["positive", "shifted"]
Alignment = Literal["subspace", "procrustes", "heat"]


def broadening(dtype: torch.dtype) -> float:
    """ε of the projector's backward, which takes gap / (gap² + ε²) for 1 / gap: the square root of machine precision.

    3.5e-4 in float32 and 1.5e-8 in float64. Eigenvalues are known to about machine precision, so where a gap is far
    above ε the gradient is exact, and where a kept and a dropped eigenvalue meet it fades out instead of blowing up.
    """
    return float(torch.finfo(dtype).eps ** 0.5)


def graph_weights(adjacency: Tensor, *, weights: Weights = "positive") -> Tensor:
    """Non-negative edge weights of similarities: max(A, 0) for `positive`, (1 + A) / 2 for `shifted`."""
    if weights == "positive":
        # Not clamp_min, whose gradient at 0 is 0: an edge that the student lacks has to be able to grow.
        return torch.where(adjacency < 0, 0.0, adjacency)
    if weights == "shifted":
        return (1.0 + adjacency) / 2.0
    raise ValueError(f"weights must be 'positive' or 'shifted', got {weights!r}")


def _normalised(adjacency: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """N = D^{−1/2} W D^{−1/2} (…, C, C) and d^{−1/2} (…, C, 1)."""
    edge = graph_weights(adjacency, weights=weights)
    inverse = inverse_root_degree(edge)
    return inverse * edge * inverse.mT, inverse


def _identity(matrix: Tensor) -> Tensor:
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


@full_precision
def laplacian(adjacency: Tensor, *, weights: Weights = "positive") -> Tensor:
    """Normalised Laplacian 𝓛 = I − D^{−1/2} W D^{−1/2}, d_i = Σ_j W_ij; eigenvalues in [0, 2].

    Args:
        adjacency: (…, C, C).
        weights: how similarities become non-negative weights W, see `graph_weights`.

    Returns:
        (…, C, C), symmetric.
    """
    normalised, _ = _normalised(adjacency, weights)
    return _identity(normalised) - normalised


@full_precision
def laplacian_eigenvalues(adjacency: Tensor, *, weights: Weights = "positive") -> Tensor:
    """(…, C, C) → (…, C): the whole spectrum of the graph, ascending, the trivial 0 first. Without gradient."""
    return guarded_eigh(laplacian(adjacency.detach(), weights=weights))[0]


def _deflated(adjacency: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """3 q qᵀ − N and d^{−1/2}: the Laplacian's eigenvectors, with values smaller by 1, and the trivial one last."""
    normalised, inverse = _normalised(adjacency, weights)
    trivial = trivial_vector(inverse)
    return torch.sub((DEFLATION * trivial) * trivial.mT, normalised), inverse


def _all_finite(matrix: Tensor) -> Tensor:
    """(…, n, n) → (…, 1, 1). LAPACK raises on NaN and infinity; a loss that is not finite says more than its error.

    By the sum, which takes a fraction of the time of looking at each entry.
    """
    return torch.isfinite(matrix.detach().sum(dim=(-2, -1), keepdim=True))


LARGEST_FOR_CPU = 512
"""Up to this size a GPU's matrices are decomposed on the CPU: it took less time on an H200 with 16 cores, or as long,
the way there and back included.
"""


@contextlib.contextmanager
def _few_threads(matrix: Tensor) -> Iterator[None]:
    """One, where matrices are small: beside a GPU there are often many, and to wake them takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if matrix.shape[-1] <= 128 else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def guarded_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh` that answers NaN where the matrix is not finite."""
    small = matrix.shape[-1] <= LARGEST_FOR_CPU and not torch.compiler.is_compiling()
    if matrix.device.type != "cpu" and small:
        given = matrix.cpu()
        with _few_threads(given):
            values, vectors = guarded_eigh(given)
        return values.to(matrix.device), vectors.to(matrix.device)
    finite = _all_finite(matrix)
    values, vectors = torch.linalg.eigh(torch.where(finite, matrix, 0.0))
    return torch.where(finite[..., 0], values, torch.nan), torch.where(finite, vectors, torch.nan)


def _gradient_by_adjacency(
    pulled: Tensor, adjacency: Tensor, inverse: Tensor, values: Tensor, vectors: Tensor, weights: Weights
) -> Tensor:
    """From the gradient by a projector P to that by the adjacency.

    Only the gaps between kept i and dropped j enter dP = Σ_ij (u_j u_jᵀ d𝓛 u_i u_iᵀ + transpose) / (λ_i − λ_j). The
    backward of `eigh` divides by all gaps.

    Args:
        pulled: (…, C, k), the symmetric gradient by P, times the kept vectors.
        adjacency: (…, C, C).
        inverse: d^{−1/2}, (…, C, 1).
        values: (…, C) of `_deflated`.
        vectors: (…, C, C) of `_deflated`.
        weights: see `graph_weights`.
    """
    rank = pulled.shape[-1]
    kept, dropped = vectors[..., :rank], vectors[..., rank:]
    gap = values[..., None, :rank] - values[..., rank:, None]
    # The gradient by 3 q qᵀ − N is −½ (pull keptᵀ + kept pullᵀ), so that by N − 3 q qᵀ has no minus.
    along = (dropped.mT @ pulled) * (gap / (gap.square() + broadening(gap.dtype) ** 2)).mul_(-2.0)
    # N + 3 q qᵀ has the same vectors with the values −λ, and 4, where it is 2, for q.
    moved = values.neg()
    moved[..., -1].add_(2.0 * DEFLATION)
    pull, moved_pull = (dropped @ torch.cat([along, moved[..., rank:, None] * along], dim=-1)).chunk(2, dim=-1)
    to_edges = gradient_by_edges(kept, pull, kept * moved[..., None, :rank], moved_pull, inverse)
    return to_edges / 2 if weights == "shifted" else torch.where(adjacency < 0, 0.0, to_edges)


def _decomposed(adjacency: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """d^{−1/2}, and the values and vectors of `_deflated`."""
    matrix, inverse = _deflated(adjacency, weights)
    return inverse, *guarded_eigh(matrix)


class _Projector(torch.autograd.Function):
    """`spectral_projector`."""

    @staticmethod
    def forward(ctx: Any, adjacency: Tensor, rank: int, weights: Weights) -> Tensor:
        inverse, values, vectors = _decomposed(adjacency, weights)
        ctx.save_for_backward(adjacency, inverse, values, vectors)
        ctx.rank, ctx.weights = rank, weights
        kept = vectors[..., :rank]
        return kept @ kept.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        adjacency, inverse, values, vectors = ctx.saved_tensors
        pulled = (grads[0] + grads[0].mT) @ vectors[..., : ctx.rank] / 2
        return _gradient_by_adjacency(pulled, adjacency, inverse, values, vectors, ctx.weights), None, None


class _SubspaceDistance(torch.autograd.Function):
    """`subspace_distance` of two graphs' projectors, both decomposed at once; with a gradient by the first graph.

    Between small graphs it is the number of operations that costs, hence no projector of its own for each.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, rank: int, weights: Weights) -> Tensor:
        inverse, values, vectors = _decomposed(torch.stack([student, teacher]), weights)
        kept = vectors[..., :rank]
        ours, theirs = (kept @ kept.mT).unbind()
        difference = ours - theirs
        ctx.save_for_backward(difference, student, inverse[0], values[0], vectors[0])
        ctx.rank, ctx.weights = rank, weights
        return _distance_by(difference, rank)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        difference, student, inverse, values, vectors = ctx.saved_tensors
        pulled = (difference @ vectors[..., : ctx.rank]).mul_(grads[0][..., None, None] / max(ctx.rank, 1))
        return _gradient_by_adjacency(pulled, student, inverse, values, vectors, ctx.weights), None, None, None


class _ByTheCPU(torch.autograd.Function):
    """A distance of two small graphs on a GPU, and its gradient by the first, both found on the CPU in one visit.

    Dozens of operations on a few numbers: there each takes a fraction of what it takes to start it on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ours, theirs = torch.stack([student, teacher]).cpu()
        with torch.enable_grad(), _few_threads(ours):
            ours = ours.requires_grad_(ctx.needs_input_grad[0])
            found = distance(ours, theirs)
            if ctx.needs_input_grad[0]:
                ctx.save_for_backward(torch.autograd.grad(found.sum(), ours)[0].to(student.device))
        return found.detach().to(student.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return grads[0][..., None, None] * slope, None, None


@full_precision
def spectral_projector(adjacency: Tensor, *, rank: int, weights: Weights = "positive") -> Tensor:
    """P = U Uᵀ on the k eigenvectors of the smallest eigenvalues of the Laplacian after the trivial one.

    The gradient is finite everywhere (see `broadening`). It has first derivatives only.

    Args:
        adjacency: (…, C, C).
        rank: k, at least 1; clamped to C − 1.
        weights: see `graph_weights`.

    Returns:
        (…, C, C), symmetric, trace k.
    """
    projector: Tensor = _Projector.apply(adjacency, effective_rank(adjacency, rank=rank), weights)
    return projector


@full_precision
def spectral_embedding(adjacency: Tensor, *, rank: int, weights: Weights = "positive") -> tuple[Tensor, Tensor]:
    """Each channel as a point: the rows of U, the k eigenvectors of smallest eigenvalue after the trivial one.

    Signs, and the basis of a repeated eigenvalue, are arbitrary. Hence without gradient: `spectral_projector` has one.

    Args:
        adjacency: (…, C, C).
        rank: k, at least 1; clamped to C − 1.
        weights: see `graph_weights`.

    Returns:
        U (…, C, k) with orthonormal columns, and their eigenvalues (…, k), ascending.
    """
    _, values, vectors = _decomposed(adjacency.detach(), weights)
    kept = effective_rank(adjacency, rank=rank)
    return vectors[..., :kept], 1.0 + values[..., :kept]


def effective_rank(adjacency: Tensor, *, rank: int) -> int:
    """k clamped to C − 1."""
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    return min(rank, adjacency.shape[-1] - 1)


@full_precision
def heat_kernel(laplacian: Tensor, *, time: float) -> Tensor:
    """exp(−t 𝓛), (…, C, C): how heat spreads over the graph in time t. Smooth in 𝓛, needs no eigenvectors."""
    if not time > 0:
        raise ValueError(f"time must be above 0, got {time}")
    return torch.linalg.matrix_exp(-time * laplacian)


@full_precision
def subspace_distance(student: Tensor, teacher: Tensor, *, rank: int) -> Tensor:
    """1 − tr(P_T P_S) / k of two projectors of trace k, as ‖P_S − P_T‖² / 2k, which is exactly 0 for equal ones.

    Args:
        student: (…, C, C) projector.
        teacher: (…, C, C) projector.
        rank: k, their trace, at most C − 1.

    Returns:
        (…), in [0, 1].
    """
    return _distance_by(student - teacher, rank)


def _distance_by(difference: Tensor, rank: int) -> Tensor:
    return difference.square().sum(dim=(-2, -1)) / (2 * max(rank, 1))


@full_precision
def procrustes_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """min over rotations R of ‖U_S R − U_T‖² / 2k = 1 − ‖U_Tᵀ U_S‖_* / k, the mean squared distance of embeddings.

    The singular values of U_Tᵀ U_S are the roots of the eigenvalues of U_Tᵀ P_S U_T, so the student enters by its
    projector, whose gradient is safe. A direction of the teacher that the student lacks altogether (singular value 0)
    is a kink, where the gradient 0 is taken.

    Args:
        student: (…, C, C) projector P_S = U_S U_Sᵀ.
        teacher: (…, C, k) embedding U_T with orthonormal columns.

    Returns:
        (…), in [0, 1]; at most 1 − √(machine precision), because of the guard at the kink.
    """
    return _procrustes(teacher.mT @ student @ teacher)


def _procrustes(overlap: Tensor) -> Tensor:
    """Of U_Tᵀ P_S U_T, (…, k, k)."""
    finite = _all_finite(overlap)
    # The gradient of eigvalsh is V diag(g) Vᵀ: no gaps. Eigenvalues leave [0, 1] by rounding only.
    eigenvalues = torch.linalg.eigvalsh(torch.where(finite, overlap, 0.0))
    cosine = eigenvalues.clamp(torch.finfo(overlap.dtype).eps, 1.0).sqrt()
    return torch.where(finite[..., 0], 1.0 - cosine, torch.nan).sum(dim=-1) / max(overlap.shape[-1], 1)


@full_precision
def heat_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """‖K_S − K_T‖² / C of two heat kernels (…, C, C) → (…), in [0, 1]."""
    return (student - teacher).square().sum(dim=(-2, -1)) / student.shape[-1]


@full_precision
def embedding_distance(student: Tensor, teacher: Tensor, *, alignment: Alignment) -> Tensor:
    """`subspace_distance` or `procrustes_distance` by the embeddings alone, without a C × C matrix.

    Args:
        student: (…, C, k) with orthonormal columns, in any basis of their span.
        teacher: the same.
        alignment: `subspace` or `procrustes`.

    Returns:
        (…), in [0, 1].
    """
    overlap = teacher.mT @ student
    if alignment == "procrustes":
        return _procrustes(overlap @ overlap.mT)
    return (student - teacher @ overlap).square().sum(dim=(-2, -1)) / max(student.shape[-1], 1)


@full_precision
def spectral_distance(
    student: Tensor,
    teacher: Tensor,
    *,
    alignment: Alignment,
    rank: int,
    weights: Weights = "positive",
    time: float = 1.0,
) -> Tensor:
    """Distance of the low spectra of two graphs, in [0, 1].

    Args:
        student: adjacency (…, C, C).
        teacher: adjacency (…, C, C).
        alignment: `subspace`, `procrustes` or `heat`: which of the distances above.
        rank: k, at least 1; clamped to C − 1. Not used by `heat`.
        weights: see `graph_weights`.
        time: t of `heat`.
    """
    distance = functools.partial(_spectral_distance, alignment=alignment, rank=rank, weights=weights, time=time)
    small = alignment != "heat" and student.shape[-1] <= LARGEST_FOR_CPU
    if student.device.type == "cpu" or not small or torch.compiler.is_compiling():
        return distance(student, teacher.detach())
    found: Tensor = _ByTheCPU.apply(student, teacher.detach(), distance)
    return found


def _spectral_distance(
    student: Tensor, teacher: Tensor, *, alignment: Alignment, rank: int, weights: Weights, time: float
) -> Tensor:
    if alignment == "heat":
        return heat_distance(*(heat_kernel(laplacian(a, weights=weights), time=time) for a in (student, teacher)))
    if alignment == "procrustes":
        ours = spectral_projector(student, rank=rank, weights=weights)
        return procrustes_distance(ours, spectral_embedding(teacher, rank=rank, weights=weights)[0])
    distance: Tensor = _SubspaceDistance.apply(student, teacher, effective_rank(teacher, rank=rank), weights)
    return distance
