"""The two passes over a pair of feature maps that `channel_differences` consists of: results, and gradient.

Both take a few images at a time: converted, multiplied and summed while they lie in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from reldistill.relations.kernels.attention_products import map_attention_by_products, relational_attention_both_ways
from reldistill.relations.kernels.unit_rows import magnitudes
from reldistill.relations.precision import float_type

# Numbers of a map taken at a time: 2 MB in float32 on a CPU, where they should stay in the cache. Elsewhere few large
# steps are faster, and it is the memory that counts, of the graphs too: 512 MB.
_BLOCK_CPU = 1 << 19
_BLOCK_DEVICE = 1 << 27


class Results(NamedTuple):
    """What the first pass finds, and what the second one needs of it beside the maps.

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


def room(
    student: Float[Tensor, "B C H W"],
    teacher: Float[Tensor, "B C H W"],
    vertex: str,
    edge: bool,
    graphs: str,
    groups: int,
) -> Results:
    """To be filled; what is summed up starts at 0."""
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
    return Results(*sums, *(student.new_empty(shape, dtype=dtype) for shape in kept))


def _working_dtype(student: Tensor, teacher: Tensor) -> torch.dtype:
    return torch.promote_types(float_type(student.dtype), float_type(teacher.dtype))


def dense_format(tensor: Float[Tensor, "B C H W"]) -> torch.memory_format:
    """Channels last where the channels lie next to each other, else contiguous."""
    nhwc = tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    return torch.channels_last if nhwc else torch.contiguous_format


