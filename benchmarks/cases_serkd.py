"""SeRKD's relations against their textbook form: distances, angles, superpixel tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.cases import Case, device
from benchmarks.reference import angles, distances, superpixels
from reldistill.relations import pairwise
from reldistill.relations.superpixels import superpixel_tokens

Loss = Callable[[Tensor, Tensor], Tensor]
GIB = 1 << 30


def cases(quick: bool) -> list[Case]:
    """All of them; `quick` on sizes that take no time."""
    small = 4 if quick else 1
    found = [
        _relation(
            "distances, forward + backward", pairwise.distance_loss, distances.distance_loss, (32, 49), goal=1.25
        ),
        _relation("angles, forward + backward", pairwise.angle_loss, angles.angle_loss, (32 // small, 49), goal=20),
    ]
    found[0].measure = "costs"  # in float64: they are to be right first
    images, tokens = (2, 64) if quick else (8, 196)
    for measure, goal in (("faster", 12.0), ("smaller", 20.0)):
        part = "angles of plain patch tokens" + (", extra memory" if measure == "smaller" else "")
        found.append(_relation(part, pairwise.angle_loss, angles.angle_loss, (images, tokens), goal=goal))
        found[-1].measure = measure  # type: ignore[assignment]
    found.append(_large_angles(quick))
    grids = (((14, 14), 64, 192), ((16, 16), 2, 32)) if quick else (((14, 14), 32, 192), ((64, 64), 4, 192))
    (grid, batch, dim), (large, large_batch, large_dim) = grids
    found.append(_superpixels("superpixel tokens, all", grid, batch, dim, local=False, goal=1.25))
    found[-1].measure = "costs"
    found.append(_superpixels("superpixel tokens, local", large, large_batch, large_dim, local=True, goal=3))
    return found


def _tokens(images: int, count: int, dims: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(images, count, dim, generator=generator).to(device()) for dim in dims]
    made[0].requires_grad_()
    return made


def _relation(
    part: str,
    ours: Loss,
    textbook: Loss | None,
    sizes: tuple[int, int],
    *,
    goal: float,
    dims: tuple[int, int] = (192, 384),
) -> Case:
    inputs = functools.cache(lambda: _tokens(*sizes, dims))
    text = f"B={sizes[0]}, M={sizes[1]}, D={dims[0]} vs {dims[1]}"
    return Case(
        part,
        text,
        ours=lambda: _forward_and_backward(ours, *inputs()),
        textbook=None if textbook is None else lambda: _forward_and_backward(textbook, *inputs()),
        goal=goal,
        prepare=inputs,
    )


def _forward_and_backward(loss: Loss, student: Tensor, teacher: Tensor) -> Tensor:
    student.grad = None
    value = loss(student, teacher)
    value.backward()
    return value.detach()


def _large_angles(quick: bool) -> Case:
    images, tokens, dim = (4, 64, 64) if quick else (128, 196, 384)
    case = _relation(
        "angles of plain patch tokens, extra MiB",
        pairwise.angle_loss,
        None,
        (images, tokens),
        goal=1024,
        dims=(dim, dim),
    )
    case.measure = "fits"
    needed = 4 * images * tokens**2 * (2 * dim + tokens) / GIB
    case.note = (
        f"the textbook form is not run: its difference vectors, their unit vectors and their cosines are {needed:.1f} "
        f"GiB for each network, and as much again for the gradients of the student's"
    )
    return case


def _superpixels(part: str, grid: tuple[int, int], images: int, dim: int, *, local: bool, goal: float) -> Case:
    cells = (grid[0] // 2, grid[1] // 2)
    inputs = functools.cache(lambda: _map(images, dim, grid))

    def forward_and_backward(merge: Callable[[Tensor], Tensor]) -> Tensor:
        feature_map, pull = inputs()
        feature_map.grad = None
        tokens = merge(feature_map)
        tokens.backward(pull)
        return tokens.detach()

    def ours() -> Tensor:
        return forward_and_backward(
            lambda m: superpixel_tokens(m, grid=cells, neighbourhood="local" if local else "all")
        )

    def agreement() -> float:
        # The dense form with all but the neighbours masked out is the local one.
        allowed = superpixels.nearby(grid, cells).to(device()) if local else None
        expected = superpixels.superpixel_tokens(inputs()[0].detach(), grid=cells, allowed=allowed)
        return float((ours() - expected).abs().max() / expected.abs().max())

    return Case(
        part,
        f"B={images}, N={grid[0] * grid[1]} → {cells[0] * cells[1]}, D={dim}",
        ours=ours,
        textbook=lambda: forward_and_backward(lambda m: superpixels.superpixel_tokens(m, grid=cells)),
        goal=goal,
        agreement=agreement,
        note="local, against the dense textbook form; values against the dense form masked to the neighbours"
        if local
        else "",
        prepare=inputs,
    )


def _map(images: int, dim: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Patch tokens laid out on their grid as a ViT gives them, and a gradient for the superpixels."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(images, grid[0] * grid[1], dim, generator=generator).to(device())
    pull = torch.randn(images, (grid[0] // 2) * (grid[1] // 2), dim, generator=generator).to(device())
    return tokens.transpose(1, 2).unflatten(2, grid).requires_grad_(), pull
