"""SeRKD: distances and angles between the superpixel tokens of each image."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal, get_args

from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.relations.pairwise import PARTS, distance_and_angle
from reldistill.relations.precision import full_precision
from reldistill.relations.superpixels import (
    Neighbourhood,
    check_neighbourhood,
    common_grid,
    superpixel_grid,
    superpixel_tokens,
    superpixels_and_assignment,
)
from reldistill.relations.tokens import Pooling, check_tokeniser, tokenise, tokens_to_map

AssignmentOf = Literal["own", "teacher"]


def serkd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    cell: int = 2,
    iterations: int = 1,
    assignment: AssignmentOf = "own",
    neighbourhood: Neighbourhood = "all",
    student_tokeniser: Pooling = "average",
    teacher_tokeniser: Pooling = "average",
    largest_grid: int = 16,
    distance_weight: float = 1.0,
    angle_weight: float = 2.0,
) -> Tensor:
    """Pulls the distances and angles between the superpixels of each image to those that the teacher sees.

        L = λ_D L_D + λ_A L_A
        S⁰ = means of g×g cells of the tokens T;  Qᵗ = softmax over superpixels of T S_{t−1}ᵀ / √D;
        Sᵗ = (Q̂ᵗ)ᵀ T, Q̂ᵗ = Qᵗ with columns scaled to sum 1
        L_D = mean over images and pairs i ≠ j of Huber₁(ψ_D^S − ψ_D^T),   ψ_D(i,j) = ‖s_i − s_j‖₂ / μ of that image
        L_A = mean over images and triples of distinct i, j, k of Huber₁(ψ_A^S − ψ_A^T),   ψ_A(i,j,k) = cos∠ at s_j

    SeRKD, semantics-based relation knowledge distillation. arXiv 2503.21269, 2025.

    Args:
        student: a map (B, C, H, W): of a CNN, or patch tokens laid out on their grid; or patch tokens (B, N, D) of a
            square grid, which are never pooled by a tokeniser.
        teacher: likewise, taken without gradient. Grid and width may differ from the student's.
        cell: g, the side of a superpixel's first cell in tokens. Both networks use the coarser of their two grids.
        iterations: how often the tokens are assigned to superpixels; at least 1.
        assignment: `own`, each network's own Q; or `teacher`, the teacher's Q merges the student's tokens too.
        neighbourhood: `all`, or `local` for a softmax over the 3×3 nearest superpixels only.
        student_tokeniser: how a map becomes tokens, `average` or `max` pooling or `none`; see `relations.tokens`.
        teacher_tokeniser: likewise.
        largest_grid: maps are pooled until neither side is above this many tokens.
        distance_weight: λ_D.
        angle_weight: λ_A.

    Returns:
        Scalar, at least 0. With one superpixel 0, with two L_A is 0.

    Raises:
        ValueError: a tensor has other axes, the numbers of images differ, N is no square, or a setting is out of range.

    Invariances:
        - rotation and reflection of the D axes of either network's tokens;
        - translation and positive scale of the student's tokens with `teacher` assignment (with `own`, they change how
          the tokens merge; of the merged tokens, the distances and angles do not change either);
        - the order of the images.

    Differences from the paper: it leaves open how grids of different size meet (the coarser grid, adaptive means), and
    over what a distance is averaged (the image); `teacher` and `local` are additions.

    Example:
        >>> import torch
        >>> cnn, vit = torch.randn(2, 64, 8, 8), torch.randn(2, 196, 192)
        >>> serkd_loss(cnn, vit).shape
        torch.Size([])
    """
    loss = SeRKD(
        cell=cell,
        iterations=iterations,
        assignment=assignment,
        neighbourhood=neighbourhood,
        student_tokeniser=student_tokeniser,
        teacher_tokeniser=teacher_tokeniser,
        largest_grid=largest_grid,
        distance_weight=distance_weight,
        angle_weight=angle_weight,
    )
    return loss(student, teacher)


class SeRKD(nn.Module):
    """Pulls the distances and angles between the superpixels of each image to the teacher's: see `serkd_loss`.

    Args:
        cell: see `serkd_loss`, as for all settings.
        iterations: how often the tokens are assigned.
        assignment: `own` or `teacher`.
        neighbourhood: `all` or `local`.
        student_tokeniser: `average`, `max` or `none`.
        teacher_tokeniser: `average`, `max` or `none`.
        largest_grid: where the tokenisers stop.
        distance_weight: λ_D, of the part `distance`.
        angle_weight: λ_A, of the part `angle`.

    Example:
        >>> import torch
        >>> sorted(SeRKD(cell=2).parts(torch.randn(2, 16, 8, 8), torch.randn(2, 64, 14, 14)))
        ['angle', 'distance']
    """

    def __init__(
        self,
        *,
        cell: int = 2,
        iterations: int = 1,
        assignment: AssignmentOf = "own",
        neighbourhood: Neighbourhood = "all",
        student_tokeniser: Pooling = "average",
        teacher_tokeniser: Pooling = "average",
        largest_grid: int = 16,
        distance_weight: float = 1.0,
        angle_weight: float = 2.0,
    ) -> None:
        super().__init__()
        superpixel_grid((1, 1), cell=cell)
        check_neighbourhood(neighbourhood)
        check_tokeniser(student_tokeniser, largest_grid, name="student_tokeniser")
        check_tokeniser(teacher_tokeniser, largest_grid, name="teacher_tokeniser")
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        if assignment not in get_args(AssignmentOf):
            raise ValueError(f"assignment must be one of {', '.join(get_args(AssignmentOf))}, got {assignment!r}")
        self.cell = cell
        self.iterations = iterations
        self.assignment = assignment
        self.neighbourhood: Neighbourhood = neighbourhood
        self.student_tokeniser: Pooling = student_tokeniser
        self.teacher_tokeniser: Pooling = teacher_tokeniser
        self.largest_grid = largest_grid
        self.weights = {"distance": distance_weight, "angle": angle_weight}

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Scalar, the weighted sum of the parts."""
        parts = self.parts(student, teacher)
        return self.weights["distance"] * parts["distance"] + self.weights["angle"] * parts["angle"]

    def parts(self, student: Tensor, teacher: Tensor, *, names: Collection[str] = PARTS) -> dict[str, Tensor]:
        """`distance` L_D and `angle` L_A, unweighted; `names` says which."""
        return distance_and_angle(*self.superpixels(student, teacher), names=names)

    @full_precision
    def superpixels(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The superpixel tokens that are compared, (B, M, D) of the student and (B, M, D') of the teacher."""
        check_same_batch(student, teacher)
        ours = self._on_grid(student, self.student_tokeniser, name="student")
        theirs = self._on_grid(teacher.detach(), self.teacher_tokeniser, name="teacher")
        grids = [superpixel_grid((m.shape[2], m.shape[3]), cell=self.cell) for m in (ours, theirs)]
        grid = common_grid(grids[0], grids[1])
        merged, found = superpixels_and_assignment(
            theirs, grid=grid, iterations=self.iterations, neighbourhood=self.neighbourhood
        )
        return (
            superpixel_tokens(
                ours,
                grid=grid,
                iterations=self.iterations,
                neighbourhood=self.neighbourhood,
                assignment=found if self.assignment == "teacher" else None,
            ),
            merged,
        )

    def _on_grid(self, features: Tensor, tokeniser: Pooling, *, name: str) -> Tensor:
        """A map of tokens (B, D, H, W)."""
        if features.ndim == 3:
            side = math.isqrt(features.shape[1])
            if side * side != features.shape[1]:
                raise ValueError(f"{name}: expected N patch tokens of a square grid, got N = {features.shape[1]}")
            return tokens_to_map(features, grid=(side, side))
        check_axes(features, "B C H W", name=name)
        return tokenise(features, pooling=tokeniser, largest_grid=self.largest_grid)
