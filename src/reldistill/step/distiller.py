"""One distillation step: a Batch → the total loss, every part by name, and what the student said."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from reldistill.core.types import OUTPUTS, Batch, Boxes, Features, StepOutput, Task
from reldistill.step.balance import Balance
from reldistill.step.term import Place, Term, value_at

if TYPE_CHECKING:
    from reldistill.core.types import FeatureSource

TASK = "task"


class Distiller(nn.Module):
    """Teacher, student, adapters, terms and task as one module without optimiser, device or logger.

    The teacher stays frozen and in eval mode whatever `train()` says, and no gradient reaches it. Each network is asked
    only for what the active terms need.

    Args:
        student: says Features of images, and is trained.
        teacher: says Features of images; None where there are no terms.
        terms: what the student is to take over from the teacher.
        adapters: name → learnable layer on a student's tensor, as the terms name them. One that takes `teacher` by
            keyword is given the teacher's tensor, to fit the size that it has in this batch.
        task: the student's own loss.
        task_weight: its weight.
        balance: finds the parts' weights while training; None for fixed ones.

    Raises:
        ValueError: when there are terms but no teacher, or a term names an adapter that is not there.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        *,
        terms: Sequence[Term],
        adapters: Mapping[str, nn.Module],
        task: Task,
        task_weight: float = 1.0,
        balance: Balance | None = None,
    ) -> None:
        super().__init__()
        if terms and teacher is None:
            raise ValueError(f"term '{terms[0].name}' needs a teacher")
        for term in terms:
            if term.adapter is not None and term.adapter not in adapters:
                raise ValueError(f"term '{term.name}' names adapter '{term.adapter}', which is not among {[*adapters]}")
        self.student = student
        self.teacher = teacher
        if teacher is not None:
            teacher.requires_grad_(False)
        self.terms = nn.ModuleList(terms)
        self.adapters = nn.ModuleDict({_key(name): adapter for name, adapter in adapters.items()})
        self.task = task
        self.task_weight = task_weight
        if balance is not None and not task_weight:
            raise ValueError("balance weighs the parts by the task's gradient, but the task's weight is 0")
        self.balance = balance
        self.train(self.training)

    def train(self, mode: bool = True) -> Distiller:
        """Set training mode for everything but the teacher."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters of student, adapters and losses: what an optimiser is given."""
        return [p for p in self.parameters() if p.requires_grad]

    def export(self) -> nn.Module:
        """The bare student network: a copy on the CPU in eval mode, without teacher, adapters or hooks."""
        network = getattr(self.student, "network", self.student)
        return copy.deepcopy(network).cpu().eval()

    def forward(self, batch: Batch | tuple[Tensor, Tensor], *, progress: float = 1.0) -> StepOutput:
        """The step's losses.

        Args:
            batch: images in [0, 1] (or as the student's and teacher's own preparation expects them) with labels.
            progress: fraction of training done, for the terms' curricula.
        """
        if not isinstance(batch, Batch):
            batch = Batch(*batch)
        terms = [term for term in self._terms() if term.is_active(progress)]
        student = _ask(
            self.student,
            batch.images,
            (place for t in terms for place in t.student_places),
            logits=True,
            boxes=batch.boxes,
        )
        parts: dict[str, Tensor] = {}
        if self.task_weight:
            parts[TASK] = self.task_weight * self.task(student, batch)
        if terms:
            teacher = batch.teacher
            if teacher is None:
                teacher = self.ask_teacher(batch.images, terms, boxes=batch.boxes, proposals=student.proposals)
            found: dict[str, Tensor] = {}
            scales: dict[str, float] = {}
            for term, values in self._term_values(terms, student, teacher, batch, progress):
                for name, value in values.items():
                    found[name] = found[name] + value if name in found else value
                scales |= term.scales(progress)
            if self.balance is not None:
                found = self.balance(parts[TASK], found, scales=scales, parameters=self.student.parameters())
            parts |= found
        if not parts:
            raise ValueError("nothing to minimise: the task's weight is 0 and no term is active")
        total = sum(parts.values(), batch.images.new_zeros((), dtype=torch.float32))
        if torch.is_grad_enabled():
            total = total + self._nothing_from_idle(terms, student)
        return StepOutput(total, {name: value.detach() for name, value in parts.items()}, student)

    @torch.no_grad()
    def ask_teacher(
        self,
        images: Tensor,
        terms: Sequence[Term] | None = None,
        *,
        boxes: Boxes | None = None,
        proposals: tuple[Tensor, ...] = (),
    ) -> dict[str, Tensor]:
        """What the teacher says of images, by the places that the terms look at: (B, …) each.

        Args:
            images: (B, 3, H, W), as in a Batch.
            terms: which terms'; by default all.
            boxes: the objects in the images, where there are any.
            proposals: what a two-stage student proposed in each image, for the teacher to score.
        """
        assert self.teacher is not None
        terms = self._terms() if terms is None else terms
        places = [place for term in terms for place in term.teacher_places]
        features = _ask(self.teacher, images, places, logits=False, boxes=boxes, proposals=proposals)
        return {place: value_at(features, place) for t in terms for place in t.teacher_places}

    def _term_values(
        self, terms: Sequence[Term], student: Features, teacher: Mapping[str, Tensor], batch: Batch, progress: float
    ) -> Iterable[tuple[Term, dict[str, Tensor]]]:
        adapted: dict[tuple[str, Place], Any] = {}
        for term in terms:
            tensor, theirs = value_at(student, term.student), term.of_teacher(teacher)
            if term.adapter is not None:
                key = (term.adapter, term.student)
                if key not in adapted:
                    adapter = self.adapters[_key(term.adapter)]
                    given = tensor if isinstance(tensor, tuple) else (tensor,)
                    more = {"teacher": theirs} if "teacher" in inspect.signature(adapter.forward).parameters else {}
                    adapted[key] = adapter(*given, **more)
                tensor = adapted[key]
            yield term, term(tensor, theirs, batch=batch, progress=progress)

    def _nothing_from_idle(self, active: Sequence[Term], student: Features) -> Tensor | float:
        """0, with a gradient of 0 for what no active part uses: DistributedDataParallel waits for every parameter."""
        used = {_key(term.adapter) for term in active if term.adapter is not None}
        modules: list[nn.Module] = [term for term in self._terms() if term not in active]
        modules += [adapter for name, adapter in self.adapters.items() if name not in used]
        idle: list[Tensor] = [p for module in modules for p in module.parameters() if p.requires_grad]
        if not self.task_weight and not any("logits" in term.student_places for term in active):
            idle += student.losses.values() if student.logits is None else [student.logits]
        return sum((0.0 * tensor.float().sum() for tensor in idle), 0.0)

    def _terms(self) -> list[Term]:
        return list(self.terms)  # type: ignore[arg-type]


def _ask(
    network: nn.Module | FeatureSource,
    images: Tensor,
    places: Iterable[str],
    *,
    logits: bool,
    boxes: Boxes | None = None,
    proposals: tuple[Tensor, ...] = (),
) -> Features:
    wanted = dict.fromkeys(places)
    levels = tuple(p for p in wanted if p not in OUTPUTS)
    # What few networks have is asked for only where it is wanted.
    more = {name: True for name in ("distilled", "dense", "scores") if name in wanted}
    objects: dict[str, Any] = {} if boxes is None else {"boxes": boxes}
    if proposals and "scores" in wanted:
        objects["proposals"] = proposals
    return network(
        images, levels=levels, logits=logits or "logits" in wanted, pooled="pooled" in wanted, **more, **objects
    )


def _key(name: str) -> str:
    # ModuleDict keys can't hold dots, level names do; they hold no slashes.
    return name.replace(".", "/")
