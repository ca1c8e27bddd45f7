"""FitNets: the teacher's features themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.relations.across_ranks import mean_over_batch
from reldistill.relations.precision import full_precision


@full_precision
def fitnets_loss(
    student: Float[Tensor, "B *features"], teacher: Float[Tensor, "B *features"], *, relative: bool = False
) -> Float[Tensor, ""]:
    """Pulls the student's features to the teacher's, number by number.

        L = mean (F^S − F^T)²,   or with `relative`   L = mean (F^S − F^T)² / mean (F^T)²

    Adriana Romero, Nicolas Ballas, Samira Ebrahimi Kahou, Antoine Chassang, Carlo Gatta, Yoshua Bengio: FitNets: Hints
    for Thin Deep Nets. ICLR 2015, arXiv 1412.6550.

    Args:
        student: features of any shape (B, …), already shaped like the teacher's by an adapter.
        teacher: features of the same shape, taken without gradient.
        relative: divide by the mean square of the teacher's features over the batch (of all ranks), so that one weight
            suits any teacher. Where those are all 0 nothing is divided.

    Returns:
        Scalar, at least 0, and 0 only where the features agree.

    Raises:
        ValueError: the shapes differ.

    Invariances:
        - the order of the samples, a common permutation of channels or of positions;
        - with `relative`: a common scale of both networks' features.

    Differences from the paper: the mean instead of half the sum; training is joint instead of the hint first.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 5.0)
        >>> fitnets_loss(student, teacher).item(), fitnets_loss(student, teacher, relative=True).item()
        (25.0, 1.0)
    """
    if student.shape != teacher.shape or student.ndim < 1:
        raise ValueError(
            f"student and teacher must have one shape (B, …): {tuple(student.shape)} in the student, "
            f"{tuple(teacher.shape)} in the teacher; an adapter has to match them first"
        )
    teacher = teacher.detach()
    loss = F.mse_loss(student, teacher)
    if not relative:
        return loss
    # By the norm, which writes no squares.
    scale = mean_over_batch((torch.linalg.vector_norm(teacher).square() / teacher.numel())[None])
    return loss / scale.masked_fill(scale == 0, 1.0)


class FitNets(nn.Module):
    """Pulls the student's features to the teacher's, number by number: `fitnets_loss` with its settings.

    Args:
        relative: see `fitnets_loss`.

    Example:
        >>> import torch
        >>> FitNets()(torch.ones(2, 8), torch.zeros(2, 8)).item()
        1.0
    """

    def __init__(self, *, relative: bool = False) -> None:
        super().__init__()
        self.relative = relative

    def forward(
        self, student: Float[Tensor, "B *features"], teacher: Float[Tensor, "B *features"]
    ) -> Float[Tensor, ""]:
        """Scalar, for features of one shape."""
        return fitnets_loss(student, teacher, relative=self.relative)
