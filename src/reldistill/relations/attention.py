"""Where a teacher looks: weights with mean 1 over the positions, the channels and the edges of its graph.

[ours] The published text does not say on what scale magnitudes enter the softmax. A softmax of raw activations is
uniform for a network that answers in hundredths and picks a single position for one that answers in hundreds, so by
default magnitudes are divided by their mean over the image: `temperature` then means the same for every network.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from reldistill.checks import check_axes
from reldistill.relations.precision import full_precision

Scale = Literal["relative", "raw"]


def _weights(magnitude: Tensor, *, temperature: float, scale: Scale) -> Tensor:
    """(B, n) mean magnitudes → (B, n) weights with mean 1."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if scale not in ("relative", "raw"):
        raise ValueError(f"scale must be 'relative' or 'raw', got {scale!r}")
    if scale == "relative":
        mean = magnitude.mean(dim=-1, keepdim=True)
        magnitude = magnitude / torch.where(mean == 0, 1.0, mean)
    magnitude = magnitude if temperature == 1 else magnitude / temperature
    return magnitude.shape[-1] * torch.softmax(magnitude, dim=-1)


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
    magnitude = teacher.abs()
    batch, channels, _ = magnitude.shape
    # As a product: several times faster than a mean over channels that lie next to each other.
    over_channels = magnitude.new_full((1, 1, channels), 1.0 / channels).expand(batch, 1, channels)
    spatial, channel = torch.bmm(over_channels, magnitude)[:, 0], magnitude.mean(dim=2)
    return tuple(_weights(m, temperature=temperature, scale=scale) for m in (spatial, channel))  # type: ignore[return-value]


@full_precision
def relational_attention(adjacency: Tensor, *, temperature: float = 1.0) -> Tensor:
    """C · softmax over each row of A / τ: the edges of a channel weigh more to the channels it resembles.

    Args:
        adjacency: (…, C, C) similarities in [−1, 1], hence no `scale`.
        temperature: τ; large makes all weights 1.

    Returns:
        (…, C, C), mean 1 over each row; not symmetric.
    """
    return _weights(adjacency, temperature=temperature, scale="raw")
