"""SEKD's terms between two networks: the channels' graph of several levels, class scores."""

from __future__ import annotations

from reldistill.losses.sekd import SEKD
from reldistill.methods.logits import kd
from reldistill.methods.plan import Plan
from reldistill.step.term import Term


def sekd(plan: Plan) -> list[Term]:
    """Up to three pairs of levels, beside the class scores."""
    terms = kd(plan)
    for student, teacher in plan.pairs(3):
        terms.append(
            plan.term(
                "sekd",
                plan.loss("sekd", SEKD),
                student.name,
                teacher.name,
                {"vertex": 3.0, "edge": 3.0, "spectral": 3.0},
                adapter=plan.adapter(student, teacher),
            )
        )
    return terms
