"""How the channels of two feature maps differ, one by one and in their graphs, in two passes over the maps.

What a backward pass needs of the maps is computed again from them, a few images at a time: converted, multiplied and
summed while they lie in the cache. Nothing of the maps' size is kept.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from reldistill.relations.channel_graph import split_channels
from reldistill.relations.kernels.channel_passes import Results, dense_format, gradient, results, room
from reldistill.relations.kernels.replay import Replayed


class Differences(NamedTuple):
    """What `channel_differences` finds.

    Args:
        vertex: L_V, a scalar.
        edge: L_E, a scalar.
        student: adjacencies (B, G, C/G, C/G), or their mean over the batch (G, C/G, C/G).
        teacher: the same of the teacher.
    """

    vertex: Float[Tensor, ""]
    edge: Float[Tensor, ""]
    student: Float[Tensor, " ..."]
    teacher: Float[Tensor, " ..."]


def channel_differences(
    student: Float[Tensor, "B C H W"],
    teacher: Float[Tensor, "B C H W"],
    *,
    vertex: Literal["unit", "raw", "none"] = "unit",
    edge: bool = True,
    graphs: Literal["batch", "sample", "none"] = "batch",
    groups: int = 1,
    attention: bool = True,
    temperature: float = 1.0,
    scale: Literal["relative", "raw"] = "relative",
) -> Differences:
    """Vertices and edges compared, and the graphs themselves for their spectra; see `losses.sekd` for the equations.

    Computed in float32, or in float64 where the maps are, whatever autocast says. A part not asked for is 0, graphs not
    asked for are empty. The gradient of a dead channel (see `DEAD`) is 0, and there are first derivatives only.

    Args:
        student: (B, C, H, W).
        teacher: (B, C, H, W), taken without gradient.
        vertex: channels as vectors of length 1, as they are and averaged over the positions, or not compared.
        edge: whether adjacencies are compared.
        graphs: the mean adjacency over the batch, each image's own, or none.
        groups: the channels are cut into this many runs of neighbours, a graph for each.
        attention: weigh by the teacher's attention, see `relations.attention`.
        temperature: τ of the attention.
        scale: `relative` or `raw` magnitudes in the attention.
    """
    split_channels(student, groups=groups)  # a number that does not divide the channels is refused here
    strength = temperature if attention else 0.0
    found = _differences(student, teacher.detach(), vertex, edge, graphs, groups, strength, scale)
    return Differences(*found[:4])


# An operator of its own, so that torch.compile takes it as one piece instead of unrolling its loop.
@torch.library.custom_op(
    "reldistill::channel_differences",
    mutates_args=(),
    schema="(Tensor student, Tensor teacher, str vertex, bool edge, str graphs, int groups, float temperature, "
    "str scale) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _differences(
    student: Tensor, teacher: Tensor, vertex: str, edge: bool, graphs: str, groups: int, temperature: float, scale: str
) -> tuple[Tensor, ...]:
    with torch.autocast(student.device.type, enabled=False):
        return _first_pass(student, teacher, vertex, edge, graphs, groups, temperature, scale)


_first_pass = Replayed(results)


@_differences.register_fake
def _(
    student: Tensor, teacher: Tensor, vertex: str, edge: bool, graphs: str, groups: int, temperature: float, scale: str
) -> tuple[Tensor, ...]:
    return room(student, teacher, vertex, edge, graphs, groups)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    student, teacher, vertex, edge, graphs, groups, *_ = inputs
    found = Results(*output)
    ctx.mark_non_differentiable(found.teacher, *found[4:])
    ctx.set_materialize_grads(False)
    adjacency = found.student if graphs == "sample" else found.adjacency
    ctx.save_for_backward(student, teacher, found.channels, found.positions, found.edges, adjacency)
    ctx.vertex, ctx.edge, ctx.graphs, ctx.groups = vertex, edge, graphs, groups


def _backward(ctx, grad_vertex, grad_edge, grad_graph, *_):  # type: ignore[no-untyped-def]
    if torch.is_grad_enabled():
        raise RuntimeError("channel differences have no second derivative: call backward without create_graph")
    wanted = [
        slope if asked else None
        for slope, asked in (
            (grad_vertex, ctx.vertex != "none"),
            (grad_edge, ctx.edge),
            (grad_graph, ctx.graphs != "none"),
        )
    ]
    return _pull(*ctx.saved_tensors, *wanted, ctx.vertex == "raw", ctx.groups), *[None] * 7


_differences.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op(
    "reldistill::channel_differences_backward",
    mutates_args=(),
    schema="(Tensor student, Tensor teacher, Tensor channels, Tensor positions, Tensor edges, Tensor adjacency, "
    "Tensor? grad_vertex, Tensor? grad_edge, Tensor? grad_graph, bool raw, int groups) -> Tensor",
)
def _pull(
    student: Tensor,
    teacher: Tensor,
    channels: Tensor,
    positions: Tensor,
    edges: Tensor,
    adjacency: Tensor,
    grad_vertex: Tensor | None,
    grad_edge: Tensor | None,
    grad_graph: Tensor | None,
    raw: bool,
    groups: int,
) -> Tensor:
    kept = channels, positions, edges, adjacency
    with torch.autocast(student.device.type, enabled=False):
        (pull,) = _second_pass(student, teacher, *kept, grad_vertex, grad_edge, grad_graph, raw, groups)
    return pull


@Replayed
def _second_pass(
    student: Tensor,
    teacher: Tensor,
    channels: Tensor,
    positions: Tensor,
    edges: Tensor,
    adjacency: Tensor,
    grad_vertex: Tensor | None,
    grad_edge: Tensor | None,
    grad_graph: Tensor | None,
    raw: bool,
    groups: int,
) -> tuple[Tensor, ...]:
    none = student.new_empty(0)
    found = Results(none, none, none, none, channels, positions, edges, adjacency)
    return (gradient(student, teacher, found, grad_vertex, grad_edge, grad_graph, raw=raw, groups=groups),)


@_pull.register_fake
def _(student: Tensor, *_: object) -> Tensor:
    return torch.empty_like(student, memory_format=dense_format(student))
