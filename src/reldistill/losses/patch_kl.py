"""Patch KL: for each patch of an image, which of its patches look alike."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch, check_temperature
from reldistill.relations.precision import full_precision
from reldistill.relations.similarity import cosines
from reldistill.relations.tokens import map_to_tokens, on_common_grid


@full_precision
def patch_kl_loss(
    student: Float[Tensor, "B D H W"], teacher: Float[Tensor, "B D_t H_t W_t"], *, temperature: float = 0.07
) -> Float[Tensor, ""]:
    """Pulls each patch's softmax over its similarities to all patches of the same image to the teacher's.

        L = mean over images and patches i of KL(p^T_i ‖ p^S_i),   p_i = softmax over j of cos(t_i, t_j) / τ

    It has no paper of its own: toolkits that distil without labels use it beside a loss on whole images. Pairwise
    similarities within an image were first distilled by Yifan Liu, Ke Chen, Chris Liu, Zengchang Qin, Zhenbo Luo,
    Jingdong Wang: Structured Knowledge Distillation for Semantic Segmentation. CVPR 2019, arXiv 1903.04197.

    Args:
        student: map or patch tokens laid out on their grid, (B, D, H, W).
        teacher: (B, D', H', W'), taken without gradient.
        temperature: τ, above 0; small ones look at the nearest patches only.

    Returns:
        Scalar, at least 0, and 0 where the similarities agree. Over a single patch it is 0.

    Raises:
        ValueError: a tensor is not (B, D, H, W), the numbers of samples differ, or the temperature is not above 0.

    Invariances:
        - rotation and reflection of the patches' vectors of an image, and (on one grid) a positive scale of each, in
          either network;
        - the order of the samples, and (on one grid) a common permutation of the positions.

    Differences from the paper: the softmax and the KL in place of squared differences, and τ, are the toolkits'. They
    project the student's patches to the teacher's dimension first; here they are compared as they are, since
    similarities need no projection [ours]. On grids of different size patches are average-pooled to the coarser one
    [ours]. A patch's similarity to itself counts. A patch of 0 is as unlike itself as all others. Memory grows with the
    square of the number of patches.

    Example:
        >>> import torch
        >>> teacher = torch.randn(2, 8, 4, 4)
        >>> patch_kl_loss(torch.cat([2 * teacher, 0 * teacher], dim=1), teacher).item() < 1e-5
        True
    """
    check_temperature(temperature)
    check_axes(student, "B D H W", name="student")
    check_axes(teacher, "B D H W", name="teacher")
    check_same_batch(student, teacher)
    ours, theirs = (
        (cosines(map_to_tokens(side)) / temperature).log_softmax(dim=2).flatten(0, 1)
        for side in on_common_grid(student, teacher.detach())
    )
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


class PatchKL(nn.Module):
    """Pulls each patch's similarities to the patches of its image to the teacher's: `patch_kl_loss` with its settings.

    Args:
        temperature: τ, above 0.

    Example:
        >>> import torch
        >>> PatchKL()(torch.ones(2, 3, 4, 4), torch.ones(2, 8, 2, 2)).item()
        0.0
    """

    def __init__(self, *, temperature: float = 0.07) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature

    def forward(self, student: Float[Tensor, "B D H W"], teacher: Float[Tensor, "B D_t H_t W_t"]) -> Float[Tensor, ""]:
        """Scalar, for maps or laid-out tokens (B, D, H, W) of any two sizes."""
        return patch_kl_loss(student, teacher, temperature=self.temperature)
