"""RKD: distances and angles between the samples of a batch."""

from __future__ import annotations

from collections.abc import Collection

from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.relations.across_ranks import gather_batch
from reldistill.relations.pairwise import PARTS, distance_and_angle
from reldistill.relations.precision import full_precision


@full_precision
def _rkd_parts(
    student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D_t"], *, names: Collection[str]
) -> dict[str, Float[Tensor, ""]]:
    check_axes(student, "B D", name="student")
    check_axes(teacher, "B D", name="teacher")
    check_same_batch(student, teacher)
    ours, theirs = gather_batch(student).unsqueeze(0), gather_batch(teacher.detach()).unsqueeze(0)
    return distance_and_angle(ours, theirs, names=names)


def rkd_loss(
    student: Float[Tensor, "B D"],
    teacher: Float[Tensor, "B D_t"],
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
) -> Float[Tensor, ""]:
    """Pulls the distances and angles between the samples of a batch to those that the teacher sees.

        L = λ_D L_D + λ_A L_A
        L_D = mean over pairs i ≠ j of Huber₁(ψ_D^S − ψ_D^T),   ψ_D(i,j) = ‖x_i − x_j‖₂ / μ,   μ = its mean over pairs
        L_A = mean over triples of distinct i, j, k of Huber₁(ψ_A^S − ψ_A^T),   ψ_A(i,j,k) = cos∠ at x_j

    Wonpyo Park, Dongju Kim, Yan Lu, Minsu Cho: Relational Knowledge Distillation. CVPR 2019, arXiv 1904.05068.

    Args:
        student: one vector per sample, (B, D). The samples of all ranks are taken together.
        teacher: (B, D'), taken without gradient; D' may differ from D.
        distance_weight: λ_D.
        angle_weight: λ_A.

    Returns:
        Scalar, at least 0. L_D is 0 for fewer than 2 samples, L_A for fewer than 3.

    Raises:
        ValueError: a tensor is not (B, D), or the numbers of samples differ.

    Invariances:
        - rotation, reflection, translation and positive scale of the samples of either network;
        - the order of the samples;
        - 0 when the two sets of samples are similar in the geometric sense.

    Differences from the paper: the means leave out pairs and triples with repeated samples (i = j and the like),
    where the authors' code counts them as zeros; a triple with two samples in one place adds nothing.

    Example:
        >>> import torch
        >>> corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> rkd_loss(3 * corners + 1, corners).item() < 1e-6
        True
    """
    return RKD(distance_weight=distance_weight, angle_weight=angle_weight)(student, teacher)


class RKD(nn.Module):
    """Pulls the distances and angles between the samples of a batch to the teacher's: see `rkd_loss`.

    Args:
        distance_weight: λ_D, of the part `distance`.
        angle_weight: λ_A, of the part `angle`.

    Example:
        >>> import torch
        >>> sorted(RKD().parts(torch.randn(8, 16), torch.randn(8, 32)))
        ['angle', 'distance']
    """

    def __init__(self, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        self.weights = {"distance": distance_weight, "angle": angle_weight}

    def forward(self, student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D_t"]) -> Float[Tensor, ""]:
        """Scalar, the weighted sum of the parts."""
        parts = self.parts(student, teacher)
        return self.weights["distance"] * parts["distance"] + self.weights["angle"] * parts["angle"]

    def parts(
        self, student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D_t"], *, names: Collection[str] = PARTS
    ) -> dict[str, Float[Tensor, ""]]:
        """`distance` L_D and `angle` L_A, unweighted; `names` says which."""
        return _rkd_parts(student, teacher, names=names)
