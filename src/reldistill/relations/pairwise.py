"""Distances and angles inside a set of tokens, and how far two sets differ in them.

A set is (B, M, D): M tokens for each of B images. Everything here is computed from the inner products of the centred
tokens, taken in float64 where the device has it: sums and differences of squares then lose nothing that matters, and
no GPU setting that shortens float32 products (TF32) can reach them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reldistill.core.checks import check_axes, check_parts, check_same_batch
from reldistill.relations.precision import full_precision
from reldistill.relations.replay import Replayed

PARTS = ("distance", "angle")

# Tokens nearer than this many roundings of their image's largest activation are the same token: a constant map that
# went through a few sums is still constant, instead of a cloud of rounding errors with angles of its own.
_COINCIDENT_ROUNDINGS = 16.0
# The same for the rounding of the inner products themselves.
_PRODUCT_ROUNDINGS = 32.0
# Working set of the angle loss, in numbers per buffer (there are three): 1.5 MB on a CPU, where it should stay in the
# cache (between 2^16 and 2^18 measured fastest), 24 MiB elsewhere, where few large steps are faster.
_BLOCK_CPU = 1 << 17
_BLOCK_DEVICE = 1 << 21


@full_precision
def gram(tokens: Tensor) -> Tensor:
    """Inner products of the tokens of each image, ⟨s_i, s_j⟩.

    Args:
        tokens: (B, M, D).

    Returns:
        (B, M, M).
    """
    check_axes(tokens, "B M D", name="tokens")
    return tokens @ tokens.mT


class _Unit(NamedTuple):
    """A set of tokens, each image divided by its spread, and the distances in it.

    The spread is the largest magnitude of the centred tokens. It is a constant to the gradient: all that follows is
    either multiplied by it again or does not depend on it.

    Args:
        distances: (B, M, M), exactly 0 between coincident tokens.
        tokens: (B, M, D) centred, in float64 where the device has it.
        spread: (B, 1, 1).
    """

    distances: Tensor
    tokens: Tensor
    spread: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> _Unit:
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
        noise = _COINCIDENT_ROUNDINGS * limits.eps * (magnitude / spread)
        own = _PRODUCT_ROUNDINGS * torch.finfo(wide.dtype).eps
        floor = torch.add(tokens.shape[2] * noise.square(), sums, alpha=own)
        same = squared <= floor  # NaN is not the same, and so shows
        same.diagonal(dim1=1, dim2=2).fill_(True)
        return cls(squared.masked_fill_(same, 0.0).sqrt_().to(tokens.dtype), wide, spread.to(tokens.dtype))

    def by_squares(self, slope: Tensor) -> Tensor:
        """From a gradient by the distances to one by their squares; 0 between coincident tokens."""
        apart = self.distances != 0
        return torch.where(apart, 0.5 * slope / torch.where(apart, self.distances, 1.0), 0.0)


def _largest(tokens: Tensor) -> Tensor:
    """The largest magnitude in each image, (B, 1, 1)."""
    least, most = tokens.flatten(1).aminmax(dim=1, keepdim=True)
    return torch.maximum(least.neg(), most).unsqueeze(2)


def _pull(tokens: Tensor, spread: Tensor, by_squares: Tensor) -> Tensor:
    """From a gradient by the squares of unit distances to that by the tokens, of the spread's type.

    With S = G + Gᵀ it is 2 (diag(S·1) − S) x, one product. It sums to 0 over an image's tokens, as a gradient through
    their mean has to.
    """
    both = (by_squares + by_squares.mT).to(tokens.dtype)
    both.neg_().diagonal(dim1=1, dim2=2).sub_(both.sum(dim=2))
    return (both @ tokens).mul_(2.0 / spread).to(spread.dtype)


class _Distances(torch.autograd.Function):
    """`distances`."""

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


@full_precision
def distances(tokens: Tensor) -> Tensor:
    """Euclidean distances ‖s_i − s_j‖₂ between the tokens of each image.

    Coincident tokens are at distance exactly 0, with zero gradient. It has first derivatives only.

    Args:
        tokens: (B, M, D).

    Returns:
        (B, M, M).

    Example:
        >>> distances(torch.tensor([[[0.0, 0.0], [3.0, 4.0]]]))
        tensor([[[0., 5.],
                 [5., 0.]]])
    """
    check_axes(tokens, "B M D", name="tokens")
    found: Tensor = _Distances.apply(tokens)
    return found


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """How far two sets of tokens differ in their distances, each set in units of its own mean distance.

    ψ(i,j) = ‖s_i − s_j‖₂ / μ with μ the mean of ‖s_i − s_j‖₂ over the pairs i ≠ j of that image;
    the loss is the mean over images and pairs i ≠ j of Huber₁(ψ(student) − ψ(teacher)).

    Args:
        student: (B, M, D).
        teacher: (B, M, D'), detached here.

    Returns:
        Scalar; 0 where M < 2.
    """
    return distance_and_angle(student, teacher, names=("distance",))["distance"]


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """How far two sets of tokens differ in the angles that their tokens span.

    ψ(i,j,k) = cos∠ at s_j of the triangle s_i, s_j, s_k; the loss is the sum over images and ordered triples of
    distinct i, j, k of Huber₁(ψ(student) − ψ(teacher)), divided by their number B·M·(M−1)·(M−2). A triple with a
    coincident pair, in either set, adds nothing.

    The M³ cosines are never held together: see `_walk_triples`.

    Args:
        student: (B, M, D).
        teacher: (B, M, D'), detached here.

    Returns:
        Scalar; 0 where M < 3.
    """
    return distance_and_angle(student, teacher, names=("angle",))["angle"]


@full_precision
def distance_and_angle(student: Tensor, teacher: Tensor, *, names: Collection[str] = PARTS) -> dict[str, Tensor]:
    """`distance_loss` and `angle_loss` as "distance" and "angle", with the distances computed once for both.

    Args:
        student: (B, M, D).
        teacher: (B, M, D'), detached here.
        names: which of the two.
    """
    check_parts(names, PARTS)
    check_axes(student, "B M D", name="student")
    check_axes(teacher, "B M D", name="teacher", M=student.shape[1])
    check_same_batch(student, teacher)
    with_gradient = torch.is_grad_enabled() and student.requires_grad
    found = _differences(student, teacher.detach(), *(name in names for name in PARTS), with_gradient)
    return {name: value for name, value in zip(PARTS, found[:2], strict=True) if name in names}


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


def _compare_distances(student: Tensor, teacher: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """`distance_loss` by the distances, and its gradient by the student's."""
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


def _compare_angles(student: Tensor, teacher: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """`angle_loss` by the distances, and its gradient by the student's."""
    images, m, _ = student.shape
    triples = max(images * m * (m - 1) * (m - 2), 1)
    total, gradient = _walk_triples(student, teacher, with_gradient)
    return total / triples, gradient / triples if with_gradient else None


def _walk_triples(student: Tensor, teacher: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """Sum of Huber₁ over all ordered triples, and its gradient with respect to the student's distances.

    The cosine at j of the triangle (i, j, k) is symmetric in i and k, so only k > i are visited: a block of images and
    of vertices i at a time, small enough to stay in the cache, value and gradient in one pass, with in-place steps.
    """
    images, m, _ = student.shape
    apart = ~((student == 0) | (teacher == 0))  # NaN is apart, and so shows in the result
    counts = apart.triu(1).to(student.dtype)
    block = _BLOCK_CPU if student.device.type == "cpu" else _BLOCK_DEVICE
    group = min(images, max(1, 2 * block // (m * m)))
    buffers = [student.new_empty(max(block, group * m * m)) for _ in range(3)]
    total = student.new_zeros(())
    gradient = torch.zeros_like(student) if with_gradient else student.new_empty(0)
    for start in range(0, images, group):
        part = slice(start, start + group)
        sides = _Side(student[part], apart[part]), _Side(teacher[part], apart[part])
        sums = _GradientSums(sides[0]) if with_gradient else None
        i = 0
        while i < m - 1:
            rest = m - 1 - i
            rows = min(rest, max(1, block // (len(sides[0].half) * rest * m)))
            at, others = slice(i, i + rows), slice(i + 1, m)
            shape = (len(sides[0].half), rows, rest, m)
            cosines, scratch, pull = (b[: shape[0] * rows * rest * m].view(shape) for b in buffers)
            sides[0].cosines(at, others, out=cosines)
            sides[1].cosines(at, others, out=scratch)
            torch.sub(cosines, scratch, out=scratch).mul_(counts[part, at, others, None])
            torch.clamp(scratch, -1.0, 1.0, out=pull)  # Huber's derivative
            flat = pull.view(-1)
            total += 2 * torch.dot(flat, scratch.view(-1)) - torch.dot(flat, flat)
            if sums is not None:
                sums.add(at, others, pull=pull, cosines=cosines, scratch=scratch)
            i += rows
        if sums is not None:
            gradient[part] = sums.result()
    return total, gradient


class _Side:
    """What the cosines of one set are made of: cos∠ at j = ½ r_ij (d_kj + r_kj (d_ij² − d_ik²)), with d the distances.

    r is 1/d, or 0 for the pairs that are not `apart`, whose cosines become 0.
    """

    def __init__(self, distances: Tensor, apart: Tensor) -> None:
        self.distances = distances
        self.squared = distances * distances
        self.inverse = torch.where(apart, distances.masked_fill(~apart, 1.0).reciprocal(), 0.0)
        self.half = torch.where(apart, 0.5 * distances, 0.0)
        self.half_inverse = 0.5 * self.inverse

    def cosines(self, at: slice, others: slice, *, out: Tensor) -> None:
        """Write cos∠ at j of (i, j, k) into `out` (images, i in `at`, k in `others`, j)."""
        torch.sub(self.squared[:, at, None, :], self.squared[:, at, others, None], out=out)
        torch.addcmul(self.half[:, None, others], self.half_inverse[:, None, others], out, out=out)
        out.mul_(self.inverse[:, at, None, :])


class _GradientSums:
    """The gradient with respect to the student's distances, gathered block by block.

    With w_ikj the derivative of the sum by cos_ikj: ∂cos/∂d_ij = r_kj − r_ij cos (and the same with i and k exchanged),
    ∂cos/∂d_ik = −d_ik r_ij r_kj.
    """

    def __init__(self, side: _Side) -> None:
        self.side = side
        self.along, self.shrink, self.opposite = (torch.zeros_like(side.half) for _ in range(3))

    def add(self, at: slice, others: slice, *, pull: Tensor, cosines: Tensor, scratch: Tensor) -> None:
        """Add one block; all three buffers are used up."""
        inverse = self.side.inverse
        torch.mul(pull, inverse[:, None, others], out=scratch)
        self.opposite[:, at, others] += (scratch @ inverse[:, at, :, None]).squeeze(-1)
        self.along[:, at] += scratch.sum(dim=2)
        cosines.mul_(pull)
        self.shrink[:, at] += cosines.sum(dim=2)
        if pull.shape[1] == 1:  # one vertex i: the sums over i are the block itself
            self.shrink[:, others] += cosines[:, 0]
            self.along[:, others].addcmul_(pull[:, 0], inverse[:, at])
        else:
            self.shrink[:, others] += cosines.sum(dim=1)
            self.along[:, others] += pull.mul_(inverse[:, at, None, :]).sum(dim=1)

    def result(self) -> Tensor:
        """(images, M, M)."""
        side = self.side
        return 2 * (self.along - side.inverse * self.shrink - side.distances * self.opposite)
