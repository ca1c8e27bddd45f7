"""The terms of methods that compare the maps of two networks as they are, or through an adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from reldistill.core.types import LevelInfo
from reldistill.losses.at import AT
from reldistill.losses.cwd import CWD
from reldistill.losses.fitnets import FitNets
from reldistill.losses.ickd import ICKD
from reldistill.losses.kd import KD
from reldistill.losses.patch_kl import PatchKL
from reldistill.losses.sp import SP
from reldistill.losses.spectralkd import SpectralKD
from reldistill.methods.plan import Plan
from reldistill.step.term import Term


def fitnets(plan: Plan) -> list[Term]:
    """The deepest pair of levels."""
    settings = {"relative": True, **plan.settings.get("fitnets", {})}
    return _between_levels(plan, "fitnets", FitNets, 1.0, settings=settings, adapted=True)


def at(plan: Plan) -> list[Term]:
    """Up to four pairs of levels."""
    return _between_levels(plan, "at", AT, 1000.0, count=4, smallest=2)


def sp(plan: Plan) -> list[Term]:
    """The deepest pair of levels."""
    return _between_levels(plan, "sp", SP, 3000.0)


def ickd(plan: Plan) -> list[Term]:
    """The deepest pair of levels."""
    return _between_levels(plan, "ickd", ICKD, 2.5, adapted=True)


def cwd(plan: Plan) -> list[Term]:
    """The deepest pair of levels of more than one cell."""
    return _between_levels(plan, "cwd", CWD, 50.0, smallest=2, adapted=True)


def patch_kl(plan: Plan) -> list[Term]:
    """The deepest pair of levels of more than one cell."""
    return _between_levels(plan, "patch_kl", PatchKL, 1.0, smallest=2)


def spectralkd(plan: Plan) -> list[Term]:
    """One term on the first and last of up to eight pairs of levels, beside the class scores at temperature 1."""
    pairs = plan.chosen_pairs() or _first_and_last(plan)
    students, teachers = (tuple(pair[side].name for pair in pairs) for side in (0, 1))
    return [
        plan.term(
            "kd", plan.loss("kd", KD, {"temperature": 1.0, **plan.settings.get("kd", {})}), "logits", "logits", 0.9
        ),
        plan.term("spectralkd", plan.loss("spectralkd", SpectralKD), students, teachers, 0.2),
    ]


def _first_and_last(plan: Plan) -> list[tuple[LevelInfo, LevelInfo]]:
    """A quarter of the pairs at the beginning of both networks, the others at the end."""
    ours, theirs = (plan.stages_of(network) for network in (plan.student, plan.teacher))
    count = min(8, len(ours), len(theirs))
    first, last = count // 4, count - count // 4
    picked = ([*stages[:first], *stages[len(stages) - last :]] for stages in (ours, theirs))
    return list(zip(*picked, strict=True))


def _between_levels(
    plan: Plan,
    name: str,
    kind: Callable[..., nn.Module],
    weight: float,
    *,
    settings: Mapping[str, Any] | None = None,
    count: int = 1,
    smallest: int = 1,
    adapted: bool = False,
) -> list[Term]:
    """One loss between the maps of up to `count` pairs of levels, the student's through an adapter if `adapted`."""
    loss = plan.loss(name, kind, settings)
    return [
        plan.term(
            name,
            loss,
            student.name,
            teacher.name,
            weight,
            adapter=plan.adapter(student, teacher) if adapted else None,
        )
        for student, teacher in plan.pairs(count, smallest=smallest)
    ]
