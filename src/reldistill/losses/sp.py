"""SP: which samples of a batch activate a network alike."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_same_batch
from reldistill.relations.across_ranks import gather_batch
from reldistill.relations.precision import full_precision
from reldistill.relations.similarity import unit_vectors


@full_precision
def sp_loss(student: Float[Tensor, "B *features"], teacher: Float[Tensor, "B *features_t"]) -> Float[Tensor, ""]:
    """Pulls the similarities between the samples of a batch to those that the teacher sees.

        L = ‖G^S − G^T‖² / B²,   G = X Xᵀ with each row scaled to length 1,   X (B, …) one flat vector a sample

    Frederick Tung, Greg Mori: Similarity-Preserving Knowledge Distillation. ICCV 2019, arXiv 1907.09682.

    Args:
        student: features of any shape (B, …). The samples of all ranks are taken together.
        teacher: features of any shape (B, …), taken without gradient.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: a tensor has no features, or the numbers of samples differ.

    Invariances:
        - rotation, reflection and a common scale of the samples' vectors, in either network;
        - the order of the samples.

    Differences from the paper: none. A sample whose features are all 0 has similarity 0 to all, itself included.

    Example:
        >>> import torch
        >>> teacher = torch.randn(4, 8, 3, 3)
        >>> sp_loss(2 * teacher, teacher).item() < 1e-12
        True
    """
    for name, tensor in (("student", student), ("teacher", teacher)):
        if tensor.ndim < 2:
            raise ValueError(f"{name}: expected (B, …), got a tensor of shape {tuple(tensor.shape)}")
    check_same_batch(student, teacher)
    ours, theirs = (unit_vectors(_products(gather_batch(side.flatten(1)))) for side in (student, teacher.detach()))
    return F.mse_loss(ours, theirs)


def _products(samples: Float[Tensor, "B D"]) -> Float[Tensor, "B B"]:
    return samples @ samples.mT


class SP(nn.Module):
    """Pulls the similarities between the samples of a batch to the teacher's: see `sp_loss`.

    Example:
        >>> import torch
        >>> SP()(torch.eye(3), torch.eye(3)).item()
        0.0
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(
        self, student: Float[Tensor, "B *features"], teacher: Float[Tensor, "B *features_t"]
    ) -> Float[Tensor, ""]:
        """Scalar, for features (B, …) of any two shapes."""
        return sp_loss(student, teacher)
