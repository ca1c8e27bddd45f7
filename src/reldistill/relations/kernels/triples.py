"""The angles of all triples of tokens, compared without ever holding them together."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# Working set, in numbers per buffer (there are three): 1.5 MB on a CPU, where it should stay in the cache (between 2^16
# and 2^18 measured fastest), 24 MiB elsewhere, where few large steps are faster.
_BLOCK_CPU = 1 << 17
_BLOCK_DEVICE = 1 << 21


def walk_triples(
    student: Float[Tensor, "B M M"], teacher: Float[Tensor, "B M M"], with_gradient: bool
) -> tuple[Float[Tensor, ""], Float[Tensor, " ..."]]:
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

    def cosines(self, at: slice, others: slice, *, out: Float[Tensor, "B i k M"]) -> None:
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

    def result(self) -> Float[Tensor, "B M M"]:
        """Of the images of a block."""
        side = self.side
        return 2 * (self.along - side.inverse * self.shrink - side.distances * self.opposite)
