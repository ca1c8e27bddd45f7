"""The terms of the methods between two detectors, by the names of `reldistill.methods.table`.

Each function takes a plan and returns its method's terms. Default weights are those of the papers or of common public
implementations for detection, where there are any, for one-stage and two-stage students apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from reldistill.core.checks import UserError
from reldistill.core.types import LevelInfo
from reldistill.losses.cwd import CWD
from reldistill.losses.fgd import FGD
from reldistill.losses.fitnets import FitNets
from reldistill.losses.head_kd import HeadKD
from reldistill.losses.kd import KD
from reldistill.losses.mgd import MGD
from reldistill.losses.pkd import PKD
from reldistill.losses.sekd import SEKD
from reldistill.losses.serkd import SeRKD
from reldistill.methods.build import PairTerms, check_available, not_for
from reldistill.step.term import Term
from reldistill.tasks.detection.networks.detector_extract import DetectorExtractor
from reldistill.tasks.detection.plan import DetectorPlan

Weights = float | Mapping[str, float]


def none(plan: DetectorPlan) -> list[Term]:
    """The student alone."""
    return []


def fitnets(plan: DetectorPlan) -> list[Term]:
    """The features of every level."""
    loss = plan.loss("fitnets", FitNets, {"relative": True, **plan.settings.get("fitnets", {})})
    return _each_level(plan, "fitnets", lambda teacher: loss, 0.5)


def cwd(plan: DetectorPlan) -> list[Term]:
    """Where each channel of every level responds."""
    loss = plan.loss("cwd", CWD, {"temperature": 1.0, **plan.settings.get("cwd", {})})
    return _each_level(plan, "cwd", lambda teacher: loss, 10.0, smallest=2)


def pkd(plan: DetectorPlan) -> list[Term]:
    """How each channel of every level varies."""
    loss = plan.loss("pkd", PKD)
    return _each_level(plan, "pkd", lambda teacher: loss, 6.0 if plan.student.two_stage else 10.0, pooled=False)


def mgd(plan: DetectorPlan) -> list[Term]:
    """Every level of the teacher's, made of the student's masked one."""
    ratio, weight = (0.45, 5e-7) if plan.student.two_stage else (0.65, 2e-5)
    settings = {"ratio": ratio, **plan.settings.get("mgd", {})}

    def loss(teacher: LevelInfo) -> nn.Module:
        return plan.loss("mgd", MGD, settings, sizes={"channels": teacher.channels})

    return _each_level(plan, "mgd", loss, weight, pooled=False)


def fgd(plan: DetectorPlan) -> list[Term]:
    """Objects, background, attention and relations of every level."""
    weights = {"foreground": 1e-3, "background": 5e-4, "attention": 5e-4, "global": 5e-6}
    temperature = 0.5
    if plan.student.two_stage:
        weights = {"foreground": 5e-5, "background": 2.5e-5, "attention": 5e-5, "global": 5e-7}
    elif plan.student.anchors_per_cell[0] == 1:
        weights, temperature = {name: 1.6 * weight for name, weight in weights.items()}, 0.8
    settings = {"temperature": temperature, **plan.settings.get("fgd", {})}

    def loss(teacher: LevelInfo) -> nn.Module:
        return plan.loss("fgd", FGD, settings, sizes={"channels": teacher.channels})

    return _each_level(plan, "fgd", loss, weights, pooled=False)


def serkd(plan: DetectorPlan) -> list[Term]:
    """Distances and angles between the superpixels of every level large enough, and its features."""
    loss = plan.loss("serkd", SeRKD)
    # three superpixels make an angle
    smallest = 2 * loss.settings.cell
    terms = _each_level(
        plan, "serkd", lambda teacher: loss, {"distance": 5.0, "angle": 10.0}, smallest=smallest, adapted=False
    )
    feature = plan.loss("feature", FitNets, {"relative": True, **plan.settings.get("feature", {})})
    return [*terms, *_each_level(plan, "feature", lambda teacher: feature, 0.5, smallest=smallest)]


def sekd(plan: DetectorPlan) -> list[Term]:
    """The channels' graph of every level."""
    weight = 2.0 if plan.student.two_stage else 1.0
    weights = {"vertex": weight, "edge": weight, "spectral": weight}
    return _each_level(plan, "sekd", lambda teacher: plan.loss("sekd", SEKD), weights)


def head_kd(plan: DetectorPlan) -> list[Term]:
    """The class scores of all anchors, or of the student's proposals."""
    student, teacher = plan.student, plan.teacher
    if _kind(student) != _kind(teacher) or student.fixed_size or student.num_classes != teacher.num_classes:
        raise UserError(
            f"head_kd compares two RetinaNets, FCOS or Faster R-CNNs with the same anchors and classes: {student.name} "
            f"and {teacher.name} are not (fgd, pkd and sekd compare levels)"
        )
    loss: nn.Module
    if student.two_stage:
        loss = plan.loss("head_kd", KD, {"temperature": 1.0, **plan.settings.get("head_kd", {})})
    else:
        loss = plan.loss("head_kd", HeadKD)
    return [plan.term("head_kd", loss, "scores", "scores", 1.0)]


def _kind(detector: DetectorExtractor) -> tuple[Any, ...]:
    """What two detectors must have in common for their scores to be of the same places."""
    levels = () if detector.two_stage else tuple(level.stride for level in detector.survey(256))
    return type(detector.network), detector.anchors_per_cell, levels


def _each_level(
    plan: DetectorPlan,
    name: str,
    loss: Callable[[LevelInfo], nn.Module],
    weights: Weights,
    *,
    smallest: int = 1,
    adapted: bool = True,
    pooled: bool = True,
) -> list[Term]:
    """A term for each pair of levels; without `pooled`, not for a student's level that only subsamples another."""
    pairs = plan.pairs(smallest=smallest)
    if not (pooled or plan.levels):
        pairs = [pair for pair in pairs if pair[0].name != plan.student.pooled_level]
    return [
        plan.term(
            name,
            loss(teacher),
            student.name,
            teacher.name,
            weights,
            adapter=plan.adapter(student, teacher) if adapted else None,
        )
        for student, teacher in pairs
    ]


TERMS: dict[str, Callable[[DetectorPlan], list[Term]]] = {
    "none": none,
    "fitnets": fitnets,
    "cwd": cwd,
    "mgd": mgd,
    "serkd": serkd,
    "sekd": sekd,
    "fgd": fgd,
    "pkd": pkd,
    "head_kd": head_kd,
}


class DetectorTerms(PairTerms[DetectorExtractor, DetectorPlan]):
    """Which terms there are between two detectors: see `methods.build.TermSource`."""

    task = "detection"
    provides = frozenset({"boxes", "classes", "levels"})
    source = DetectorExtractor
    pair = DetectorPlan

    def terms(self, method: str, plan: DetectorPlan) -> list[Term]:
        """The method's terms, where it has any between detectors."""
        if method not in TERMS:
            raise not_for(self.task, method, list(TERMS))
        check_available(method, plan, list(TERMS))
        return TERMS[method](plan)
