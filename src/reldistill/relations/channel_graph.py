"""The graph between the channels of a feature map: vertices are channels, edges their cosine similarities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reldistill.checks import check_axes
from reldistill.relations.across_ranks import mean_over_batch
from reldistill.relations.precision import full_precision

DEAD = 1e-30
"""A channel whose largest magnitude in an image is not above this is dead there. Half precision starts at 6e-8."""


class _UnitChannels(torch.autograd.Function):
    """v / ‖v‖ over the last axis, by way of v / max|v| so that no square over- or underflows; dead rows give 0.

    Written out because autograd would keep and walk through four arrays of the map's size where two are enough.
    """

    @staticmethod
    def forward(ctx: Any, flat: Tensor) -> Tensor:
        largest = flat.abs().amax(dim=-1, keepdim=True)
        dead = largest <= DEAD
        inverse = torch.where(dead, 0.0, 1.0 / largest.clamp_min(DEAD))
        unit = flat * inverse
        norm = torch.linalg.vector_norm(unit, dim=-1, keepdim=True)
        inverse_norm = 1.0 / torch.where(dead, 1.0, norm)
        unit = unit.mul_(inverse_norm)
        ctx.save_for_backward(unit, inverse * inverse_norm)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        unit, inverse = ctx.saved_tensors
        along = (grads[0] * unit).sum(dim=-1, keepdim=True)
        return (unit * -along).add_(grads[0]).mul_(inverse)


def unit_channels(feature_map: Tensor) -> Tensor:
    """(…, C, H, W) → (…, C, HW): every channel as a vector of length 1, or 0 where the channel is dead.

    The gradient of a dead channel is 0. It has first derivatives only.
    """
    unit: Tensor = _UnitChannels.apply(feature_map.flatten(-2))
    return unit


def unit_adjacency(unit: Tensor) -> Tensor:
    """(…, C, HW) unit vectors → (…, C, C) cosines. The diagonal is exactly 1, also for a dead channel."""
    itself = torch.eye(unit.shape[-2], dtype=torch.bool, device=unit.device)
    return (unit @ unit.mT).masked_fill(itself, 1.0)


@full_precision
def channel_adjacency(feature_map: Tensor) -> Tensor:
    """Cosine similarities between the channels of each image, A_ij = ⟨v_i, v_j⟩ / (‖v_i‖ ‖v_j‖).

    A dead channel (see `DEAD`) has similarity 0 to all others and 1 to itself.

    Args:
        feature_map: (B, C, H, W), or with further axes before C, e.g. (B, G, C/G, H, W).

    Returns:
        (B, C, C), symmetric, 1 on the diagonal.

    >>> channel_adjacency(torch.tensor([[[[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]]]]))
    tensor([[[1.0000, 0.7071, 0.0000],
             [0.7071, 1.0000, 0.0000],
             [0.0000, 0.0000, 1.0000]]])
    """
    if feature_map.ndim < 4:
        raise ValueError(f"feature_map: expected (B, C, H, W), got a tensor of shape {tuple(feature_map.shape)}")
    return unit_adjacency(unit_channels(feature_map))


def split_channels(tensor: Tensor, *, groups: int) -> Tensor:
    """(B, C, …) → (B, G, C/G, …): the channels cut into `groups` runs of neighbours.

    Raises:
        ValueError: C is not a multiple of `groups`.
    """
    channels = tensor.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups = {groups} does not divide the C = {channels} channels: choose a divisor of C")
    return tensor.unflatten(1, (groups, channels // groups))


@full_precision
def mean_channel_adjacency(feature_map: Tensor, *, groups: int = 1) -> Tensor:
    """The channel graph of a whole batch: adjacencies averaged over the images of all ranks.

    Args:
        feature_map: (B, C, H, W).
        groups: into how many graphs the channels are cut.

    Returns:
        (G, C/G, C/G), 1 on the diagonals.
    """
    check_axes(feature_map, "B C H W", name="feature_map")
    return mean_over_batch(unit_adjacency(split_channels(unit_channels(feature_map), groups=groups)))
