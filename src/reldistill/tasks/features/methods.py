"""The methods between networks without class scores: none of them leaves the student's last layers untrained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from reldistill.losses.fitnets import FitNets
from reldistill.methods.build import LevelTerms
from reldistill.methods.plan import Plan
from reldistill.step.term import Term


@dataclass(frozen=True)
class FeatureTerms(LevelTerms):
    """Those of `LevelTerms`, with one more where a method does not look at the student's pooled vector.

    Behind the deepest level that a method compares lie layers that no label trains here. The part `pooled` pulls the
    pooled vector, through a linear layer, to the teacher's: the squared difference over the teacher's mean square.
    """

    def terms(self, method: str, plan: Plan) -> list[Term]:
        """The method's terms, and perhaps `pooled`."""
        terms = super().terms(method, plan)
        if not terms or any("pooled" in term.student_places for term in terms if plan.can_have(term)):
            return terms
        name = "pooled->pooled:linear"
        plan.adapters[name] = nn.Linear(plan.student.pooled_size, plan.teacher.pooled_size)
        loss = plan.loss("pooled", FitNets, {"relative": True, **plan.settings.get("pooled", {})})
        return [*terms, plan.term("pooled", loss, "pooled", "pooled", 1.0, adapter=name)]
