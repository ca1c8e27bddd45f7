"""Method name → terms and adapters for a pair of networks: the one place that says what `serkd` is by default.

The default weights come from the measurements shown in docs/results.md.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from reldistill.checks import UserError
from reldistill.features.adapters import StridedTokeniser, map_adapter
from reldistill.features.extract import Extractor
from reldistill.features.levels import pick_levels
from reldistill.losses.fitnets import FitNets
from reldistill.losses.kd import KD
from reldistill.losses.rkd import RKD
from reldistill.losses.sekd import SEKD
from reldistill.losses.serkd import SeRKD
from reldistill.step.curriculum import Curriculum
from reldistill.step.distiller import TASK, Distiller
from reldistill.step.term import Term
from reldistill.types import LevelInfo, Task

KD_WEIGHT = 1.0


@dataclass
class Plan:
    """What a method builds its terms from: the two networks as a dry run found them, and what the user set.

    Args:
        student: the student.
        teacher: the teacher.
        image_size: side of the images in a Batch.
        levels: (student level, teacher level) names to use instead of the automatic choice.
        settings: loss name → keyword arguments that replace a method's own.
        weights: full part name (`kd`, `serkd.distance`, …) → weight that replaces a method's own.
        adapters: name → adapter, filled while the terms are built.
    """

    student: Extractor
    teacher: Extractor
    image_size: int
    levels: Sequence[tuple[str, str]] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    adapters: dict[str, nn.Module] = field(default_factory=dict)

    def pairs(self, count: int, *, smallest: int = 1) -> list[tuple[LevelInfo, LevelInfo]]:
        """The user's pairs of levels, else up to `count` that a dry run matched, from shallow to deep.

        Args:
            count: how many.
            smallest: the fewest cells along a side that a matched level may have.
        """
        if self.levels:
            return [
                (self.student.level(student, self.image_size), self.teacher.level(teacher, self.image_size))
                for student, teacher in self.levels
            ]
        stages = []
        for network in (self.student, self.teacher):
            found = network.stages(self.image_size)
            if not found:
                raise UserError(
                    f"{network.name} has no place that holds a map or patch tokens at {self.image_size}x"
                    f"{self.image_size}: only methods on logits fit it (kd, rkd)"
                )
            stages.append([level for level in found if min(level.height, level.width) >= smallest])
            if not stages[-1]:
                raise UserError(
                    f"{network.name} has no level of {smallest}x{smallest} cells or more at {self.image_size}x"
                    f"{self.image_size}: give larger images"
                )
        count = min(count, len(stages[0]), len(stages[1]))
        return list(zip(pick_levels(stages[0], count), pick_levels(stages[1], count), strict=True))

    def adapter(self, student: LevelInfo, teacher: LevelInfo) -> str | None:
        """Name of the adapter between two levels, shared by all terms that ask for it; None where none is needed."""
        name = f"{student.name}->{teacher.name}"
        if name not in self.adapters:
            adapter = map_adapter(student, teacher)
            if adapter is None:
                return None
            self.adapters[name] = adapter
        return name

    def loss(self, name: str, kind: Callable[..., nn.Module], settings: Mapping[str, Any] | None = None) -> nn.Module:
        """The loss with these settings, or with the user's for that name."""
        settings = self.settings.get(name, {}) if settings is None else settings
        # Weights live in the terms: a loss's own are for those who use it alone.
        known = [setting for setting in inspect.signature(kind).parameters if not setting.endswith("_weight")]
        for setting in settings:
            if setting.endswith("_weight"):
                part = f"{name}.{setting.removesuffix('_weight')}"
                raise UserError(f"'{setting}' is not a setting of {name}: set the weight of '{part}' instead")
            if setting not in known:
                raise UserError(f"'{setting}' is not a setting of {name}: it has {', '.join(known)}")
        try:
            return kind(**settings)
        except (ValueError, TypeError) as error:
            raise UserError(f"settings of {name}: {error}") from error

    def term(
        self,
        name: str,
        loss: nn.Module,
        student: str,
        teacher: str,
        weights: float | Mapping[str, float],
        *,
        adapter: str | None = None,
    ) -> Term:
        """A term with the method's weights, or the user's where they were given."""
        if isinstance(weights, Mapping):
            chosen: Any = {part: self.weights.get(f"{name}.{part}", weight) for part, weight in weights.items()}
        else:
            chosen = self.weights.get(name, weights)
        return Term(name, loss, student=student, teacher=teacher, weights=chosen, adapter=adapter)


@dataclass(frozen=True)
class Method:
    """One name that `--method` takes.

    Args:
        summary: what it transfers, in a few words.
        paper: where it comes from.
        build: Plan → terms.
    """

    summary: str
    paper: str
    build: Callable[[Plan], list[Term]]


