"""DeiT with soft labels: the distillation token learns the teacher's softened class probabilities."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_temperature
from reldistill.losses.kd import kd_loss


def deit_soft_loss(
    student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"], *, temperature: float = 3.0
) -> Float[Tensor, ""]:
    """Pulls the class probabilities of the student's distillation token to the teacher's.

        L = τ² · mean over samples of KL(softmax(z^T / τ) ‖ softmax(z^S / τ))

    Hugo Touvron, Matthieu Cord, Matthijs Douze, Francisco Massa, Alexandre Sablayrolles, Hervé Jégou: Training
    data-efficient image transformers & distillation through attention. ICML 2021, arXiv 2012.12877.

    Args:
        student: logits of the distillation token, z^S, (B, K).
        teacher: logits z^T, (B, K), taken without gradient.
        temperature: τ, above 0.

    Returns:
        Scalar, at least 0, and 0 where the probabilities agree.

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.

    Invariances:
        - a constant added to all logits of a sample, of either network;
        - the order of the samples, and a common permutation of the classes.

    Differences from the paper: its equation has the two distributions of KL in the other order; this is the order of
    its code, and of KD. The code's mean is over the classes too, so that its value is 1 / K of this. τ is the paper's
    3; the weights of this and of the class token's loss, 0.1 and 0.9, too.

    Example:
        >>> import torch
        >>> deit_soft_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0, 3.0]]), temperature=2.0).item()
        0.0
    """
    return kd_loss(student, teacher, temperature=temperature)


class DeiTSoft(nn.Module):
    """Pulls the class probabilities of the student's distillation token to the teacher's: see `deit_soft_loss`.

    Args:
        temperature: see `deit_soft_loss`.

    Example:
        >>> import torch
        >>> DeiTSoft()(torch.zeros(4, 10), torch.zeros(4, 10)).item()
        0.0
    """

    def __init__(self, *, temperature: float = 3.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature

    def forward(self, student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
        """Scalar, for logits (B, K) of both networks."""
        return deit_soft_loss(student, teacher, temperature=self.temperature)
