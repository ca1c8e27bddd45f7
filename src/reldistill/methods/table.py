"""Method name → terms and adapters for a pair of networks: the one place that says what `serkd` is by default.

The default weights come from the measurements shown in docs/results.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import nn

from reldistill.core.checks import UserError
from reldistill.core.types import LevelInfo
from reldistill.losses.at import AT
from reldistill.losses.cc import CC
from reldistill.losses.cwd import CWD
from reldistill.losses.dist import DIST
from reldistill.losses.dkd import DKD
from reldistill.losses.fitnets import FitNets
from reldistill.losses.ickd import ICKD
from reldistill.losses.kd import KD
from reldistill.losses.logit_std import LogitStd
from reldistill.losses.patch_kl import PatchKL
from reldistill.losses.pkt import PKT
from reldistill.losses.rkd import RKD
from reldistill.losses.sekd import SEKD
from reldistill.losses.serkd import SeRKD
from reldistill.losses.sp import SP
from reldistill.methods import learned as baselines
from reldistill.methods.plan import DetectorPlan, Plan
from reldistill.networks.adapters import StridedTokeniser
from reldistill.networks.extract import Extractor
from reldistill.networks.reused_head import reuse_head
from reldistill.relations.tokens import Pooling
from reldistill.step.curriculum import WarmUp
from reldistill.step.term import Term
from reldistill.tasks.detection import methods as detector_methods

KD_WEIGHT = 1.0


@dataclass(frozen=True)
class Method:
    """One name that `--method` takes.

    Args:
        summary: what it transfers, in a few words.
        paper: where it comes from.
        build: Plan → terms; None where it is for detectors only.
        detect: DetectorPlan → terms, between two detectors; None where it is not for them.
        task_weight: default weight of the task's own loss; of several methods together, the product.
        change_student: (student, teacher, image size) → what the student becomes before terms are built.
    """

    summary: str
    paper: str
    build: Callable[[Plan], list[Term]] | None
    detect: Callable[[DetectorPlan], list[Term]] | None = None
    task_weight: float = 1.0
    change_student: Callable[[Extractor, Extractor, int], Extractor] | None = None


def _none(plan: Plan) -> list[Term]:
    return []


def _kd(plan: Plan) -> list[Term]:
    return [plan.term("kd", plan.loss("kd", KD), "logits", "logits", KD_WEIGHT)]


def _dkd(plan: Plan) -> list[Term]:
    term = plan.term("dkd", plan.loss("dkd", DKD), "logits", "logits", {"target": 1.0, "nontarget": 8.0})
    term.curriculum = WarmUp(over=20 / 240)
    return [term]


def _logit_std(plan: Plan) -> list[Term]:
    return [plan.term("logit_std", plan.loss("logit_std", LogitStd), "logits", "logits", 9.0)]


def _dist(plan: Plan) -> list[Term]:
    return [plan.term("dist", plan.loss("dist", DIST), "logits", "logits", {"inter": 2.0, "intra": 2.0})]


def _rkd(plan: Plan) -> list[Term]:
    return [plan.term("rkd", plan.loss("rkd", RKD), "pooled", "pooled", {"distance": 25.0, "angle": 50.0})]


def _cc(plan: Plan) -> list[Term]:
    return [*_kd(plan), plan.term("cc", plan.loss("cc", CC), "pooled", "pooled", 100.0)]


def _pkt(plan: Plan) -> list[Term]:
    return [plan.term("pkt", plan.loss("pkt", PKT), "pooled", "pooled", 30000.0)]


def _at(plan: Plan) -> list[Term]:
    return _between_levels(plan, "at", AT, 1000.0, count=4, smallest=2)


def _sp(plan: Plan) -> list[Term]:
    return _between_levels(plan, "sp", SP, 3000.0)


def _ickd(plan: Plan) -> list[Term]:
    return _between_levels(plan, "ickd", ICKD, 2.5, adapted=True)


def _cwd(plan: Plan) -> list[Term]:
    return _between_levels(plan, "cwd", CWD, 50.0, smallest=2, adapted=True)


def _patch_kl(plan: Plan) -> list[Term]:
    return _between_levels(plan, "patch_kl", PatchKL, 1.0, smallest=2)


def _fitnets(plan: Plan) -> list[Term]:
    loss = plan.loss("fitnets", FitNets, {"relative": True, **plan.settings.get("fitnets", {})})
    return [
        plan.term("fitnets", loss, student.name, teacher.name, 1.0, adapter=plan.adapter(student, teacher))
        for student, teacher in plan.pairs(1)
    ]


def _serkd(plan: Plan) -> list[Term]:
    terms = _kd(plan)
    # nine superpixels rather than four, which have next to no relations: see docs/decisions.md
    for student, teacher in plan.pairs(1, smallest=3, preferred=5):
        settings = {
            "student_tokeniser": "none" if student.kind == "tokens" else "average",
            "teacher_tokeniser": "none" if teacher.kind == "tokens" else "average",
            **plan.settings.get("serkd", {}),
        }
        tokenisers = (*get_args(Pooling), "convolution")
        if settings["student_tokeniser"] not in tokenisers:
            raise UserError(
                f"settings of serkd: student_tokeniser must be one of {', '.join(tokenisers)}, got "
                f"{settings['student_tokeniser']!r}"
            )
        convolution = settings["student_tokeniser"] == "convolution"
        loss = plan.loss("serkd", SeRKD, {**settings, "student_tokeniser": "none"} if convolution else settings)
        assert isinstance(loss, SeRKD)
        tokeniser = _strided_tokeniser(plan, student, largest_grid=loss.largest_grid) if convolution else None
        _check_superpixels(loss, student, teacher, tokeniser=plan.adapters.get(tokeniser or ""))
        # 25 and 50 were too much for a ViT, and 8 was tried between CNNs only: see docs/results.md
        distance, angle, feature_weight = (5.0, 10.0, 1.0) if student.kind == "tokens" else (25.0, 50.0, 8.0)
        weights = {"distance": distance, "angle": angle}
        terms.append(plan.term("serkd", loss, student.name, teacher.name, weights, adapter=tokeniser))
        feature = plan.loss("feature", FitNets, {"relative": True, **plan.settings.get("feature", {})})
        adapter = plan.adapter(student, teacher)
        terms.append(plan.term("feature", feature, student.name, teacher.name, feature_weight, adapter=adapter))
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
    "none": Method("the student alone, by its task's loss", "", _none, detector_methods.none),
    "kd": Method("softened class scores", "Hinton, Vinyals, Dean 2015, arXiv 1503.02531", _kd),
    "dkd": Method(
        "softened class scores: the true class against the rest, and the rest among themselves",
        "Zhao et al. 2022, arXiv 2203.08679",
        _dkd,
    ),
    "logit_std": Method(
        "softened class scores as z-scores", "Sun et al. 2024, arXiv 2403.01427", _logit_std, task_weight=0.1
    ),
    "dist": Method(
        "correlations of the class probabilities, within a sample and within a class",
        "Huang et al. 2022, arXiv 2205.10536",
        _dist,
    ),
    "fitnets": Method(
        "the features of a level, through an adapter",
        "Romero et al. 2015, arXiv 1412.6550",
        _fitnets,
        detector_methods.fitnets,
    ),
    "at": Method("where in the image a level is active", "Zagoruyko, Komodakis 2017, arXiv 1612.03928", _at),
    "cwd": Method(
        "where in the image each channel responds", "Shu et al. 2021, arXiv 2011.13256", _cwd, detector_methods.cwd
    ),
    "ickd": Method("which channels of an image respond together", "Liu et al. 2021, arXiv 2202.03680", _ickd),
    "patch_kl": Method(
        "which patches of an image look alike", "no paper; after Liu et al. 2019, arXiv 1903.04197", _patch_kl
    ),
    "sp": Method("which samples of a batch activate a level alike", "Tung, Mori 2019, arXiv 1907.09682", _sp),
    "cc": Method(
        "kernel correlations between the samples of a batch, class scores", "Peng et al. 2019, arXiv 1904.01802", _cc
    ),
    "pkt": Method("which samples of a batch are neighbours", "Passalis, Tefas 2018, arXiv 1803.10837", _pkt),
    "rkd": Method("distances and angles between the samples of a batch", "Park et al. 2019, arXiv 1904.05068", _rkd),
    "crd": Method(
        "which images belong together: both representations of one against those of other classes",
        "Tian, Krishnan, Isola 2020, arXiv 1910.10699",
        baselines.crd,
    ),
    "reviewkd": Method(
        "fused maps of several stages, on a pyramid of sizes", "Chen et al. 2021, arXiv 2104.09044", baselines.reviewkd
    ),
    "vid": Method(
        "what the teacher's maps share with the student's: mutual information",
        "Ahn et al. 2019, arXiv 1904.05835",
        baselines.vid,
    ),
    "ofd": Method("maps, where the teacher's are positive", "Heo et al. 2019, arXiv 1904.01866", baselines.ofd),
    "mgd": Method(
        "a map that the student's masked one must be enough to make",
        "Yang et al. 2022, arXiv 2205.01529",
        baselines.mgd,
        detector_methods.mgd,
    ),
    "simkd": Method(
        "the teacher's classifier, and the map in front of it",
        "Chen et al. 2022, arXiv 2203.14001",
        baselines.simkd,
        task_weight=0.0,
        change_student=reuse_head,
    ),
    "deit_hard": Method(
        "the class that the teacher chooses, by a distillation token",
        "Touvron et al. 2021, arXiv 2012.12877",
        baselines.deit_hard,
        task_weight=0.5,
        change_student=baselines.train_distillation_token,
    ),
    "deit_soft": Method(
        "softened class scores, by a distillation token",
        "Touvron et al. 2021, arXiv 2012.12877",
        baselines.deit_soft,
        task_weight=0.9,
        change_student=baselines.train_distillation_token,
    ),
    "cskd": Method(
        "the classes that a CNN sees at each place, and at last in the whole image",
        "Zhao et al. 2023, arXiv 2307.08500",
        baselines.cskd,
        task_weight=0.5,
        change_student=baselines.train_distillation_token,
    ),
    "leap": Method(
        "the maps of a transformer's blocks, one after the other", "Zhang et al. 2026, arXiv 2606.19483", baselines.leap
    ),
    "serkd": Method(
        "distances and angles between the superpixel tokens of an image, features, class scores",
        "SeRKD 2025, arXiv 2503.21269",
        _serkd,
        detector_methods.serkd,
    ),
    "sekd": Method(
        "the channels' relational graph: vertices, edges and spectral embedding on several levels, class scores",
        "Wang et al. 2024, arXiv 2405.08547",
        _sekd,
        detector_methods.sekd,
    ),
    "fgd": Method(
        "a detector's levels: objects and background apart, where its attention is, how positions hang together",
        "Yang et al. 2022, arXiv 2111.11837",
        None,
        detector_methods.fgd,
    ),
    "pkd": Method(
        "how each channel of a detector's levels varies, whatever its magnitude",
        "Cao et al. 2022, arXiv 2207.02039",
        None,
        detector_methods.pkd,
    ),
    "head_kd": Method(
        "the class scores of a detector's anchors or proposals",
        "Yang et al. 2023, arXiv 2308.14286; Hinton, Vinyals, Dean 2015, arXiv 1503.02531",
        None,
        detector_methods.head_kd,
    ),
}


def _between_levels(
    plan: Plan,
    name: str,
    kind: Callable[..., nn.Module],
    weight: float,
    *,
    count: int = 1,
    smallest: int = 1,
    adapted: bool = False,
) -> list[Term]:
    """One loss between the maps of up to `count` pairs of levels, the student's through an adapter if `adapted`."""
    loss = plan.loss(name, kind)
    return [
        plan.term(
            name,
            loss,
            student.name,
            teacher.name,
            weight,
            adapter=plan.adapter(student, teacher) if adapted else None,
        )
        for student, teacher in plan.pairs(count, smallest=smallest)
    ]


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
