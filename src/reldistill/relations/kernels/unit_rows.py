"""Rows divided by their length, in fewer passes over them than the equation takes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from reldistill.relations.precision import DEAD

# Sums of squares outside of these bounds may have lost digits in float32, or all of them.
_SMALL_SQUARE = 1e-18
_LARGE_SQUARE = 1e30


def magnitudes(
    flat: Float[Tensor, "*rows n"], squared: Float[Tensor, "*rows 1"] | None = None
) -> tuple[Float[Tensor, "*rows 1"] | None, Float[Tensor, "*rows 1"]]:
    """Rows in float32 or float64 → factors that keep squares in range, and 1 / ‖factor · row‖.

    The factors are None where none is needed. A dead row has factor and inverse norm 0. `squared` are the sums of the
    rows' squares where they are known.
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


class _UnitRows(torch.autograd.Function):
    """Written out because autograd would keep and walk through four arrays of the map's size where two are enough."""

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


def unit_rows(flat: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
    """v / ‖v‖; dead rows give 0, with gradient 0. It has first derivatives only."""
    unit: Tensor = _UnitRows.apply(flat)
    return unit
