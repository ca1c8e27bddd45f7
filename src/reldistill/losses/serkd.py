"""SeRKD: distances and angles between the superpixel tokens of each image."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.losses._settings import Settings, takes
from reldistill.relations.pairwise import PARTS, distance_and_angle
from reldistill.relations.precision import full_precision
from reldistill.relations.superpixels import (
    Neighbourhood,
    common_grid,
    superpixel_grid,
    superpixel_tokens,
    superpixels_and_assignment,
)
from reldistill.relations.tokens import Pooling, tokenise, tokens_to_map

AssignmentOf = Literal["own", "teacher"]


@dataclass(frozen=True)
class SeRKDSettings(Settings):
    """What `SeRKD` and `serkd_loss` can be told, each a keyword of theirs.

    Args:
        cell: g, the side of a superpixel's first cell in tokens. Both networks use the coarser of their two grids.
        iterations: how often the tokens are assigned to superpixels; at least 1.
        assignment: `own`, each network's own Q; or `teacher`, the teacher's Q merges the student's tokens too.
        neighbourhood: `all`, or `local` for a softmax over the 3×3 nearest superpixels only.
        student_tokeniser: how a map becomes tokens, `average` or `max` pooling or `none`; see `relations.tokens`.
        teacher_tokeniser: likewise.
        largest_grid: maps are pooled until neither side is above this many tokens.
        distance_weight: λ_D.
        angle_weight: λ_A.

    Raises:
        ValueError: a setting is not one of the above.
    """

    cell: int = 2
    iterations: int = 1
    assignment: AssignmentOf = "own"
    neighbourhood: Neighbourhood = "all"
    student_tokeniser: Pooling = "average"
    teacher_tokeniser: Pooling = "average"
    largest_grid: int = 16
    distance_weight: float = 1.0
    angle_weight: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "cell", "iterations", "largest_grid")


class SeRKD(nn.Module):
    """Pulls the distances and angles between the superpixels of each image to those that the teacher sees.

        L = λ_D L_D + λ_A L_A
        S⁰ = means of g×g cells of the tokens T;  Qᵗ = softmax over superpixels of T S_{t−1}ᵀ / √D;
        Sᵗ = (Q̂ᵗ)ᵀ T, Q̂ᵗ = Qᵗ with columns scaled to sum 1
        L_D = mean over images and pairs i ≠ j of Huber₁(ψ_D^S − ψ_D^T),   ψ_D(i,j) = ‖s_i − s_j‖₂ / μ of that image
        L_A = mean over images and triples of distinct i, j, k of Huber₁(ψ_A^S − ψ_A^T),   ψ_A(i,j,k) = cos∠ at s_j

    SeRKD, semantics-based relation knowledge distillation. arXiv 2503.21269, 2025.

    Args:
        settings: the fields of `SeRKDSettings`, each by keyword.

    Call with student and teacher, each a map (B, C, H, W), of a CNN or patch tokens laid out on their grid; or patch
    tokens (B, N, D) of a square grid, which are never pooled by a tokeniser. The teacher's are taken without gradient;
    its grid and width may differ from the student's. Returns a scalar, at least 0. With one superpixel it is 0, with
    two L_A is 0.

    Raises:
        ValueError: a tensor has other axes, the numbers of images differ, N is not a square, or a setting is not one of
            those in `SeRKDSettings`.

    Invariances:
        - rotation and reflection of the D axes of either network's tokens;
        - translation and positive scale of the student's tokens with `teacher` assignment (with `own`, they change how
          the tokens merge; of the merged tokens, the distances and angles do not change either);
        - the order of the images.

    Differences from the paper: it leaves open how grids of different size meet (the coarser grid, adaptive means), and
    over what a distance is averaged (the image); `teacher` and `local` are additions.

    Example:
        >>> import torch
        >>> sorted(SeRKD(cell=2).parts(torch.randn(2, 16, 8, 8), torch.randn(2, 64, 14, 14)))
        ['angle', 'distance']
    """

    @takes(SeRKDSettings)
    def __init__(self, *, settings: SeRKDSettings) -> None:
        super().__init__()
        self.settings = settings
        self.weights = {"distance": settings.distance_weight, "angle": settings.angle_weight}

    def forward(self, student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
        """Scalar, the weighted sum of the parts."""
        parts = self.parts(student, teacher)
        return self.weights["distance"] * parts["distance"] + self.weights["angle"] * parts["angle"]

    def parts(
        self, student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."], *, names: Collection[str] = PARTS
    ) -> dict[str, Float[Tensor, ""]]:
        """`distance` L_D and `angle` L_A, unweighted; `names` says which."""
        return distance_and_angle(*self.superpixels(student, teacher), names=names)

    @full_precision
    def superpixels(
        self, student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."]
    ) -> tuple[Float[Tensor, "B M D"], Float[Tensor, "B M Dt"]]:
        """The superpixel tokens that are compared, Sᵗ of the student and of the teacher."""
        check_same_batch(student, teacher)
        settings = self.settings
        ours = self._on_grid(student, settings.student_tokeniser, name="student")
        theirs = self._on_grid(teacher.detach(), settings.teacher_tokeniser, name="teacher")
        grids = [superpixel_grid((m.shape[2], m.shape[3]), cell=settings.cell) for m in (ours, theirs)]
        grid = common_grid(grids[0], grids[1])
        iterations, neighbourhood = settings.iterations, settings.neighbourhood
        merged, found = superpixels_and_assignment(
            theirs, grid=grid, iterations=iterations, neighbourhood=neighbourhood
        )
        shared = found if settings.assignment == "teacher" else None
        tokens = superpixel_tokens(
            ours, grid=grid, iterations=iterations, neighbourhood=neighbourhood, assignment=shared
        )
        return tokens, merged

    def _on_grid(self, features: Tensor, tokeniser: Pooling, *, name: str) -> Float[Tensor, "B D H W"]:
        """A map of tokens."""
        if features.ndim == 3:
            side = math.isqrt(features.shape[1])
            if side * side != features.shape[1]:
                raise ValueError(f"{name}: expected N patch tokens of a square grid, got N = {features.shape[1]}")
            return tokens_to_map(features, grid=(side, side))
        check_axes(features, "B C H W", name=name)
        return tokenise(features, pooling=tokeniser, largest_grid=self.settings.largest_grid)


@takes(SeRKDSettings)
def serkd_loss(
    student: Float[Tensor, "B ..."], teacher: Float[Tensor, "B ..."], *, settings: SeRKDSettings
) -> Float[Tensor, ""]:
    """`SeRKD` as a function of maps or tokens. For the settings see `SeRKDSettings`.

    Example:
        >>> import torch
        >>> cnn, vit = torch.randn(2, 64, 8, 8), torch.randn(2, 196, 192)
        >>> serkd_loss(cnn, vit).shape
        torch.Size([])
    """
    value: Tensor = SeRKD(settings=settings)(student, teacher)
    return value
