"""PKD: how each channel varies over positions and images, whatever its magnitude."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.relations.across_ranks import mean_over_batch
from reldistill.relations.precision import full_precision

_SMALLEST = 1e-12


@full_precision
def pkd_loss(student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """Pulls each channel of the student's map to vary as the teacher's does, over all positions of all images.

        L = mean over channels of 1 − r_c = ½ mean (ŝ − t̂)²,   x̂_c = (x_c − mean of x_c) / standard deviation of x_c
        r_c = Pearson correlation of s_c and t_c

    Weihan Cao, Yifan Zhang, Jianfei Gao, Anda Cheng, Ke Cheng, Jian Cheng: PKD: General Distillation Framework for
    Object Detectors via Pearson Correlation Coefficient. NeurIPS 2022, arXiv 2207.02039.

    Args:
        student: map s, (B, C, H, W), already shaped like the teacher's by an adapter.
        teacher: map t of the same shape, taken without gradient.

    Returns:
        Scalar in [0, 2], and 0 where every channel is correlated perfectly. Mean and deviation are over the images of
        all ranks.

    Raises:
        ValueError: a tensor is not (B, C, H, W), or the shapes differ.

    Invariances:
        - a positive scale and a shift of any channel, of either network;
        - the order of the samples, and a common permutation of the channels or of the positions.

    Differences from the paper: none in the loss, where the authors' code divides the variance by n − 1; a channel that
    is constant counts as uncorrelated, with a deviation of 10⁻⁶.

    Example:
        >>> import torch
        >>> teacher = torch.randn(2, 3, 4, 4)
        >>> pkd_loss(100 * teacher - 5, teacher).item() < 1e-5
        True
    """
    check_axes(student, "B C H W", name="student")
    _, channels, height, width = student.shape
    check_axes(teacher, "B C H W", name="teacher", C=channels, H=height, W=width)
    check_same_batch(student, teacher)
    return (_normalised(student) - _normalised(teacher.detach())).square().mean() / 2


def _normalised(maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """The maps with mean 0 and deviation 1 in every channel."""
    centred = maps - mean_over_batch(maps.mean(dim=(2, 3)))[:, None, None]
    variance = mean_over_batch(centred.square().mean(dim=(2, 3)))
    return centred / (variance + _SMALLEST).sqrt()[:, None, None]


class PKD(nn.Module):
    """Pulls each channel to vary as the teacher's: `pkd_loss` as a module.

    Example:
        >>> import torch
        >>> round(PKD()(torch.eye(2)[None, None], -torch.eye(2)[None, None]).item(), 4)
        2.0
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        """Scalar, for maps of one shape."""
        return pkd_loss(student, teacher)