def _none(plan: Plan) -> list[Term]:
    return []


def _kd(plan: Plan) -> list[Term]:
    return [plan.term("kd", plan.loss("kd", KD), "logits", "logits", KD_WEIGHT)]


def _rkd(plan: Plan) -> list[Term]:
    return [plan.term("rkd", plan.loss("rkd", RKD), "pooled", "pooled", {"distance": 25.0, "angle": 50.0})]


def _fitnets(plan: Plan) -> list[Term]:
    loss = plan.loss("fitnets", FitNets, {"relative": True, **plan.settings.get("fitnets", {})})
    return [
        plan.term("fitnets", loss, student.name, teacher.name, 1.0, adapter=plan.adapter(student, teacher))
        for student, teacher in plan.pairs(1)
    ]


def _serkd(plan: Plan) -> list[Term]:
    terms = _kd(plan)
    for student, teacher in plan.pairs(1, smallest=3):
        settings = {
            "student_tokeniser": "none" if student.kind == "tokens" else "average",
            "teacher_tokeniser": "none" if teacher.kind == "tokens" else "average",
            **plan.settings.get("serkd", {}),
        }
        convolution = settings["student_tokeniser"] == "convolution"
        loss = plan.loss("serkd", SeRKD, {**settings, "student_tokeniser": "none"} if convolution else settings)
        assert isinstance(loss, SeRKD)
        tokeniser = _strided_tokeniser(plan, student, largest_grid=loss.largest_grid) if convolution else None
        _check_superpixels(loss, student, teacher, tokeniser=plan.adapters.get(tokeniser or ""))
        weights = {"distance": 25.0, "angle": 50.0}
        terms.append(plan.term("serkd", loss, student.name, teacher.name, weights, adapter=tokeniser))
        feature = plan.loss("feature", FitNets, {"relative": True, **plan.settings.get("feature", {})})
        adapter = plan.adapter(student, teacher)
        terms.append(plan.term("feature", feature, student.name, teacher.name, 1.0, adapter=adapter))
    return terms


def _sekd(plan: Plan) -> list[Term]:
    terms = _kd(plan)
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


METHODS: dict[str, Method] = {
    "none": Method("the student alone, by its task's loss", "", _none),
    "kd": Method("softened class scores", "Hinton, Vinyals, Dean 2015, arXiv 1503.02531", _kd),
    "fitnets": Method("the features of a level, through an adapter", "Romero et al. 2015, arXiv 1412.6550", _fitnets),
    "rkd": Method("distances and angles between the samples of a batch", "Park et al. 2019, arXiv 1904.05068", _rkd),
    "serkd": Method(
        "distances and angles between the superpixel tokens of an image, features, class scores",
        "SeRKD 2025, arXiv 2503.21269",
        _serkd,
    ),
    "sekd": Method(
        "the channels' relational graph: vertices, edges and spectral embedding on several levels, class scores",
        "Wang et al. 2024, arXiv 2405.08547",
        _sekd,
    ),
}


def method_names(method: str) -> list[str]:
    """`kd+rkd` → ["kd", "rkd"].

    Raises:
        UserError: when a name is not a method.
    """
    names = [name.strip().lower() for name in method.split("+")]
    for name in names:
        if name not in METHODS:
            raise UserError(
                f"method '{name}' is not known: there are {', '.join(METHODS)}, joined by + "
                f"(see: reldistill list methods)"
            )
    return names


def build_terms(method: str, plan: Plan, *, curriculum: Curriculum | None = None) -> list[Term]:
    """The terms of one method or of several joined by `+`; a part that two methods name counts once.

    Args:
        method: e.g. `serkd`, `kd+rkd`.
        plan: the pair of networks and the user's choices; its adapters are filled.
        curriculum: factor on all weights but the logit terms'.

    Raises:
        UserError: when a method, level, setting or weight is not known, or levels are given that nothing uses.
    """
    terms: dict[tuple[str, str, str], Term] = {}
    for name in method_names(method):
        for term in METHODS[name].build(plan):
            terms.setdefault((term.name, term.student, term.teacher), term)
    chosen = list(terms.values())
    _check_choices(method, chosen, levels=plan.levels, settings=plan.settings, weights=plan.weights)
    for term in chosen:
        if term.student != "logits":
            term.curriculum = curriculum
    return chosen


