"""A teacher's attention, its means taken as products, and both directions of an edge at once."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from reldistill.relations.precision import DEAD


def map_attention_by_products(
    teacher: Float[Tensor, "B C HW"], *, temperature: float, relative: bool
) -> tuple[Float[Tensor, "B HW"], Float[Tensor, "B C"]]:
    """`attention.map_attention`, of settings that it has checked."""
    magnitude = teacher.abs()
    batch, channels, positions = magnitude.shape
    by_channel = magnitude.mean(dim=2)
    if relative:
        mean = by_channel.mean(dim=1, keepdim=True)
        factor = 1.0 / (temperature * torch.where(mean <= DEAD, 1.0, mean))  # whose inverse would overflow
    else:
        factor = by_channel.new_full((1, 1), 1.0 / temperature)
    # As a product: several times faster than a mean over channels that lie next to each other.
    over_channels = (factor / channels).expand(batch, channels).contiguous().unsqueeze(1)
    spatial = torch.softmax(torch.bmm(over_channels, magnitude)[:, 0], dim=1)
    return spatial.mul_(positions), torch.softmax(by_channel * factor, dim=1).mul_(channels)


def relational_attention_both_ways(
    adjacency: Float[Tensor, "*axes C C"], *, temperature: float, out: Float[Tensor, "*axes C C"]
) -> Float[Tensor, "*axes C C"]:
    """R + Rᵀ of `attention.relational_attention`, since an edge has no direction.

    A is symmetric, so R and Rᵀ have the same numerators, exp(A / τ), and nothing has to be transposed.

    Args:
        adjacency: symmetric similarities of at most 1.
        temperature: τ; large makes all weights 2.
        out: written to and returned; its mean is 2.
    """
    # From 1 down, the largest similarity: no temperature makes it overflow.
    numerator = (adjacency if temperature == 1 else (adjacency - 1.0).div_(temperature)).exp()
    factor = adjacency.shape[-1] / numerator.sum(dim=-1, keepdim=True)
    return torch.add(factor, factor.mT, out=out).mul_(numerator)