def _blocks(student: Tensor, teacher: Tensor, groups: int) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """A few images of both maps at a time, (b, C, n) in one precision and memory format, and room for as much."""
    batch, channels, *sides = student.shape
    each = student[0].numel()
    if student.device.type == "cpu":
        size = min(batch, max(1, _BLOCK_CPU // each))
    else:
        size = min(batch, max(1, _BLOCK_DEVICE // (each + channels * (channels // groups))))
    # By groups, maps have to be cut along their channels: a view of maps that are contiguous.
    last = groups == 1 and dense_format(student) == torch.channels_last
    shape = (size, sides[0] * sides[1], channels) if last else (size, channels, sides[0] * sides[1])
    # Written anew for every block, so that they stay in the cache.
    rooms = [student.new_empty(shape, dtype=_working_dtype(student, teacher)) for _ in range(3)]
    rooms = [room.mT for room in rooms] if last else rooms

    def converted(maps: Tensor, into: Tensor) -> Tensor:
        flat = maps.flatten(2)
        return flat if (flat.dtype, flat.stride()) == (into.dtype, into.stride()) else into[: len(flat)].copy_(flat)

    for start in range(0, batch, size):
        images = slice(start, start + size)
        ours, theirs = (converted(m[images], into) for m, into in zip((student, teacher), rooms[:2], strict=True))
        yield images, ours, theirs, rooms[2][: len(ours)]


def _grouped(flat: Float[Tensor, "B C n"], groups: int) -> Float[Tensor, "BG each n"]:
    """(B, C, n) → (B · G, C/G, n)."""
    return flat if groups == 1 else flat.unflatten(1, (groups, -1)).flatten(0, 1)


def _multiply(flat: Float[Tensor, "B C n"], into: Float[Tensor, "B G each each"]) -> Float[Tensor, "BG each each"]:
    """Products of the rows of (B, C, n), written to `into` (B, G, C/G, C/G) and returned as (B · G, C/G, C/G)."""
    rows = _grouped(flat, into.shape[1])
    return torch.bmm(rows, rows.mT, out=into.flatten(0, 1))


def _lengths(
    flat: Float[Tensor, "B C n"], graph: Float[Tensor, "B G each each"] | None
) -> tuple[Float[Tensor, "B C 1"] | None, Float[Tensor, "B C 1"]]:
    """(B, C, n) → factor and inverse norm as by `magnitudes`; cosines are written to `graph` (B, G, C/G, C/G).

    The diagonal of the cosines is exactly 1, also for a dead channel. That of the products spares `magnitudes` a pass;
    on other devices than a CPU it would not look at it.
    """
    if graph is None:
        return magnitudes(flat)
    products = _multiply(flat, graph) if flat.device.type == "cpu" else None
    squared = None if products is None else products.diagonal(dim1=1, dim2=2).reshape(*flat.shape[:2], 1)
    factor, inverse = magnitudes(flat, squared)
    if products is None or factor is not None:
        products = _multiply(flat if factor is None else flat * factor, graph)
    scale = _grouped(inverse, graph.shape[1])
    products.mul_(scale).mul_(scale.mT)
    products.diagonal(dim1=1, dim2=2).fill_(1.0)
    return factor, inverse


def results(
    student: Float[Tensor, "B C H W"],
    teacher: Float[Tensor, "B C H W"],
    vertex: str,
    edge: bool,
    graphs: str,
    groups: int,
    temperature: float,
    scale: str,
) -> Results:
    """The first pass over maps (B, C, H, W); a temperature of 0 stands for no attention."""
    into = room(student, teacher, vertex, edge, graphs, groups)
    wanted = edge or graphs != "none"
    for images, *maps, work in _blocks(student, teacher, groups):
        pair: tuple[Tensor | None, Tensor | None] = (None, None)
        if graphs == "sample":
            pair = into.student[images], into.teacher[images]
        elif wanted:
            pair = into.adjacency[images], torch.empty_like(into.adjacency[images])
        factor, inverse = _lengths(maps[0], pair[0])
        their_factor, their_inverse = _lengths(maps[1], pair[1])
        into.channels[0, images] = 1.0 if factor is None else factor
        into.channels[1, images] = inverse
        if vertex != "none":
            raw = vertex == "raw"
            ours = maps[0] if raw or factor is None else maps[0] * factor
            length = their_inverse if their_factor is None else their_inverse * their_factor
            attention = None
            if temperature:
                attention = map_attention_by_products(maps[1], temperature=temperature, relative=scale == "relative")
            _add_vertices(into, images, ours, maps[1], None if raw else length, attention, work)
        if pair[0] is None or pair[1] is None:
            continue
        if graphs == "batch":
            into.student.add_(pair[0].sum(dim=0))
            into.teacher.add_(pair[1].sum(dim=0))
        if edge:
            _add_edges(into, images, pair[0], pair[1], temperature)
    if graphs == "batch":
        into.student.div_(len(student))
        into.teacher.div_(len(student))
    return into


def _add_vertices(
    into: Results,
    images: slice,
    student: Float[Tensor, "b C n"],
    teacher: Float[Tensor, "b C n"],
    inverse: Float[Tensor, "b C 1"] | None,
    attention: tuple[Float[Tensor, "b n"], Float[Tensor, "b C"]] | None,
    work: Float[Tensor, "b C n"],
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
    squares = torch.addcmul(student, teacher, share, value=-1.0, out=work)
    squares.mul_(squares)
    if attention is None:
        into.positions[images] = 1.0
        sums = squares.sum(dim=2)
    else:
        weight.mul_(attention[1].unsqueeze(2))
        into.positions[images] = attention[0].unsqueeze(1)
        sums = torch.bmm(into.positions[images], squares.mT)
    into.vertex.add_(torch.dot(sums.flatten(), weight.flatten()))


def _add_edges(
    into: Results,
    images: slice,
    student: Float[Tensor, "b G each each"],
    teacher: Float[Tensor, "b G each each"],
    temperature: float,
) -> None:
    """Compare the adjacencies of a few images."""
    difference = student - teacher
    weighted = into.edges[images]
    if temperature:
        relational_attention_both_ways(teacher, temperature=temperature, out=weighted).mul_(difference)
    else:
        torch.mul(difference, 2.0, out=weighted)
    into.edge.add_(torch.dot(difference.flatten(), weighted.flatten()), alpha=0.5 / into.edges.numel())


def gradient(
    student: Float[Tensor, "B C H W"],
    teacher: Float[Tensor, "B C H W"],
    found: Results,
    grad_vertex: Float[Tensor, ""] | None,
    grad_edge: Float[Tensor, ""] | None,
    grad_graph: Float[Tensor, "*images G each each"] | None,
    *,
    raw: bool,
    groups: int,
) -> Float[Tensor, "B C H W"]:
    """The second pass: the gradient by the student's maps, of their type, from those by what the first pass found."""
    whole = torch.empty_like(student, memory_format=dense_format(student))
    each = None if grad_graph is None else _without_diagonal(grad_graph + grad_graph.mT)
    if each is not None and each.ndim == 3:
        each = (each / len(student)).expand(len(student), -1, -1, -1)
    for images, ours, theirs, work in _blocks(student, teacher, groups):
        factor, inverse, share, weight = found.channels[:, images].unbind()
        # Elsewhere than on a CPU, looking would mean waiting for the device.
        plain = student.device.type == "cpu" and bool((factor == 1.0).all())
        scaled = ours if plain else ours * factor
        stretch = inverse if plain else inverse * factor
        along = torch.zeros_like(inverse)
        pull = work.zero_() if grad_vertex is None else work
        if grad_vertex is not None:
            torch.addcmul(ours if raw else scaled, theirs, share, value=-1.0, out=pull).mul_(found.positions[images])
            pressure = 2.0 * grad_vertex * weight
            if not raw:
                pressure = pressure.masked_fill(inverse == 0, 0.0)
                along = pressure * (pull * scaled).sum(dim=2, keepdim=True)
                pressure = pressure if plain else pressure * factor
            pull.mul_(pressure)
        if grad_edge is not None or each is not None:
            matrix = _pull_of_graphs(found, images, grad_edge, None if each is None else each[images])
            along += (matrix * found.adjacency[images]).sum(dim=3).view_as(along)
            matrix = matrix.flatten(0, 1).mul_(_grouped(stretch, groups)).mul_(_grouped(inverse, groups).mT)
            matrix.diagonal(dim1=1, dim2=2).sub_((stretch * inverse * along).view(matrix.shape[:2]))
            _add_product(_grouped(pull, groups), matrix, _grouped(scaled, groups))
        elif grad_vertex is not None and not raw:
            pull.addcmul_(scaled, stretch * inverse * along, value=-1.0)
        whole[images].copy_(pull.unflatten(2, student.shape[2:]))
    return whole


def _pull_of_graphs(found: Results, images: slice, grad_edge: Tensor | None, each: Tensor | None) -> Tensor:
    """(b, G, C/G, C/G): the gradient by the adjacencies of a few images, both halves of it added."""
    if grad_edge is not None:
        factor = 2.0 * grad_edge / found.edges.numel()
        return found.edges[images] * factor if each is None else torch.addcmul(each, found.edges[images], factor)
    if each is None:
        raise ValueError("expected a gradient by the edges, by the adjacencies or by both, got neither")
    return each.clone(memory_format=torch.contiguous_format)


def _add_product(into: Float[Tensor, "B C n"], matrix: Float[Tensor, "B C C"], rows: Float[Tensor, "B C n"]) -> None:
    """(B, C, n) += (B, C, C) @ (B, C, n), in whichever memory format: transposed, torch would go image by image."""
    if into.is_contiguous():
        into.baddbmm_(matrix, rows)
    else:
        into.mT.baddbmm_(rows.mT, matrix.mT)


def _without_diagonal(graph: Float[Tensor, "*axes C C"]) -> Float[Tensor, "*axes C C"]:
    itself = torch.eye(graph.shape[-1], dtype=torch.bool, device=graph.device)
    return graph.masked_fill(itself, 0.0)
