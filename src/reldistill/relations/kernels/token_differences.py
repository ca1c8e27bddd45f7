"""How two sets of tokens differ in distances and angles: one pass for both, and one for the gradient.

Everything here is computed from the inner products of the centred tokens, taken in float64 where the device has it:
sums and differences of squares then lose nothing that matters, and no GPU setting that shortens float32 products
(TF32) can reach them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from reldistill.relations.kernels.replay import Replayed
from reldistill.relations.kernels.triples import walk_triples
from reldistill.relations.precision import COINCIDENT_ROUNDINGS

# As COINCIDENT_ROUNDINGS, for the rounding of the inner products themselves.
_PRODUCT_ROUNDINGS = 32.0


class _Unit(NamedTuple):
    """A set of tokens, each image divided by its spread, and the distances in it.

    The spread is the largest magnitude of the centred tokens. It is a constant to the gradient: all that follows is
    either multiplied by it again or does not depend on it.

    Args:
        distances: (B, M, M), exactly 0 between coincident tokens.
        tokens: (B, M, D) centred, in float64 where the device has it.
        spread: (B, 1, 1).
    """

    distances: Float[Tensor, "B M M"]
    tokens: Float[Tensor, "B M D"]
    spread: Float[Tensor, "B 1 1"]

    @classmethod
    def of(cls, tokens: Float[Tensor, "B M D"]) -> _Unit:
        limits = torch.finfo(tokens.dtype)
        wide = tokens.to(tokens.dtype if tokens.device.type == "mps" else torch.float64, copy=True).contiguous()
        magnitude = _largest(wide)
        wide -= wide.mean(dim=1, keepdim=True)
        spread = _largest(wide).clamp_min(limits.tiny)
        wide /= spread
        products = wide @ wide.mT
        norms = products.diagonal(dim1=1, dim2=2)
        sums = norms.unsqueeze(2) + norms.unsqueeze(1)
        squared = torch.sub(sums, products, alpha=2.0)
        noise = COINCIDENT_ROUNDINGS * limits.eps * (magnitude / spread)
        own = _PRODUCT_ROUNDINGS * torch.finfo(wide.dtype).eps
        floor = torch.add(tokens.shape[2] * noise.square(), sums, alpha=own)
        same = squared <= floor  # NaN is not the same, and so shows
        same.diagonal(dim1=1, dim2=2).fill_(True)
        return cls(squared.masked_fill_(same, 0.0).sqrt_().to(tokens.dtype), wide, spread.to(tokens.dtype))

    def by_squares(self, slope: Float[Tensor, "B M M"]) -> Float[Tensor, "B M M"]:
        """From a gradient by the distances to one by their squares; 0 between coincident tokens."""
        apart = self.distances != 0
        return torch.where(apart, 0.5 * slope / torch.where(apart, self.distances, 1.0), 0.0)


def _largest(tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B 1 1"]:
    """The largest magnitude in each image."""
    least, most = tokens.flatten(1).aminmax(dim=1, keepdim=True)
    return torch.maximum(least.neg(), most).unsqueeze(2)


def _pull(
    tokens: Float[Tensor, "B M D"], spread: Float[Tensor, "B 1 1"], by_squares: Float[Tensor, "B M M"]
) -> Float[Tensor, "B M D"]:
    """From a gradient by the squares of unit distances to that by the tokens, of the spread's type.

    With S = G + Gᵀ it is 2 (diag(S·1) − S) x, one product. It sums to 0 over an image's tokens, as a gradient through
    their mean has to.
    """
    both = (by_squares + by_squares.mT).to(tokens.dtype)
    both.neg_().diagonal(dim1=1, dim2=2).sub_(both.sum(dim=2))
    return (both @ tokens).mul_(2.0 / spread).to(spread.dtype)


class _Distances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor) -> Tensor:
        unit = _Unit.of(tokens)
        ctx.save_for_backward(*unit)
        return unit.distances * unit.spread

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        unit = _Unit(*ctx.saved_tensors)
        return _pull(unit.tokens, unit.spread, unit.by_squares(grads[0] * unit.spread))


def distances_by_products(tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B M M"]:
    """`pairwise.distances`; it has first derivatives only."""
    found: Tensor = _Distances.apply(tokens)
    return found


def token_differences(
    student: Float[Tensor, "B M D"], teacher: Float[Tensor, "B M Dt"], *, names: Collection[str]
) -> dict[str, Float[Tensor, ""]]:
    """`pairwise.distance_and_angle`, of sets that it has checked."""
    wanted = {part: part in names for part in ("distance", "angle")}
    with_gradient = torch.is_grad_enabled() and student.requires_grad
    found = _differences(student, teacher, *wanted.values(), with_gradient)
    return {part: value for part, value in zip(wanted, found[:2], strict=True) if wanted[part]}


# An operator of its own: torch.compile takes it as one piece instead of unrolling its loops, and its gradient, found on
# the way, needs no graph of small operations.
@torch.library.custom_op(
    "reldistill::token_differences",
    mutates_args=(),
    schema="(Tensor student, Tensor teacher, bool distance, bool angle, bool with_gradient) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _differences(
    student: Tensor, teacher: Tensor, distance: bool, angle: bool, with_gradient: bool
) -> tuple[Tensor, ...]:
    return _first_pass(student, teacher, distance, angle, with_gradient)


@Replayed
def _first_pass(
    student: Tensor, teacher: Tensor, distance: bool, angle: bool, with_gradient: bool
) -> tuple[Tensor, ...]:
    """Both parts; their gradients by the squares of the student's unit distances; what `_pull` needs beside them."""
    ours, theirs = _Unit.of(student), _Unit.of(teacher)
    values, kept = [], []
    for wanted, compare in ((distance, _compare_distances), (angle, _compare_angles)):
        if wanted:
            value, slope = compare(ours.distances, theirs.distances, with_gradient)
        else:
            value, slope = student.new_zeros(()), None
        values.append(value)
        kept.append(student.new_empty(0) if slope is None else ours.by_squares(slope))
    kept += [ours.tokens, ours.spread] if with_gradient else [student.new_empty(0) for _ in range(2)]
    return *values, *kept


