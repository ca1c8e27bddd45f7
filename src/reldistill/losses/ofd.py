"""OFD: the teacher's features where they carry information."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.relations.across_ranks import mean_over_batch
from reldistill.relations.precision import as_float


def margins(teacher: Float[Tensor, "B C H W"]) -> Float[Tensor, "C"]:
    """(B, C, H, W) → (C,), each channel's mean negative response over the images of all ranks, 0 without any."""
    negative = teacher < 0
    total = mean_over_batch((teacher * negative).sum(dim=(2, 3)))
    count = mean_over_batch(negative.sum(dim=(2, 3)).to(teacher.dtype))
    return total / count.masked_fill(count == 0, 1.0)


def ofd_loss(
    student: Sequence[Float[Tensor, "B _C _H _W"]], teacher: Sequence[Float[Tensor, "B _C _H _W"]]
) -> Float[Tensor, ""]:
    """Pulls the student's maps to the teacher's, except for responses that are negative in both.

        L = Σ_l 2^{l − n} mean over images of Σ d_p(max(t, m_c), s),   d_p(t, s) = 0 where s ≤ t ≤ 0, else (t − s)²
        m_c = mean of channel c's negative responses

    Byeongho Heo, Jeesoo Kim, Sangdoo Yun, Hyojin Park, Nojun Kwak, Jin Young Choi: A Comprehensive Overhaul of Feature
    Distillation. ICCV 2019, arXiv 1904.01866.

    Args:
        student: n maps (B, C_l, H_l, W_l) from shallow to deep, shaped like the teacher's by an adapter.
        teacher: n maps of the same shapes, taken without gradient.

    Returns:
        Scalar, at least 0, and 0 where the maps agree.

    Raises:
        ValueError: the numbers or shapes of the maps differ.

    Invariances:
        - the order of the samples, a common permutation of positions or of channels;
        - any response of the student below max(t, m_c) where that is not positive.

    Differences from the paper: m_c is measured on the batch (of all ranks) instead of read off the batch norm in front,
    which not every network has. The paper takes maps before their ReLU; on rectified maps, which is what most networks'
    stages return, there is no margin, and the student is free to be negative where the teacher is 0.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[[[2.0, -1.0]]]])
        >>> ofd_loss([torch.tensor([[[[2.0, -9.0]]]])], [teacher]).item()
        0.0
        >>> ofd_loss([torch.tensor([[[[1.0, 1.0]]]])], [teacher]).item()
        5.0
    """
    if len(student) != len(teacher) or not student:
        raise ValueError(f"student and teacher must hold equally many maps: {len(student)} and {len(teacher)}")
    total = as_float(student[0]).new_zeros(())
    for depth, (ours, theirs) in enumerate(zip(student, teacher, strict=True), start=1):
        check_axes(ours, "B C H W", name="student")
        check_same_batch(ours, theirs)
        sizes = dict(zip("CHW", ours.shape[1:], strict=True))
        check_axes(theirs, "B C H W", name="teacher", **sizes)
        with torch.autocast(ours.device.type, enabled=False):
            total = total + 2.0 ** (depth - len(student)) * _partial_distance(as_float(ours), as_float(theirs.detach()))
    return total


def _partial_distance(student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    teacher = torch.maximum(teacher, margins(teacher)[:, None, None])
    counts = (student > teacher) | (teacher > 0)
    return ((teacher - student).square() * counts).flatten(1).sum(dim=1).mean()


class OFD(nn.Module):
    """Pulls the student's maps to the teacher's, except for responses that are negative in both: see `ofd_loss`.

    Example:
        >>> import torch
        >>> maps = [torch.randn(2, 8, 4, 4), torch.randn(2, 16, 2, 2)]
        >>> OFD()(maps, maps).item()
        0.0
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(
        self, student: Sequence[Float[Tensor, "B _C _H _W"]], teacher: Sequence[Float[Tensor, "B _C _H _W"]]
    ) -> Float[Tensor, ""]:
        """Scalar, for maps (B, C, H, W) of the same shapes in both, from shallow to deep."""
        return ofd_loss(student, teacher)
