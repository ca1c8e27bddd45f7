"""The spectral projector loss as its equations read: whole eigendecompositions, and autograd through them."""

from __future__ import annotations

import torch
from torch import Tensor


def projector(adjacency: Tensor, *, rank: int) -> Tensor:
    """P = U Uᵀ of the k eigenvectors after the first, of 𝓛 = I − D^{−1/2} max(A, 0) D^{−1/2}; (…, C, C) → (…, C, C)."""
    weights = adjacency.clamp_min(0)
    inverse = weights.sum(dim=-1).rsqrt()
    identity = torch.eye(adjacency.shape[-1], dtype=adjacency.dtype, device=adjacency.device)
    laplacian = identity - inverse[..., :, None] * weights * inverse[..., None, :]
    kept = torch.linalg.eigh(laplacian)[1][..., 1 : rank + 1]
    return kept @ kept.mT


def projector_loss(student_adjacency: Tensor, teacher_adjacency: Tensor, *, rank: int) -> Tensor:
    """1 − tr(P_T P_S) / k, averaged over the graphs."""
    student = projector(student_adjacency, rank=rank)
    teacher = projector(teacher_adjacency.detach(), rank=rank)
    return (1 - (student * teacher).sum(dim=(-2, -1)) / rank).mean()
