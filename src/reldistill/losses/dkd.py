"""DKD: the teacher's class probabilities in two parts: the true class against the rest, the rest among themselves."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_parts, check_same_batch, check_temperature
from reldistill.relations.precision import full_precision

PARTS = ("target", "nontarget")


@full_precision
def _dkd_parts(
    student: Float[Tensor, "B K"],
    teacher: Float[Tensor, "B K"],
    labels: Int64[Tensor, "B"],
    *,
    temperature: float,
    names: Collection[str],
) -> dict[str, Float[Tensor, ""]]:
    check_parts(names, PARTS)
    check_axes(student, "B K", name="student")
    check_axes(teacher, "B K", name="teacher", K=student.shape[1])
    check_same_batch(student, teacher)
    check_axes(labels, "B", name="labels", B=student.shape[0])
    if student.shape[1] < 2:
        raise ValueError(f"student: expected K of 2 or more in (B, K), got shape {tuple(student.shape)}")
    ours, theirs = _split(student / temperature, labels), _split(teacher.detach() / temperature, labels)
    return {
        name: F.kl_div(ours[name], theirs[name], reduction="batchmean", log_target=True) * temperature**2
        for name in PARTS
        if name in names
    }


def _split(logits: Float[Tensor, "B K"], labels: Int64[Tensor, "B"]) -> dict[str, Float[Tensor, "B _"]]:
    """Log-probabilities (B, 2) of the true class and of all others, and (B, K − 1) of the others given that it is one.

    The others are taken out by their index: a probability of 1 − p_y as a difference would be 0 for a certain teacher.
    """
    places = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, places + (places >= labels[:, None]))
    binary = torch.cat([logits.gather(1, labels[:, None]), others.logsumexp(dim=1, keepdim=True)], dim=1)
    return {"target": binary.log_softmax(dim=1), "nontarget": others.log_softmax(dim=1)}


def dkd_loss(
    student: Float[Tensor, "B K"],
    teacher: Float[Tensor, "B K"],
    *,
    labels: Int64[Tensor, "B"],
    temperature: float = 4.0,
    target_weight: float = 1.0,
    nontarget_weight: float = 8.0,
) -> Float[Tensor, ""]:
    """Pulls the probability of the true class, and the others' probabilities among themselves, to the teacher's.

        L = α L_target + β L_nontarget
        L_target    = τ² · mean over samples of KL((p^T_y, 1 − p^T_y) ‖ (p^S_y, 1 − p^S_y)),   p = softmax(z / τ)
        L_nontarget = τ² · mean over samples of KL(q^T ‖ q^S),   q = softmax of z / τ over the classes other than y

    KD's loss is L_target + (1 − p^T_y) L_nontarget, sample by sample: a certain teacher switches the second part off.

    Borui Zhao, Quan Cui, Renjie Song, Yiyu Qiu, Jiajun Liang: Decoupled Knowledge Distillation. CVPR 2022,
    arXiv 2203.08679.

    Args:
        student: logits z^S, (B, K), K at least 2.
        teacher: logits z^T, (B, K), taken without gradient.
        labels: the true classes y, (B,), int64 in [0, K).
        temperature: τ, above 0.
        target_weight: α.
        nontarget_weight: β. The paper takes 1 to 8, more for a teacher more certain of the true class.

    Returns:
        Scalar, at least 0, and 0 where the probabilities agree.

    Raises:
        ValueError: the shapes differ, K is below 2, or the temperature is not above 0.

    Invariances:
        - a constant added to all logits of a sample, of either network;
        - the order of the samples, and a common permutation of the classes and their labels.

    Differences from the paper: none in the loss. Its warm-up over the first 20 of 240 epochs is the method's, not the
    loss's.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([[3.0, 5.0, 4.0]])
        >>> dkd_loss(student, teacher, labels=torch.tensor([1])).item()
        0.0
    """
    loss = DKD(temperature=temperature, target_weight=target_weight, nontarget_weight=nontarget_weight)
    return loss(student, teacher, labels=labels)


class DKD(nn.Module):
    """Pulls the true class's probability, and the others' among themselves, to the teacher's: see `dkd_loss`.

    Args:
        temperature: τ, above 0.
        target_weight: α, of the part `target`.
        nontarget_weight: β, of the part `nontarget`.

    Example:
        >>> import torch
        >>> DKD()(torch.zeros(4, 10), torch.zeros(4, 10), labels=torch.arange(4)).item()
        0.0
    """

    needs = ("labels",)

    def __init__(self, *, temperature: float = 4.0, target_weight: float = 1.0, nontarget_weight: float = 8.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature
        self.weights = {"target": target_weight, "nontarget": nontarget_weight}

    def forward(
        self, student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"], *, labels: Int64[Tensor, "B"]
    ) -> Float[Tensor, ""]:
        """Scalar, the weighted sum of the parts."""
        parts = self.parts(student, teacher, labels=labels)
        return self.weights["target"] * parts["target"] + self.weights["nontarget"] * parts["nontarget"]

    def parts(
        self,
        student: Float[Tensor, "B K"],
        teacher: Float[Tensor, "B K"],
        *,
        labels: Int64[Tensor, "B"],
        names: Collection[str] = PARTS,
    ) -> dict[str, Float[Tensor, ""]]:
        """`target` and `nontarget`, unweighted; `names` says which."""
        return _dkd_parts(student, teacher, labels, temperature=self.temperature, names=names)
