"""From the gradient by a graph's normalised weights to that by its weights: where both spectral kernels end."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def gradient_by_edges(
    kept: Float[Tensor, "... C k"],
    pull: Float[Tensor, "... C k"],
    moved_kept: Float[Tensor, "... C k"],
    moved_pull: Float[Tensor, "... C k"],
    inverse: Float[Tensor, "... C 1"],
) -> Float[Tensor, "... C C"]:
    """From G = ½ (pull keptᵀ + kept pullᵀ), the gradient by S = N − 3 q qᵀ, to that by W, written once.

    N and q depend on the degrees: ∂⟨G, S⟩/∂d_i = −(G (N + 3 q qᵀ))_ii / d_i + 3 qᵀ G q / Σ d, of which the last part is
    0, since kept vectors are orthogonal to q.

    Args:
        kept: orthogonal to q.
        pull: what `kept` is pulled along.
        moved_kept: (N + 3 q qᵀ) kept.
        moved_pull: (N + 3 q qᵀ) pull.
        inverse: d^{−1/2}.

    Returns:
        Not symmetric, for a graph that is.
    """
    to_degree = torch.addcmul(pull * moved_kept, kept, moved_pull).sum(dim=-1, keepdim=True) * inverse.square() / -2.0
    # The degrees' part as one more column: every entry of the gradient is written once.
    left = torch.cat([inverse * pull, to_degree], dim=-1)
    right = torch.cat([inverse * kept, torch.ones_like(to_degree)], dim=-1)
    return left @ right.mT
