"""The graph between the channels of a feature map: vertices are channels, edges their cosine similarities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reldistill.relations.precision import full_precision

DEAD = 1e-30
"""A channel whose largest magnitude in an image is not above this is dead there. Half precision starts at 6e-8."""


# Sums of squares outside of these bounds may have lost digits in float32, or all of them.
_SMALL_SQUARE = 1e-18
_LARGE_SQUARE = 1e30


def magnitudes(flat: Tensor, squared: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
    """(…, C, n) in float32 or float64 → factors (…, C, 1) that keep squares in range, and 1 / ‖factor · row‖.

    The factors are None where none is needed. A dead row has factor and inverse norm 0. `squared`, (…, C, 1), are the
    sums of the rows' squares where they are known.
    """
    # Elsewhere than on a CPU, looking would mean waiting for the device.
    if flat.device.type == "cpu" and not torch.compiler.is_compiling():
        if squared is None:
            squared = (flat * flat).sum(dim=-1, keepdim=True)
        least, most = torch.aminmax(squared)
        if not (least < _SMALL_SQUARE or most > _LARGE_SQUARE):  # NaN shows
            return None, squared.rsqrt()
        odd = (squared < _SMALL_SQUARE) | (squared > _LARGE_SQUARE)
        if flat[odd[..., 0]].abs().amax() <= DEAD:
            return None, torch.where(odd, 0.0, squared.rsqrt())
    largest = flat.abs().amax(dim=-1, keepdim=True)
    dead = largest <= DEAD
    factor = torch.where(dead, 0.0, 1.0 / largest.clamp_min(DEAD))
    norm = torch.linalg.vector_norm(flat * factor, dim=-1, keepdim=True)
    return factor, torch.where(dead, 0.0, 1.0 / torch.where(dead, 1.0, norm))


class _UnitChannels(torch.autograd.Function):
    """v / ‖v‖ over the last axis; dead rows give 0.

    Written out because autograd would keep and walk through four arrays of the map's size where two are enough.
    """

    @staticmethod
    def forward(ctx: Any, flat: Tensor) -> Tensor:
        factor, inverse = magnitudes(flat)
        # Not in place: compiled by torch 2.11, what was changed in place would have no gradient.
        unit = flat * inverse if factor is None else flat * factor * inverse
        ctx.save_for_backward(unit, inverse if factor is None else inverse * factor)
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
