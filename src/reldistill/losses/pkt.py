"""PKT: for each sample of a batch, how likely each other one is its neighbour."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.relations.across_ranks import gather_batch
from reldistill.relations.precision import full_precision
from reldistill.relations.similarity import cosines

_SMALLEST = 1e-6
"""Added to each kernel value: opposite vectors would have probability 0, and its logarithm no gradient."""
_FEWEST = {"kept": 2, "left_out": 3}
"""Samples from which on a sample has a choice."""

Diagonal = Literal["kept", "left_out"]


@full_precision
def pkt_loss(
    student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D_t"], *, diagonal: Diagonal = "kept"
) -> Float[Tensor, ""]:
    """Pulls the probability that one sample of a batch is another's neighbour to what the teacher makes of it.

        L = mean over pairs i, j of p^T_{j|i} log(p^T_{j|i} / p^S_{j|i})
        p_{j|i} = K_ij / Σ_k K_ik,   K_ij = (1 + cos(x_i, x_j)) / 2

    Nikolaos Passalis, Anastasios Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer. ECCV 2018,
    arXiv 1803.10837.

    Args:
        student: one vector per sample, (B, D). The samples of all ranks are taken together.
        teacher: (B, D'), taken without gradient; D' may differ from D.
        diagonal: `kept` counts a sample among its own neighbours, as the authors' code does; `left_out` takes pairs
            i ≠ j only, as the paper writes it.

    Returns:
        Scalar, at least 0; 0 for a single sample, and without the diagonal for two.

    Raises:
        ValueError: a tensor is not (B, D), the numbers of samples differ, or `diagonal` is neither word.

    Invariances:
        - rotation and reflection of the samples, and a positive scale of each, in either network;
        - the order of the samples.

    Differences from the paper: the sums include i = j and are a mean, as in the authors' code, for which the usual
    weight is 30000; 10⁻⁶ is added to K. A sample whose vector is 0 has cosine 0 to all.

    Example:
        >>> import torch
        >>> teacher = torch.randn(4, 8)
        >>> abs(pkt_loss(torch.nn.functional.pad(5 * teacher, (0, 3)), teacher).item()) < 1e-6
        True
    """
    _check_diagonal(diagonal)
    check_axes(student, "B D", name="student")
    check_axes(teacher, "B D", name="teacher")
    check_same_batch(student, teacher)
    student, teacher = gather_batch(student), gather_batch(teacher.detach())
    count = student.shape[0]
    if count < _FEWEST[diagonal]:
        return student.sum() * 0.0
    ours, theirs = (_log_probabilities(cosines(side), diagonal) for side in (student, teacher))
    pairs = count * count if diagonal == "kept" else count * (count - 1)
    return (theirs.exp() * (theirs - ours)).sum() / pairs


def _log_probabilities(cosine: Float[Tensor, "B B"], diagonal: Diagonal) -> Float[Tensor, "B B"]:
    """log p_{j|i}, (B, B); 0 on a diagonal that is left out, in both networks, so that it adds nothing."""
    kernel = (1.0 + cosine).clamp_min(0.0) / 2 + _SMALLEST
    if diagonal == "kept":
        return (kernel / kernel.sum(dim=1, keepdim=True)).log()
    itself = torch.eye(len(cosine), dtype=torch.bool, device=cosine.device)
    kernel = kernel.masked_fill(itself, 0.0)
    chances = kernel / kernel.sum(dim=1, keepdim=True)
    return chances.masked_fill(itself, 1.0).log()


class PKT(nn.Module):
    """Pulls the probability that samples of a batch are neighbours to the teacher's: see `pkt_loss`.

    Args:
        diagonal: `kept` or `left_out`.

    Example:
        >>> import torch
        >>> PKT()(torch.eye(4), torch.eye(4)).item()
        0.0
    """

    def __init__(self, *, diagonal: Diagonal = "kept") -> None:
        super().__init__()
        _check_diagonal(diagonal)
        self.diagonal: Diagonal = diagonal

    def forward(self, student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D_t"]) -> Float[Tensor, ""]:
        """Scalar, for one vector per sample of either network."""
        return pkt_loss(student, teacher, diagonal=self.diagonal)


def _check_diagonal(diagonal: str) -> None:
    if diagonal not in get_args(Diagonal):
        raise ValueError(f"diagonal must be one of {', '.join(get_args(Diagonal))}, got {diagonal!r}")
