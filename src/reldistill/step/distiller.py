"""One distillation step: a Batch → the total loss, every part by name, and the student's outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reldistill.core.checks import UserError
from reldistill.core.types import TEACHER, Batch, Features, FeatureSource, Objective, StepOutput, Targets, Wanted
from reldistill.step.balance import Balance
from reldistill.step.term import Place, Term, value_at

TASK = "task"


class Distiller(nn.Module):
    """Teachers, student, adapters, terms and task as one module without optimiser, device or logger.

    The teachers stay frozen and in eval mode whatever is called on them, and no gradient reaches them. Each network is
    asked only for what the active terms need, one teacher after the other.

    Args:
        student: gives Features of images, and is trained.
        teachers: name → gives Features of images; empty where there are no terms. With more than one, every part's name
            begins with its teacher's: `large.kd`.
        terms: what the student is to take over from the teachers; each names its teacher.
        adapters: name → learnable layer on a student's tensor, as the terms name them. One with the class attribute
            `wants_teacher = True` is given the teacher's tensor by the keyword `teacher`, to fit its size.
        task: the student's own loss.
        task_weight: its weight.
        balance: finds the parts' weights while training; None for fixed ones.
        second_view: a batch → another view of its images, for losses of two views. Both networks see the same one; the
            task's loss is on the images themselves.
        left_out: names of the parts that were left out of `terms`, as a teacher has no class scores or the images have
            no labels: for a message to the user.

    Raises:
        ValueError: when a term names a teacher or an adapter that is not there, or a teacher and the student share a
            module or a parameter.
    """

    student: FeatureSource

    def __init__(
        self,
        student: FeatureSource,
        teachers: Mapping[str, FeatureSource],
        *,
        terms: Sequence[Term],
        adapters: Mapping[str, nn.Module],
        task: Objective,
        task_weight: float = 1.0,
        balance: Balance | None = None,
        second_view: Callable[[Batch], Tensor] | None = None,
        left_out: Sequence[str] = (),
    ) -> None:
        super().__init__()
        _check_terms(terms, teachers=teachers, adapters=adapters)
        for term in terms:
            if term.two_views and second_view is None:
                raise ValueError(f"term '{term.name}' compares two views of the images: give a second_view")
        for name, teacher in teachers.items():
            _check_apart(student, teacher, name=name)
        self.student = student
        several = len(teachers) > 1
        # One teacher's weights are found where they have always been in a saved state.
        self._teachers = {name: f"{TEACHER}_{_key(name)}" if several else TEACHER for name in teachers}
        for name, teacher in teachers.items():
            self.add_module(self._teachers[name], teacher.requires_grad_(False))
        for term in terms:
            term.prefix = f"{term.teacher_name}." if several else ""
        self.terms = nn.ModuleList(terms)
        self.adapters = nn.ModuleDict({_key(name): adapter for name, adapter in adapters.items()})
        self.task = task
        self.task_weight = task_weight
        if balance is not None and not task_weight:
            raise ValueError("balance weighs the parts by the task's gradient, but the task's weight is 0")
        self.balance = balance
        self.second_view = second_view
        self.left_out = tuple(left_out)
        self.train(self.training)

    @property
    def teachers(self) -> dict[str, FeatureSource]:
        """Every teacher by name."""
        return {name: getattr(self, attribute) for name, attribute in self._teachers.items()}

    def train(self, mode: bool = True) -> Distiller:
        """Set training mode for everything but the teachers, and what of the student is frozen."""
        super().train(mode)
        for module in self.student.modules():
            if getattr(module, "is_frozen", False):
                module.eval()
        for teacher in self.teachers.values():
            teacher.eval()
        return self

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters of student, adapters and losses: what an optimiser is given."""
        frozen = {id(p) for teacher in self.teachers.values() for p in teacher.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in frozen]

    def export(self) -> nn.Module:
        """The bare student network: a copy on the CPU in eval mode, without teachers, adapters or hooks."""
        return copy.deepcopy(self.student.network).cpu().eval()

    def forward(self, batch: Batch | Sequence[Any], *, progress: float = 1.0) -> StepOutput:
        """The step's losses.

        Args:
            batch: images in [0, 1] (or as the networks' own preparation expects them) with the task's targets; a pair
                (images, labels) counts as one.
            progress: fraction of training done, for the terms' curricula.
        """
        batch = Batch.of(batch)
        terms = [term for term in self._terms() if term.is_active(progress)]
        places = (place for term in terms for place in term.student_places)
        student = self.student.ask(batch.images, Wanted.at(places, logits=True), targets=batch.targets)
        parts: dict[str, Tensor] = {}
        if self.task_weight:
            parts[TASK] = self.task_weight * self.task(student, batch)
        if terms:
            found: dict[str, Tensor] = {}
            scales: dict[str, float] = {}
            for term, values in self._term_values(terms, student, self._said(terms, batch, student), batch, progress):
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
        name: str = TEACHER,
        targets: Targets | None = None,
        proposals: tuple[Tensor, ...] = (),
    ) -> dict[str, Tensor]:
        """A teacher's outputs for images, by the places that its terms look at: (B, …) each.

        Args:
            images: (B, 3, H, W), as in a Batch.
            terms: which terms'; by default all.
            name: which teacher.
            targets: what the images are labelled with: a detector's tell how far each image reaches in its padding.
            proposals: what a two-stage student proposed in each image, for the teacher to score.
        """
        terms = [t for t in (self._terms() if terms is None else terms) if t.teacher_name == name]
        places = [place for term in terms for place in term.teacher_places]
        teacher = self.teachers[name].eval()  # someone may have called train() on it, or on a part of it
        features = teacher.ask(images, Wanted.at(places, proposals=proposals), targets=targets)
        return {place: value_at(features, place) for place in places}

    def _said(self, terms: Sequence[Term], batch: Batch, student: Features) -> dict[str, Mapping[str, Tensor]]:
        """The outputs of each teacher that the terms look at, from the batch where it has them."""
        outputs: dict[str, Mapping[str, Tensor]] = {}
        for name in dict.fromkeys(term.teacher_name for term in terms):
            outputs[name] = batch.teachers.get(name) or self.ask_teacher(
                batch.images, terms, name=name, targets=batch.targets, proposals=student.proposals
            )
        return outputs

    def _term_values(
        self,
        terms: Sequence[Term],
        student: Features,
        outputs: Mapping[str, Mapping[str, Tensor]],
        batch: Batch,
        progress: float,
    ) -> Iterable[tuple[Term, dict[str, Tensor]]]:
        adapted: dict[tuple[str, Place, tuple[Any, ...]], Any] = {}
        again = self._again([term for term in terms if term.two_views], batch)
        for term in terms:
            tensor, theirs = value_at(student, term.student), term.of_teacher(outputs[term.teacher_name])
            if term.two_views and again is not None:
                tensor = tensor, value_at(again[0], term.student)
                theirs = theirs, term.of_teacher(again[1][term.teacher_name])
            if term.adapter is not None:
                adapter = self.adapters[_key(term.adapter)]
                fits = getattr(adapter, "wants_teacher", False)
                key = (term.adapter, term.student, (term.teacher_name, term.teacher_now) if fits else ())
                if key not in adapted:
                    given = tensor if isinstance(tensor, tuple) else (tensor,)
                    adapted[key] = adapter(*given, **({"teacher": theirs} if fits else {}))
                tensor = adapted[key]
            yield term, term(tensor, theirs, batch=batch, progress=progress)

    def _again(self, terms: Sequence[Term], batch: Batch) -> tuple[Features, dict[str, Mapping[str, Tensor]]] | None:
        """The outputs of student and teachers for the second view, where a term wants it."""
        if not terms or self.second_view is None:
            return None
        with torch.no_grad():
            seen = Batch(self.second_view(batch), batch.targets, batch.indices)
        student = self.student.ask(seen.images, Wanted.at(place for term in terms for place in term.student_places))
        return student, self._said(terms, seen, student)

    def _nothing_from_idle(self, active: Sequence[Term], student: Features) -> Tensor | float:
        """0, with a gradient of 0 for what no active part uses: DistributedDataParallel waits for every parameter."""
        used = {_key(term.adapter) for term in active if term.adapter is not None}
        modules: list[nn.Module] = [term for term in self._terms() if term not in active]
        modules += [adapter for name, adapter in self.adapters.items() if name not in used]
        idle: list[Tensor] = [p for module in modules for p in module.parameters() if p.requires_grad]
        if not self.task_weight and not any("logits" in term.student_places for term in active):
            vectors = [vector for vector in (student.logits, student.pooled) if vector is not None]
            idle += vectors or student.losses.values()
        return sum((0.0 * tensor.float().sum() for tensor in idle), 0.0)

    def _terms(self) -> list[Term]:
        return list(self.terms)  # type: ignore[arg-type]


