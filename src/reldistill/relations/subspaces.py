"""How far apart the spans of two embeddings are, whatever basis either is given in.

An embedding U is (…, C, k) with orthonormal columns, its projector P = U Uᵀ is (…, C, C) of trace k. At k = 0 every
distance is 0.
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
        rank: k, their trace, at most C − 1.

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
    return _procrustes(teacher.mT @ student @ teacher)


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
    if alignment == "procrustes":
        return _procrustes(overlap @ overlap.mT)
    return (student - teacher @ overlap).square().sum(dim=(-2, -1)) / max(student.shape[-1], 1)


def _procrustes(overlap: Float[Tensor, "*axes k k"]) -> Float[Tensor, "*axes"]:
    """Of U_Tᵀ P_S U_T."""
    finite = all_finite(overlap)
    # The gradient of eigvalsh is V diag(g) Vᵀ: no gaps. Eigenvalues leave [0, 1] by rounding only.
    eigenvalues = torch.linalg.eigvalsh(torch.where(finite, overlap, 0.0))
    cosine = eigenvalues.clamp(torch.finfo(overlap.dtype).eps, 1.0).sqrt()
    return torch.where(finite[..., 0], 1.0 - cosine, torch.nan).sum(dim=-1) / max(overlap.shape[-1], 1)
