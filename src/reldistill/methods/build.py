"""Method names → terms → a Distiller, for any pair of networks of any task."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from torch import nn

from reldistill.core.checks import UserError
from reldistill.core.types import TEACHER, FeatureSource, Objective
from reldistill.methods.plan import DEFAULT_CHOICES, Choices, PairPlan, Plan
from reldistill.methods.table import METHODS
from reldistill.methods.views import strong_view
from reldistill.networks.extract import Extractor
from reldistill.step.balance import Balance
from reldistill.step.distiller import TASK, Distiller
from reldistill.step.term import Place, Places, Term

Source = TypeVar("Source", bound=FeatureSource)
Pair = TypeVar("Pair", bound=PairPlan[Any])


class Unavailable(UserError):
    """A method takes over nothing from these networks and images: joined with others it is left out."""


@runtime_checkable
class TermSource(Protocol):
    """How a task takes part in methods: which networks it is for, and each method's terms between two of them."""

    def wrap(self, network: nn.Module, *, name: str) -> FeatureSource:
        """The network as a source of Features, called `name` if it has no name of its own; UserError for others."""
        ...

    def plan(
        self,
        student: FeatureSource,
        teacher: FeatureSource,
        image_size: int,
        *,
        choices: Choices = DEFAULT_CHOICES,
        images: int | None = None,
        teacher_name: str = TEACHER,
    ) -> PairPlan[Any]:
        """What terms between two surveyed networks are built from: see `PairPlan`."""
        ...

    def terms(self, method: str, plan: Any) -> list[Term]:
        """One method's terms, those too that need what is not `plan.available`.

        Raises:
            Unavailable: without that, none would be left.
            UserError: the method is not for this task; the message names those that are.
        """
        ...


@runtime_checkable
class TaskObjective(Objective, Protocol):
    """A task's own loss, which also tells how methods distil networks for this task.

    One with `own_loss = False`, a class attribute, has nothing to minimise without a teacher: its weight is 0.
    """

    @property
    def methods(self) -> TermSource:
        """Which terms there are; a class attribute will do."""
        ...


class PairTerms(Generic[Source, Pair]):
    """What the term sources of all tasks have in common: networks of one kind, and one kind of plan for two of them.

    Args:
        task: what to call the task in messages.
        provides: what the task has for a method, as `Method.needs` names it.
        source: makes a FeatureSource of a bare network.
        pair: the plan between two of them.
    """

    task: str
    provides: frozenset[str]
    source: type[Source]
    pair: type[Pair]

    def wrap(self, network: nn.Module, *, name: str) -> Source:
        """The FeatureSource around a bare network; one of this kind is returned as it is."""
        if isinstance(network, self.source):
            return network
        if isinstance(network, FeatureSource):
            raise UserError(
                f"the {name} {network.name} is not a network for {self.task}: student and teacher must do the same task"
            )
        return self.source(network, name=name)

    def plan(
        self,
        student: FeatureSource,
        teacher: FeatureSource,
        image_size: int,
        *,
        choices: Choices = DEFAULT_CHOICES,
        images: int | None = None,
        teacher_name: str = TEACHER,
    ) -> Pair:
        """See `TermSource`."""
        networks = self.wrap(student, name="student"), self.wrap(teacher, name=teacher_name)
        return self.pair(*networks, image_size, choices, images, self.provides, teacher_name)


@dataclass(frozen=True)
class LevelTerms(PairTerms[Extractor, Plan]):
    """The methods between networks with levels and one output each, as classification has them.

    Args:
        task: what to call the task in messages.
        provides: what the task has for a method, as `Method.needs` names it: `levels` and `pooled` exist in any
            network; class scores (`classes`) and one class for each image (`labels`) do not exist in every task.
    """

    task: str
    provides: frozenset[str] = frozenset({"levels", "pooled"})
    source = Extractor
    pair = Plan

    def terms(self, method: str, plan: Plan) -> list[Term]:
        """The method's terms, where the task has what it needs."""
        known = [name for name, one in METHODS.items() if one.terms is not None]
        build = METHODS[method].terms
        if build is None:
            raise not_for(self.task, method, [name for name in known if METHODS[name].needs <= self.provides])
        check_available(method, plan, known)
        return build(plan)


