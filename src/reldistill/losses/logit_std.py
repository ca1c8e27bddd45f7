"""Logit standardisation: KD on z-scores, so that the student need not match how far apart the teacher's logits are."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch, check_temperature
from reldistill.losses.kd import kd_loss
from reldistill.relations.precision import full_precision
from reldistill.relations.similarity import unit_deviations


@full_precision
def logit_std_loss(
    student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"], *, temperature: float = 2.0
) -> Float[Tensor, ""]:
    """Pulls the softened class probabilities of the student's standardised logits to those of the teacher's.

        L = τ² · mean over samples of KL(softmax(ẑ^T / τ) ‖ softmax(ẑ^S / τ))
        ẑ = (z − mean of z) / σ(z),   σ² = mean over the classes of (z − mean of z)²

    Shangquan Sun, Wenqi Ren, Jingzhi Li, Rui Wang, Xiaochun Cao: Logit Standardization in Knowledge Distillation.
    CVPR 2024, arXiv 2403.01427.

    Args:
        student: logits z^S, (B, K).
        teacher: logits z^T, (B, K), taken without gradient.
        temperature: τ, above 0.

    Returns:
        Scalar, at least 0, and 0 where the z-scores agree.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.

    Invariances:
        - a constant added to all logits of a sample, and a positive scale of them, in either network;
        - the order of the samples, and a common permutation of the classes.

    Differences from the paper: none in the equation; the authors' code divides the variance by K − 1. The z-score of
    logits that are all equal is 0 [ours].

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, 1.0]])
        >>> logit_std_loss(logits, 7 * logits - 3).item() < 1e-6
        True
    """
    check_temperature(temperature)
    check_axes(student, "B K", name="student")
    check_axes(teacher, "B K", name="teacher", K=student.shape[1])
    check_same_batch(student, teacher)
    spread = student.shape[1] ** 0.5
    ours, theirs = (spread * unit_deviations(logits) for logits in (student, teacher.detach()))
    return kd_loss(ours, theirs, temperature=temperature)


class LogitStd(nn.Module):
    """Pulls the softened class probabilities of standardised logits to the teacher's: see `logit_std_loss`.

    Args:
        temperature: τ, above 0.

    Example:
        >>> import torch
        >>> LogitStd()(torch.zeros(4, 10), torch.zeros(4, 10)).item()
        0.0
    """

    def __init__(self, *, temperature: float = 2.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature

    def forward(self, student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
        """Scalar, for logits (B, K) of both networks."""
        return logit_std_loss(student, teacher, temperature=self.temperature)
