"""DeiT with the hard label: the distillation token learns the class that the teacher would choose."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.relations.precision import full_precision


@full_precision
def deit_hard_loss(student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Teaches the student's distillation token the teacher's decisions.

        L = mean over samples of cross entropy(softmax(z^S), y_t),   y_t = argmax_k z^T_k

    Hugo Touvron, Matthieu Cord, Matthijs Douze, Francisco Massa, Alexandre Sablayrolles, Hervé Jégou: Training
    data-efficient image transformers & distillation through attention. ICML 2021, arXiv 2012.12877.

    Args:
        student: logits of the distillation token, z^S, (B, K).
        teacher: logits z^T, (B, K), taken without gradient.

    Returns:
        Scalar, above 0.

    Raises:
        ValueError: the shapes differ.

    Invariances:
        - a constant added to all logits of a sample, of either network;
        - a positive scale of the teacher's logits;
        - the order of the samples, and a common permutation of the classes.

    Differences from the paper: none; the paper's loss on the class token is the task's own, each with weight ½.

    Example:
        >>> import torch
        >>> round(deit_hard_loss(torch.zeros(1, 2), torch.tensor([[5.0, 3.0]])).item(), 4)
        0.6931
    """
    check_axes(student, "B K", name="student")
    check_axes(teacher, "B K", name="teacher", K=student.shape[1])
    check_same_batch(student, teacher)
    return F.cross_entropy(student, teacher.argmax(dim=1))


class DeiTHard(nn.Module):
    """Teaches the student's distillation token the teacher's decisions: see `deit_hard_loss`.

    Example:
        >>> import torch
        >>> DeiTHard()(torch.zeros(4, 10), torch.zeros(4, 10)).shape
        torch.Size([])
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
        """Scalar, for logits (B, K) of both networks."""
        return deit_hard_loss(student, teacher)