def not_for(task: str, method: str, fitting: Sequence[str]) -> UserError:
    """The error for a method that a task has no terms for."""
    return UserError(f"method '{method}' is not for {task}: choose one of {', '.join(fitting)}")


_LACKS = {
    "classes": "class scores, and {teacher} has none for the student's classes",
    "labels": "labelled images, and there are none",
    "boxes": "labelled boxes, and there are none",
    "levels": "levels, and there are none",
    "pooled": "a vector of each image, and there is none",
}


def check_available(method: str, plan: PairPlan[Any], known: Sequence[str]) -> None:
    """Unavailable for a method that needs what these networks and images don't have.

    Args:
        method: the method.
        plan: the pair.
        known: the methods that the task has terms for, which the message chooses from.
    """
    lacking = [what for what in _LACKS if what in METHODS[method].needs - plan.available]
    if lacking:
        instead = [name for name in known if METHODS[name].needs and METHODS[name].needs <= plan.available]
        why = "; ".join(_LACKS[what].format(teacher=plan.teacher.name) for what in lacking)
        raise Unavailable(f"method '{method}' needs {why}: take one of {', '.join(instead)} instead")


def method_names(method: str) -> list[str]:
    """`kd+rkd` → ["kd", "rkd"].

    Raises:
        UserError: when a name is not a method as it is listed, is given twice, or joins `none` with others.
    """
    names = method.split("+")
    for name in names:
        if name not in METHODS:
            close = difflib.get_close_matches(name.strip().lower(), METHODS, n=1, cutoff=0.8)
            hint = f"did you mean {close[0]}? " if close else ""
            whole = f" of '{method}'" if name != method else ""
            raise UserError(
                f"method '{name}'{whole} is unknown: {hint}choose one of {', '.join(METHODS)}, joined by + "
                f"(see: reldistill list methods)"
            )
        if names.count(name) > 1 or (name == "none" and len(names) > 1):
            why = "is the student alone" if name == "none" else "is given twice"
            raise UserError(f"method '{method}': {name} {why}; leave it out")
    return names


def build_terms(method: str, source: TermSource, plan: PairPlan[Any]) -> list[Term]:
    """The terms of one method or of several joined by `+`; a part that two methods name counts once.

    Args:
        method: e.g. `serkd`, `kd+rkd`.
        source: the task's.
        plan: the pair of networks and the user's choices; its adapters are filled, and what is left out is named.

    Raises:
        UserError: when a method, level, setting or weight is not known, levels are given that nothing uses, or nothing
            of the method is left.
    """
    terms: dict[tuple[str, Place, Places], Term] = {}
    left_out: dict[str, Unavailable | None] = {}
    for name in method_names(method):
        try:
            found = source.terms(name, plan)
        except Unavailable as error:
            left_out[name] = error
            continue
        for term in found:
            if plan.can_have(term):
                terms.setdefault((term.name, term.student, term.teacher), term)
            else:
                left_out.setdefault(term.name)
    refused = next((error for error in left_out.values() if error is not None), None)
    if refused is not None and not terms:
        raise refused
    plan.left_out = list(left_out)
    curriculum = plan.choices.curriculum
    for term in terms.values():
        if curriculum is not None and (term.curriculum is not None or not term.compares_class_scores):
            term.curriculum = curriculum
    _check_choices(method, list(terms.values()), plan.choices, left_out=plan.left_out)
    return list(terms.values())


