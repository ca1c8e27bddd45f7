"""ReviewKD's fusion of a student's stages, from deep to shallow, by attention."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

_WIDEST = 512


class AttentionFusion(nn.Module):
    """Several maps of the student → as many of the teacher's shapes, each with all deeper ones in it (ABF).

    A stage's map goes through a 1×1 convolution; two attention maps, made of it and of the deeper stage's result, set
    how much of either enters; a 3×3 convolution shapes the mixture like the teacher's map.

    Args:
        channels: C of the student's maps, from shallow to deep.
        teacher_channels: C' of the teacher's.
        teacher_sizes: (H', W') of the teacher's; None where it is a vector.

    >>> import torch
    >>> fusion = AttentionFusion([8, 16, 16], [32, 64, 64], teacher_sizes=[(8, 8), (4, 4), None])
    >>> fused = fusion(torch.rand(2, 8, 6, 6), torch.rand(2, 16, 3, 3), torch.rand(2, 16))
    >>> tuple(tuple(one.shape) for one in fused)
    ((2, 32, 8, 8), (2, 64, 4, 4), (2, 64))
    """

    def __init__(
        self,
        channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        teacher_sizes: Sequence[tuple[int, int] | None],
    ) -> None:
        super().__init__()
        width = min(_WIDEST, channels[-1])
        self.teacher_sizes = tuple(teacher_sizes)
        self.enter = nn.ModuleList(_convolution(count, width, 1) for count in channels)
        self.leave = nn.ModuleList(_convolution(width, count, 3) for count in teacher_channels)
        self.attention = nn.ModuleList(nn.Conv2d(2 * width, 2, 1) for _ in pairwise(channels))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is None:
                nn.init.kaiming_uniform_(layer.weight, a=1)

    def forward(self, *student: Float[Tensor, "B _C *_"]) -> tuple[Float[Tensor, "B _C *_"], ...]:
        """(B, C, H, W) or (B, C) each → (B, C', H', W') or (B, C') each."""
        fused: list[Tensor] = []
        deeper: Tensor | None = None
        for place in reversed(range(len(student))):
            tensor = student[place]
            mixture = self.enter[place](tensor if tensor.ndim == 4 else tensor[..., None, None])
            if deeper is not None:
                deeper = functional.interpolate(deeper, mixture.shape[-2:], mode="nearest")
                shares = self.attention[place](torch.cat([mixture, deeper], dim=1)).sigmoid()
                mixture = mixture * shares[:, :1] + deeper * shares[:, 1:]
            size = self.teacher_sizes[place]
            if mixture.shape[-2:] != (size or (1, 1)):
                mixture = functional.interpolate(mixture, size or (1, 1), mode="nearest")
            deeper = mixture
            shaped = self.leave[place](mixture)
            fused.append(shaped.flatten(1) if size is None else shaped)
        return tuple(reversed(fused))


def _convolution(channels: int, teacher_channels: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, teacher_channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(teacher_channels))