def _check_terms(terms: Sequence[Term], *, teachers: Mapping[str, Any], adapters: Mapping[str, Any]) -> None:
    for term in terms:
        if not teachers:
            raise ValueError(f"term '{term.name}' needs a teacher")
        if term.teacher_name not in teachers:
            raise ValueError(
                f"term '{term.name}' looks at teacher '{term.teacher_name}', which is not among {', '.join(teachers)}"
            )
        if term.adapter is not None and term.adapter not in adapters:
            raise ValueError(f"term '{term.name}' names adapter '{term.adapter}', which is not among {[*adapters]}")


def _check_apart(student: nn.Module, teacher: nn.Module, *, name: str) -> None:
    """UserError where what is trained is also part of a teacher, which must stay as it is."""
    ours = {id(part): path for path, part in (*student.named_modules(), *student.named_parameters())}
    for _, part in (*teacher.named_modules(), *teacher.named_parameters()):
        if id(part) in ours:
            what = f"'{ours[id(part)]}'" if ours[id(part)] else "the whole network"
            raise UserError(
                f"the student shares {what} with its teacher '{name}', which must stay as it is: give the student a "
                f"copy of its own (copy.deepcopy)"
            )


def _key(name: str) -> str:
    # ModuleDict keys can't hold dots, level names do; they hold no slashes.
    return name.replace(".", "/")
