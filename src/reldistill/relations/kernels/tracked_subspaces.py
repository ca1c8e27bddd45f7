"""The low eigenvectors of large channel graphs from training step to training step, as one differentiable operator.

In terms of 𝓛 of `spectrum`, everything here is about S = I − 𝓛 − q qᵀ, q the trivial eigenvector: what is smallest in
𝓛 is largest in S. Isolated vertices have rows of 0 in S.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.relations.eigenproblems import guarded_eigh
from reldistill.relations.kernels.complement_solve import complement_solve
from reldistill.relations.kernels.eigenvector_gradient import gradient_by_edges
from reldistill.relations.kernels.replay import Replayed
from reldistill.relations.kernels.subspace_iteration import Leading, Start, block_size, by_eigh, leading
from reldistill.relations.normalised_graph import (
    BEYOND,
    DEFLATION,
    ISOLATION,
    Weights,
    graph_weights,
    linked_root_degree,
    trivial_vector,
    without_dead,
)
from reldistill.relations.precision import broadening, full_precision

_LEAK = 1e-3
"""Of the kept vectors' squares on isolated vertices: none in eigenvectors of values that are not 0."""


@Replayed
def _looked_at(adjacency: Tensor, basis: Tensor, levels: Tensor, degree: Tensor) -> tuple[Tensor, ...]:
    """(5,) in float64: the smallest entry, the sums of all entries of the three, the degree."""
    seen = adjacency.amin(), adjacency.sum(), basis.sum(), levels.sum(), degree
    return (torch.stack([number.to(torch.float64) for number in seen]),)


@Replayed
def _normalised(adjacency: Tensor, weights: str, clipped: bool) -> tuple[Tensor, ...]:
    """S (G, C, C), and d^{−1/2} (G, C, 1), 0 for an isolated vertex."""
    plain, how = weights == "positive" and not clipped, cast(Weights, weights)
    edge = adjacency if plain else without_dead(graph_weights(adjacency, weights=how), adjacency, weights=how)
    inverse = linked_root_degree(edge)
    trivial = trivial_vector(inverse)
    matrix = (edge * inverse).mul_(inverse.mT)
    return matrix.addcmul_(trivial, trivial.mT, value=-1.0), inverse


@torch.library.custom_op(
    "reldistill::leading_vectors",
    mutates_args=(),
    schema="(Tensor adjacency, Tensor basis, Tensor levels, Tensor degree, int rank, str weights) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _leading_vectors(
    adjacency: Tensor, basis: Tensor, levels: Tensor, degree: Tensor, rank: int, weights: str
) -> tuple[Tensor, ...]:
    graphs, channels, _ = adjacency.shape
    size = block_size(channels, rank)
    known = basis.shape == (graphs, channels, size) and levels.shape == (graphs, 4)
    with torch.autocast(adjacency.device.type, enabled=False):
        (seen,) = _looked_at(adjacency, basis, levels, degree)
        # All at once: every number that is looked at means waiting for a GPU.
        least, total, *of_start, last_degree = seen.tolist()
        clipped = weights == "positive" and least < 0
        matrix, inverse = _normalised(adjacency, weights, clipped)
        start = None
        if known and all(map(math.isfinite, of_start)):
            start = Start(basis.to(matrix.dtype), levels.to(matrix.dtype), int(last_degree))
        if math.isfinite(total):
            # A mean of Gram matrices, as (1 + A) / 2 still is, has no negative eigenvalue; clipping may add one.
            found = leading(matrix, start, rank=rank, semidefinite=not clipped)
            leaked = (found.vectors[..., :rank].square() * (inverse == 0)).sum(dim=(1, 2)) > _LEAK
            failed = found.fell_back | leaked
            failures = failed.sum()
            if int(failures):
                _warn()
                _decompose(matrix, inverse, found, failed)
        else:
            found = by_eigh(matrix, rank=rank)
            failures = torch.zeros_like(found.fell_back).sum()
    kept = found.vectors[..., :rank].clone(memory_format=torch.contiguous_format)
    found_degree = torch.tensor(found.degree, device=adjacency.device)
    return kept, *(x.contiguous() for x in found[:4]), found_degree, failures, matrix, inverse


