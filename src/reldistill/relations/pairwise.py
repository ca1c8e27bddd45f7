"""Distances and angles inside a set of tokens, and how far two sets differ in them.

A set is (B, M, D): M tokens for each of B images. Everything here is computed from the inner products of the centred
tokens, taken in float64 where the device has it: sums and differences of squares then lose nothing that matters, and
no GPU setting that shortens float32 products (TF32) can reach them.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from reldistill.checks import check_axes, check_parts, check_same_batch
from reldistill.relations.precision import full_precision

PARTS = ("distance", "angle")

# Tokens nearer than this many roundings of their image's largest activation are the same token: a constant map that
# went through a few sums is still constant, instead of a cloud of rounding errors with angles of its own.
_COINCIDENT_ROUNDINGS = 16.0
# The same for the rounding of the inner products themselves.
_PRODUCT_ROUNDINGS = 32.0
# Working set of the angle loss, in numbers per buffer (there are three): 1.5 MB on a CPU, where it should stay in the
# cache (between 2^16 and 2^18 measured fastest), 48 MiB elsewhere, where few large steps are faster.
_BLOCK_CPU = 1 << 17
_BLOCK_DEVICE = 1 << 22


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


def _unit_distances(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of the tokens after dividing each image by its `spread` (B, 1, 1), and that spread.

    The spread is the largest magnitude of the centred tokens. It is a constant to the gradient: all that follows is
    either multiplied by it again or does not depend on it.
    """
    limits = torch.finfo(tokens.dtype)
    centred = tokens - tokens.mean(dim=1, keepdim=True)
    magnitude = _largest(tokens)
    spread = _largest(centred).clamp_min(limits.tiny)
    unit = centred / spread
    wide = unit if unit.device.type == "mps" else unit.double()
    squared, sums = _SquaredDistances.apply(wide)
    noise = _COINCIDENT_ROUNDINGS * limits.eps * (magnitude.to(wide.dtype) / spread.to(wide.dtype))
    floor = _PRODUCT_ROUNDINGS * torch.finfo(wide.dtype).eps * sums + tokens.shape[2] * noise.square()
    itself = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
    same = itself | (squared <= floor)  # NaN is not the same, and so shows
    distances = squared.masked_fill(same, 1.0).sqrt().masked_fill(same, 0.0)
    return distances.to(tokens.dtype), spread


class _SquaredDistances(torch.autograd.Function):
    """(B, M, D) → ‖x_i − x_j‖² and, without gradient, ‖x_i‖² + ‖x_j‖², both (B, M, M).

    The backward pass is one product where the steps of the forward pass would take three: with S = G + Gᵀ, dx is
    2 (diag(S·1) − S) x.
    """

    @staticmethod
    def forward(tokens: Tensor) -> tuple[Tensor, Tensor]:
        # Not the diagonal of the products: compiled (torch 2.15), the view is overwritten before it is read.
        norms = tokens.square().sum(dim=2)
        sums = norms.unsqueeze(2) + norms.unsqueeze(1)
        return sums - 2 * (tokens @ tokens.mT), sums

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, gradient, _):  # type: ignore[no-untyped-def]
        (tokens,) = ctx.saved_tensors
        both = gradient + gradient.mT
        return 2 * ((both.sum(dim=2).diag_embed() - both) @ tokens)


def _largest(tokens: Tensor) -> Tensor:
    """The largest magnitude in each image, (B, 1, 1)."""
    return tokens.detach().abs().amax(dim=(1, 2), keepdim=True)


@full_precision
def distances(tokens: Tensor) -> Tensor:
    """Euclidean distances ‖s_i − s_j‖₂ between the tokens of each image.

    Coincident tokens are at distance exactly 0, with zero gradient.

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
    unit, spread = _unit_distances(tokens)
    return unit * spread


@full_precision
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
    return _distance_part(*_both(student, teacher))


@full_precision
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
    return _angle_part(*_both(student, teacher))


@full_precision
def distance_and_angle(student: Tensor, teacher: Tensor, *, names: Collection[str] = PARTS) -> dict[str, Tensor]:
    """`distance_loss` and `angle_loss` as "distance" and "angle", with the distances computed once for both.

    Args:
        student: (B, M, D).
        teacher: (B, M, D'), detached here.
        names: which of the two.
    """
    check_parts(names, PARTS)
    pair = _both(student, teacher)
    makers = {"distance": _distance_part, "angle": _angle_part}
    return {name: makers[name](*pair) for name in PARTS if name in names}


def _both(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    check_axes(student, "B M D", name="student")
    check_axes(teacher, "B M D", name="teacher", M=student.shape[1])
    check_same_batch(student, teacher)
    return _unit_distances(student)[0], _unit_distances(teacher.detach())[0]


def _distance_part(student: Tensor, teacher: Tensor) -> Tensor:
    images, m, _ = student.shape
    if m < 2:
        return student.sum() * 0.0
    pairs = m * (m - 1)
    means = [d.sum(dim=(1, 2), keepdim=True) / pairs for d in (student, teacher)]
    ours, theirs = (d / mean.masked_fill(mean == 0, 1.0) for d, mean in zip((student, teacher), means, strict=True))
    return F.huber_loss(ours, theirs, reduction="sum") / (images * pairs)


def _angle_part(student: Tensor, teacher: Tensor) -> Tensor:
    images, m, _ = student.shape
    if m < 3:
        return student.sum() * 0.0
    total, _ = _angle_sum(student, teacher, torch.is_grad_enabled() and student.requires_grad)
    return total / (images * m * (m - 1) * (m - 2))


# An operator of its own, so that torch.compile takes it as one piece instead of unrolling its loops.
@torch.library.custom_op(
    "reldistill::angle_sum",
    mutates_args=(),
    schema="(Tensor student, Tensor teacher, bool with_gradient) -> (Tensor, Tensor)",
)
def _angle_sum(student: Tensor, teacher: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
    return _walk_triples(student, teacher, with_gradient)


@_angle_sum.register_fake
def _(student: Tensor, teacher: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor]:
    return student.new_empty(()), torch.empty_like(student) if with_gradient else student.new_empty(0)


def _keep_gradient(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _angle_backward(ctx, grad_total, _):  # type: ignore[no-untyped-def]
    if torch.is_grad_enabled():
        raise RuntimeError("the angle loss has no second derivative: call backward without create_graph")
    (gradient,) = ctx.saved_tensors
    return grad_total * gradient, None, None


_angle_sum.register_autograd(_angle_backward, setup_context=_keep_gradient)


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
