"""Distance-wise relation: all pairs of tokens of an image, each set in units of its own mean distance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def relative_distances(tokens: Tensor) -> Tensor:
    """(B, M, D) → (B, M, M), ‖s_i − s_j‖₂ over their mean of i ≠ j."""
    m = tokens.shape[1]
    distances = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist")
    return distances / (distances.sum(dim=(1, 2), keepdim=True) / (m * (m - 1)))


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over images and pairs i ≠ j of Huber₁; student (B, M, D), teacher (B, M, D')."""
    with torch.no_grad():
        target = relative_distances(teacher)
    b, m, _ = student.shape
    return F.smooth_l1_loss(relative_distances(student), target, reduction="sum") / (b * m * (m - 1))
