"""CC: kernel correlations between the samples of a batch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.relations.across_ranks import gather_batch
from reldistill.relations.precision import full_precision
from reldistill.relations.similarity import cosines


@full_precision
def cc_loss(
    student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D_t"], *, sharpness: float = 0.4, order: int = 2
) -> Float[Tensor, ""]:
    """Pulls the correlations between the samples of a batch, by a Gaussian kernel, to those that the teacher sees.

        L = ‖C^S − C^T‖² / B²
        C_ij = e^{−2γ} Σ_{p=0}^{P} (2γ)^p / p! · cos(x_i, x_j)^p,   the first terms of exp(−γ ‖x_i − x_j‖²), x unit

    Baoyun Peng, Xiao Jin, Jiaheng Liu, Shunfeng Zhou, Yichao Wu, Yu Liu, Dongsheng Li, Zhaoning Zhang: Correlation
    Congruence for Knowledge Distillation. ICCV 2019, arXiv 1904.01802.

    Args:
        student: one vector per sample, (B, D). The samples of all ranks are taken together.
        teacher: (B, D'), taken without gradient; D' may differ from D.
        sharpness: γ, above 0.
        order: P, at least 1.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: a tensor is not (B, D), the numbers of samples differ, or a setting is out of its range.

    Invariances:
        - rotation and reflection of the samples, and a positive scale of each, in either network;
        - the order of the samples.

    Differences from the paper: its sampling of batches by class or cluster is left out, batches are the training's own.
    A sample whose vector is 0 has cosine 0 to all, itself included [ours].

    Example:
        >>> import torch
        >>> teacher = torch.randn(4, 8)
        >>> cc_loss(torch.nn.functional.pad(5 * teacher, (0, 3)), teacher).item() < 1e-12
        True
    """
    _check_settings(sharpness, order)
    check_axes(student, "B D", name="student")
    check_axes(teacher, "B D", name="teacher")
    check_same_batch(student, teacher)
    ours, theirs = (
        _kernel(cosines(gather_batch(side)), sharpness=sharpness, order=order) for side in (student, teacher.detach())
    )
    return F.mse_loss(ours, theirs)


def _kernel(cosine: Float[Tensor, "B B"], *, sharpness: float, order: int) -> Float[Tensor, "B B"]:
    total = torch.ones_like(cosine)
    for power in range(1, order + 1):
        total = total + (2 * sharpness) ** power / math.factorial(power) * cosine**power
    return math.exp(-2 * sharpness) * total


class CC(nn.Module):
    """Pulls the kernel correlations between the samples of a batch to the teacher's: see `cc_loss`.

    Args:
        sharpness: γ, above 0.
        order: P, at least 1.

    Example:
        >>> import torch
        >>> CC()(torch.eye(3), torch.eye(3)).item()
        0.0
    """

    def __init__(self, *, sharpness: float = 0.4, order: int = 2) -> None:
        super().__init__()
        _check_settings(sharpness, order)
        self.sharpness = sharpness
        self.order = order

    def forward(self, student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D_t"]) -> Float[Tensor, ""]:
        """Scalar, for one vector per sample of either network."""
        return cc_loss(student, teacher, sharpness=self.sharpness, order=self.order)


def _check_settings(sharpness: float, order: int) -> None:
    if not sharpness > 0:
        raise ValueError(f"sharpness must be above 0, got {sharpness}")
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
