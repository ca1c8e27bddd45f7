"""Every fast kernel gives the value and the gradient of the readable form, in float64; and the switch reaches all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import reldistill.relations.kernels
from drawn import normal
from reldistill.losses import RKD, SEKD, SeRKD
from reldistill.losses import sekd as sekd_module
from reldistill.relations import attention, channel_graph, pairwise, superpixels
from reldistill.relations.attention import map_attention, relational_attention
from reldistill.relations.channel_graph import channel_adjacency, unit_channels
from reldistill.relations.kernels import full_decompositions, local_superpixels, switch
from reldistill.relations.kernels.attention_products import relational_attention_both_ways
from reldistill.relations.kernels.switch import fast_kernels
from reldistill.relations.kernels.tracked_subspaces import TrackedSubspaces
from reldistill.relations.pairwise import distance_and_angle, distances
from reldistill.relations.spectrum import spectral_distance, spectral_projector
from reldistill.relations.superpixels import superpixel_tokens, superpixels_and_assignment

Function = Callable[[Tensor], Tensor]


def maps(*shape: int, seed: int = 0) -> Tensor:
    """Mostly positive activations; one channel is dead in the first image."""
    (found,) = normal(shape, seed=seed)
    found = found.abs() ** 1.5 - 0.1
    found[0, 1] = 0.0
    return found


def tokens(seed: int, width: int) -> Tensor:
    """Nine, of which two coincide in the first of three images."""
    (found,) = normal((3, 9, width), seed=seed)
    found[0, 4] = found[0, 1]
    return found


def value_and_gradient(function: Function, given: Tensor, *, fast: bool) -> tuple[Tensor, Tensor]:
    given = given.clone().requires_grad_()
    with fast_kernels(fast):
        value = function(given)
        # Not the sum, in which an exchange of entries would not show.
        (pull,) = normal(tuple(value.shape), seed=9)
        (gradient,) = torch.autograd.grad(value, given, pull)
    return value.detach(), gradient


def parts(loss: SEKD | SeRKD, teacher: Tensor) -> Function:
    return lambda student: torch.stack(list(loss.parts(student, teacher).values()))


def relations(teacher: Tensor) -> Function:
    return lambda student: torch.stack(list(distance_and_angle(student, teacher).values()))


def tracked(teacher: Tensor) -> Function:
    """Of graphs too small for it otherwise; after a step on the same, as training has it."""
    loss = SEKD(rank=2)
    loss.parts(maps(2, 256, 4, 4), teacher)
    return parts(loss, teacher)


def symmetric(graph: Tensor) -> Tensor:
    """An adjacency always is, so that only the symmetric half of a gradient by it counts."""
    return (graph + graph.mT) / 2


def by_the_teachers(student: Tensor, *, neighbourhood: superpixels.Neighbourhood) -> Tensor:
    _, assignment = superpixels_and_assignment(maps(2, 4, 6, 6, seed=1), grid=(3, 3), neighbourhood=neighbourhood)
    return superpixel_tokens(student, grid=(3, 3), assignment=assignment)


GRAPH = channel_adjacency(maps(2, 6, 4, 4))
SEKD_SETTINGS = [
    {},
    {"vertex": "raw", "attention_scale": "raw"},
    {"attention_temperature": 0.4, "scope": "sample"},
    {"attention": False, "groups": 2, "rank": 1},
    {"alignment": "procrustes", "rank": 3, "graph_weights": "shifted"},
    {"alignment": "heat", "groups": 3, "scope": "sample"},
]
KERNELS: dict[str, tuple[Function, Tensor]] = {
    "unit_rows": (unit_channels, maps(2, 5, 3, 4)),
    **{
        f"channel_differences, channel_passes {setting}": (
            parts(SEKD(**setting), maps(3, 6, 4, 3, seed=1)),
            maps(3, 6, 4, 3),
        )
        for setting in SEKD_SETTINGS
    },
    **{
        f"full_decompositions, eigenvector_gradient {weights}": (
            lambda graph, weights=weights: spectral_projector(symmetric(graph), rank=2, weights=weights),
            GRAPH,
        )
        for weights in ("positive", "shifted")
    },
    **{
        f"full_decompositions, {alignment}": (
            lambda graph, alignment=alignment: spectral_distance(
                symmetric(graph), GRAPH.flip(1, 2), alignment=alignment, rank=3
            ),
            GRAPH,
        )
        for alignment in ("subspace", "procrustes")
    },
    "tracked_subspaces, subspace_iteration, complement_solve": (
        tracked(maps(2, 256, 4, 4, seed=1)),
        maps(2, 256, 4, 4),
    ),
    "token_differences": (distances, tokens(0, 5)),
    "token_differences, triples": (relations(tokens(1, 7)), tokens(0, 5)),
    **{
        f"local_superpixels {grid} → {cells}": (
            partial(superpixel_tokens, grid=cells, iterations=2, neighbourhood="local"),
            maps(2, 4, *grid),
        )
        for grid, cells in (((6, 6), (3, 3)), ((7, 5), (4, 3)), ((3, 4), (1, 1)))
    },
    "local_superpixels, another's": (partial(by_the_teachers, neighbourhood="local"), maps(2, 3, 4, 7)),
    "serkd": (parts(SeRKD(neighbourhood="local"), maps(2, 3, 9, 7, seed=1)), maps(2, 4, 6, 8)),
}


@pytest.mark.parametrize("name", list(KERNELS))
def test_value_and_gradient_are_those_of_the_readable_form(name: str) -> None:
    function, given = KERNELS[name]
    value, gradient = value_and_gradient(function, given, fast=True)
    expected, slope = value_and_gradient(function, given, fast=False)
    assert slope.abs().max() > 0
    assert_close(value, expected, rtol=1e-9, atol=1e-11)
    # 1 / gap is broadened a little differently in the two forms
    tolerance = 1e-6 if "tracked" in name else 1e-9
    assert (gradient - slope).abs().max() <= tolerance * slope.abs().max()


@pytest.mark.parametrize("scale", ["relative", "raw"])
def test_attention_products(scale: Literal["relative", "raw"]) -> None:
    """Of the teacher, hence without a gradient."""
    teacher = maps(2, 5, 12)
    found = map_attention(teacher, temperature=0.7, scale=scale)
    with fast_kernels(False):
        assert_close(found, map_attention(teacher, temperature=0.7, scale=scale), rtol=1e-12, atol=0)
    for temperature in (1.0, 0.3):
        both = relational_attention_both_ways(GRAPH, temperature=temperature, out=torch.empty_like(GRAPH))
        one = relational_attention(GRAPH, temperature=temperature)
        assert_close(both, one + one.mT, rtol=1e-12, atol=0)


def test_every_kernel_has_a_row() -> None:
    modules = {file.stem for file in Path(reldistill.relations.kernels.__file__).parent.glob("[!_]*.py")}
    # `replay` computes nothing of its own, and records on a GPU only
    elsewhere = {"attention_products", "replay", "switch"}
    assert {name for name in modules - elsewhere if not any(name in row for row in KERNELS)} == set()


ENTRANCES = [
    (channel_graph, "unit_rows"),
    (attention, "map_attention_by_products"),
    (sekd_module, "channel_differences"),
    (full_decompositions, "projector"),
    (full_decompositions, "distance"),
    (TrackedSubspaces, "forward"),
    (pairwise, "distances_by_products"),
    (pairwise, "token_differences"),
    (local_superpixels, "likeness"),
    (local_superpixels, "merged"),
]


def everything() -> None:
    """Calls that use every kernel."""
    student, teacher = maps(2, 6, 6, 6), maps(2, 6, 6, 6, seed=1)
    SEKD()(student, teacher)
    SEKD(rank=2)(maps(1, 256, 4, 4), maps(1, 256, 4, 4, seed=1))
    SeRKD(neighbourhood="local")(student, teacher)
    RKD()(student.flatten(1), teacher.flatten(1))
    map_attention(teacher.flatten(2))
    spectral_projector(channel_adjacency(student), rank=2)
    distances(student.flatten(2))


@pytest.mark.parametrize(("module", "name"), ENTRANCES, ids=lambda part: getattr(part, "__name__", part))
def test_off_no_kernel_runs(module: object, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError(f"{name} ran")

    monkeypatch.setattr(module, name, fail)
    with fast_kernels(False):
        everything()
    with pytest.raises(AssertionError, match=f"{name} ran"):
        everything()


def test_the_switch_falls_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="rank"), fast_kernels(False):
        spectral_projector(GRAPH, rank=0)
    assert switch.enabled()


def test_a_graph_made_by_one_form_has_its_gradient_after_the_switch() -> None:
    student, teacher = maps(2, 6, 4, 4).requires_grad_(), maps(2, 6, 4, 4, seed=1)
    with fast_kernels(False):
        value = SEKD()(student, teacher)
    (late,) = torch.autograd.grad(value, student)
    (fast,) = torch.autograd.grad(SEKD()(student, teacher), student)
    assert_close(late, fast, rtol=1e-9, atol=1e-12)