def _check_choices(
    method: str,
    terms: Sequence[Term],
    *,
    levels: Sequence[tuple[str, str]],
    settings: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, float],
) -> None:
    """UserError for anything the user set that the terms don't have, or that would leave nothing to minimise."""
    parts = dict.fromkeys([TASK, *(f"{t.name}.{part}" if part else t.name for t in terms for part in t.weights)])
    for name, weight in weights.items():
        if name not in parts:
            raise UserError(f"'{name}' is not a part of method '{method}': it has {', '.join(parts)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"the weight of '{name}' must be a finite number, at least 0, got {weight}")
    for name in settings:
        if name not in {t.name for t in terms}:
            raise UserError(
                f"settings for '{name}', which is not a term of method '{method}': it has "
                f"{', '.join(dict.fromkeys(t.name for t in terms)) or 'none'}"
            )
    if levels and all(t.student in ("logits", "pooled") for t in terms):
        raise UserError(f"levels are given, but method '{method}' looks at none")
    if not weights.get(TASK, 1.0) and not any(t.is_active(1.0) for t in terms):
        raise UserError(f"nothing to minimise: the weights of '{TASK}' and of all parts of '{method}' are 0")


def build_distiller(
    method: str,
    *,
    student: Extractor | nn.Module,
    teacher: Extractor | nn.Module | None,
    image_size: int,
    task: Task,
    levels: Sequence[tuple[str, str]] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    weights: Mapping[str, float] | None = None,
    curriculum: Curriculum | None = None,
) -> Distiller:
    """A Distiller for any pair of networks, its levels and adapters found by a dry run.

    Args:
        method: a method's name, or several joined by `+`.
        student: a network, or an Extractor around it that knows its normalisation. A bare network gets images as they
            come.
        teacher: the same for the teacher; None for `none`.
        image_size: side of the images that a Batch will hold.
        task: the student's own loss.
        levels: (student level, teacher level) names, instead of the automatic choice.
        settings: loss name → keyword arguments, e.g. `{"serkd": {"iterations": 2}}`.
        weights: part name → weight, e.g. `{"kd": 2.0, "serkd.angle": 4.0, "task": 0.5}`; what has 0 is not computed.
        curriculum: factor on the weights of all but the logit terms.

    Raises:
        UserError: when a name is unknown, or class scores are compared and teacher and student differ in their number
            of classes.
    """
    settings, weights = settings or {}, weights or {}
    student = student if isinstance(student, Extractor) else Extractor(student, name="student")
    if teacher is None:
        if method_names(method) != ["none"]:
            raise UserError(f"method '{method}' needs a teacher")
        _check_choices(method, [], levels=levels, settings=settings, weights=weights)
        return Distiller(student, None, terms=[], adapters={}, task=task, task_weight=weights.get(TASK, 1.0))
    teacher = teacher if isinstance(teacher, Extractor) else Extractor(teacher, name="teacher")
    student.survey(image_size)
    teacher.survey(image_size)
    plan = Plan(student, teacher, image_size, levels, settings, weights)
    terms = [term for term in build_terms(method, plan, curriculum=curriculum) if any(term.weights.values())]
    if any(term.student == "logits" for term in terms) and student.num_classes != teacher.num_classes:
        raise UserError(
            f"the teacher {teacher.name} has {teacher.num_classes} classes and the student {student.name} "
            f"{student.num_classes}: train the teacher on the student's data first"
        )
    used = {term.adapter for term in terms}
    return Distiller(
        student,
        teacher if terms else None,
        terms=terms,
        adapters={name: adapter for name, adapter in plan.adapters.items() if name in used},
        task=task,
        task_weight=weights.get(TASK, 1.0),
    )


def _strided_tokeniser(plan: Plan, student: LevelInfo, *, largest_grid: int) -> str:
    """SeRKD's learnable tokeniser, asked for by `student_tokeniser: convolution`: an adapter in front of the loss."""
    factor = 1
    while max(student.height, student.width) > largest_grid * factor:
        factor *= 2
    name = f"{student.name}:tokens"
    plan.adapters[name] = StridedTokeniser(student.channels, factor=factor)
    return name


@torch.no_grad()
def _check_superpixels(loss: SeRKD, student: LevelInfo, teacher: LevelInfo, *, tokeniser: nn.Module | None) -> None:
    """UserError where an image would have too few superpixels for an angle, so that the loss would be 0."""
    ours, theirs = (torch.zeros(1, level.channels, level.height, level.width) for level in (student, teacher))
    count = loss.superpixels(ours if tokeniser is None else tokeniser(ours), theirs)[0].shape[1]
    if count < 3:
        sizes = " and ".join(f"{level.name} ({level.height}x{level.width})" for level in (student, teacher))
        raise UserError(
            f"serkd finds {count} superpixel{'s' * (count > 1)} in {sizes}, but needs 3: choose levels of larger maps "
            f"or a smaller cell"
        )
