"""A graph's weights W, normalised by its degrees, N = D^{−1/2} W D^{−1/2}, and its trivial eigenvector.

q = D^{1/2} 1 / ‖·‖ is the eigenvector of N of eigenvalue 1, and of the Laplacian 𝓛 = I − N of eigenvalue 0. Where q is
moved out of the way, in 𝓛 + 3 q qᵀ, the smallest eigenvalues are those of the Laplacian after the trivial one.

An isolated vertex, linked to no other, is an eigenvector of eigenvalue 0 of its own. It says nothing of how channels
are related, and where there are more of them than eigenvectors are kept, which ones would be kept is chance. So an
embedding is of the others: an isolated vertex loses its loop, hence its row of N, and is moved to eigenvalue 2.5 of the
Laplacian, behind all that can be kept.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Weights = Literal["positive", "shifted"]

DEFLATION = 3.0
"""How far q's eigenvalue is moved: in terms of the Laplacian from 0 to above 2, the largest that it can have."""

ISOLATION = 1.5
"""How far an isolated vertex's eigenvalue is moved, from 1 to between the others and q's."""

BEYOND = 1.25
"""What is embedded has smaller values of 3 q qᵀ − N, isolated vertices and q have larger ones."""


def graph_weights(adjacency: Float[Tensor, "*axes"], *, weights: Weights = "positive") -> Float[Tensor, "*axes"]:
    """Non-negative edge weights of similarities: max(A, 0) for `positive`, (1 + A) / 2 for `shifted`."""
    if weights == "positive":
        # Not clamp_min, whose gradient at 0 is 0: an edge that the student lacks has to be able to grow.
        return torch.where(adjacency < 0, 0.0, adjacency)
    if weights == "shifted":
        return (1.0 + adjacency) / 2.0
    raise ValueError(f"weights must be 'positive' or 'shifted', got {weights!r}")


def inverse_root_degree(edge: Float[Tensor, "... C C"]) -> Float[Tensor, "... C 1"]:
    """Weights W → d^{−1/2}, 0 for a vertex without edges, as a caller's own graph may have."""
    degree = edge.sum(dim=-1, keepdim=True)
    linked = ~(degree <= 0)  # NaN shows
    return torch.where(linked, degree, 1.0).rsqrt() * linked


def embedded(
    adjacency: Float[Tensor, "... C C"], *, weights: Weights
) -> tuple[Float[Tensor, "... C C"], Float[Tensor, "... C 1"]]:
    """N and d^{−1/2} of the graph of all vertices that are linked to others: both are 0 for an isolated one."""
    edge = without_dead(graph_weights(adjacency, weights=weights), adjacency, weights=weights)
    inverse = linked_root_degree(edge)
    return inverse * edge * inverse.mT, inverse


def without_dead(
    edge: Float[Tensor, "... C C"], adjacency: Float[Tensor, "... C C"], *, weights: Weights
) -> Float[Tensor, "... C C"]:
    """W without the edges that `shifted` weights give a vertex of similarity 0 to all others."""
    if weights == "positive":
        return edge
    dead = _is_isolated(adjacency.abs(), adjacency.abs().sum(dim=-1, keepdim=True))
    return edge.masked_fill(dead | dead.mT, 0.0)


def linked_root_degree(edge: Float[Tensor, "... C C"]) -> Float[Tensor, "... C 1"]:
    """Weights W → d^{−1/2}, 0 for an isolated vertex."""
    degree = edge.sum(dim=-1, keepdim=True)
    alone = _is_isolated(edge, degree)
    return torch.where(alone, 1.0, degree).rsqrt() * ~alone


def _is_isolated(edge: Tensor, degree: Tensor) -> Tensor:
    """Whether a vertex has no edge but its loop; NaN shows. A sum of numbers above 0 is never below one of them."""
    return degree <= edge.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)


def normalised(
    adjacency: Float[Tensor, "... C C"], *, weights: Weights
) -> tuple[Float[Tensor, "... C C"], Float[Tensor, "... C 1"]]:
    """N = D^{−1/2} W D^{−1/2}, and d^{−1/2}."""
    edge = graph_weights(adjacency, weights=weights)
    inverse = inverse_root_degree(edge)
    return inverse * edge * inverse.mT, inverse


def trivial_vector(inverse: Float[Tensor, "... C 1"]) -> Float[Tensor, "... C 1"]:
    """d^{−1/2} → q."""
    alone = inverse == 0
    root = inverse.masked_fill(alone, 1.0).reciprocal().masked_fill(alone, 0.0)
    return root / torch.linalg.vector_norm(root, dim=-2, keepdim=True).clamp_min(1e-15)
