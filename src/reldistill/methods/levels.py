"""The terms of methods that compare the maps of two networks as they are, or through an adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from reldistill.losses.at import AT
from reldistill.losses.cwd import CWD
from reldistill.losses.fitnets import FitNets
from reldistill.losses.ickd import ICKD
from reldistill.losses.patch_kl import PatchKL
from reldistill.losses.sp import SP
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
