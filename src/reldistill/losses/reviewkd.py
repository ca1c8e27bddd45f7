"""ReviewKD: fused maps of several stages, compared on a pyramid of sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_same_batch
from reldistill.relations.precision import as_float
from reldistill.relations.tokens import average_pool

_SIDES = (4, 2, 1)


def context_loss(student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """The hierarchical context loss of two maps (B, C, H, W): see `reviewkd_loss`."""
    value, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for cells in _SIDES:
        if cells < student.shape[2]:
            weight /= 2
            ours, theirs = (average_pool(side, (cells, cells)) for side in (student, teacher))
            value = value + weight * F.mse_loss(ours, theirs)
            total += weight
    return value / total


def reviewkd_loss(
    student: Sequence[Float[Tensor, "B _C *_"]], teacher: Sequence[Float[Tensor, "B _C *_"]]
) -> Float[Tensor, ""]:
    """Pulls the student's fused maps to the teacher's, as they are and pooled to 4×4, 2×2 and 1×1.

        L = Σ_l HCL(s_l, t_l)
        HCL(s, t) = Σ_k w_k mean (pool_k s − pool_k t)² / Σ_k w_k,   k = the map's own size, 4, 2, 1;   w = 1, ½, ¼, ⅛

    Sizes k that are not below the map's height are left out, and the weights go to those that are left. The maps are
    fused from deep to shallow by attention (ABF) in an adapter, `networks.fusion.AttentionFusion`.

    Pengguang Chen, Shu Liu, Hengshuang Zhao, Jiaya Jia: Distilling Knowledge via Knowledge Review. CVPR 2021,
    arXiv 2104.09044.

    Args:
        student: the fused maps (B, C_l, H_l, W_l); vectors (B, C_l) count as maps of one pixel.
        teacher: the same number of tensors of the same shapes, taken without gradient.

    Returns:
        Scalar, at least 0, and 0 only where the maps agree.

    Raises:
        ValueError: the numbers or shapes of the maps differ.

    Invariances:
        - the order of the samples, a common permutation of channels;
        - a common shift of both networks' maps.

    Differences from the paper: none in the loss. Maps are taken where a network's stages return them, after their ReLU
    in most, where the authors' code for CIFAR takes them before it.

    Example:
        >>> import torch
        >>> teacher = [torch.zeros(2, 8, 6, 6), torch.zeros(2, 16)]
        >>> reviewkd_loss([tensor + 2 for tensor in teacher], teacher).item()
        8.0
    """
    if len(student) != len(teacher) or not student:
        raise ValueError(f"student and teacher must hold equally many maps: {len(student)} and {len(teacher)}")
    total = as_float(student[0]).new_zeros(())
    for ours, theirs in zip(student, teacher, strict=True):
        check_same_batch(ours, theirs)
        if ours.shape != theirs.shape or ours.ndim not in (2, 4):
            raise ValueError(
                f"student and teacher must have one shape (B, C, H, W) or (B, C): {tuple(ours.shape)} in the student, "
                f"{tuple(theirs.shape)} in the teacher; an adapter has to match them first"
            )
        with torch.autocast(ours.device.type, enabled=False):
            total = total + context_loss(
                *(as_float(one)[(...,) + (None,) * (4 - one.ndim)] for one in (ours, theirs.detach()))
            )
    return total


class ReviewKD(nn.Module):
    """Pulls the student's fused maps to the teacher's on a pyramid of sizes: see `reviewkd_loss`.

    Example:
        >>> import torch
        >>> maps = [torch.randn(2, 8, 6, 6), torch.randn(2, 16)]
        >>> ReviewKD()(maps, maps).item()
        0.0
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(
        self, student: Sequence[Float[Tensor, "B _C *_"]], teacher: Sequence[Float[Tensor, "B _C *_"]]
    ) -> Float[Tensor, ""]:
        """Scalar, for maps (B, C, H, W) or vectors (B, C) of the same shapes in both."""
        return reviewkd_loss(student, teacher)
