"""Method names → terms → a Distiller, for any pair of networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from reldistill.core.checks import UserError
from reldistill.core.types import Task
from reldistill.methods.plan import DetectorPlan, Plan, plan_for
from reldistill.methods.table import METHODS
from reldistill.networks.extract import Extractor
from reldistill.step.balance import Balance
from reldistill.step.curriculum import Curriculum
from reldistill.step.distiller import TASK, Distiller
from reldistill.step.term import Place, Term
from reldistill.tasks.detection.networks.detector_extract import DetectorExtractor, is_detector


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


def terms_of(name: str, plan: Plan | DetectorPlan) -> list[Term]:
    """The terms of one method.

    Raises:
        UserError: when the method is not for this kind of networks.
    """
    method = METHODS[name]
    if isinstance(plan, DetectorPlan):
        if method.detect is not None:
            return method.detect(plan)
        fitting = [name for name, one in METHODS.items() if one.detect is not None]
    else:
        if method.build is not None:
            return method.build(plan)
        fitting = [name for name, one in METHODS.items() if one.build is not None]
    kinds = ("detectors", "classification") if isinstance(plan, DetectorPlan) else ("classification", "detectors")
    raise UserError(f"method '{name}' is for {kinds[1]}: for {kinds[0]} there are {', '.join(fitting)}")


def build_terms(method: str, plan: Plan | DetectorPlan, *, curriculum: Curriculum | None = None) -> list[Term]:
    """The terms of one method or of several joined by `+`; a part that two methods name counts once.

    Args:
        method: e.g. `serkd`, `kd+rkd`.
        plan: the pair of networks and the user's choices; its adapters are filled.
        curriculum: factor on all weights but the logit terms', in place of the warm-up that some methods have.

    Raises:
        UserError: when a method, level, setting or weight is not known, or levels are given that nothing uses.
    """
    terms: dict[tuple[str, Place, Place], Term] = {}
    for name in method_names(method):
        for term in terms_of(name, plan):
            terms.setdefault((term.name, term.student, term.teacher), term)
    chosen = list(terms.values())
    _check_choices(method, chosen, levels=plan.levels, settings=plan.settings, weights=plan.weights)
    for term in chosen:
        on_logits = term.student_places in (("logits",), ("distilled",), ("dense",), ("scores",))
        if curriculum is not None and (term.curriculum is not None or not on_logits):
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
    parts = dict.fromkeys([TASK, *(name for t in terms for name in t.named_weights)])
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
    if levels and not any(t.looks_inside for t in terms):
        raise UserError(f"levels are given, but method '{method}' looks at none")
    if not weights.get(TASK, 1.0) and not any(t.is_active(1.0) for t in terms):
        raise UserError(f"nothing to minimise: the weights of '{TASK}' and of all parts of '{method}' are 0")


def build_distiller(
    method: str,
    *,
    student: nn.Module,
    teacher: nn.Module | None,
    image_size: int,
    task: Task,
    levels: Sequence[tuple[str, str]] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    weights: Mapping[str, float] | None = None,
    curriculum: Curriculum | None = None,
    images: int | None = None,
    balance: float = 0.0,
) -> Distiller:
    """A Distiller for any pair of networks, its levels and adapters found by a dry run.

    Args:
        method: a method's name, or several joined by `+`.
        student: a network, or an Extractor around it that knows its normalisation; a detector of torchvision's, or a
            DetectorExtractor around it that knows its classes. A bare network gets images as they come.
        teacher: the same for the teacher; None for `none`.
        image_size: side of the images that a Batch will hold.
        task: the student's own loss.
        levels: (student level, teacher level) names, instead of the automatic choice.
        settings: loss name → keyword arguments, e.g. `{"serkd": {"iterations": 2}}`.
        weights: part name → weight, e.g. `{"kd": 2.0, "serkd.angle": 4.0, "task": 0.5}`; what has 0 is not computed.
        curriculum: factor on the weights of all but the logit terms, in place of the warm-up that some methods have.
        images: number of training images, which methods with a memory of them need (crd).
        balance: share of the task's gradient that every part's is scaled to while training; 0 for fixed weights. With
            it, `weights` are multiples of that share, 1 where none is given.

    Raises:
        UserError: when a name is unknown, or class scores are compared and teacher and student differ in their number
            of classes.
    """
    settings, weights = settings or {}, weights or {}
    methods = [METHODS[name] for name in method_names(method)]
    if not balance:
        weights = {TASK: math.prod(one.task_weight for one in methods), **weights}
    student = _extractor(student, name="student")
    if teacher is None:
        if method_names(method) != ["none"]:
            raise UserError(f"method '{method}' needs a teacher")
        _check_choices(method, [], levels=levels, settings=settings, weights=weights)
        return Distiller(student, None, terms=[], adapters={}, task=task, task_weight=weights.get(TASK, 1.0))
    teacher = _extractor(teacher, name="teacher")
    student.survey(image_size)
    teacher.survey(image_size)
    if isinstance(student, Extractor) and isinstance(teacher, Extractor):
        for change in dict.fromkeys(one.change_student for one in methods if one.change_student is not None):
            student = change(student, teacher, image_size)
            student.survey(image_size)
    plan = plan_for(
        student,
        teacher,
        image_size,
        levels=levels,
        settings=settings,
        weights=weights,
        images=images,
        balanced=balance > 0,
    )
    terms = [term for term in build_terms(method, plan, curriculum=curriculum) if any(term.weights.values())]
    compared = [place for term in terms for place in (*term.student_places, *term.teacher_places)]
    if "logits" in compared and student.num_classes != teacher.num_classes:
        raise UserError(
            f"the teacher {teacher.name} has {teacher.num_classes} classes and the student {student.name} "
            f"{student.num_classes}: train the teacher on the student's data first"
        )
    if balance and not weights.get(TASK, 1.0):
        raise UserError(f"balance weighs the parts by the task's gradient: the weight of '{TASK}' can't be 0")
    names = dict.fromkeys(name for term in terms for name in term.scales(1.0))
    used = {term.adapter for term in terms}
    return Distiller(
        student,
        teacher if terms else None,
        terms=terms,
        adapters={name: adapter for name, adapter in plan.adapters.items() if name in used},
        task=task,
        task_weight=weights.get(TASK, 1.0),
        balance=Balance(list(names), share=balance) if balance and terms else None,
    )


def _extractor(network: nn.Module, *, name: str) -> Extractor | DetectorExtractor:
    if isinstance(network, Extractor | DetectorExtractor):
        return network
    return DetectorExtractor(network, name=name) if is_detector(network) else Extractor(network, name=name)
