"""HeadKD: the class scores that a one-stage detector gives its anchors."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.relations.across_ranks import mean_over_batch
from reldistill.relations.precision import full_precision


@full_precision
def head_kd_loss(student: Float[Tensor, "B A K"], teacher: Float[Tensor, "B A K"]) -> Float[Tensor, ""]:
    """Pulls every class probability of every anchor to the teacher's, most where the two differ most.

        L = Σ |q − p| · BCE(p, q) / max(1, Σ q),   p = sigmoid(z^S), q = sigmoid(z^T)
        BCE(p, q) = −q log p − (1 − q) log(1 − p);   sums over anchors and classes, mean over images

    The binary distillation of Longrong Yang, Xianpan Zhou, Xuewei Li, Liang Qiao, Zheyang Li, Ziwei Yang, Gaoang Wang,
    Xi Li: Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection. ICCV 2023,
    arXiv 2308.14286.

    Args:
        student: scores z^S before the sigmoid, (B, A, K) of A anchors.
        teacher: scores z^T of the same anchors, taken without gradient.

    Returns:
        Scalar, at least 0, and 0 where the probabilities agree.

    Raises:
        ValueError: the shapes differ.

    Invariances:
        - the order of the samples, and a common permutation of the anchors or of the classes.

    Differences from the paper: it divides by the number of anchors that the labels assign to objects; this divides by
    the number that the teacher sees, Σ q, so that it needs no labels. A batch in which the teacher sees less than one
    an image is divided by one an image.

    Example:
        >>> import torch
        >>> head_kd_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)).item()
        0.0
    """
    check_axes(student, "B A K", name="student")
    _, anchors, classes = student.shape
    check_axes(teacher, "B A K", name="teacher", A=anchors, K=classes)
    check_same_batch(student, teacher)
    wanted = teacher.detach().sigmoid()
    entropy = F.binary_cross_entropy_with_logits(student, wanted, reduction="none")
    apart = (wanted - student.sigmoid()).abs() * entropy
    seen = mean_over_batch(wanted.sum(dim=(1, 2)))
    return apart.sum(dim=(1, 2)).mean() / seen.clamp(min=1.0)


class HeadKD(nn.Module):
    """Pulls the class probabilities of a one-stage detector's anchors to the teacher's: `head_kd_loss` as a module.

    Example:
        >>> import torch
        >>> round(HeadKD()(torch.zeros(1, 1, 1), torch.full((1, 1, 1), 50.0)).item(), 4)
        0.3466
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, student: Float[Tensor, "B A K"], teacher: Float[Tensor, "B A K"]) -> Float[Tensor, ""]:
        """Scalar, for scores (B, A, K) of both networks."""
        return head_kd_loss(student, teacher)
