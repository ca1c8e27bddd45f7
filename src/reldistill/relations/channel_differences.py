"""How the channels of two feature maps differ, one by one and in their graphs, in two passes over the maps.

What a backward pass needs of the maps is computed again from them, a few images at a time: converted, multiplied and
summed while they lie in the cache. Nothing of the maps' size is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from reldistill.relations.attention import Scale, map_attention, relational_attention
from reldistill.relations.channel_graph import DEAD, split_channels
from reldistill.relations.precision import as_float

# Sums of squares outside of these bounds may have lost digits in float32, or all of them.
_SMALL_SQUARE = 1e-18
_LARGE_SQUARE = 1e30
# Numbers of a map taken at a time: 1 MB in float32 on a CPU, where they should stay in the cache; all of them
# elsewhere, where few large steps are faster.
_BLOCK_CPU = 1 << 18


class Differences(NamedTuple):
    """What `channel_differences` finds.

    Args:
        vertex: L_V, a scalar.
        edge: L_E, a scalar.
        student: adjacencies (B, G, C/G, C/G), or their mean over the batch (G, C/G, C/G).
        teacher: the same of the teacher.
    """

    vertex: Tensor
    edge: Tensor
    student: Tensor
    teacher: Tensor


def channel_differences(
    student: Tensor,
    teacher: Tensor,
    *,
    vertex: Literal["unit", "raw", "none"] = "unit",
    edge: bool = True,
    graphs: Literal["batch", "sample", "none"] = "batch",
    groups: int = 1,
    attention: bool = True,
    temperature: float = 1.0,
    scale: Scale = "relative",
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
        groups: the channels are cut into so many runs of neighbours, a graph for each.
        attention: weigh by the teacher's attention, see `relations.attention`.
        temperature: τ of the attention.
        scale: `relative` or `raw` magnitudes in the attention.
    """
    split_channels(student, groups=groups)  # a number that does not divide the channels is refused here
    strength = temperature if attention else 0.0
    found = _differences(student, teacher.detach(), vertex, edge, graphs, groups, strength, scale)
    return Differences(*found[:4])


def magnitudes(flat: Tensor) -> tuple[Tensor | None, Tensor]:
    """(…, C, n) in float32 or float64 → factors (…, C, 1) that keep squares in range, and 1 / ‖factor · row‖.

    The factors are None where none is needed. A dead row has inverse norm 0.
    """
    squared = (flat * flat).sum(dim=-1, keepdim=True)
    odd = (squared < _SMALL_SQUARE) | (squared > _LARGE_SQUARE)
    # Elsewhere than on a CPU, looking would mean waiting for the device.
    if flat.device.type == "cpu" and (not odd.any() or flat[odd[..., 0]].abs().amax() <= DEAD):
        return None, torch.where(odd, 0.0, squared.rsqrt())
    largest = flat.abs().amax(dim=-1, keepdim=True)
    dead = largest <= DEAD
    factor = torch.where(dead, 0.0, 1.0 / largest.clamp_min(DEAD))
    norm = torch.linalg.vector_norm(flat * factor, dim=-1, keepdim=True)
    return factor, torch.where(dead, 0.0, 1.0 / torch.where(dead, 1.0, norm))


def cosines(flat: Tensor, inverse: Tensor, *, groups: int = 1) -> Tensor:
    """(B, C, n) and 1 / ‖row‖ (B, C, 1) → (B, G, C/G, C/G). The diagonal is exactly 1, also for a dead channel."""
    rows = _grouped(flat, groups)
    products = torch.bmm(rows, rows.mT)
    scale = _grouped(inverse, groups)
    products.mul_(scale).mul_(scale.mT)
    products.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    return products.unflatten(0, (len(flat), groups))


def _grouped(flat: Tensor, groups: int) -> Tensor:
    """(B, C, n) → (B · G, C/G, n)."""
    return flat.unflatten(1, (groups, -1)).flatten(0, 1)


class _Results(NamedTuple):
    """What the operator returns: `Differences`, and what its backward pass needs beside the maps.

    Args:
        vertex: scalar.
        edge: scalar.
        student: graphs.
        teacher: graphs.
        channels: of each channel (4, B, C, 1): the student's factor and inverse norm (see `magnitudes`), the share ρ of
            the teacher in the difference factor · s − ρ t, and the weight of its square in L_V.
        positions: their weights in L_V, (B, 1, HW).
        edges: (R + Rᵀ)(A^S − A^T), (B, G, C/G, C/G).
        adjacency: A^S, (B, G, C/G, C/G); empty where `student` is that already.
    """

    vertex: Tensor
    edge: Tensor
    student: Tensor
    teacher: Tensor
    channels: Tensor
    positions: Tensor
    edges: Tensor
    adjacency: Tensor


