"""A named, weighted use of a loss: the only place where weights live."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from reldistill.core.types import (
    CLASS_SCORES,
    OUTPUTS,
    TEACHER,
    Batch,
    ChoosesPlace,
    Features,
    Loss,
    LossInParts,
    holds_map,
)
from reldistill.step.curriculum import Curriculum

Place = str | tuple[str, ...]
Places = Place | tuple[Place, ...]
"""A place, or several of them that a loss chooses from."""


class Term(nn.Module):
    """One loss between a place in the student and a place in the teacher.

    Args:
        name: what its value is called, e.g. `kd`. A loss with several parts gives `name.part` for each.
        loss: (student tensor, teacher tensor) → scalar; see `core.types.Loss` for what it can declare.
        student: `logits`, `pooled`, `distilled`, `dense`, `scores`, or the name of a level of the student; several of
            them, as a tuple, for a loss that takes a tuple of tensors.
        teacher: the same for the teacher. A loss that `ChoosesPlace` has a tuple of such places, and looks at one of
            them at a time.
        weights: the weight; for a loss with several parts, part name → weight. A part without one is left out.
        adapter: name of the Distiller's adapter that shapes the student's tensor, or None. It is called with the
            tensors of all the student's places.
        curriculum: factor on the weights over the course of training.
        teacher_name: which of a Distiller's teachers.

    Raises:
        ValueError: when weights and loss do not go together.
    """

    def __init__(
        self,
        name: str,
        loss: Loss,
        *,
        student: Place,
        teacher: Places,
        weights: float | Mapping[str, float],
        adapter: str | None = None,
        curriculum: Curriculum | None = None,
        teacher_name: str = TEACHER,
    ) -> None:
        super().__init__()
        if adapter is not None and getattr(loss, "two_views", False):
            raise ValueError(f"{name}: a loss of two views takes what comes out of the networks, without an adapter")
        if isinstance(weights, Mapping) != isinstance(loss, LossInParts):
            raise ValueError(f"{name}: a loss with parts takes a weight for each part, any other loss takes one number")
        self.name = name
        self.loss = loss
        self.student = student
        self.teacher = teacher
        self.weights = dict(weights) if isinstance(weights, Mapping) else {"": float(weights)}
        self.adapter = adapter
        self.curriculum = curriculum
        self.teacher_name = teacher_name
        self.prefix = ""  # of its parts' names, where a Distiller has several teachers
        self.needs: tuple[str, ...] = tuple(getattr(loss, "needs", ()))
        self.chooses_place = isinstance(loss, ChoosesPlace)
        self.two_views = bool(getattr(loss, "two_views", False))

    @property
    def student_places(self) -> tuple[str, ...]:
        """Where in the student it looks."""
        return (self.student,) if isinstance(self.student, str) else self.student

    @property
    def teacher_now(self) -> Places:
        """Where in the teacher it looks at this step."""
        chosen = cast(ChoosesPlace, self.loss).chosen() if self.chooses_place else None
        return self.teacher if chosen is None else self.teacher[chosen]

    @property
    def teacher_places(self) -> tuple[str, ...]:
        """The same as a tuple, whether it is one place or several."""
        return _flat(self.teacher_now)

    @property
    def looks_inside(self) -> bool:
        """Whether it looks at a level of the student, and not only at its outputs."""
        return any(holds_map(place) for place in self.student_places)

    @property
    def compares_class_scores(self) -> bool:
        """Whether it looks at a network's class scores."""
        return any(place in CLASS_SCORES for place in (*self.student_places, *_flat(self.teacher)))

    def of_teacher(self, outputs: Mapping[str, Tensor]) -> Any:
        """The tensor at the teacher's place, or a tuple of them, of a teacher's outputs by place."""
        return _at(outputs, self.teacher_now)

    @property
    def named_weights(self) -> dict[str, float]:
        """Full part name → its weight."""
        return {self._full(part): weight for part, weight in self.weights.items()}

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
        more = self._taken_of(batch, progress)
        if "" in self.weights:
            return {self._full(""): self.weights[""] * factor * self.loss(student, teacher, **more)}
        names = tuple(name for name, weight in self.weights.items() if weight)
        parts = cast(LossInParts, self.loss).parts(student, teacher, names=names, **more)
        if set(parts) != set(names):
            raise ValueError(
                f"{self.name}: weights for the parts {', '.join(names)}, but its loss has {', '.join(parts)}"
            )
        return {self._full(part): self.weights[part] * factor * value for part, value in parts.items()}

    def _full(self, part: str) -> str:
        return f"{self.prefix}{self.name}.{part}" if part else f"{self.prefix}{self.name}"

    def _taken_of(self, batch: Batch | None, progress: float) -> dict[str, Any]:
        """What the loss needs beside the two tensors, by keyword."""
        taken: dict[str, Any] = {}
        for name in self.needs:
            taken[name] = progress if name == "progress" else _of_the_batch(batch, name)
            if taken[name] is None:
                raise ValueError(f"{self.name} needs the {name} of a batch: give Batch(images, targets, indices)")
        return taken


def _of_the_batch(batch: Batch | None, name: str) -> Tensor | None:
    if batch is None or name == "indices":
        return None if batch is None else batch.indices
    return None if batch.targets is None else batch.targets.for_loss(name, batch.images)


def _flat(places: Places) -> tuple[str, ...]:
    return (places,) if isinstance(places, str) else tuple(one for place in places for one in _flat(place))


def _at(outputs: Mapping[str, Tensor], places: Places) -> Any:
    return outputs[places] if isinstance(places, str) else tuple(_at(outputs, place) for place in places)


def value_at(features: Features, place: Place) -> Any:
    """The tensor at a place of a network: one of its outputs, or one of its levels; a tuple for a tuple."""
    if not isinstance(place, str):
        return tuple(value_at(features, one) for one in place)
    if place in OUTPUTS:
        output = getattr(features, place)
        if output is None:
            raise ValueError(f"the network was not asked for its {place}, or has none")
        return output
    return features.levels[place]
