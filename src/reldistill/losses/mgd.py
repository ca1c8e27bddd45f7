"""MGD: the student's masked features must be enough to make the teacher's whole ones."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.relations.across_ranks import gather_batch, share_of_rank, shared_seed
from reldistill.relations.precision import full_precision

Masked = Literal["positions", "channels"]


class MGD(nn.Module):
    """Generates the teacher's map from the student's with a part of its positions masked.

        L = mean over images of Σ_{c,h,w} (t − G(s ⊙ M))²,   M_hw = 0 with probability λ, else 1
        G = 3×3 convolution, ReLU, 3×3 convolution

    Zhendong Yang, Zhe Li, Mingqi Shao, Dachuan Shi, Zehuan Yuan, Chun Yuan: Masked Generative Distillation. ECCV 2022,
    arXiv 2205.01529.

    Args:
        channels: C of the teacher's map.
        ratio: λ, the share of masked positions, in [0, 1).
        masked: `positions` as above; `channels` masks whole channels, M_c, as the authors' code for classification.

    Call with student s and teacher t (B, C, H, W) of one shape; t is taken without gradient. Returns a scalar, at least
    0. The masks differ from image to image and from call to call, and follow torch's random generator; those of several
    ranks are what one process would have drawn for the same images.

    Raises:
        ValueError: the shapes differ (an adapter has to match them first), C is not `channels`, or a setting is out of
            range.

    Invariances: the order of the samples, except for their masks.

    Differences from the paper: none in the equation. The authors' code for classification masks channels, 0.15 of them.

    Example:
        >>> import torch
        >>> MGD(channels=8)(torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)).shape
        torch.Size([])
    """

    def __init__(self, *, channels: int, ratio: float = 0.5, masked: Masked = "positions") -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio must be in [0, 1), got {ratio}")
        if masked not in get_args(Masked):
            raise ValueError(f"masked must be one of {', '.join(get_args(Masked))}, got {masked!r}")
        self.channels = channels
        self.ratio = ratio
        self.masked: Masked = masked
        self.generation = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    @full_precision
    def forward(self, student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        """Scalar, for maps (B, C, H, W) of one shape."""
        check_axes(student, "B C H W", name="student", C=self.channels)
        check_same_batch(student, teacher)
        check_axes(teacher, "B C H W", name="teacher", C=self.channels, H=student.shape[2], W=student.shape[3])
        generated = self.generation(student * self._mask(student))
        return (teacher.detach() - generated).square().flatten(1).sum(dim=1).mean()

    @torch.no_grad()
    @torch.compiler.disable
    def _mask(self, student: Float[Tensor, "B C H W"]) -> Float[Tensor, "B _C _H _W"]:
        """0 and 1, (B, 1, H, W) or (B, C, 1, 1)."""
        generator = torch.Generator(student.device).manual_seed(shared_seed())
        places = (1, *student.shape[2:]) if self.masked == "positions" else (student.shape[1], 1, 1)
        size = (len(gather_batch(student[:, 0, 0, 0])), *places)
        return (share_of_rank(torch.rand(size, generator=generator, device=student.device)) >= self.ratio).to(student)
