"""Spectra of channel graphs, compared so that neither the sign of an eigenvector nor the basis of a repeated eigenvalue
matters.

`adjacency` is (…, C, C), symmetric, with 1 on the diagonal, as `channel_graph` makes it. `rank` is k, how many
eigenvectors are kept; it is clamped to C − 1, all there are beside the trivial one. At k = 0 every distance is 0.

Isolated vertices, as dead channels are, have no place in an embedding: their rows are 0. Where n ≤ k vertices are left,
there are n − 1 eigenvectors beside the trivial one, and the other columns are 0.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from reldistill.relations.eigenproblems import guarded_eigh
from reldistill.relations.kernels import full_decompositions, switch
from reldistill.relations.normalised_graph import (
    BEYOND,
    DEFLATION,
    ISOLATION,
    Weights,
    embedded,
    normalised,
    trivial_vector,
)
from reldistill.relations.precision import broadening, full_precision
from reldistill.relations.subspaces import procrustes_distance, subspace_distance

Alignment = Literal["subspace", "procrustes", "heat"]


@full_precision
def laplacian(adjacency: Float[Tensor, "*axes C C"], *, weights: Weights = "positive") -> Float[Tensor, "*axes C C"]:
    """Normalised Laplacian 𝓛 = I − D^{−1/2} W D^{−1/2}, d_i = Σ_j W_ij; eigenvalues in [0, 2].

    Args:
        adjacency: (…, C, C).
        weights: how similarities become non-negative weights W, see `graph_weights`.

    Returns:
        (…, C, C), symmetric.
    """
    graph, _ = normalised(adjacency, weights=weights)
    return torch.eye(graph.shape[-1], dtype=graph.dtype, device=graph.device) - graph


@full_precision
def laplacian_eigenvalues(
    adjacency: Float[Tensor, "*axes C C"], *, weights: Weights = "positive"
) -> Float[Tensor, "*axes C"]:
    """The whole spectrum of the graph, ascending, the trivial 0 first. Without gradient."""
    return guarded_eigh(laplacian(adjacency.detach(), weights=weights))[0]


def _deflated(adjacency: Tensor, weights: Weights) -> Tensor:
    """𝓛 + 3 q qᵀ, and isolated vertices at 2.5: all that is not embedded is moved to the upper end."""
    graph, inverse = embedded(adjacency, weights=weights)
    trivial = trivial_vector(inverse)
    identity = torch.eye(graph.shape[-1], dtype=graph.dtype, device=graph.device)
    return identity - graph + DEFLATION * trivial * trivial.mT + ISOLATION * identity * (inverse == 0)


def _lowest(values: Tensor, vectors: Tensor, rank: int) -> Tensor:
    """The first k eigenvectors of `_deflated`, 0 where they are isolated vertices."""
    return vectors[..., :rank] * (values[..., None, :rank] < 1.0 + BEYOND)


class _LowestProjector(torch.autograd.Function):
    """P = U Uᵀ on the k lowest eigenvectors of `_deflated`.

    dP = Σ_ij (u_j u_jᵀ dM u_i u_iᵀ + transpose) / (λ_i − λ_j) over kept i and dropped j. The backward of `eigh` divides
    by all gaps, also those between two kept eigenvectors, which P does not depend on.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, rank: int) -> Tensor:
        values, vectors = guarded_eigh(matrix)
        ctx.save_for_backward(values, vectors)
        ctx.rank = rank
        kept = _lowest(values, vectors, rank)
        return kept @ kept.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, vectors = ctx.saved_tensors
        kept, dropped = _lowest(values, vectors, ctx.rank), vectors[..., ctx.rank :]
        gap = values[..., None, : ctx.rank] - values[..., ctx.rank :, None]
        by_projector = (grads[0] + grads[0].mT) / 2
        mixing = dropped.mT @ by_projector @ kept * gap / (gap.square() + broadening(gap.dtype) ** 2)
        half = dropped @ mixing @ kept.mT
        return half + half.mT, None