def _room(student: Tensor, teacher: Tensor, vertex: str, edge: bool, graphs: str, groups: int) -> list[Tensor]:
    """`_Results` to be filled; what is summed up starts at 0."""
    batch, channels, height, width = student.shape
    each = (batch, groups, channels // groups, channels // groups)
    graph = {"batch": each[1:], "sample": each, "none": (0,)}[graphs]
    kept = [
        (4, batch, channels, 1),
        (batch, 1, height * width if vertex != "none" else 0),
        each if edge else (0,),
        each if graphs == "batch" or (edge and graphs == "none") else (0,),
    ]
    dtype = _working_dtype(student, teacher)
    sums = [student.new_zeros(shape, dtype=dtype) for shape in ((), (), graph, graph)]
    return sums + [student.new_empty(shape, dtype=dtype) for shape in kept]


def _working_dtype(student: Tensor, teacher: Tensor) -> torch.dtype:
    return torch.promote_types(as_float(student[:0]).dtype, as_float(teacher[:0]).dtype)


def _blocks(student: Tensor, teacher: Tensor, groups: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """A few images of both maps at a time: (b, C, n) in one precision and one memory format."""
    size = max(1, _BLOCK_CPU // student[0].numel()) if student.device.type == "cpu" else len(student)
    dtype = _working_dtype(student, teacher)
    for start in range(0, len(student), size):
        images = slice(start, start + size)
        ours = student[images].flatten(2).to(dtype)
        if groups > 1:  # else a view by groups is a copy
            ours = ours.contiguous()
        theirs = teacher[images].flatten(2)
        same = theirs.dtype == dtype and theirs.stride() == ours.stride()
        yield images, ours, theirs if same else torch.empty_like(ours).copy_(theirs)


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
    into = _Results(*_room(student, teacher, vertex, edge, graphs, groups))
    with torch.autocast(student.device.type, enabled=False):
        for images, *maps in _blocks(student, teacher, groups):
            (factor, inverse), (theirs_factor, theirs_inverse) = [magnitudes(flat) for flat in maps]
            into.channels[0, images] = 1.0 if factor is None else factor
            into.channels[1, images] = inverse
            ours = maps[0] if factor is None else maps[0] * factor
            if vertex != "none":
                attention = map_attention(maps[1], temperature=temperature, scale=scale) if temperature else None  # type: ignore[arg-type]
                raw = vertex == "raw"
                length = None if raw else (theirs_inverse if theirs_factor is None else theirs_inverse * theirs_factor)
                _add_vertices(into, images, maps[0] if raw else ours, maps[1], length, attention)
            if edge or graphs != "none":
                theirs = maps[1] if theirs_factor is None else maps[1] * theirs_factor
                pair = [cosines(*side, groups=groups) for side in ((ours, inverse), (theirs, theirs_inverse))]
                _add_graphs(into, images, *pair, edge=edge, graphs=graphs, temperature=temperature)
        if graphs == "batch":
            into.student.div_(len(student))
            into.teacher.div_(len(student))
    return into


@_differences.register_fake
def _(
    student: Tensor, teacher: Tensor, vertex: str, edge: bool, graphs: str, groups: int, temperature: float, scale: str
) -> tuple[Tensor, ...]:
    return tuple(_room(student, teacher, vertex, edge, graphs, groups))


def _add_vertices(
    into: _Results,
    images: slice,
    student: Tensor,
    teacher: Tensor,
    inverse: Tensor | None,
    attention: tuple[Tensor, Tensor] | None,
) -> None:
    """Add the vertices of a few images; `inverse` is the teacher's 1 / ‖t‖, or None for `raw`.

    ‖s/‖s‖ − t/‖t‖‖² is ‖s − ρ t‖² / ‖s‖², which takes one operation on the maps instead of three.
    """
    own, share, weight = into.channels[1:, images].unbind()
    if inverse is None:
        share.fill_(1.0)
        weight.fill_(1.0 / student.shape[2])
    else:
        scale = torch.where(own == 0, 1.0, own)  # a dead channel is 0: any multiple of it will do
        torch.div(inverse, scale, out=share)
        torch.mul(scale, scale, out=weight)
    weight.div_(own.shape[1] * into.channels.shape[1])
    squares = torch.addcmul(student, teacher, share, value=-1.0)
    squares.mul_(squares)
    if attention is None:
        into.positions[images] = 1.0
    else:
        torch.mul(weight, attention[1].unsqueeze(2), out=weight)
        into.positions[images] = attention[0].unsqueeze(1)
        squares.mul_(into.positions[images])
    into.vertex.add_((squares.sum(dim=2, keepdim=True) * weight).sum())


def _add_graphs(
    into: _Results, images: slice, student: Tensor, teacher: Tensor, *, edge: bool, graphs: str, temperature: float
) -> None:
    """Add the adjacencies of a few images."""
    if into.adjacency.numel():
        into.adjacency[images] = student
    for graph, mine in ((into.student, student), (into.teacher, teacher)):
        if graphs == "batch":
            graph.add_(mine.sum(dim=0))
        elif graphs == "sample":
            graph[images] = mine
    if edge:
        difference = student - teacher
        if temperature:
            weight = relational_attention(teacher, temperature=temperature)
            torch.mul(weight + weight.mT, difference, out=into.edges[images])
        else:
            torch.mul(difference, 2.0, out=into.edges[images])
        into.edge.add_(torch.dot(difference.flatten(), into.edges[images].flatten()) / (2 * into.edges.numel()))


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    student, teacher, vertex, edge, graphs, groups, *_ = inputs
    results = _Results(*output)
    ctx.mark_non_differentiable(results.teacher, *results[4:])
    ctx.set_materialize_grads(False)
    adjacency = results.student if graphs == "sample" else results.adjacency
    ctx.save_for_backward(student, teacher, results.channels, results.positions, results.edges, adjacency)
    ctx.vertex, ctx.edge, ctx.graphs, ctx.groups = vertex, edge, graphs, groups


def _backward(ctx, grad_vertex, grad_edge, grad_graph, *_):  # type: ignore[no-untyped-def]
    if torch.is_grad_enabled():
        raise RuntimeError("channel differences have no second derivative: call backward without create_graph")
    wanted = [
        gradient if asked else None
        for gradient, asked in (
            (grad_vertex, ctx.vertex != "none"),
            (grad_edge, ctx.edge),
            (grad_graph, ctx.graphs != "none"),
        )
    ]
    gradient = _pull(*ctx.saved_tensors, *wanted, ctx.vertex == "raw", ctx.groups)
    return gradient, *[None] * 7


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
    gradient = torch.empty_like(student, memory_format=_dense_format(student))
    each = None if grad_graph is None else _without_diagonal(grad_graph + grad_graph.mT)
    if each is not None and each.ndim == 3:
        each = (each / len(student)).expand(len(student), -1, -1, -1)
    with torch.autocast(student.device.type, enabled=False):
        for images, *maps in _blocks(student, teacher, groups):
            factor, inverse, share, weight = channels[:, images].unbind()
            # Elsewhere than on a CPU, looking would mean waiting for the device.
            plain = student.device.type == "cpu" and bool((factor == 1.0).all())
            ours = maps[0] if plain else maps[0] * factor
            stretch = inverse if plain else inverse * factor
            along = torch.zeros_like(inverse)
            if grad_vertex is not None:
                pull = torch.addcmul(maps[0] if raw else ours, maps[1], share, value=-1.0).mul_(positions[images])
                pressure = 2.0 * grad_vertex * weight
                if not raw:
                    pressure = pressure.masked_fill(inverse == 0, 0.0)
                    along = along + pressure * (pull * ours).sum(dim=2, keepdim=True)
                    pressure = pressure if plain else pressure * factor
                pull.mul_(pressure)
            else:
                pull = torch.zeros_like(ours)
            if grad_edge is not None or each is not None:
                matrix = torch.zeros_like(adjacency[images]) if each is None else each[images].clone()
                if grad_edge is not None:
                    matrix.addcmul_(edges[images], 2.0 * grad_edge / edges.numel())
                along.add_((matrix * adjacency[images]).sum(dim=3).view_as(along))
                matrix = matrix.flatten(0, 1).mul_(_grouped(stretch, groups)).mul_(_grouped(inverse, groups).mT)
                matrix.diagonal(dim1=1, dim2=2).sub_((stretch * inverse * along).view(matrix.shape[:2]))
                _grouped(pull, groups).baddbmm_(matrix, _grouped(ours, groups))
            elif grad_vertex is not None and not raw:
                pull.addcmul_(ours, stretch * inverse * along, value=-1.0)
            gradient[images].copy_(pull.unflatten(2, student.shape[2:]))
    return gradient


@_pull.register_fake
def _(student: Tensor, *_: object) -> Tensor:
    return torch.empty_like(student, memory_format=_dense_format(student))


def _dense_format(tensor: Tensor) -> torch.memory_format:
    nhwc = tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    return torch.channels_last if nhwc else torch.contiguous_format


def _without_diagonal(graph: Tensor) -> Tensor:
    itself = torch.eye(graph.shape[-1], dtype=torch.bool, device=graph.device)
    return graph.masked_fill(itself, 0.0)
