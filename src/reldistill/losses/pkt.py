"""PKT: for each sample of a batch, how likely each other one is its neighbour."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.relations.across_ranks import gather_batch
from reldistill.relations.precision import full_precision
from reldistill.relations.similarity import cosines

_SMALLEST = 1e-6
"""Added to each kernel value: opposite vectors would have probability 0, and its logarithm no gradient."""


@full_precision
def pkt_loss(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D_t"]) -> Float[Tensor, ""]:
    """Pulls the probability that one sample of a batch is another's neighbour to what the teacher makes of it.

        L = mean over pairs i ≠ j of p^T_{j|i} log(p^T_{j|i} / p^S_{j|i})
        p_{j|i} = K_ij / Σ_{k≠i} K_ik,   K_ij = (1 + cos(x_i, x_j)) / 2

    Nikolaos Passalis, Anastasios Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer. ECCV 2018,
    arXiv 1803.10837.

    Args:
        student: one vector a sample, (B, D). The samples of all ranks are taken together.
        teacher: (B, D'), taken without gradient; D' may differ from D.

    Returns:
        Scalar, at least 0; 0 for fewer than 3 samples.

    Raises:
        ValueError: a tensor is not (B, D), or the numbers of samples differ.

    Invariances:
        - rotation and reflection of the samples, and a positive scale of each, in either network;
        - the order of the samples.

    Differences from the paper: the mean over pairs in place of the sum, for which the usual weight is 30000; 10⁻⁶ is
    added to K. A sample whose vector is 0 has cosine 0 to all.

    Example:
        >>> import torch
        >>> teacher = torch.randn(4, 8)
        >>> abs(pkt_loss(torch.nn.functional.pad(5 * teacher, (0, 3)), teacher).item()) < 1e-6
        True
    """
    check_axes(student, "B D", name="student")
    check_axes(teacher, "B D", name="teacher")
    check_same_batch(student, teacher)
    student, teacher = gather_batch(student), gather_batch(teacher.detach())
    count = student.shape[0]
    if count < 3:
        return student.sum() * 0.0
    ours, theirs = (_log_probabilities(cosines(side)) for side in (student, teacher))
    return (theirs.exp() * (theirs - ours)).sum() / (count * (count - 1))


def _log_probabilities(cosine: Float[Tensor, "B B"]) -> Float[Tensor, "B B"]:
    """log p_{j|i}, (B, B); 0 on the diagonal in both networks, so that it adds nothing."""
    itself = torch.eye(len(cosine), dtype=torch.bool, device=cosine.device)
    kernel = ((1.0 + cosine).clamp_min(0.0) / 2 + _SMALLEST).masked_fill(itself, 0.0)
    chances = kernel / kernel.sum(dim=1, keepdim=True)
    return chances.masked_fill(itself, 1.0).log()


class PKT(nn.Module):
    """Pulls the probability that samples of a batch are neighbours to the teacher's: see `pkt_loss`.

    Example:
        >>> import torch
        >>> PKT()(torch.eye(4), torch.eye(4)).item()
        0.0
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D_t"]) -> Float[Tensor, ""]:
        """Scalar, for one vector a sample of either network."""
        return pkt_loss(student, teacher)
