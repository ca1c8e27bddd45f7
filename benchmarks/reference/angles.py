"""Angle-wise relation: all triples of tokens of an image, as the authors of RKD wrote it, with images as a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def angles(tokens: Tensor) -> Tensor:
    """(B, M, D) → (B, M, M, M): cos∠ at s_j of the triangle s_i, s_j, s_k, at [:, j, i, k]."""
    differences = tokens.unsqueeze(1) - tokens.unsqueeze(2)
    unit = F.normalize(differences, dim=3).flatten(0, 1)
    return torch.bmm(unit, unit.mT).unflatten(0, (tokens.shape[0], tokens.shape[1]))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over images and triples of distinct i, j, k of Huber₁; student (B, M, D), teacher (B, M, D').

    Triples that are not distinct have one cosine (0 or 1) in both sets, and so add nothing to the sum.
    """
    with torch.no_grad():
        target = angles(teacher)
    b, m, _ = student.shape
    return F.smooth_l1_loss(angles(student), target, reduction="sum") / (b * m * (m - 1) * (m - 2))
