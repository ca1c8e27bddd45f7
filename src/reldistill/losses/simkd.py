"""SimKD: the student's last map replaces the teacher's in front of the teacher's own classifier."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_same_batch
from reldistill.relations.precision import full_precision


@full_precision
def simkd_loss(student: Float[Tensor, "B C *HW"], teacher: Float[Tensor, "B C *HW_t"]) -> Float[Tensor, ""]:
    """Pulls what the student's projector feeds into the teacher's classifier to what the teacher feeds into it.

        L = mean (P(F^S) − F^T)²

    Defang Chen, Jian-Ping Mei, Hailin Zhang, Can Wang, Yan Feng, Chun Chen: Knowledge Distillation with the Reused
    Teacher Classifier. CVPR 2022, arXiv 2203.14001.

    Args:
        student: the projected last map P(F^S), (B, C, H, W), or a vector (B, C) where the teacher's classifier sees no
            mean of a map. The projector is part of the student: `networks.reused_head.ReusedHead`.
        teacher: F^T, (B, C, H', W') or (B, C), taken without gradient. Where its map is larger it is averaged to H×W.

    Returns:
        Scalar, at least 0, and 0 only where the features agree.

    Raises:
        ValueError: the numbers of channels or of axes differ.

    Invariances:
        - the order of the samples, a common permutation of channels or of positions of equal maps;
        - a common shift of both networks' features.

    Differences from the paper: none in the loss. It is the only one, the task's loss has weight 0 by default.

    Example:
        >>> import torch
        >>> simkd_loss(torch.ones(2, 8, 4, 4), torch.zeros(2, 8, 8, 8)).item()
        1.0
    """
    check_same_batch(student, teacher)
    if student.ndim != teacher.ndim or student.ndim not in (2, 4) or student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"student and teacher must have as many channels, in (B, C, H, W) or (B, C): {tuple(student.shape)} in the "
            f"student, {tuple(teacher.shape)} in the teacher"
        )
    teacher = teacher.detach()
    if student.ndim == 4 and student.shape != teacher.shape:
        teacher = F.adaptive_avg_pool2d(teacher, (student.shape[2], student.shape[3]))
    return F.mse_loss(student, teacher)


class SimKD(nn.Module):
    """Pulls what the student feeds into the teacher's classifier to what the teacher feeds into it: see `simkd_loss`.

    Example:
        >>> import torch
        >>> SimKD()(torch.ones(2, 8), torch.zeros(2, 8)).item()
        1.0
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, student: Float[Tensor, "B C *HW"], teacher: Float[Tensor, "B C *HW_t"]) -> Float[Tensor, ""]:
        """Scalar, for maps (B, C, H, W) or vectors (B, C)."""
        return simkd_loss(student, teacher)
