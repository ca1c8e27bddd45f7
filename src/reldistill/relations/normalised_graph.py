"""A graph's weights W normalised by its degrees, N = D^{−1/2} W D^{−1/2}, its trivial eigenvector, and the way back.

q = D^{1/2} 1 / ‖·‖ is the eigenvector of N of eigenvalue 1. Where it is moved out of the way, in S = N − 3 q qᵀ, the
largest eigenvalues belong to the smallest of the Laplacian after the trivial one. `spectrum` decomposes −S whole;
`tracked_subspaces` follows the vectors from step to step; both go back to W by one function.
"""

from __future__ import annotations

import torch
from torch import Tensor

DEFLATION = 3.0
"""How far q's eigenvalue is moved: in terms of the Laplacian from 0 to above 2, the largest that it can have."""


def inverse_root_degree(edge: Tensor) -> Tensor:
    """Weights W (…, C, C) → d^{−1/2} (…, C, 1), 0 for a vertex without edges, as a caller's own graph may have."""
    degree = edge.sum(dim=-1, keepdim=True)
    linked = ~(degree <= 0)  # NaN shows
    return torch.where(linked, degree, 1.0).rsqrt() * linked


def trivial_vector(inverse: Tensor) -> Tensor:
    """d^{−1/2} (…, C, 1) → q."""
    root = inverse.reciprocal().masked_fill(inverse == 0, 0.0)
    return root / torch.linalg.vector_norm(root, dim=-2, keepdim=True).clamp_min(1e-15)


def gradient_by_edges(kept: Tensor, pull: Tensor, moved_kept: Tensor, moved_pull: Tensor, inverse: Tensor) -> Tensor:
    """From G = ½ (pull keptᵀ + kept pullᵀ), the gradient by S, to that by W, written once.

    N and q depend on the degrees: ∂⟨G, S⟩/∂d_i = −(G (N + 3 q qᵀ))_ii / d_i + 3 qᵀ G q / Σ d, of which the last part is
    0, since kept vectors are orthogonal to q.

    Args:
        kept: (…, C, k), orthogonal to q.
        pull: (…, C, k).
        moved_kept: (N + 3 q qᵀ) kept.
        moved_pull: (N + 3 q qᵀ) pull.
        inverse: d^{−1/2}.

    Returns:
        (…, C, C), not symmetric, for a graph that is.
    """
    to_degree = torch.addcmul(pull * moved_kept, kept, moved_pull).sum(dim=-1, keepdim=True) * inverse.square() / -2.0
    # The degrees' part as one more column: every entry of the gradient is written once.
    left = torch.cat([inverse * pull, to_degree], dim=-1)
    right = torch.cat([inverse * kept, torch.ones_like(to_degree)], dim=-1)
    return left @ right.mT
