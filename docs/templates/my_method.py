"""MyMethod: how strongly each channel responds."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.relations.precision import full_precision


@full_precision
def my_method_loss(
    student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H_t W_t"], *, power: float = 2.0
) -> Float[Tensor, ""]:
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
        ValueError: a tensor is not (B, C, H, W), the numbers of images or channels differ, or the power is below 1.

    Invariances:
        - a scale of either network's map, image by image;
        - a permutation of the positions, of either network;
        - the order of the images, and a common permutation of the channels.

    Differences from the paper: what was chosen differently, and why.

    Example:
        >>> import torch
        >>> teacher = torch.rand(2, 5, 4, 4)
        >>> my_method_loss(3 * teacher, teacher).item() < 1e-6
        True
    """
    if not power >= 1:
        raise ValueError(f"power must be at least 1, got {power}")
    check_axes(student, "B C H W", name="student")
    check_axes(teacher, "B C H W", name="teacher", C=student.shape[1])
    check_same_batch(student, teacher)
    ours, theirs = (_log_shares(side, power) for side in (student, teacher.detach()))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def _log_shares(feature_map: Float[Tensor, "B C H W"], power: float) -> Float[Tensor, "B C"]:
    """The logarithm of each channel's share, which no scale of the map changes."""
    largest = feature_map.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-30)
    activity = (feature_map / largest).abs().pow(power).mean(dim=(2, 3))
    return (activity + 1e-12).log().log_softmax(dim=1)


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

    def forward(self, student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H_t W_t"]) -> Float[Tensor, ""]:
        """Scalar, for maps (B, C, H, W) of as many channels."""
        return my_method_loss(student, teacher, power=self.power)
