"""VID: as much of the teacher's features as possible can be told from the student's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.relations.precision import full_precision

_SMALLEST = 1e-5


class VID(nn.Module):
    """Raises a lower bound of the mutual information between the student's and the teacher's maps.

    A normal distribution predicts the teacher's map t from the student's; its mean μ is what an adapter makes of the
    student's map, its variance is learned for each channel:

        L = mean over images, channels and positions of ½ (t − μ)² / σ_c² + ½ log σ_c²,   σ_c² = log(1 + exp α_c) + ε

    Sungsoo Ahn, Shell Xu Hu, Andreas Damianou, Neil D. Lawrence, Zhenwen Dai: Variational Information Distillation for
    Knowledge Transfer. CVPR 2019, arXiv 1904.05835.

    Args:
        channels: C of the teacher's map.
        first_variance: σ_c² before training, above 1e-5.

    Call with student μ and teacher t (B, C, H, W); t is taken without gradient. Returns a scalar. It is a log density,
    but for a constant, and can be negative.

    Raises:
        ValueError: the shapes differ, C is not `channels`, or a setting is out of range.

    Invariances: the order of the samples, a common permutation of positions, a common shift of both maps.

    Differences from the paper: the mean over channels and positions instead of the sum, as in the usual benchmarks,
    whose weight of 1 it goes with; the constant ½ log 2π is left out.

    Example:
        >>> import torch
        >>> loss = VID(channels=8, first_variance=1.0)
        >>> round(loss(torch.ones(2, 8, 4, 4), torch.zeros(2, 8, 4, 4)).item(), 4)
        0.5
    """

    def __init__(self, *, channels: int, first_variance: float = 5.0) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if not first_variance > _SMALLEST:
            raise ValueError(f"first_variance must be above {_SMALLEST}, got {first_variance}")
        self.alpha = nn.Parameter(torch.full((channels,), math.log(math.expm1(first_variance - _SMALLEST))))

    @full_precision
    def forward(self, student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        """Scalar, for maps (B, C, H, W) of one shape."""
        check_axes(student, "B C H W", name="student", C=len(self.alpha))
        check_same_batch(student, teacher)
        check_axes(teacher, "B C H W", name="teacher", C=len(self.alpha), H=student.shape[2], W=student.shape[3])
        variance = (F.softplus(self.alpha) + _SMALLEST)[:, None, None]
        return ((teacher.detach() - student).square() / variance + variance.log()).mean() / 2