def _decompose(matrix: Tensor, inverse: Tensor, found: Leading, which: Tensor) -> None:
    """Replace what was found of these graphs by a full decomposition, with columns of 0 for isolated vertices.

    These and q come last in it: in S they lie among the eigenvalues that are 0.
    """
    trivial, isolated = trivial_vector(inverse[which]), (inverse[which] == 0)[..., 0]
    last = (DEFLATION - 1.0) * trivial * trivial.mT + ISOLATION * torch.diag_embed(isolated.to(matrix.dtype))
    pushed = matrix[which] - last * isolated.any(dim=-1)[:, None, None]
    values, vectors = (part[..., -found.values.shape[-1] :].flip(-1) for part in guarded_eigh(pushed))
    living = values > -BEYOND
    found.vectors[which], found.values[which] = vectors * living[:, None], values * living
    found.images[which] = found.vectors[which] * found.values[which][:, None]


@_leading_vectors.register_fake
def _(adjacency: Tensor, basis: Tensor, levels: Tensor, degree: Tensor, rank: int, weights: str) -> tuple[Tensor, ...]:
    graphs, channels, _ = adjacency.shape
    size = block_size(channels, rank)
    new = adjacency.new_empty
    counts = [new((), dtype=torch.int64) for _ in range(2)]
    vectors = [new((graphs, channels, columns)) for columns in (rank, size, size)]
    return *vectors, new((graphs, size)), new((graphs, 4)), *counts, new(adjacency.shape), new((graphs, channels, 1))


def _warn() -> None:
    warnings.warn(
        "a channel graph's low eigenvectors did not converge and were taken from a full eigendecomposition, which is "
        "slow (SEKD counts this in `fallbacks`): where there is no gap after eigenvalue number `rank`, another rank "
        "or larger batches help",
        stacklevel=2,
    )


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, vectors, images, values, *_, matrix, inverse = output
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], matrix, inverse, vectors, images, values)
    ctx.weights = inputs[5]


def _backward(ctx, grad_kept, *_):  # type: ignore[no-untyped-def]
    if torch.is_grad_enabled():
        raise RuntimeError("eigenvectors have no second derivative here: call backward without create_graph")
    return _pull(*ctx.saved_tensors, grad_kept, ctx.weights), *[None] * 5


_leading_vectors.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op(
    "reldistill::leading_vectors_backward",
    mutates_args=(),
    schema="(Tensor adjacency, Tensor matrix, Tensor inverse, Tensor vectors, Tensor images, Tensor values, "
    "Tensor grad_kept, str weights) -> Tensor",
)
def _pull(
    adjacency: Tensor,
    matrix: Tensor,
    inverse: Tensor,
    vectors: Tensor,
    images: Tensor,
    values: Tensor,
    grad_kept: Tensor,
    weights: str,
) -> Tensor:
    """The gradient by S has rank 2k and is never formed; that by A is written once."""
    epsilon = broadening(values.dtype)
    # Elsewhere than on a CPU, looking would mean waiting for the device.
    clipped = weights == "positive" and (adjacency.device.type != "cpu" or float(adjacency.amin()) < 0)
    with torch.autocast(adjacency.device.type, enabled=False):
        along, outside = _without_trivial(inverse, grad_kept)
        solved = complement_solve(matrix, vectors, images, values, outside, broadening=epsilon)
        kept = matrix, inverse, vectors, images, values
        (gradient,) = _by_adjacency(adjacency, *kept, along, solved, epsilon, weights, clipped)
    return gradient


@Replayed
def _without_trivial(inverse: Tensor, grad_kept: Tensor) -> tuple[Tensor, ...]:
    """The gradient by the vectors along q, and the rest of it."""
    trivial = trivial_vector(inverse)
    along = trivial.mT @ grad_kept
    return along, grad_kept - trivial * along


