"""KD: the teacher's softened class probabilities."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch, check_temperature
from reldistill.relations.precision import full_precision


@full_precision
def kd_loss(
    student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"], *, temperature: float = 4.0
) -> Float[Tensor, ""]:
    """Pulls the student's softened class probabilities to the teacher's.

        L = τ² · mean over samples of KL(softmax(z^T / τ) ‖ softmax(z^S / τ))

    Geoffrey Hinton, Oriol Vinyals, Jeff Dean: Distilling the Knowledge in a Neural Network. NIPS workshop 2014,
    arXiv 1503.02531.

    Args:
        student: logits z^S, (B, K).
        teacher: logits z^T, (B, K), taken without gradient.
        temperature: τ, above 0; τ² keeps the size of the gradient about the same whatever τ.

    Returns:
        Scalar, at least 0, and 0 where the probabilities agree.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.

    Invariances:
        - a constant added to all logits of a sample, of either network;
        - the order of the samples, and a common permutation of the classes.

    Differences from the paper: none; the paper's loss on the labels is the task's own, outside of this one.

    Example:
        >>> import torch
        >>> kd_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0, 3.0]])).item()
        0.0
    """
    check_temperature(temperature)
    check_axes(student, "B K", name="student")
    check_axes(teacher, "B K", name="teacher", K=student.shape[1])
    check_same_batch(student, teacher)
    ours = F.log_softmax(student / temperature, dim=1)
    theirs = F.log_softmax(teacher.detach() / temperature, dim=1)
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


class KD(nn.Module):
    """Pulls the student's softened class probabilities to the teacher's: `kd_loss` with its settings.

    Args:
        temperature: see `kd_loss`.

    Example:
        >>> import torch
        >>> KD(temperature=2.0)(torch.zeros(4, 10), torch.zeros(4, 10)).item()
        0.0
    """

    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature

    def forward(self, student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
        """Scalar, for logits (B, K) of both networks."""
        return kd_loss(student, teacher, temperature=self.temperature)
