"""The graph between the channels of a feature map: vertices are channels, edges their cosine similarities."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from reldistill.relations.kernels import switch
from reldistill.relations.kernels.unit_rows import unit_rows
from reldistill.relations.precision import DEAD, full_precision


def unit_channels(feature_map: Float[Tensor, "*axes H W"]) -> Float[Tensor, "*axes HW"]:
    """Every channel as a vector of length 1, v / ‖v‖ with v = vec(F_c), or 0 where the channel is dead (see `DEAD`).

    The gradient of a dead channel is 0. By the fast kernels, it has first derivatives only.
    """
    vectors = feature_map.flatten(-2)
    if switch.enabled():
        return unit_rows(vectors)
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True)  # a constant: it cancels
    dead = largest <= DEAD
    scaled = (vectors / torch.where(dead, 1.0, largest)).masked_fill(dead, 0.0)  # so that no square leaves its range
    squared = scaled.square().sum(dim=-1, keepdim=True)
    return scaled / torch.where(dead, 1.0, squared).sqrt()


def unit_adjacency(unit: Float[Tensor, "*axes C n"]) -> Float[Tensor, "*axes C C"]:
    """Cosines of unit vectors. The diagonal is exactly 1, also for a dead channel."""
    itself = torch.eye(unit.shape[-2], dtype=torch.bool, device=unit.device)
    return (unit @ unit.mT).masked_fill(itself, 1.0)


@full_precision
def channel_adjacency(feature_map: Float[Tensor, "*axes C H W"]) -> Float[Tensor, "*axes C C"]:
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


def split_channels(tensor: Shaped[Tensor, "B C *axes"], *, groups: int) -> Shaped[Tensor, "B G each *axes"]:
    """(B, C, …) → (B, G, C/G, …): the channels cut into `groups` runs of neighbours.

    Raises:
        ValueError: C is not a multiple of `groups`.
    """
    channels = tensor.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups = {groups} does not divide the C = {channels} channels: choose a divisor of C")
    return tensor.unflatten(1, (groups, channels // groups))