def build_distiller(
    method: str,
    *,
    student: nn.Module,
    teacher: nn.Module | None = None,
    teachers: Mapping[str, nn.Module] | None = None,
    image_size: int,
    task: TaskObjective,
    choices: Choices = DEFAULT_CHOICES,
    images: int | None = None,
) -> Distiller:
    """A Distiller for any pair of networks, its levels and adapters found by a dry run.

    Args:
        method: a method's name, or several joined by `+`.
        student: a network, or an Extractor around it that knows its normalisation; for detection a detector of
            torchvision's, or a DetectorExtractor around it that knows its classes. A bare network gets images as they
            come.
        teacher: the same for the teacher; left out for `none`.
        teachers: name → teacher, instead of one: the method's terms are built for each, and their parts are called
            `NAME.PART`. A weight in `choices` is of one teacher's part, or by the bare part's name of all teachers'.
        image_size: side of the images that a Batch will hold.
        task: the student's own loss.
        choices: what differs from the method's defaults.
        images: number of training images, which methods with a memory of them need (crd).

    Raises:
        UserError: when a name is unknown, the method is not for this task, nothing of it is left without class scores
            or labels, or class scores are compared and teacher and student differ in their number of classes.
    """
    if teacher is not None and teachers is not None:
        raise ValueError("give build_distiller one teacher, or teachers by name, not both")
    given = teachers if teachers is not None else {} if teacher is None else {TEACHER: teacher}
    names = method_names(method)
    ours = task.methods.wrap(student, name="student")
    if not given:
        return _without_teacher(method, ours, task, choices)
    theirs = {name: task.methods.wrap(one, name=name) for name, one in given.items()}
    for network in (ours, *theirs.values()):
        network.survey(image_size)
    plans = {
        name: task.methods.plan(
            ours, one, image_size, choices=_of_teacher(choices, name, theirs), images=images, teacher_name=name
        )
        for name, one in theirs.items()
    }
    _change_student(plans, names, image_size)
    if not has_loss(task):
        if choices.weights.get(TASK):
            raise UserError(f"weights: '{TASK}' has no loss of its own on images without labels: leave its weight out")
        choices = dataclasses.replace(choices, weights={**choices.weights, TASK: 0.0})
    elif not choices.balance:
        taken = [name for name in names if any(METHODS[name].needs <= plan.available for plan in plans.values())]
        own = math.prod(METHODS[name].task_weight for name in taken)
        choices = dataclasses.replace(choices, weights={TASK: own, **choices.weights})
    return _distiller(method, plans, task, choices)


def has_loss(task: TaskObjective) -> bool:
    """Whether the task has something to minimise without a teacher."""
    return bool(getattr(task, "own_loss", True))


def _distiller(method: str, plans: Mapping[str, PairPlan[Any]], task: TaskObjective, choices: Choices) -> Distiller:
    """The Distiller of a method's terms between the student and each teacher."""
    terms: list[Term] = []
    adapters: dict[str, nn.Module] = {}
    left_out: list[str] = []
    for name, plan in plans.items():
        found = build_terms(method, task.methods, plan)
        _check_classes(found, plan)
        if len(plans) > 1:
            _name_after(name, found)
            plan.adapters = {f"{name}:{key}": adapter for key, adapter in plan.adapters.items()}
            plan.left_out = [f"{name}.{part}" for part in plan.left_out]
        left_out += plan.left_out
        terms += found
        adapters |= plan.adapters
    _check_weights(method, terms, choices)
    terms = [term for term in terms if any(term.weights.values())]
    used = {term.adapter for term in terms}
    parts = dict.fromkeys(name for term in terms for name in term.named_weights)
    return Distiller(
        next(iter(plans.values())).student,
        {name: plan.teacher for name, plan in plans.items()} if terms else {},
        terms=terms,
        adapters={name: adapter for name, adapter in adapters.items() if name in used},
        task=task,
        task_weight=choices.weights.get(TASK, 1.0),
        balance=Balance(list(parts), share=choices.balance) if choices.balance and terms else None,
        second_view=strong_view,
        left_out=left_out,
    )