@full_precision
def spectral_projector(
    adjacency: Float[Tensor, "*axes C C"], *, rank: int, weights: Weights = "positive"
) -> Float[Tensor, "*axes C C"]:
    """P = U Uᵀ on the k eigenvectors of the smallest eigenvalues of the Laplacian after the trivial one.

    The gradient is finite everywhere (see `precision.broadening`). It has first derivatives only.

    Args:
        adjacency: (…, C, C).
        rank: k, at least 1; clamped to C − 1.
        weights: see `graph_weights`.

    Returns:
        (…, C, C), symmetric, trace k, or n − 1 where n ≤ k vertices are not isolated.
    """
    kept = effective_rank(adjacency, rank=rank)
    if switch.enabled():
        return full_decompositions.projector(adjacency, rank=kept, weights=weights)
    projector: Tensor = _LowestProjector.apply(_deflated(adjacency, weights), kept)
    return projector


@full_precision
def spectral_embedding(
    adjacency: Float[Tensor, "*axes C C"], *, rank: int, weights: Weights = "positive"
) -> tuple[Float[Tensor, "*axes C k"], Float[Tensor, "*axes k"]]:
    """Each channel as a point: the rows of U, the k eigenvectors of smallest eigenvalue after the trivial one.

    Signs, and the basis of a repeated eigenvalue, are arbitrary. Hence without gradient: `spectral_projector` has one.

    Args:
        adjacency: (…, C, C).
        rank: k, at least 1; clamped to C − 1.
        weights: see `graph_weights`.

    Returns:
        U (…, C, k) with orthonormal columns, and their eigenvalues (…, k), ascending; columns of 0 and 2.5 where there
        are no more.
    """
    values, vectors = guarded_eigh(_deflated(adjacency.detach(), weights))
    kept = effective_rank(adjacency, rank=rank)
    return _lowest(values, vectors, kept), values[..., :kept]


def effective_rank(adjacency: Tensor, *, rank: int) -> int:
    """k clamped to C − 1."""
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    return min(rank, adjacency.shape[-1] - 1)


@full_precision
def heat_kernel(laplacian: Float[Tensor, "*axes C C"], *, time: float) -> Float[Tensor, "*axes C C"]:
    """exp(−t 𝓛): how heat spreads over the graph in time t. Smooth in 𝓛, needs no eigenvectors."""
    if not time > 0:
        raise ValueError(f"time must be above 0, got {time}")
    return torch.linalg.matrix_exp(-time * laplacian)


@full_precision
def heat_distance(student: Float[Tensor, "*axes C C"], teacher: Float[Tensor, "*axes C C"]) -> Float[Tensor, "*axes"]:
    """‖K_S − K_T‖² / C of two heat kernels, in [0, 1]."""
    return (student - teacher).square().sum(dim=(-2, -1)) / student.shape[-1]


@full_precision
def spectral_distance(
    student: Float[Tensor, "*axes C C"],
    teacher: Float[Tensor, "*axes C C"],
    *,
    alignment: Alignment,
    rank: int,
    weights: Weights = "positive",
    time: float = 1.0,
) -> Float[Tensor, "*axes"]:
    """Distance of the low spectra of two graphs, in [0, 1].

    Args:
        student: adjacency (…, C, C).
        teacher: adjacency (…, C, C), taken without gradient.
        alignment: `subspace` by `subspace_distance`, `procrustes` by `procrustes_distance`, `heat` by `heat_distance`.
        rank: k, at least 1; clamped to C − 1. Not used by `heat`.
        weights: see `graph_weights`.
        time: t of `heat`.
    """
    teacher = teacher.detach()
    if alignment == "heat":
        return heat_distance(*(heat_kernel(laplacian(a, weights=weights), time=time) for a in (student, teacher)))
    kept = effective_rank(teacher, rank=rank)
    if switch.enabled():
        return full_decompositions.distance(student, teacher, alignment=alignment, rank=kept, weights=weights)
    ours = spectral_projector(student, rank=rank, weights=weights)
    if alignment == "procrustes":
        return procrustes_distance(ours, spectral_embedding(teacher, rank=rank, weights=weights)[0])
    return subspace_distance(ours, spectral_projector(teacher, rank=rank, weights=weights), rank=kept)
