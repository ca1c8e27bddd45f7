"""A named, weighted use of a loss: the only place where weights live."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from reldistill.core.types import OUTPUTS, Batch, Features
from reldistill.step.curriculum import Curriculum

Place = str | tuple[str, ...]
_OF_THE_BATCH: dict[str, Callable[[Batch], Tensor | None]] = {
    "labels": lambda batch: batch.labels,
    "indices": lambda batch: batch.indices,
    "boxes": lambda batch: None if batch.boxes is None else batch.boxes.in_frame(*batch.images.shape[-2:]),
}


class Term(nn.Module):
    """One loss between a place in the student and a place in the teacher.

    Args:
        name: what its value is called, e.g. `kd`. A loss with several parts gives `name.part` for each.
        loss: (student tensor, teacher tensor) → scalar; with several parts, `loss.parts(student, teacher, names=…)` →
            part name → unweighted scalar, for the names asked for. What it takes by the keywords `labels` and `indices`
            comes from the Batch, and so do `boxes`, (B, n, 4) as `Boxes.in_frame` has them; `progress` is the fraction
            of training done.
        student: `logits`, `pooled`, `distilled`, `dense`, `scores`, or the name of a level of the student; several of
            them, as a tuple, for a loss that takes a tuple of tensors.
        teacher: the same for the teacher. A loss with a method `chosen()`, the number of a place, looks at that one of
            them only, so that the teacher's forward pass can stop there.
        weights: the weight; for a loss with several parts, part name → weight. A part without one is left out.
        adapter: name of the Distiller's adapter that shapes the student's tensor, or None. It is called with the
            tensors of all the student's places.
        curriculum: factor on the weights over the course of training.

    Raises:
        ValueError: when weights and loss do not go together.
    """

    def __init__(
        self,
        name: str,
        loss: nn.Module,
        *,
        student: Place,
        teacher: Place,
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
        taken = inspect.signature(loss.parts if hasattr(loss, "parts") else loss.forward).parameters  # type: ignore[arg-type]
        self._of_the_batch = [name for name in _OF_THE_BATCH if name in taken]
        self._takes_progress = "progress" in taken

    @property
    def student_places(self) -> tuple[str, ...]:
        """Where in the student it looks."""
        return (self.student,) if isinstance(self.student, str) else self.student

    @property
    def teacher_now(self) -> Place:
        """Where in the teacher it looks at this step."""
        return self.teacher[self.loss.chosen()] if hasattr(self.loss, "chosen") else self.teacher  # type: ignore[operator]

    @property
    def teacher_places(self) -> tuple[str, ...]:
        """The same as a tuple, whether it is one place or several."""
        now = self.teacher_now
        return (now,) if isinstance(now, str) else now

    @property
    def looks_inside(self) -> bool:
        """Whether it looks at a level of the student, and not at what comes out of it only."""
        return any(place not in OUTPUTS for place in self.student_places)

    def of_teacher(self, said: Mapping[str, Tensor]) -> Any:
        """The tensor at the teacher's place, or a tuple of them, of what a teacher said by place."""
        now = self.teacher_now
        return said[now] if isinstance(now, str) else tuple(said[place] for place in now)

    @property
    def named_weights(self) -> dict[str, float]:
        """Full part name → its weight."""
        return {f"{self.name}.{part}" if part else self.name: weight for part, weight in self.weights.items()}

    def factor(self, progress: float) -> float:
        """The curriculum's factor at that progress; 1 without a curriculum."""
        return 1.0 if self.curriculum is None else self.curriculum(progress)

    def scales(self, progress: float) -> dict[str, float]:
        """Full part name → what its value is multiplied by at that progress: weight times curriculum."""
        factor = self.factor(progress)
        return {name: factor * weight for name, weight in self.named_weights.items()}

    def is_active(self, progress: float) -> bool:
        """Whether anything of this term counts at that progress."""
        return self.factor(progress) != 0.0 and any(self.weights.values())

    def forward(
        self, student: Any, teacher: Any, *, batch: Batch | None = None, progress: float = 1.0
    ) -> dict[str, Tensor]:
        """Weighted scalars by full name.

        Args:
            student: the tensor at the student's place, or a tuple of them.
            teacher: the same of the teacher.
            batch: what the tensors were made of, for losses that need more of it.
            progress: fraction of training done.
        """
        factor = self.factor(progress)
        more: dict[str, Any] = self._taken_of(batch)
        if self._takes_progress:
            more["progress"] = progress
        if "" in self.weights:
            return {self.name: self.weights[""] * factor * self.loss(student, teacher, **more)}
        names = tuple(name for name, weight in self.weights.items() if weight)
        parts = self.loss.parts(student, teacher, names=names, **more)  # type: ignore[operator]
        if set(parts) != set(names):
            raise ValueError(
                f"{self.name}: weights for the parts {', '.join(names)}, but its loss has {', '.join(parts)}"
            )
        return {f"{self.name}.{part}": self.weights[part] * factor * value for part, value in parts.items()}

    def _taken_of(self, batch: Batch | None) -> dict[str, Tensor]:
        taken = {}
        for name in self._of_the_batch:
            value = None if batch is None else _OF_THE_BATCH[name](batch)
            if value is None:
                raise ValueError(
                    f"{self.name} needs the {name} of a batch: give Batch(images, labels, indices, boxes=…)"
                )
            taken[name] = value
        return taken


def value_at(features: Features, place: Place) -> Any:
    """The tensor at a place of a network: one of its outputs, or one of its levels; a tuple for a tuple."""
    if not isinstance(place, str):
        return tuple(value_at(features, one) for one in place)
    if place in OUTPUTS:
        output = getattr(features, place)
        assert output is not None, place
        return output
    return features.levels[place]
