"""SeRKD's terms between two networks: distances and angles between superpixels, features, class scores."""

from __future__ import annotations

from typing import get_args

import torch
from torch import nn

from reldistill.core.checks import UserError
from reldistill.core.types import LevelInfo
from reldistill.losses.fitnets import FitNets
from reldistill.losses.serkd import SeRKD
from reldistill.methods.logits import kd
from reldistill.methods.plan import Plan
from reldistill.networks.adapters import StridedTokeniser
from reldistill.relations.tokens import Pooling
from reldistill.step.term import Term


def serkd(plan: Plan) -> list[Term]:
    """The deepest pair of levels that is large enough: superpixels and features, beside the class scores."""
    terms = kd(plan)
    # nine superpixels rather than four, which have next to no relations: see docs/decisions.md
    for student, teacher in plan.pairs(1, smallest=3, preferred=5):
        settings = {
            "student_tokeniser": "none" if student.kind == "tokens" else "average",
            "teacher_tokeniser": "none" if teacher.kind == "tokens" else "average",
            **plan.settings.get("serkd", {}),
        }
        tokenisers = (*get_args(Pooling), "convolution")
        if settings["student_tokeniser"] not in tokenisers:
            raise UserError(
                f"settings of serkd: student_tokeniser must be one of {', '.join(tokenisers)}, got "
                f"{settings['student_tokeniser']!r}"
            )
        convolution = settings["student_tokeniser"] == "convolution"
        loss = plan.loss("serkd", SeRKD, {**settings, "student_tokeniser": "none"} if convolution else settings)
        tokeniser = _strided_tokeniser(plan, student, largest_grid=loss.settings.largest_grid) if convolution else None
        _check_superpixels(loss, student, teacher, tokeniser=plan.adapters.get(tokeniser or ""))
        # 25 and 50 were too much for a ViT, and 8 was tried between CNNs only: see docs/results.md
        distance, angle, feature_weight = (5.0, 10.0, 1.0) if student.kind == "tokens" else (25.0, 50.0, 8.0)
        weights = {"distance": distance, "angle": angle}
        terms.append(plan.term("serkd", loss, student.name, teacher.name, weights, adapter=tokeniser))
        feature = plan.loss("feature", FitNets, {"relative": True, **plan.settings.get("feature", {})})
        adapter = plan.adapter(student, teacher)
        terms.append(plan.term("feature", feature, student.name, teacher.name, feature_weight, adapter=adapter))
    return terms


def _strided_tokeniser(plan: Plan, student: LevelInfo, *, largest_grid: int) -> str:
    """SeRKD's learnable tokeniser, asked for by `student_tokeniser: convolution`: an adapter in front of the loss."""
    factor = 1
    while max(student.height, student.width) > largest_grid * factor:
        factor *= 2
    name = f"{student.name}:tokens"
    plan.adapters[name] = StridedTokeniser(student.channels, factor=factor)
    return name


@torch.no_grad()
def _check_superpixels(loss: SeRKD, student: LevelInfo, teacher: LevelInfo, *, tokeniser: nn.Module | None) -> None:
    """UserError where an image would have too few superpixels for an angle, so that the loss would be 0."""
    ours, theirs = (torch.zeros(1, level.channels, level.height, level.width) for level in (student, teacher))
    count = loss.superpixels(ours if tokeniser is None else tokeniser(ours), theirs)[0].shape[1]
    if count < 3:
        sizes = " and ".join(f"{level.name} ({level.height}x{level.width})" for level in (student, teacher))
        raise UserError(
            f"serkd finds {count} superpixel{'s' * (count > 1)} in {sizes}, but needs 3: choose levels of larger maps "
            f"or a smaller cell"
        )
