"""Spectra of small graphs by whole eigendecompositions, student and teacher at once, each gradient in one step.

Everything is about 3 q qᵀ − N, see `normalised_graph`: the Laplacian's eigenvectors with values smaller by 1, isolated
vertices behind them and the trivial one last.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from reldistill.relations.eigenproblems import LARGEST_FOR_CPU, few_threads, guarded_eigh
from reldistill.relations.kernels.eigenvector_gradient import gradient_by_edges
from reldistill.relations.normalised_graph import BEYOND, DEFLATION, ISOLATION, Weights, embedded, trivial_vector
from reldistill.relations.precision import broadening
from reldistill.relations.subspaces import procrustes_distance


def projector(adjacency: Float[Tensor, "*axes C C"], *, rank: int, weights: Weights) -> Float[Tensor, "*axes C C"]:
    """`spectrum.spectral_projector` of a rank that is at most C − 1."""
    found: Tensor = _Projector.apply(adjacency, rank, weights)
    return found


def distance(
    student: Float[Tensor, "*axes C C"],
    teacher: Float[Tensor, "*axes C C"],
    *,
    alignment: Literal["subspace", "procrustes"],
    rank: int,
    weights: Weights,
) -> Float[Tensor, "*axes"]:
    """`spectrum.spectral_distance` of a rank that is at most C − 1, without `heat`."""
    between = functools.partial(_distance, alignment=alignment, rank=rank, weights=weights)
    if student.device.type == "cpu" or student.shape[-1] > LARGEST_FOR_CPU or torch.compiler.is_compiling():
        return between(student, teacher)
    found: Tensor = _ByTheCPU.apply(student, teacher, between)
    return found


def _distance(
    student: Tensor, teacher: Tensor, *, alignment: Literal["subspace", "procrustes"], rank: int, weights: Weights
) -> Tensor:
    if alignment == "procrustes":
        _, values, vectors = _decomposed(teacher, weights)
        return procrustes_distance(projector(student, rank=rank, weights=weights), _kept(values, vectors, rank))
    found: Tensor = _SubspaceDistance.apply(student, teacher, rank, weights)
    return found


def _decomposed(adjacency: Tensor, weights: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """d^{−1/2}, and the values and vectors of 3 q qᵀ − N, which has 1.5 for isolated vertices."""
    graph, inverse = embedded(adjacency, weights=weights)
    trivial = trivial_vector(inverse)
    matrix = torch.sub((DEFLATION * trivial) * trivial.mT, graph)
    matrix.diagonal(dim1=-2, dim2=-1).add_((inverse == 0).squeeze(-1), alpha=ISOLATION)
    return inverse, *guarded_eigh(matrix)


def _kept(values: Tensor, vectors: Tensor, rank: int) -> Tensor:
    """The first k vectors, 0 where they are isolated vertices."""
    return vectors[..., :rank] * (values[..., None, :rank] < BEYOND)


def _gradient_by_adjacency(
    pulled: Tensor, adjacency: Tensor, inverse: Tensor, values: Tensor, vectors: Tensor, weights: Weights
) -> Tensor:
    """From the gradient by a projector P to that by the adjacency; see `spectrum` for the gaps that enter.

    Args:
        pulled: (…, C, k), the symmetric gradient by P, times the kept vectors.
        adjacency: (…, C, C).
        inverse: d^{−1/2}, (…, C, 1).
        values: (…, C) of `_decomposed`.
        vectors: (…, C, C) of `_decomposed`.
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
    if weights == "positive":
        return torch.where(adjacency < 0, 0.0, to_edges)
    isolated = inverse == 0
    return (to_edges / 2).masked_fill_(isolated | isolated.mT, 0.0)


class _Projector(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, adjacency: Tensor, rank: int, weights: Weights) -> Tensor:
        inverse, values, vectors = _decomposed(adjacency, weights)
        ctx.save_for_backward(adjacency, inverse, values, vectors)
        ctx.rank, ctx.weights = rank, weights
        kept = _kept(values, vectors, rank)
        return kept @ kept.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        adjacency, inverse, values, vectors = ctx.saved_tensors
        pulled = (grads[0] + grads[0].mT) @ _kept(values, vectors, ctx.rank) / 2
        return _gradient_by_adjacency(pulled, adjacency, inverse, values, vectors, ctx.weights), None, None


class _SubspaceDistance(torch.autograd.Function):
    """Of two graphs' projectors, both decomposed at once; with a gradient by the first graph.

    Between small graphs it is the number of operations that costs, hence no projector of its own for each.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, rank: int, weights: Weights) -> Tensor:
        inverse, values, vectors = _decomposed(torch.stack([student, teacher]), weights)
        kept = _kept(values, vectors, rank)
        ours, theirs = (kept @ kept.mT).unbind()
        difference = ours - theirs
        ctx.save_for_backward(difference, student, inverse[0], values[0], vectors[0])
        ctx.rank, ctx.weights = rank, weights
        return difference.square().sum(dim=(-2, -1)) / (2 * max(rank, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        difference, student, inverse, values, vectors = ctx.saved_tensors
        pulled = (difference @ _kept(values, vectors, ctx.rank)).mul_(grads[0][..., None, None] / max(ctx.rank, 1))
        return _gradient_by_adjacency(pulled, student, inverse, values, vectors, ctx.weights), None, None, None


class _ByTheCPU(torch.autograd.Function):
    """A distance of two small graphs on a GPU, and its gradient by the first, both found on the CPU in one visit.

    Dozens of operations on a few numbers: there each takes a fraction of what it takes to start it on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, between: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ours, theirs = torch.stack([student, teacher]).cpu()
        with torch.enable_grad(), few_threads(ours):
            ours = ours.requires_grad_(ctx.needs_input_grad[0])
            found = between(ours, theirs)
            if ctx.needs_input_grad[0]:
                ctx.save_for_backward(torch.autograd.grad(found.sum(), ours)[0].to(student.device))
        return found.detach().to(student.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return grads[0][..., None, None] * slope, None, None
