"""Relations are computed in float32 (float64 stays float64) whatever autocast is set to, and where digits run out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, no_type_check

import torch
from jaxtyping import Shaped
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

DEAD = 1e-30
"""A channel or vector whose largest magnitude is not above this is dead: 0. Half precision starts at 6e-8."""

COINCIDENT_ROUNDINGS = 16.0
"""Tokens nearer than this many roundings of their image's largest activation are the same token: a constant map that
went through a few sums is still constant, instead of a cloud of rounding errors with angles of its own.
"""


def float_type(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in: float32, or float64 for float64."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def as_float(tensor: Shaped[Tensor, "*axes"]) -> Shaped[Tensor, "*axes"]:
    """`tensor` in float32, or unchanged where it already holds float32 or float64."""
    return tensor.to(float_type(tensor.dtype))


def broadening(dtype: torch.dtype) -> float:
    """ε with which a projector's backward takes gap / (gap² + ε²) for 1 / gap: the square root of machine precision.

    3.5e-4 in float32 and 1.5e-8 in float64. Eigenvalues are known to about machine precision, so where a gap is far
    above ε the gradient is exact, and where a kept and a dropped eigenvalue meet it fades out instead of blowing up.
    """
    return float(torch.finfo(dtype).eps ** 0.5)


def full_precision(function: F) -> F:
    """Run a function of (student, teacher, …) tensors without autocast, its half-precision inputs lifted to float32.

    Differences of distances, cosines and eigenvalues lose their meaning in half precision, and squares of fp16
    activations overflow.
    """

    @no_type_check  # it hands on whatever it is given
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        lifted = [_lifted(value) for value in args]
        with torch.autocast(device.type, enabled=False):
            return function(*lifted, **{name: _lifted(value) for name, value in kwargs.items()})

    return wrapper


def _lifted(value: Any) -> Any:
    return as_float(value) if isinstance(value, Tensor) and value.is_floating_point() else value
