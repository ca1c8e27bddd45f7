"""ICKD: which channels of an image respond together."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.relations.precision import full_precision
from reldistill.relations.similarity import unit_vectors


@full_precision
def ickd_loss(student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H_t W_t"]) -> Float[Tensor, ""]:
    """Pulls the correlations between the channels of each image to the teacher's.

        L = mean over images of ‖G^S − G^T‖² / C,   G = V Vᵀ with each row scaled to length 1,   V (C, H·W) the channels

    Li Liu, Qingle Huang, Sihao Lin, Hongwei Xie, Bing Wang, Xiaojun Chang, Xiaodan Liang: Exploring Inter-Channel
    Correlation for Diversity-Preserved Knowledge Distillation. ICCV 2021, arXiv 2202.03680.

    Args:
        student: map, (B, C, H, W), with the teacher's channels: an adapter has to match them first.
        teacher: map, (B, C, H', W'), taken without gradient.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: a tensor is not (B, C, H, W), or the numbers of samples or channels differ.

    Invariances:
        - a scale of an image's map, and a permutation of its positions, in either network;
        - the order of the samples, and a common permutation of the channels.

    Differences from the paper: the rows' scaling is the authors' code's; the paper's equation has the products as they
    are, and embeds the student's map by a batch norm besides. Of its two forms this is the one for classification,
    without a grid of patches. A dead channel has correlation 0 to all, itself included.

    Example:
        >>> import torch
        >>> teacher = torch.randn(2, 8, 4, 4)
        >>> ickd_loss(3 * teacher.flip(-1), teacher).item() < 1e-10
        True
    """
    check_axes(student, "B C H W", name="student")
    check_axes(teacher, "B C H W", name="teacher", C=student.shape[1])
    check_same_batch(student, teacher)
    ours, theirs = (unit_vectors(_products(side.flatten(2))) for side in (student, teacher.detach()))
    return (ours - theirs).square().sum(dim=2).mean()


def _products(channels: Float[Tensor, "B C P"]) -> Float[Tensor, "B C C"]:
    return channels @ channels.mT


class ICKD(nn.Module):
    """Pulls the correlations between the channels of each image to the teacher's: see `ickd_loss`.

    Example:
        >>> import torch
        >>> ICKD()(torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4)).item()
        0.0
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H_t W_t"]) -> Float[Tensor, ""]:
        """Scalar, for maps of the same channels."""
        return ickd_loss(student, teacher)
