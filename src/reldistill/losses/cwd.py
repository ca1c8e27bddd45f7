"""CWD: for each channel, where in the image it responds."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch, check_temperature
from reldistill.relations.precision import full_precision


@full_precision
def cwd_loss(
    student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"], *, temperature: float = 4.0
) -> Float[Tensor, ""]:
    """Pulls each channel's distribution over the positions of the image to that of the teacher's channel.

        L = τ² · mean over images and channels of KL(φ(F^T_c) ‖ φ(F^S_c)),   φ = softmax over the positions of F_c / τ

    Changyong Shu, Yifan Liu, Jianfei Gao, Zheng Yan, Chunhua Shen: Channel-wise Knowledge Distillation for Dense
    Prediction. ICCV 2021, arXiv 2011.13256.

    Args:
        student: map F^S, (B, C, H, W), already shaped like the teacher's by an adapter.
        teacher: map F^T of the same shape, taken without gradient.
        temperature: τ, above 0; larger ones look at a wider part of the image.

    Returns:
        Scalar, at least 0, and 0 where the distributions agree. Over a single position it is 0.

    Raises:
        ValueError: a tensor is not (B, C, H, W), the shapes differ, or the temperature is not above 0.

    Invariances:
        - a constant added to a channel of an image, in either network;
        - the order of the samples, and a common permutation of the channels or of the positions.

    Differences from the paper: none in the loss. The paper is on segmentation and detection; this is its form for
    feature maps.

    Example:
        >>> import torch
        >>> teacher = torch.randn(2, 3, 4, 4)
        >>> cwd_loss(teacher + 5, teacher).item() < 1e-5
        True
    """
    check_temperature(temperature)
    check_axes(student, "B C H W", name="student")
    _, channels, height, width = student.shape
    check_axes(teacher, "B C H W", name="teacher", C=channels, H=height, W=width)
    check_same_batch(student, teacher)
    ours, theirs = ((side.flatten(2) / temperature).log_softmax(dim=2) for side in (student, teacher.detach()))
    return temperature**2 * F.kl_div(ours.flatten(0, 1), theirs.flatten(0, 1), reduction="batchmean", log_target=True)


class CWD(nn.Module):
    """Pulls each channel's distribution over the positions to the teacher's: `cwd_loss` with its settings.

    Args:
        temperature: τ, above 0.

    Example:
        >>> import torch
        >>> CWD()(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)).item()
        0.0
    """

    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature

    def forward(self, student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        """Scalar, for maps of one shape."""
        return cwd_loss(student, teacher, temperature=self.temperature)
