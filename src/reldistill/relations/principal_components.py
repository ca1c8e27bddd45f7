"""What places of images have in common, as colours: the first three principal components of their features."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

_RIDGE = 1e-3  # of the student's mean variance: a student with more channels than places must not reproduce anything
_ENDS = (0.01, 0.99)


@torch.no_grad()
def component_colours(
    student: Float[Tensor, "B _C _H _W"], teacher: Float[Tensor, "B _C_t _H_t _W_t"]
) -> tuple[UInt8[Tensor, "B _H _W 3"], UInt8[Tensor, "B _H_t _W_t 3"], float]:
    """The teacher's first three principal components as red, green and blue, and what the student has of them.

    A colour means the same in both: the student's are its best linear prediction of the teacher's components (ridge
    regression over the places of a grid that both are averaged to).

    Args:
        student: (B, C, H, W), a level's maps of some images.
        teacher: (B, C′, H′, W′), of the same images.

    Returns:
        (B, H, W, 3) and (B, H′, W′, 3) uint8, and the share of the components' variance that the student explains, at
        most 1.
    """
    maps = [one.double() for one in (student, teacher)]
    places = [one.movedim(1, -1).flatten(0, 2) for one in maps]
    centre = places[1].mean(dim=0)
    basis = _first_three(places[1] - centre)
    size = (min(one.shape[2] for one in maps), min(one.shape[3] for one in maps))
    ours, theirs = (functional.adaptive_avg_pool2d(one, size).movedim(1, -1).flatten(0, 2) for one in maps)
    target = (theirs - centre) @ basis
    mean = ours.mean(dim=0)
    fitted = _ridge(ours - mean, target - target.mean(dim=0))
    rest = target - target.mean(dim=0) - (ours - mean) @ fitted
    variance = (target - target.mean(dim=0)).square().sum()
    explained = 1 - float(rest.square().sum() / variance) if variance > 0 else 0.0
    of_teacher = (places[1] - centre) @ basis
    of_student = (places[0] - mean) @ fitted + target.mean(dim=0)
    low, high = of_teacher.quantile(torch.tensor(_ENDS, dtype=torch.float64, device=of_teacher.device), dim=0)
    colours = [
        (255 * ((one - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)).round().to(torch.uint8)
        for one in (of_student, of_teacher)
    ]
    shapes = [(len(one), *one.shape[2:], 3) for one in maps]
    return colours[0].view(shapes[0]), colours[1].view(shapes[1]), explained


def _first_three(centred: Float[Tensor, "N C"]) -> Float[Tensor, "C 3"]:
    """Directions of most variance, each turned so that its largest entry is positive; 0 where there are fewer."""
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    found = vectors.flip(1)[:, :3]
    found = found * found.gather(0, found.abs().argmax(dim=0, keepdim=True)).sign()
    return functional.pad(found, (0, 3 - found.shape[1]))


def _ridge(inputs: Float[Tensor, "N C"], targets: Float[Tensor, "N 3"]) -> Float[Tensor, "C 3"]:
    gram = inputs.T @ inputs
    penalty = _RIDGE * gram.diagonal().mean().clamp(min=1e-12)
    return torch.linalg.solve(gram + penalty * torch.eye(len(gram)).to(gram), inputs.T @ targets)