@_differences.register_fake
def _(student: Tensor, teacher: Tensor, distance: bool, angle: bool, with_gradient: bool) -> tuple[Tensor, ...]:
    images, m, _ = student.shape
    new = student.new_empty
    slopes = [new((images, m, m) if with_gradient and wanted else (0,)) for wanted in (distance, angle)]
    wide = student.dtype if student.device.type == "mps" else torch.float64
    kept = [new(student.shape, dtype=wide), new((images, 1, 1))] if with_gradient else [new(0), new(0)]
    return new(()), new(()), *slopes, *kept


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[2:])


def _backward(ctx, grad_distance, grad_angle, *_):  # type: ignore[no-untyped-def]
    if torch.is_grad_enabled():
        raise RuntimeError("distances and angles have no second derivative here: call backward without create_graph")
    pulled = grad_distance is not None or grad_angle is not None
    return _differences_backward(*ctx.saved_tensors, grad_distance, grad_angle) if pulled else None, *[None] * 4


_differences.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op(
    "reldistill::token_differences_backward",
    mutates_args=(),
    schema="(Tensor by_distance, Tensor by_angle, Tensor tokens, Tensor spread, Tensor? grad_distance, "
    "Tensor? grad_angle) -> Tensor",
)
def _differences_backward(
    by_distance: Tensor,
    by_angle: Tensor,
    tokens: Tensor,
    spread: Tensor,
    grad_distance: Tensor | None,
    grad_angle: Tensor | None,
) -> Tensor:
    (pull,) = _second_pass(by_distance, by_angle, tokens, spread, grad_distance, grad_angle)
    return pull


@Replayed
def _second_pass(
    by_distance: Tensor,
    by_angle: Tensor,
    tokens: Tensor,
    spread: Tensor,
    grad_distance: Tensor | None,
    grad_angle: Tensor | None,
) -> tuple[Tensor, ...]:
    slopes = [
        slope * grad
        for slope, grad in ((by_distance, grad_distance), (by_angle, grad_angle))
        if grad is not None and slope.numel()
    ]
    return (_pull(tokens, spread, sum(slopes[1:], slopes[0])),)


@_differences_backward.register_fake
def _(by_distance: Tensor, by_angle: Tensor, tokens: Tensor, spread: Tensor, *_: object) -> Tensor:
    return spread.new_empty(tokens.shape)


def _compare_distances(
    student: Float[Tensor, "B M M"], teacher: Float[Tensor, "B M M"], with_gradient: bool
) -> tuple[Float[Tensor, ""], Float[Tensor, "B M M"] | None]:
    """`pairwise.distance_loss` by the distances, and its gradient by the student's."""
    images, m, _ = student.shape
    pairs = max(m * (m - 1), 1)
    means = [d.sum(dim=(1, 2), keepdim=True) / pairs for d in (student, teacher)]
    ours, theirs = (mean.masked_fill_(mean == 0, 1.0) for mean in means)
    difference = student / ours - teacher / theirs
    slope = difference.clamp(-1.0, 1.0)  # Huber's derivative
    value = (slope * (difference - 0.5 * slope)).sum() / (images * pairs)
    if not with_gradient:
        return value, None
    # Every distance is in the mean too.
    by_mean = (slope * student).sum(dim=(1, 2), keepdim=True) / (pairs * ours)
    return value, (slope - by_mean) / (images * pairs * ours)


def _compare_angles(
    student: Float[Tensor, "B M M"], teacher: Float[Tensor, "B M M"], with_gradient: bool
) -> tuple[Float[Tensor, ""], Float[Tensor, "B M M"] | None]:
    """`pairwise.angle_loss` by the distances, and its gradient by the student's."""
    images, m, _ = student.shape
    triples = max(images * m * (m - 1) * (m - 2), 1)
    total, gradient = walk_triples(student, teacher, with_gradient)
    return total / triples, gradient / triples if with_gradient else None
