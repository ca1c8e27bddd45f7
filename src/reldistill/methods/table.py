"""The one table of methods: what `--method` takes.

The default weights of their terms come from the measurements shown in docs/results.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from reldistill.methods import learned, levels, logits
from reldistill.methods.plan import LABELS, Plan
from reldistill.methods.sekd import sekd
from reldistill.methods.serkd import serkd
from reldistill.networks.extract import Extractor
from reldistill.networks.reused_head import reuse_head
from reldistill.step.term import Term


@dataclass(frozen=True)
class Method:
    """One name that `--method` takes.

    Args:
        summary: what it transfers, in a few words.
        paper: where it comes from.
        terms: Plan → terms between two networks with levels and one output; None where only a task of its own kind of
            networks has them.
        needs: what it can't do without: `labels`, one class for each image; `boxes`, labelled ones in each image;
            `classes`, class scores of both networks; `levels`, maps or patch tokens inside them; `pooled`, a vector of
            each image.
        uses: what a part of it takes besides, and what it also runs without.
        task_weight: default weight of the task's own loss; of several methods together, the product.
        change_student: (student, teacher, image size) → what the student becomes before terms are built.
    """

    summary: str
    paper: str
    terms: Callable[[Plan], list[Term]] | None
    needs: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset()
    task_weight: float = 1.0
    change_student: Callable[[Extractor, Extractor, int], Extractor] | None = None

    @property
    def needs_labels(self) -> bool:
        """Whether it transfers nothing from images without labels."""
        return bool(self.needs & LABELS)

    @property
    def needs_class_scores(self) -> bool:
        """Whether it transfers nothing from a teacher without scores of the student's classes."""
        return "classes" in self.needs


def _none(plan: Plan) -> list[Term]:
    return []


_CLASSES = frozenset({"classes"})
_LEVELS = frozenset({"levels"})
_POOLED = frozenset({"pooled"})
_LABELS = frozenset({"labels"})

