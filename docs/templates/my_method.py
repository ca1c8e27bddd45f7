"""MyMethod: how strongly each channel responds."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def my_method_loss(student: Tensor, teacher: Tensor, *, power: float = 2.0) -> Tensor:
    """Pulls the share of each channel in an image's activity to the teacher's.

        L = mean over images of KL(q^T ‖ q^S),   q_c ∝ mean_hw |F_c|^p

    The authors: The title. Venue and year, arXiv number.

    Args:
        student: map F^S, (B, C, H, W).
        teacher: map F^T, (B, C, H', W'), taken without gradient.
        power: p, at least 1.

    Returns:
        Scalar, at least 0, and 0 where the shares agree.

    Raises:
        ValueError: the numbers of images or channels differ, or the power is below 1.

    Invariances:
        - a scale of either network's map, image by image;
        - a permutation of the positions, of either network.

    Differences from the paper: what was chosen differently, and why.

    Example:
        >>> import torch
        >>> teacher = torch.rand(2, 5, 4, 4)
        >>> my_method_loss(3 * teacher, teacher).item() < 1e-6
        True
    """
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(f"student is {tuple(student.shape)}, teacher {tuple(teacher.shape)}: (B, C) must agree")
    if not power >= 1:
        raise ValueError(f"power must be at least 1, got {power}")
    # In float32 whatever autocast says: small shares vanish in half precision.
    ours, theirs = (side.float().abs().pow(power).mean(dim=(2, 3)) for side in (student, teacher.detach()))
    ours, theirs = (side / side.sum(dim=1, keepdim=True).clamp_min(1e-30) for side in (ours, theirs))
    return F.kl_div(ours.clamp_min(1e-30).log(), theirs, reduction="batchmean")


class MyMethod(nn.Module):
    """Pulls the share of each channel in an image's activity to the teacher's: `my_method_loss` with its settings.

    Args:
        power: p, at least 1.

    Example:
        >>> import torch
        >>> MyMethod()(torch.ones(2, 3, 4, 4), torch.ones(2, 3, 2, 2)).item()
        0.0
    """

    def __init__(self, *, power: float = 2.0) -> None:
        super().__init__()
        if not power >= 1:
            raise ValueError(f"power must be at least 1, got {power}")
        self.power = power

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Scalar, for maps (B, C, H, W) of as many channels."""
        return my_method_loss(student, teacher, power=self.power)
