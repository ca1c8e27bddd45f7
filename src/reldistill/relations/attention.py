"""Where a teacher looks: weights with mean 1 over the positions, the channels and the edges of its graph.

[ours] The published text does not say on what scale magnitudes enter the softmax. A softmax of raw activations is
uniform for a network that answers in hundredths and picks a single position for one that answers in hundreds, so by
default magnitudes are divided by their mean over the image: `temperature` then means the same for every network.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from reldistill.core.checks import check_axes
from reldistill.relations.kernels import switch
from reldistill.relations.kernels.attention_products import map_attention_by_products
from reldistill.relations.precision import DEAD, full_precision

Scale = Literal["relative", "raw"]


@full_precision
def map_attention(
    teacher: Float[Tensor, "B C HW"], *, temperature: float = 1.0, scale: Scale = "relative"
) -> tuple[Float[Tensor, "B HW"], Float[Tensor, "B C"]]:
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
    if switch.enabled():
        return map_attention_by_products(teacher, temperature=temperature, relative=scale == "relative")
    magnitude = teacher.abs()
    _, channels, positions = magnitude.shape
    if scale == "relative":
        mean = magnitude.mean(dim=(1, 2), keepdim=True)
        magnitude = magnitude / torch.where(mean <= DEAD, 1.0, mean)
    spatial = positions * torch.softmax(magnitude.mean(dim=1) / temperature, dim=1)
    channel = channels * torch.softmax(magnitude.mean(dim=2) / temperature, dim=1)
    return spatial, channel


def relational_attention(adjacency: Float[Tensor, "*axes C C"], *, temperature: float) -> Float[Tensor, "*axes C C"]:
    """R = C · softmax over each row of A / τ: a channel's edges weigh more to the channels it resembles.

    Args:
        adjacency: similarities of at most 1, hence no `scale`.
        temperature: τ; large makes all weights 1.

    Returns:
        (…, C, C), each row of mean 1.
    """
    return adjacency.shape[-1] * torch.softmax(adjacency / temperature, dim=-1)
