"""The textbook forms say what the package says: to 1e-9 in float64, 1e-4 in float32, values and gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmarks.reference import angles, distances, superpixels
from torch import Tensor

import reldistill
from reldistill.relations import pairwise
from reldistill.relations.superpixels import nearest_superpixels, superpixel_tokens

TOLERANCES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str)
GRIDS = [((14, 14), (7, 7)), ((7, 5), (4, 3)), ((9, 10), (3, 4))]


def value_and_gradient(function: Callable[[Tensor], Tensor], given: Tensor) -> tuple[Tensor, Tensor]:
    given = given.clone().requires_grad_()
    value = function(given)
    # Not the sum: of superpixel tokens it would hide an exchange.
    generator = torch.Generator().manual_seed(1)
    value.backward(torch.rand(value.shape, generator=generator, dtype=torch.float64).to(value.dtype))
    assert given.grad is not None
    return value.detach(), given.grad


def assert_same(
    ours: Callable[[Tensor], Tensor], textbook: Callable[[Tensor], Tensor], given: Tensor, tolerance: float
) -> None:
    for found, expected in zip(value_and_gradient(ours, given), value_and_gradient(textbook, given), strict=True):
        assert found.dtype == given.dtype
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@TOLERANCES
@pytest.mark.parametrize("offset", [0.0, 5.0])
@pytest.mark.parametrize("part", ["distance", "angle"])
def test_relations(part: str, offset: float, dtype: torch.dtype, tolerance: float) -> None:
    ours, textbook = {
        "distance": (pairwise.distance_loss, distances.distance_loss),
        "angle": (pairwise.angle_loss, angles.angle_loss),
    }[part]
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        (torch.randn(3, 17, dim, generator=generator, dtype=torch.float64) + offset).to(dtype) for dim in (12, 24)
    )
    assert_same(lambda s: ours(s, teacher), lambda s: textbook(s, teacher), student, tolerance)


@TOLERANCES
@pytest.mark.parametrize(("grid", "cells"), GRIDS, ids=str)
@pytest.mark.parametrize("local", [False, True], ids=["all", "local"])
def test_superpixel_tokens(
    local: bool, grid: tuple[int, int], cells: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    feature_map = torch.randn(2, 8, *grid, generator=generator, dtype=torch.float64).to(dtype)
    ours = functools.partial(superpixel_tokens, grid=cells, iterations=2, neighbourhood="local" if local else "all")
    allowed = superpixels.nearby(grid, cells) if local else None
    textbook = functools.partial(superpixels.superpixel_tokens, grid=cells, iterations=2, allowed=allowed)
    assert_same(ours, textbook, feature_map, tolerance)


@pytest.mark.parametrize(("grid", "cells"), GRIDS, ids=str)
def test_nearby_is_what_the_package_calls_a_neighbour(grid: tuple[int, int], cells: tuple[int, int]) -> None:
    index = nearest_superpixels(grid, cells)
    expected = torch.zeros(len(index), cells[0] * cells[1] + 1, dtype=torch.bool)
    expected.scatter_(1, index.where(index >= 0, cells[0] * cells[1]), True)
    assert torch.equal(superpixels.nearby(grid, cells), expected[:, :-1])


def test_the_package_imports_no_benchmark() -> None:
    for file in Path(reldistill.__file__).parent.rglob("*.py"):
        lines = file.read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if line.lstrip().startswith(("import ", "from ")) and "benchmarks" in line]