def _without_teacher(method: str, student: FeatureSource, task: TaskObjective, choices: Choices) -> Distiller:
    """The student alone."""
    if method_names(method) != ["none"]:
        raise UserError(f"method '{method}' needs a teacher")
    if not has_loss(task):
        raise UserError("without labels there is nothing to learn from but a teacher: distil one (reldistill distill)")
    _check_choices(method, [], choices)
    _check_weights(method, [], choices)
    return Distiller(student, {}, terms=[], adapters={}, task=task, task_weight=choices.weights.get(TASK, 1.0))


def _change_student(plans: Mapping[str, PairPlan[Any]], names: Sequence[str], image_size: int) -> None:
    """Make the student, in all plans, what the methods want before terms are built."""
    student = next(iter(plans.values())).student
    for plan in plans.values():
        taken = [METHODS[name] for name in names if METHODS[name].needs <= plan.available]
        for change in dict.fromkeys(method.change_student for method in taken):
            if change is not None and isinstance(student, Extractor) and isinstance(plan.teacher, Extractor):
                student = change(student, plan.teacher, image_size)
                student.survey(image_size)
    for plan in plans.values():
        plan.student = student


def _of_teacher(choices: Choices, name: str, teachers: Mapping[str, Any]) -> Choices:
    """The choices for one of several teachers: its own weights take precedence over those for all."""
    if len(teachers) == 1:
        return choices
    others = tuple(f"{other}." for other in teachers)
    shared = {part: weight for part, weight in choices.weights.items() if not part.startswith(others)}
    own = {
        part.removeprefix(f"{name}."): weight for part, weight in choices.weights.items() if part.startswith(f"{name}.")
    }
    return dataclasses.replace(choices, weights={**shared, **own})


def _name_after(teacher: str, terms: Sequence[Term]) -> None:
    """Tell the terms of several teachers apart, and their adapters."""
    for term in terms:
        term.prefix = f"{teacher}."
        term.adapter = None if term.adapter is None else f"{teacher}:{term.adapter}"


def _check_choices(method: str, terms: Sequence[Term], choices: Choices, *, left_out: Sequence[str] = ()) -> None:
    """UserError for settings and levels that the terms have no use for, and for weights that are invalid or unknown.

    What is left out is left out with its settings and weights.
    """
    parts = dict.fromkeys([TASK, *(name for t in terms for name in t.named_weights)])
    for name, weight in choices.weights.items():
        if name not in parts and name.partition(".")[0] not in left_out:
            raise UserError(f"'{name}' is not a part of method '{method}': it has {', '.join(parts)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"the weight of '{name}' must be a finite number, at least 0, got {weight}")
    for name in choices.settings:
        if name not in {*left_out, *(t.name for t in terms)}:
            raise UserError(
                f"settings for '{name}', which is not a term of method '{method}': it has "
                f"{', '.join(dict.fromkeys(t.name for t in terms)) or 'none'}"
            )
    if choices.levels and not any(t.looks_inside for t in terms):
        raise UserError(f"levels are given, but method '{method}' looks at none")


def _check_weights(method: str, terms: Sequence[Term], choices: Choices) -> None:
    """UserError where nothing would be left to minimise, or to balance by."""
    if choices.weights.get(TASK, 1.0):
        return
    if not any(t.is_active(1.0) for t in terms):
        raise UserError(f"nothing to minimise: the weights of '{TASK}' and of all parts of '{method}' are 0")
    if choices.balance:
        raise UserError(f"balance weighs the parts by the task's gradient: the weight of '{TASK}' can't be 0")


def _check_classes(terms: Sequence[Term], plan: PairPlan[Any]) -> None:
    """UserError where class scores of unlike classes would be compared."""
    compared = [
        place for term in terms if any(term.weights.values()) for place in (*term.student_places, *term.teacher_places)
    ]
    if "logits" in compared and plan.student.num_classes != plan.teacher.num_classes:
        raise UserError(
            f"the teacher {plan.teacher.name} has {plan.teacher.num_classes} classes and the student "
            f"{plan.student.name} {plan.student.num_classes}: train the teacher on the student's data first"
        )
