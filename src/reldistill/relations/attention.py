"""Where a teacher looks: weights with mean 1 over the positions, the channels and the edges of its graph.

[ours] The published text does not say on what scale magnitudes enter the softmax. A softmax of raw activations is
uniform for a network that answers in hundredths and picks a single position for one that answers in hundreds, so by
default magnitudes are divided by their mean over the image: `temperature` then means the same for every network.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from reldistill.core.checks import check_axes
from reldistill.relations.channel_graph import DEAD
from reldistill.relations.precision import full_precision

Scale = Literal["relative", "raw"]


@full_precision
def map_attention(teacher: Tensor, *, temperature: float = 1.0, scale: Scale = "relative") -> tuple[Tensor, Tensor]:
    """HW · softmax over the positions of mean_c |F| / τ, and C · softmax over the channels of mean_hw |F| / τ.

    Args:
        teacher: (B, C, HW).
        temperature: τ; large makes all weights 1.
        scale: `relative` divides the magnitudes by their mean over the image first, `raw` does not.

    Returns:
        Weights of the positions (B, HW) and of the channels (B, C), each with mean 1 over its image.
    """
    check_axes(teacher, "B C HW", name="teacher")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if scale not in ("relative", "raw"):
        raise ValueError(f"scale must be 'relative' or 'raw', got {scale!r}")
    magnitude = teacher.abs()
    batch, channels, positions = magnitude.shape
    by_channel = magnitude.mean(dim=2)
    if scale == "relative":
        mean = by_channel.mean(dim=1, keepdim=True)
        factor = 1.0 / (temperature * torch.where(mean <= DEAD, 1.0, mean))  # whose inverse would overflow
    else:
        factor = by_channel.new_full((1, 1), 1.0 / temperature)
    # As a product: several times faster than a mean over channels that lie next to each other.
    over_channels = (factor / channels).expand(batch, channels).contiguous().unsqueeze(1)
    spatial = torch.softmax(torch.bmm(over_channels, magnitude)[:, 0], dim=1)
    return spatial.mul_(positions), torch.softmax(by_channel * factor, dim=1).mul_(channels)


def relational_attention(adjacency: Tensor, *, temperature: float, out: Tensor) -> Tensor:
    """R + Rᵀ with R = C · softmax over each row of A / τ: a channel's edges weigh more to the channels it resembles.

    Both ways at once, since an edge has no direction. A is symmetric, so R and Rᵀ have the same numerators, exp(A / τ),
    and nothing has to be transposed.

    Args:
        adjacency: (…, C, C) symmetric similarities of at most 1, hence no `scale`.
        temperature: τ; large makes all weights 2.
        out: (…, C, C), written to and returned; its mean is 2.
    """
    # From 1 down, the largest similarity: no temperature makes it overflow.
    numerator = (adjacency if temperature == 1 else (adjacency - 1.0).div_(temperature)).exp()
    factor = adjacency.shape[-1] / numerator.sum(dim=-1, keepdim=True)
    return torch.add(factor, factor.mT, out=out).mul_(numerator)
