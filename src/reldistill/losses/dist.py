"""DIST: correlations in place of equality, within a sample's class probabilities and within a class's."""

from __future__ import annotations

from collections.abc import Collection

from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_parts, check_same_batch, check_temperature
from reldistill.relations.across_ranks import gather_batch
from reldistill.relations.precision import full_precision
from reldistill.relations.similarity import unit_deviations

PARTS = ("inter", "intra")


@full_precision
def _dist_parts(
    student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"], *, temperature: float, names: Collection[str]
) -> dict[str, Float[Tensor, ""]]:
    check_parts(names, PARTS)
    check_axes(student, "B K", name="student")
    check_axes(teacher, "B K", name="teacher", K=student.shape[1])
    check_same_batch(student, teacher)
    ours, theirs = ((gather_batch(logits) / temperature).softmax(dim=1) for logits in (student, teacher.detach()))
    sides = {"inter": (ours, theirs), "intra": (ours.mT, theirs.mT)}
    return {name: temperature**2 * _mean_distance(*sides[name]) for name in PARTS if name in names}


def _mean_distance(student: Float[Tensor, "rows n"], teacher: Float[Tensor, "rows n"]) -> Float[Tensor, ""]:
    """1 − the mean over the rows of their correlation."""
    ours, theirs = unit_deviations(student), unit_deviations(teacher)
    return 1.0 - (ours * theirs).sum(dim=1).mean()


def dist_loss(
    student: Float[Tensor, "B K"],
    teacher: Float[Tensor, "B K"],
    *,
    temperature: float = 4.0,
    inter_weight: float = 2.0,
    intra_weight: float = 2.0,
) -> Float[Tensor, ""]:
    """Asks that the student's class probabilities correlate with the teacher's, sample by sample and class by class.

        L = β L_inter + γ L_intra,   Y = softmax(z / τ) over the classes,   ρ Pearson's correlation
        L_inter = τ² · (1 − mean over samples i of ρ(Y^S_i·, Y^T_i·))
        L_intra = τ² · (1 − mean over classes j of ρ(Y^S_·j, Y^T_·j))

    Tao Huang, Shan You, Fei Wang, Chen Qian, Chang Xu: Knowledge Distillation from A Stronger Teacher. NeurIPS 2022,
    arXiv 2205.10536.

    Args:
        student: logits z^S, (B, K). The samples of all ranks are taken together.
        teacher: logits z^T, (B, K), taken without gradient.
        temperature: τ, above 0.
        inter_weight: β.
        intra_weight: γ.

    Returns:
        Scalar, each part between 0 and 2 τ².

    Raises:
        ValueError: the shapes differ, or the temperature is not above 0.

    Invariances:
        - a constant added to all logits of a sample, of either network;
        - the order of the samples, and a common permutation of the classes.

    Differences from the paper: the factor τ², of the authors' code. The defaults are the paper's for CIFAR-100; for
    ImageNet τ is 1, both weights 1 in its text and 2 in its authors' configurations. A row or column of constant
    probabilities, a batch of one included, has correlation 0 [ours].

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]])
        >>> abs(dist_loss(logits, logits + 5).item()) < 1e-5
        True
    """
    loss = DIST(temperature=temperature, inter_weight=inter_weight, intra_weight=intra_weight)
    return loss(student, teacher)


class DIST(nn.Module):
    """Asks that the student's class probabilities correlate with the teacher's: see `dist_loss`.

    Args:
        temperature: τ, above 0.
        inter_weight: β, of the part `inter`.
        intra_weight: γ, of the part `intra`.

    Example:
        >>> import torch
        >>> sorted(DIST().parts(torch.randn(8, 10), torch.randn(8, 10)))
        ['inter', 'intra']
    """

    def __init__(self, *, temperature: float = 4.0, inter_weight: float = 2.0, intra_weight: float = 2.0) -> None:
        super().__init__()
        check_temperature(temperature)
        self.temperature = temperature
        self.weights = {"inter": inter_weight, "intra": intra_weight}

    def forward(self, student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
        """Scalar, the weighted sum of the parts."""
        parts = self.parts(student, teacher)
        return self.weights["inter"] * parts["inter"] + self.weights["intra"] * parts["intra"]

    def parts(
        self, student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"], *, names: Collection[str] = PARTS
    ) -> dict[str, Float[Tensor, ""]]:
        """`inter` and `intra`, unweighted; `names` says which."""
        return _dist_parts(student, teacher, temperature=self.temperature, names=names)