@Replayed
def _by_adjacency(
    adjacency: Tensor,
    matrix: Tensor,
    inverse: Tensor,
    vectors: Tensor,
    images: Tensor,
    values: Tensor,
    along: Tensor,
    solved: Tensor,
    epsilon: float,
    weights: str,
    clipped: bool,
) -> tuple[Tensor, ...]:
    rank, trivial = solved.shape[-1], trivial_vector(inverse)
    # q is a dropped vector too, with the eigenvalue 1 − DEFLATION of I − 𝓛 − DEFLATION q qᵀ; it moves with the degrees.
    gap = values[:, None, :rank] - (1.0 - DEFLATION)
    to_trivial = along * gap / (gap * gap + epsilon**2)
    pull = solved + trivial * to_trivial
    moved_pull = matrix @ pull + trivial * ((1.0 + DEFLATION) * to_trivial)
    gradient = gradient_by_edges(vectors[..., :rank], pull, images[..., :rank], moved_pull, inverse)
    if clipped:
        gradient.masked_fill_(adjacency < 0, 0.0)
    if weights == "shifted":
        isolated = inverse == 0
        gradient.mul_(0.5).masked_fill_(isolated | isolated.mT, 0.0)
    return (gradient,)


@_pull.register_fake
def _(adjacency: Tensor, *_: object) -> Tensor:
    return torch.empty_like(adjacency)


class TrackedSubspaces(nn.Module):
    """The low eigenvectors of a student's and a teacher's channel graph, from step to step.

    What the last step found, where the next one starts, are buffers: saved and restored with the module, so that a run
    continues exactly as if it had not been interrupted. They move on in training mode only.

    Args:
        rank: k.
        weights: see `normalised_graph.graph_weights`.
    """

    basis: Tensor
    levels: Tensor
    degrees: Tensor
    fallbacks: Tensor

    def __init__(self, *, rank: int, weights: str) -> None:
        super().__init__()
        self.rank = rank
        self.weights = weights
        self.register_buffer("basis", torch.empty(2, 0))
        self.register_buffer("levels", torch.empty(2, 0))
        self.register_buffer("degrees", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("fallbacks", torch.zeros((), dtype=torch.int64))

    def suits(self, adjacency: Float[Tensor, "... C C"]) -> bool:
        """Whether graphs of that size are for this module: smaller ones are faster by `eigh`."""
        return block_size(adjacency.shape[-1], self.rank) > 0

    @full_precision
    def forward(
        self, student: Float[Tensor, "G C C"], teacher: Float[Tensor, "G C C"]
    ) -> tuple[Float[Tensor, "G C k"], Float[Tensor, "G C k"]]:
        """Adjacencies (G, C, C) → embeddings U (G, C, k), each in some basis of its span.

        The teacher's has no gradient; the student's is for functions of the span, as `subspaces.embedding_distance` is.
        """
        pair = student, teacher.detach()
        calls = [*zip(pair, self.basis, self.levels, self.degrees, strict=True)]
        if student.device.type != "cpu":
            # Both at once, for as long as the slower one takes: there it is the number of operations that costs.
            calls = [(torch.cat(pair), self.basis.flatten(0, 1), self.levels.flatten(0, 1), self.degrees.amax())]
        found = [_leading_vectors(*call, self.rank, self.weights) for call in calls]
        if self.training:
            self.basis, self.levels = (torch.cat([f[i] for f in found]).unflatten(0, (2, -1)) for i in (1, 4))
            self.degrees = torch.stack([f[5] for f in found]).expand(2).clone()
            self.fallbacks = self.fallbacks + sum(f[6] for f in found)
        ours, theirs = torch.cat([f[0] for f in found]).chunk(2)
        return ours, theirs.detach()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The buffers have no size before the first step, and older checkpoints have none, or not all of them.
        for name in ("basis", "levels", "degrees", "fallbacks"):
            found = state_dict.setdefault(prefix + name, getattr(self, name))
            setattr(self, name, getattr(self, name).new_empty(found.shape, dtype=found.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args)
