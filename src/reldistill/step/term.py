"""A named, weighted use of a loss: the only place where weights live."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from reldistill.step.curriculum import Curriculum
from reldistill.types import Features


class Term(nn.Module):
    """One loss between a place in the student and a place in the teacher.

    Args:
        name: what its value is called, e.g. `kd`. A loss with several parts gives `name.part` for each.
        loss: (student tensor, teacher tensor) → scalar; with several parts, `loss.parts(student, teacher, names=…)` →
            part name → unweighted scalar, for the names asked for.
        student: `logits`, `pooled`, or the name of a level of the student.
        teacher: the same for the teacher.
        weights: the weight; for a loss with several parts, part name → weight. A part without one is left out.
        adapter: name of the Distiller's adapter that shapes the student's tensor, or None.
        curriculum: factor on the weights over the course of training.

    Raises:
        ValueError: when weights and loss do not go together.
    """

    def __init__(
        self,
        name: str,
        loss: nn.Module,
        *,
        student: str,
        teacher: str,
        weights: float | Mapping[str, float],
        adapter: str | None = None,
        curriculum: Curriculum | None = None,
    ) -> None:
        super().__init__()
        if isinstance(weights, Mapping) != hasattr(loss, "parts"):
            raise ValueError(f"{name}: a loss with parts takes a weight for each part, any other loss takes one number")
        self.name = name
        self.loss = loss
        self.student = student
        self.teacher = teacher
        self.weights = dict(weights) if isinstance(weights, Mapping) else {"": float(weights)}
        self.adapter = adapter
        self.curriculum = curriculum

    def factor(self, progress: float) -> float:
        """The curriculum's factor at that progress; 1 without a curriculum."""
        return 1.0 if self.curriculum is None else self.curriculum(progress)

    def is_active(self, progress: float) -> bool:
        """Whether anything of this term counts at that progress."""
        return self.factor(progress) != 0.0 and any(self.weights.values())

    def forward(self, student: Tensor, teacher: Tensor, *, progress: float = 1.0) -> dict[str, Tensor]:
        """Weighted scalars by full name."""
        factor = self.factor(progress)
        if "" in self.weights:
            return {self.name: self.weights[""] * factor * self.loss(student, teacher)}
        names = tuple(name for name, weight in self.weights.items() if weight)
        parts = self.loss.parts(student, teacher, names=names)  # type: ignore[operator]
        if set(parts) != set(names):
            raise ValueError(
                f"{self.name}: weights for the parts {', '.join(names)}, but its loss has {', '.join(parts)}"
            )
        return {f"{self.name}.{part}": self.weights[part] * factor * value for part, value in parts.items()}


def value_at(features: Features, place: str) -> Tensor:
    """The tensor at a place of a network: its logits, its pooled vector, or one of its levels."""
    if place == "logits":
        assert features.logits is not None
        return features.logits
    if place == "pooled":
        assert features.pooled is not None
        return features.pooled
    return features.levels[place]