METHODS: dict[str, Method] = {
    "none": Method("the student alone, by its task's loss", "", _none),
    "kd": Method("softened class scores", "Hinton, Vinyals, Dean 2015, arXiv 1503.02531", logits.kd, _CLASSES),
    "dkd": Method(
        "softened class scores: the true class against the rest, and the rest among themselves",
        "Zhao et al. 2022, arXiv 2203.08679",
        logits.dkd,
        _CLASSES | _LABELS,
    ),
    "logit_std": Method(
        "softened class scores as z-scores",
        "Sun et al. 2024, arXiv 2403.01427",
        logits.logit_std,
        _CLASSES,
        task_weight=0.1,
    ),
    "dist": Method(
        "correlations of the class probabilities, within a sample and within a class",
        "Huang et al. 2022, arXiv 2205.10536",
        logits.dist,
        _CLASSES,
    ),
    "fitnets": Method(
        "the features of a level, through an adapter",
        "Romero et al. 2015, arXiv 1412.6550",
        levels.fitnets,
        _LEVELS,
    ),
    "at": Method(
        "where in the image a level is active", "Zagoruyko, Komodakis 2017, arXiv 1612.03928", levels.at, _LEVELS
    ),
    "cwd": Method("where in the image each channel responds", "Shu et al. 2021, arXiv 2011.13256", levels.cwd, _LEVELS),
    "ickd": Method(
        "which channels of an image respond together", "Liu et al. 2021, arXiv 2202.03680", levels.ickd, _LEVELS
    ),
    "patch_kl": Method(
        "which patches of an image look alike",
        "no paper; after Liu et al. 2019, arXiv 1903.04197",
        levels.patch_kl,
        _LEVELS,
    ),
    "features": Method(
        "the vector of an image and of each patch, each through a linear map, and which patches look alike",
        "no paper; after Ranzinger et al. 2024, arXiv 2312.06709",
        learned.features,
        _LEVELS | _POOLED,
    ),
    "sp": Method(
        "which samples of a batch activate a level alike", "Tung, Mori 2019, arXiv 1907.09682", levels.sp, _LEVELS
    ),
    "cc": Method(
        "kernel correlations between the samples of a batch, class scores",
        "Peng et al. 2019, arXiv 1904.01802",
        logits.cc,
        _POOLED,
        uses=_CLASSES,
    ),
    "pkt": Method(
        "which samples of a batch are neighbours", "Passalis, Tefas 2018, arXiv 1803.10837", logits.pkt, _POOLED
    ),
    "rkd": Method(
        "distances and angles between the samples of a batch", "Park et al. 2019, arXiv 1904.05068", logits.rkd, _POOLED
    ),
    "vrm": Method(
        "in which direction class scores differ, between samples and between classes, over two views of the images",
        "Zhang et al. 2025, arXiv 2502.20760",
        logits.vrm,
        _CLASSES,
    ),
    "crd": Method(
        "which images belong together: both representations of one against those of other classes",
        "Tian, Krishnan, Isola 2020, arXiv 1910.10699",
        learned.crd,
        _POOLED,
        uses=_LABELS,
    ),
    "reviewkd": Method(
        "fused maps of several stages, on a pyramid of sizes",
        "Chen et al. 2021, arXiv 2104.09044",
        learned.reviewkd,
        _LEVELS | _POOLED,
    ),
    "vid": Method(
        "what the teacher's maps share with the student's: mutual information",
        "Ahn et al. 2019, arXiv 1904.05835",
        learned.vid,
        _LEVELS,
    ),
    "ofd": Method("maps, where the teacher's are positive", "Heo et al. 2019, arXiv 1904.01866", learned.ofd, _LEVELS),
    "mgd": Method(
        "a map that the student's masked one must be enough to make",
        "Yang et al. 2022, arXiv 2205.01529",
        learned.mgd,
        _LEVELS,
    ),
    "spectralkd": Method(
        "the spectra of the maps of a few blocks, and softened class scores",
        "Tian et al. 2024, arXiv 2412.19055",
        levels.spectralkd,
        _LEVELS,
        uses=_CLASSES,
        task_weight=0.1,
    ),
    "simkd": Method(
        "the teacher's classifier, and the map in front of it",
        "Chen et al. 2022, arXiv 2203.14001",
        learned.simkd,
        _CLASSES | _POOLED,
        task_weight=0.0,
        change_student=reuse_head,
    ),
    "deit_hard": Method(
        "the class that the teacher chooses, by a distillation token",
        "Touvron et al. 2021, arXiv 2012.12877",
        learned.deit_hard,
        _CLASSES,
        task_weight=0.5,
        change_student=learned.train_distillation_token,
    ),
    "deit_soft": Method(
        "softened class scores, by a distillation token",
        "Touvron et al. 2021, arXiv 2012.12877",
        learned.deit_soft,
        _CLASSES,
        task_weight=0.9,
        change_student=learned.train_distillation_token,
    ),
    "cskd": Method(
        "the classes that a CNN sees at each place, and at last in the whole image",
        "Zhao et al. 2023, arXiv 2307.08500",
        learned.cskd,
        _CLASSES | _LEVELS,
        task_weight=0.5,
        change_student=learned.train_distillation_token,
    ),
    "leap": Method(
        "the maps of a transformer's blocks, one after the other",
        "Zhang et al. 2026, arXiv 2606.19483",
        learned.leap,
        _LEVELS,
    ),
    "serkd": Method(
        "distances and angles between the superpixel tokens of an image, features, class scores",
        "SeRKD 2025, arXiv 2503.21269",
        serkd,
        _LEVELS,
        uses=_CLASSES,
    ),
    "sekd": Method(
        "the channels' relational graph: vertices, edges and spectral embedding on several levels, class scores",
        "Wang et al. 2024, arXiv 2405.08547",
        sekd,
        _LEVELS,
        uses=_CLASSES,
    ),
    "fgd": Method(
        "a detector's levels: objects and background apart, where its attention is, how positions relate",
        "Yang et al. 2022, arXiv 2111.11837",
        None,
        frozenset({"levels", "boxes"}),
    ),
    "pkd": Method(
        "how each channel of a detector's levels varies, whatever its magnitude",
        "Cao et al. 2022, arXiv 2207.02039",
        None,
        _LEVELS,
    ),
    "head_kd": Method(
        "the class scores of a detector's anchors or proposals",
        "Yang et al. 2023, arXiv 2308.14286; Hinton, Vinyals, Dean 2015, arXiv 1503.02531",
        None,
        _CLASSES,
    ),
}
