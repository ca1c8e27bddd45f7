"""Distances and angles inside a set of tokens, and how far two sets differ in them.

A set is (B, M, D): M tokens for each of B images. Coincident tokens (see `precision.COINCIDENT_ROUNDINGS`) are at
distance exactly 0, have no direction, and get no gradient from each other.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from reldistill.core.checks import check_axes, check_parts, check_same_batch
from reldistill.relations.kernels import switch
from reldistill.relations.kernels.token_differences import distances_by_products, token_differences
from reldistill.relations.precision import COINCIDENT_ROUNDINGS, full_precision

PARTS = ("distance", "angle")


@full_precision
def gram(tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B M M"]:
    """Inner products of the tokens of each image, ⟨s_i, s_j⟩.

    Args:
        tokens: (B, M, D).

    Returns:
        (B, M, M).
    """
    check_axes(tokens, "B M D", name="tokens")
    return tokens @ tokens.mT


@full_precision
def distances(tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B M M"]:
    """Euclidean distances ‖s_i − s_j‖₂ between the tokens of each image.

    Coincident tokens are at distance exactly 0, with zero gradient. By the fast kernels, it has first derivatives only.

    Args:
        tokens: (B, M, D).

    Returns:
        (B, M, M).

    Example:
        >>> distances(torch.tensor([[[0.0, 0.0], [3.0, 4.0]]]))
        tensor([[[0., 5.],
                 [5., 0.]]])
    """
    check_axes(tokens, "B M D", name="tokens")
    return distances_by_products(tokens) if switch.enabled() else _lengths(_from_each_other(tokens), tokens)


def _from_each_other(tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B M M D"]:
    """s_i − s_j at [:, j, i]."""
    return tokens.unsqueeze(1) - tokens.unsqueeze(2)


def _lengths(differences: Float[Tensor, "B M M D"], tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B M M"]:
    """‖s_i − s_j‖₂, exactly 0 where the two coincide."""
    noise = COINCIDENT_ROUNDINGS * torch.finfo(tokens.dtype).eps * tokens.detach().abs().amax(dim=(1, 2))
    squared = differences.square().sum(dim=3)
    same = squared <= tokens.shape[2] * noise.square()[:, None, None]  # NaN is not the same, and so shows
    return squared.masked_fill(same, 1.0).sqrt().masked_fill(same, 0.0)


def distance_loss(student: Float[Tensor, "B M D"], teacher: Float[Tensor, "B M Dt"]) -> Float[Tensor, ""]:
    """How far two sets of tokens differ in their distances, each set in units of its own mean distance.

    ψ(i,j) = ‖s_i − s_j‖₂ / μ with μ the mean of ‖s_i − s_j‖₂ over the pairs i ≠ j of that image;
    the loss is the mean over images and pairs i ≠ j of Huber₁(ψ(student) − ψ(teacher)).

    Args:
        student: (B, M, D).
        teacher: (B, M, D'), detached here.

    Returns:
        Scalar; 0 where M < 2.
    """
    return distance_and_angle(student, teacher, names=("distance",))["distance"]


def angle_loss(student: Float[Tensor, "B M D"], teacher: Float[Tensor, "B M Dt"]) -> Float[Tensor, ""]:
    """How far two sets of tokens differ in the angles that their tokens span.

    ψ(i,j,k) = cos∠ at s_j of the triangle s_i, s_j, s_k; the loss is the sum over images and ordered triples of
    distinct i, j, k of Huber₁(ψ(student) − ψ(teacher)), divided by their number B·M·(M−1)·(M−2). A triple with a
    coincident pair, in either set, adds nothing.

    The fast kernels never hold the M³ cosines together: see `kernels.triples`.

    Args:
        student: (B, M, D).
        teacher: (B, M, D'), detached here.

    Returns:
        Scalar; 0 where M < 3.
    """
    return distance_and_angle(student, teacher, names=("angle",))["angle"]


@full_precision
def distance_and_angle(
    student: Float[Tensor, "B M D"], teacher: Float[Tensor, "B M Dt"], *, names: Collection[str] = PARTS
) -> dict[str, Float[Tensor, ""]]:
    """`distance_loss` and `angle_loss` as "distance" and "angle", with the distances computed once for both.

    Args:
        student: (B, M, D).
        teacher: (B, M, D'), detached here.
        names: which of the two.
    """
    check_parts(names, PARTS)
    check_axes(student, "B M D", name="student")
    check_axes(teacher, "B M D", name="teacher", M=student.shape[1])
    check_same_batch(student, teacher)
    teacher = teacher.detach()
    if switch.enabled():
        return token_differences(student, teacher, names=names)
    equations = {"distance": _distance_part, "angle": _angle_part}
    return {name: equations[name](student, teacher) for name in PARTS if name in names}


def _distance_part(student: Tensor, teacher: Tensor) -> Tensor:
    images, m, _ = student.shape
    pairs = max(m * (m - 1), 1)
    ours, theirs = (_lengths(_from_each_other(tokens), tokens) for tokens in (student, teacher))
    means = [d.sum(dim=(1, 2), keepdim=True) / pairs for d in (ours, theirs)]
    psi, target = (d / mean.masked_fill(mean == 0, 1.0) for d, mean in zip((ours, theirs), means, strict=True))
    return F.huber_loss(psi, target, reduction="sum") / (images * pairs)


def _angle_part(student: Tensor, teacher: Tensor) -> Tensor:
    images, m, _ = student.shape
    psi, apart = _cosines(student)
    target, apart_too = _cosines(teacher)
    pair = apart & apart_too
    counts = pair.unsqueeze(3) & pair.unsqueeze(2) & pair.unsqueeze(1)  # pairs (j, i), (j, k) and (i, k)
    difference = (psi - target).masked_fill(~counts, 0.0)
    huber = F.huber_loss(difference, torch.zeros_like(difference), reduction="sum")
    return huber / max(images * m * (m - 1) * (m - 2), 1)


def _cosines(tokens: Tensor) -> tuple[Float[Tensor, "B M M M"], Tensor]:
    """cos∠ at s_j of the triangle s_i, s_j, s_k, at [:, j, i, k]; and (B, M, M) which pairs do not coincide."""
    differences = _from_each_other(tokens)
    length = _lengths(differences, tokens)
    apart = length != 0
    directions = differences / length.masked_fill(~apart, 1.0).unsqueeze(3)
    return directions @ directions.mT, apart
