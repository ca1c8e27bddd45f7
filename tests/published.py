"""Published formulas beside our losses: a loss of the same numbers must have the formula's value and slope."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

Array = np.ndarray
Side = Array | list[Array]
STEP = 1e-6  # of the formula's slope, by central differences


def numbers(*shape: int, seed: int, shift: float = 0.0) -> Array:
    """Normal random numbers, as asymmetric as chance makes them."""
    return np.random.default_rng(seed).normal(shift, 1.0, shape)


def softmax(values: Array, axis: int = -1) -> Array:
    """exp x / Σ exp x."""
    powers = np.exp(values)
    return powers / powers.sum(axis=axis, keepdims=True)


def divergence(teacher: Array, student: Array) -> float:
    """KL(teacher ‖ student) of two distributions."""
    return float((teacher * np.log(teacher / student)).sum())


def huber(value: float) -> float:
    """With δ = 1."""
    return value * value / 2 if abs(value) <= 1 else abs(value) - 0.5


def pooled(maps: Array, height: int, width: int) -> Array:
    """(B, C, H, W) → (B, C, height, width), the mean of the cells that each new one reaches into."""
    new = np.zeros((*maps.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            rows = slice(i * maps.shape[2] // height, -(-(i + 1) * maps.shape[2] // height))
            columns = slice(j * maps.shape[3] // width, -(-(j + 1) * maps.shape[3] // width))
            new[:, :, i, j] = maps[:, :, rows, columns].mean(axis=(2, 3))
    return new


def convolved(maps: Array, weight: Array, bias: Array) -> Array:
    """(B, C, H, W) → (B, C', H, W) by a 3×3 kernel (C', C, 3, 3) and zeros around the map."""
    height, width = maps.shape[2:]
    padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)))
    made = np.zeros((len(maps), len(weight), height, width))
    for i in range(height):
        for j in range(width):
            made[:, :, i, j] = np.einsum("bcij,ocij->bo", padded[:, :, i : i + 3, j : j + 3], weight) + bias
    return made


@dataclass(frozen=True)
class Case:
    """One loss with one choice of settings.

    Args:
        id: what the test is called.
        loss: makes it.
        student: what it is called with, an array or several.
        teacher: the same.
        formula: (student, teacher, the keywords) → value, of arrays alone.
        of_the_batch: keywords, as arrays or plain values.
    """

    id: str
    loss: Callable[[], nn.Module]
    student: Side
    teacher: Side
    formula: Callable[..., float]
    of_the_batch: dict[str, Any] = field(default_factory=dict)


def cases(table: Sequence[Case]) -> pytest.MarkDecorator:
    """`case` from a table."""
    return pytest.mark.parametrize("case", table, ids=[case.id for case in table])


def check(case: Case) -> None:
    """Value, and slope along a random direction of the student's numbers, are the formula's."""
    expected = case.formula(case.student, case.teacher, **case.of_the_batch)
    student = _each(case.student, lambda array: torch.from_numpy(array).requires_grad_())
    teacher = _each(case.teacher, torch.from_numpy)
    more = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in case.of_the_batch.items()}
    value = case.loss().double()(student, teacher, **more)
    assert value.dtype is torch.float64
    assert value.item() == pytest.approx(expected, rel=1e-7, abs=1e-12)
    value.backward()
    sides = student if isinstance(student, list) else [student]
    directions = [numbers(*one.shape, seed=99 + place) for place, one in enumerate(sides)]
    slope = sum((one.grad.numpy() * along).sum() for one, along in zip(sides, directions, strict=True))
    ahead, behind = (
        case.formula(_moved(case.student, directions, step), case.teacher, **case.of_the_batch)
        for step in (STEP, -STEP)
    )
    assert abs(slope) > 1e-6, "a direction along which nothing changes tells nothing"
    assert slope == pytest.approx((ahead - behind) / (2 * STEP), rel=1e-4, abs=1e-8)


def _each(side: Side, change: Callable[[Array], Any]) -> Any:
    return [change(one) for one in side] if isinstance(side, list) else change(side)


def _moved(side: Side, directions: Sequence[Array], step: float) -> Side:
    if isinstance(side, list):
        return [one + step * along for one, along in zip(side, directions, strict=True)]
    return side + step * directions[0]
