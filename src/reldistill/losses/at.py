"""AT: where in the image a network is active."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.relations.precision import full_precision
from reldistill.relations.similarity import unit_vectors
from reldistill.relations.tokens import on_common_grid


@full_precision
def at_loss(
    student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C_t H_t W_t"], *, power: float = 2.0
) -> Float[Tensor, ""]:
    """Pulls the student's spatial attention, how strongly each position is activated, to the teacher's.

        L = mean over images and positions of (Q^S − Q^T)²,   Q = A / ‖A‖₂ over the image,   A = mean_c |F_c|^p

    Sergey Zagoruyko, Nikos Komodakis: Paying More Attention to Attention: Improving the Performance of Convolutional
    Neural Networks via Attention Transfer. ICLR 2017, arXiv 1612.03928.

    Args:
        student: map F^S, (B, C, H, W).
        teacher: map F^T, (B, C', H', W'), taken without gradient.
        power: p, at least 1; larger ones look at the strongest channels only.

    Returns:
        Scalar, at least 0, and 0 where the attention agrees up to scale. Over a single position it is 0.

    Raises:
        ValueError: a tensor is not (B, C, H, W), the numbers of samples differ, or the power is below 1.

    Invariances:
        - a scale of either network's map, image by image;
        - a permutation and a change of signs of the channels, of either network;
        - the order of the samples, and a common permutation of the positions.

    Differences from the paper: the mean of the squares, with the weight 1000 that common implementations give it,
    where the paper takes half the sum of norms. Attention on grids of different size is average-pooled to the coarser
    one [ours]. An image without activation has attention 0.

    Example:
        >>> import torch
        >>> teacher = torch.rand(2, 5, 4, 4)
        >>> at_loss(torch.cat([-3 * teacher, 3 * teacher], dim=1), teacher).item() < 1e-12
        True
    """
    _check_power(power)
    check_axes(student, "B C H W", name="student")
    check_axes(teacher, "B C H W", name="teacher")
    check_same_batch(student, teacher)
    maps = ((side.abs() ** power).mean(dim=1, keepdim=True) for side in (student, teacher.detach()))
    ours, theirs = (unit_vectors(side.flatten(1)) for side in on_common_grid(*maps))
    return F.mse_loss(ours, theirs)


class AT(nn.Module):
    """Pulls the student's spatial attention to the teacher's: `at_loss` with its settings.

    Args:
        power: p, at least 1.

    Example:
        >>> import torch
        >>> AT()(torch.ones(2, 3, 4, 4), torch.ones(2, 8, 2, 2)).item()
        0.0
    """

    def __init__(self, *, power: float = 2.0) -> None:
        super().__init__()
        _check_power(power)
        self.power = power

    def forward(self, student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C_t H_t W_t"]) -> Float[Tensor, ""]:
        """Scalar, for maps (B, C, H, W) of any two sizes."""
        return at_loss(student, teacher, power=self.power)


def _check_power(power: float) -> None:
    if not power >= 1:
        raise ValueError(f"power must be at least 1, got {power}")
