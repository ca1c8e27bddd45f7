"""What the gradient of leading eigenvectors needs of the dropped ones, by conjugate gradients."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from reldistill.relations.kernels.replay import Replayed

_SOLVER_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
_SOLVER_STEPS = 60
_SOLVER_STEPS_AT_ONCE = 4


def complement_solve(
    matrix: Float[Tensor, "G C C"],
    vectors: Float[Tensor, "G C p"],
    images: Float[Tensor, "G C p"],
    values: Float[Tensor, "G p"],
    pull: Float[Tensor, "G C k"],
    *,
    broadening: float,
) -> Float[Tensor, "G C k"]:
    """Y = Σ_j u_j (u_jᵀ g_i) / (λ_i − λ_j) over the dropped j, for each kept i, by conjugate gradients.

    1 / gap is broadened to gap / (gap² + ε²): for the roughly known u_j of the block one by one, for all others as at
    the smallest of their gaps, which is where it matters most. The block's part is eliminated first: S maps it to
    itself and to its residuals, which are known.

    Args:
        matrix: S, (G, C, C).
        vectors: (G, C, p) of `leading`.
        images: (G, C, p) of `leading`.
        values: (G, p) of `leading`.
        pull: g, (G, C, k).
        broadening: ε.
    """
    right, shift, soft, inner, to_block = _equations(vectors, images, values, pull, broadening)
    solution = _conjugate_gradients(matrix, images, shift, soft, to_block, right)
    return _with_block(solution, vectors, soft, inner, to_block)[0]


@Replayed
def _equations(vectors: Tensor, images: Tensor, values: Tensor, pull: Tensor, broadening: float) -> tuple[Tensor, ...]:
    """The right side, and what `_outside` takes beside S."""
    rank = pull.shape[-1]
    rough = images[..., rank:] - vectors[..., rank:] * values[:, None, rank:]
    # A gap below ε / 100 would make the system stiff, and counts for next to nothing anyway.
    gap = (values[:, None, :rank] - values[:, rank:, None]).clamp_min(broadening / 100)
    soft = 1 / (gap + broadening**2 / gap)
    outside = (values[:, :rank] - values[:, -1:]).clamp_min(broadening / 100)
    shift = (values[:, :rank] + broadening**2 / outside)[:, None]
    along = vectors.mT @ pull
    inner = along[:, rank:].clone()
    right = pull - vectors @ along + rough @ (soft * inner)
    return right, shift, soft, inner, torch.cat([vectors, -rough], dim=-1)


def _outside(x: Tensor, matrix: Tensor, images: Tensor, shift: Tensor, soft: Tensor, to_block: Tensor) -> Tensor:
    """Of x outside of the block: (λ_i − S) x, less what goes into the block, and what comes back from there."""
    # By the residuals it would be the same, except for rounding errors along the block, which would then grow.
    into = images.mT @ x
    into = torch.cat([into, soft * into[:, x.shape[-1] :]], dim=1)
    return torch.baddbmm(torch.baddbmm(shift * x, matrix, x, alpha=-1.0), to_block, into)


@Replayed
def _with_block(solution: Tensor, vectors: Tensor, soft: Tensor, inner: Tensor, to_block: Tensor) -> tuple[Tensor, ...]:
    """The solution outside of the block, and that inside."""
    size, rank = vectors.shape[-1], solution.shape[-1]
    rough = to_block[..., size:].neg()
    return (solution + vectors[..., rank:] @ (soft * (inner + rough.mT @ solution)),)


def _conjugate_gradients(
    matrix: Float[Tensor, "G C C"],
    images: Float[Tensor, "G C p"],
    shift: Float[Tensor, "G 1 k"],
    soft: Float[Tensor, "G rest k"],
    to_block: Float[Tensor, "G C both"],
    right: Float[Tensor, "G C k"],
) -> Float[Tensor, "G C k"]:
    """A x = b for each column of b (G, C, k), to a residual of a small share of it; A is `_outside`."""
    # Looking whether it is done means waiting for a GPU, where a step takes less time.
    at_once = 1 if right.device.type == "cpu" else _SOLVER_STEPS_AT_ONCE
    product = right.square().sum(dim=1, keepdim=True)
    bound = _SOLVER_TOLERANCE[right.dtype] ** 2 * product
    found: tuple[Tensor, ...] = torch.zeros_like(right), right, right, product, (product > bound).any()
    for _ in range(0, _SOLVER_STEPS, at_once):
        if not bool(found[4]):
            break
        found = _solver_steps(matrix, images, shift, soft, to_block, *found[:4], bound, at_once)
    return found[0]


@Replayed
def _solver_steps(
    matrix: Tensor,
    images: Tensor,
    shift: Tensor,
    soft: Tensor,
    to_block: Tensor,
    solution: Tensor,
    residual: Tensor,
    direction: Tensor,
    product: Tensor,
    bound: Tensor,
    count: int,
) -> tuple[Tensor, ...]:
    """So many steps further; and whether a column is not done yet."""
    for _ in range(count):
        active = product > bound
        image = _outside(direction, matrix, images, shift, soft, to_block)
        curvature = (direction * image).sum(dim=1, keepdim=True)
        # A column that is done stands still: its next direction would be made of rounding errors.
        step = torch.where(active & (curvature > 0), product / curvature, 0.0)
        solution = torch.addcmul(solution, step, direction)
        residual = torch.addcmul(residual, step, image, value=-1.0)
        last, product = product, residual.square().sum(dim=1, keepdim=True)
        direction = torch.addcmul(residual, torch.where(active & (last > 0), product / last, 0.0), direction)
    return solution, residual, direction, product, (product > bound).any()
