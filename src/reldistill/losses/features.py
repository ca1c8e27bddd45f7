"""Features: the teacher's vector of an image and its patches, by their direction or as they are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_parts, check_same_batch
from reldistill.losses.fitnets import fitnets_loss
from reldistill.relations.similarity import unit_vectors

Distance = Literal["cosine", "mse"]
PARTS = ("pooled", "patches")
Sides = Sequence[Float[Tensor, "B *_"]]


def features_loss(
    student: Sides,
    teacher: Sides,
    *,
    distance: Distance = "cosine",
    pooled_weight: float = 1.0,
    patches_weight: float = 1.0,
) -> Float[Tensor, ""]:
    """Pulls the student's vector of each image, and of each of its patches, to the teacher's.

        L = λ_pooled mean over images of d(x^S, x^T) + λ_patches mean over images and places of d(f^S, f^T)
        d(a, b) = 1 − cos(a, b),   or with `mse`   L = λ_pooled MSE(x) / mean (x^T)² + λ_patches MSE(f) / mean (f^T)²

    It has no paper of its own: tools that distil backbones without labels do this, on the class token or pooled
    vector and on the patches. Cosines of both are in Mike Ranzinger, Greg Heinrich, Jan Kautz, Pavlo Molchanov:
    AM-RADIO: Agglomerative Vision Foundation Model. CVPR 2024, arXiv 2312.06709.

    Args:
        student: the pooled vectors (B, D), and a map or patch tokens laid out on their grid (B, C, H, W), both shaped
            like the teacher's by an adapter.
        teacher: the same of the same shapes, taken without gradient.
        distance: `cosine`, or `mse` for squared differences over the teacher's mean square.
        pooled_weight: λ_pooled.
        patches_weight: λ_patches.

    Returns:
        Scalar, at least 0, and 0 where the features agree.

    Raises:
        ValueError: the axes or shapes differ, or the distance is another.

    Invariances:
        - the order of the samples, a common permutation of the places;
        - `cosine`: a positive scale of each vector in either network;
        - `mse`: a common scale of both networks' features.

    Differences from the paper: patches have their cosine alone, without a share of smooth L1; nothing is balanced
    between several teachers. A vector of 0 is at distance ½ from all others.

    Example:
        >>> import torch
        >>> teacher = torch.randn(2, 8), torch.randn(2, 4, 3, 3)
        >>> features_loss((3 * teacher[0], 2 * teacher[1]), teacher).item() < 1e-6
        True
        >>> round(features_loss((-teacher[0], teacher[1]), teacher).item(), 4)
        2.0
    """
    loss = ProjectedFeatures(distance=distance, pooled_weight=pooled_weight, patches_weight=patches_weight)
    return loss(student, teacher)


class ProjectedFeatures(nn.Module):
    """Pulls the student's vector of each image and of each patch to the teacher's: see `features_loss`.

    Args:
        distance: `cosine` or `mse`.
        pooled_weight: λ_pooled, of the part `pooled`.
        patches_weight: λ_patches, of the part `patches`.

    Example:
        >>> import torch
        >>> sides = torch.randn(2, 8), torch.randn(2, 4, 3, 3)
        >>> list(ProjectedFeatures().parts(sides, sides))
        ['pooled', 'patches']
    """

    def __init__(
        self, *, distance: Distance = "cosine", pooled_weight: float = 1.0, patches_weight: float = 1.0
    ) -> None:
        super().__init__()
        if distance not in get_args(Distance):
            raise ValueError(f"distance must be one of {', '.join(get_args(Distance))}, got {distance!r}")
        self.distance = distance
        self.weights = {"pooled": pooled_weight, "patches": patches_weight}

    def forward(self, student: Sides, teacher: Sides) -> Float[Tensor, ""]:
        """Scalar, the weighted sum of the parts."""
        parts = self.parts(student, teacher)
        return self.weights["pooled"] * parts["pooled"] + self.weights["patches"] * parts["patches"]

    def parts(self, student: Sides, teacher: Sides, *, names: Collection[str] = PARTS) -> dict[str, Float[Tensor, ""]]:
        """`pooled` and `patches`, unweighted; `names` says which."""
        check_parts(names, PARTS)
        found = {}
        for name, axes, ours, theirs in zip(PARTS, ("B D", "B C H W"), student, teacher, strict=True):
            check_axes(ours, axes, name=f"student's {name}")
            check_same_batch(ours, theirs)
            sizes = dict(zip(axes.split()[1:], ours.shape[1:], strict=True))
            check_axes(theirs, axes, name=f"teacher's {name}", **sizes)
            if name in names:
                found[name] = self._apart(ours, theirs.detach())
        return found

    def _apart(self, student: Float[Tensor, "B C *places"], teacher: Float[Tensor, "B C *places"]) -> Float[Tensor, ""]:
        if self.distance == "mse":
            return fitnets_loss(student, teacher, relative=True)
        ours, theirs = (unit_vectors(one.movedim(1, -1)) for one in (student, teacher))
        # Half the squared distance of unit vectors is 1 − cos, and exact where they agree.
        return (ours - theirs).square().sum(dim=-1).mean() / 2
