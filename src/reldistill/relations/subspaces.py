"""How far apart the spans of two embeddings are, whatever basis either is given in.

An embedding U is (…, C, k) with orthonormal columns, its projector P = U Uᵀ is (…, C, C) of trace k. At k = 0 every
distance is 0. Where a graph has fewer than k eigenvectors, the columns that are left are 0, and the trace is smaller:
a direction that the other graph has nothing in place of counts half of one that points elsewhere.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from reldistill.relations.eigenproblems import all_finite
from reldistill.relations.precision import full_precision


@full_precision
def subspace_distance(
    student: Float[Tensor, "*axes C C"], teacher: Float[Tensor, "*axes C C"], *, rank: int
) -> Float[Tensor, "*axes"]:
    """1 − tr(P_T P_S) / k of two projectors of trace k, as ‖P_S − P_T‖² / 2k, which is exactly 0 for equal ones.

    Args:
        student: projector.
        teacher: projector.
        rank: k, their largest trace, at most C − 1.

    Returns:
        In [0, 1].
    """
    return (student - teacher).square().sum(dim=(-2, -1)) / (2 * max(rank, 1))


@full_precision
def procrustes_distance(
    student: Float[Tensor, "*axes C C"], teacher: Float[Tensor, "*axes C k"]
) -> Float[Tensor, "*axes"]:
    """min over rotations R of ‖U_S R − U_T‖² / 2k = 1 − ‖U_Tᵀ U_S‖_* / k, the mean squared distance of embeddings.

    The singular values of U_Tᵀ U_S are the roots of the eigenvalues of U_Tᵀ P_S U_T, so the student enters by its
    projector, whose gradient is safe. A direction of the teacher that the student lacks altogether (singular value 0)
    is a kink, where the gradient 0 is taken.

    Args:
        student: projector P_S = U_S U_Sᵀ.
        teacher: embedding U_T.

    Returns:
        In [0, 1]; at most 1 − √(machine precision), because of the guard at the kink.
    """
    return _procrustes(teacher.mT @ student @ teacher, _trace(student), _columns(teacher))


@full_precision
def embedding_distance(
    student: Float[Tensor, "*axes C k"],
    teacher: Float[Tensor, "*axes C k"],
    *,
    alignment: Literal["subspace", "procrustes"],
) -> Float[Tensor, "*axes"]:
    """`subspace_distance` or `procrustes_distance` by the embeddings alone, without a C × C matrix.

    Args:
        student: embedding, in any basis of its span.
        teacher: likewise.
        alignment: which of the two.

    Returns:
        In [0, 1].
    """
    overlap = teacher.mT @ student
    ours, theirs = _columns(student), _columns(teacher)
    if alignment == "procrustes":
        return _procrustes(overlap @ overlap.mT, ours, theirs)
    missed = (student - teacher @ overlap).square().sum(dim=(-2, -1))
    return (missed + (theirs - ours) / 2) / max(student.shape[-1], 1)


def _columns(embedding: Float[Tensor, "*axes C k"]) -> Float[Tensor, "*axes"]:
    """How many columns are not 0."""
    return embedding.detach().square().sum(dim=(-2, -1)).round()


def _trace(projector: Float[Tensor, "*axes C C"]) -> Float[Tensor, "*axes"]:
    return projector.detach().diagonal(dim1=-2, dim2=-1).sum(dim=-1).round()


def _procrustes(
    overlap: Float[Tensor, "*axes k k"], ours: Float[Tensor, "*axes"], theirs: Float[Tensor, "*axes"]
) -> Float[Tensor, "*axes"]:
    """Of U_Tᵀ P_S U_T, and how many columns of both are not 0."""
    rank, guard = overlap.shape[-1], torch.finfo(overlap.dtype).eps
    finite = all_finite(overlap)
    # The gradient of eigvalsh is V diag(g) Vᵀ: no gaps. Eigenvalues leave [0, 1] by rounding only.
    eigenvalues = torch.linalg.eigvalsh(torch.where(finite, overlap, 0.0))
    cosine = eigenvalues.clamp(guard, 1.0).sqrt()
    total = torch.where(finite[..., 0], 1.0 - cosine, torch.nan).sum(dim=-1)
    # Columns of 0 were counted as directions that the other lacks, each except for the guard.
    for_nothing = rank - (ours + theirs) / 2 - (rank - torch.minimum(ours, theirs)) * guard**0.5
    return (total - for_nothing) / max(rank, 1)
