"""The terms of methods that learn or remember something beside the student, or change its last layers.

Each function takes a plan and returns its method's terms; `reldistill.methods.table` names them.
"""

from __future__ import annotations

import math

from torch import nn

from reldistill.core.checks import UserError
from reldistill.core.types import CLASS_TOKEN, THROUGH_NORM, LevelInfo
from reldistill.losses.crd import CRD
from reldistill.losses.cskd import CSKD
from reldistill.losses.deit_hard import DeiTHard
from reldistill.losses.deit_soft import DeiTSoft
from reldistill.losses.features import ProjectedFeatures
from reldistill.losses.leap import LEAP
from reldistill.losses.mgd import MGD
from reldistill.losses.ofd import OFD
from reldistill.losses.patch_kl import PatchKL
from reldistill.losses.reviewkd import ReviewKD
from reldistill.losses.simkd import SimKD
from reldistill.losses.vid import VID
from reldistill.methods.plan import Plan
from reldistill.networks.adapters import EachLevel, LinearProjection, NormedProjection, PixelwiseRegressor, map_adapter
from reldistill.networks.extract import Extractor
from reldistill.networks.fusion import AttentionFusion
from reldistill.networks.reused_head import ReusedHead, averaged_level
from reldistill.step.curriculum import WarmUp
from reldistill.step.term import Term


def crd(plan: Plan) -> list[Term]:
    """One term on the pooled vectors, with a bank of all training images: of their classes where they have labels."""
    if plan.images is None:
        raise UserError("crd remembers every training image: give build_distiller their number (images=…)")
    sizes = {"student_dim": plan.student.pooled_size, "teacher_dim": plan.teacher.pooled_size, "images": plan.images}
    labelled = "labels" in plan.available
    settings = {"contrast": "classes" if labelled else "instances", **plan.settings.get("crd", {})}
    if settings["contrast"] == "classes" and not labelled:
        raise UserError("crd can't contrast classes, as the images have no labels: set its contrast to instances")
    return [plan.term("crd", plan.loss("crd", CRD, settings, sizes=sizes), "pooled", "pooled", 0.8)]


def reviewkd(plan: Plan) -> list[Term]:
    """One term on up to four stages and the pooled vectors, fused."""
    pairs = plan.pairs(4)
    students, teachers = ([*(pair[side].name for pair in pairs), "pooled"] for side in (0, 1))
    name = f"{'+'.join(students)}->{'+'.join(teachers)}"
    plan.adapters[name] = AttentionFusion(
        [*(student.channels for student, _ in pairs), plan.student.pooled_size],
        [*(teacher.channels for _, teacher in pairs), plan.teacher.pooled_size],
        teacher_sizes=[*(_size(teacher) for _, teacher in pairs), None],
    )
    loss = plan.loss("reviewkd", ReviewKD)
    term = plan.term("reviewkd", loss, tuple(students), tuple(teachers), 1.0, adapter=name)
    term.curriculum = WarmUp(over=20 / 240)
    return [term]


def vid(plan: Plan) -> list[Term]:
    """A term for each of up to three pairs of stages, each with its own regressor and variances."""
    terms = []
    for student, teacher in plan.pairs(3):
        name = f"{student.name}->{teacher.name}:mean"
        plan.adapters[name] = PixelwiseRegressor(student.channels, teacher.channels, teacher_size=_size(teacher))
        loss = plan.loss("vid", VID, sizes={"channels": teacher.channels})
        terms.append(plan.term("vid", loss, student.name, teacher.name, 1.0, adapter=name))
    return terms


def ofd(plan: Plan) -> list[Term]:
    """One term on up to four pairs of stages, by their maps in front of a ReLU where a network returns these."""
    pairs = plan.pairs(4)
    if not plan.levels:
        pairs = [
            (_before_relu(plan.student, student, plan.image_size), _before_relu(plan.teacher, teacher, plan.image_size))
            for student, teacher in pairs
        ]
    students, teachers = (tuple(pair[side].name for pair in pairs) for side in (0, 1))
    name = f"{'+'.join(students)}->{'+'.join(teachers)}:normed"
    plan.adapters[name] = EachLevel(
        NormedProjection(student.channels, teacher.channels, teacher_size=_size(teacher)) for student, teacher in pairs
    )
    return [plan.term("ofd", plan.loss("ofd", OFD), students, teachers, 1e-3, adapter=name)]


def mgd(plan: Plan) -> list[Term]:
    """One term on the deepest pair of stages."""
    return [
        plan.term(
            "mgd",
            plan.loss("mgd", MGD, sizes={"channels": teacher.channels}),
            student.name,
            teacher.name,
            7e-5,
            adapter=plan.adapter(student, teacher),
        )
        for student, teacher in plan.pairs(1)
    ]


def features(plan: Plan) -> list[Term]:
    """The pooled vectors and the deepest pair of levels of more than one cell, each through a linear map; patch_kl."""
    terms = []
    for student, teacher in plan.pairs(1, smallest=2):
        name = f"pooled+{student.name}->pooled+{teacher.name}:linear"
        plan.adapters[name] = EachLevel(
            [
                nn.Linear(plan.student.pooled_size, plan.teacher.pooled_size),
                LinearProjection(student.channels, teacher.channels, teacher_size=_size(teacher)),
            ]
        )
        loss, places = plan.loss("features", ProjectedFeatures), (("pooled", student.name), ("pooled", teacher.name))
        terms.append(plan.term("features", loss, *places, {"pooled": 1.0, "patches": 1.0}, adapter=name))
        terms.append(plan.term("patch_kl", plan.loss("patch_kl", PatchKL), student.name, teacher.name, 1.0))
    return terms


def simkd(plan: Plan) -> list[Term]:
    """One term between what the two networks feed into the teacher's classifier."""
    network = plan.student.network
    if not isinstance(network, ReusedHead):
        raise UserError("simkd needs a student with the teacher's classifier: build_distiller makes it one")
    if plan.levels:
        raise UserError("simkd compares what the classifier is fed: leave the levels out")
    level = averaged_level(plan.teacher, plan.image_size)
    places = ("pooled", "pooled") if network.level is None or level is None else ("projector", level.name)
    return [plan.term("simkd", plan.loss("simkd", SimKD), *places, 1.0)]


def train_distillation_token(student: Extractor, teacher: Extractor, image_size: int) -> Extractor:
    """The student, set to return the distillation token's logits apart from the class token's while it trains."""
    if student.has_distillation_token:
        student.network.set_distilled_training(True)  # type: ignore[operator]
    return student


def deit_hard(plan: Plan) -> list[Term]:
    """One term between the distillation token's logits and the teacher's."""
    return _distillation_token(plan, "deit_hard", DeiTHard, 0.5)


def deit_soft(plan: Plan) -> list[Term]:
    """One term between the distillation token's logits and the teacher's."""
    return _distillation_token(plan, "deit_soft", DeiTSoft, 0.1)


def cskd(plan: Plan) -> list[Term]:
    """One term between the class scores of all places, one between those of the whole image, both by the teacher's."""
    theirs, ours = plan.teacher.feed(plan.image_size), plan.student.feed(plan.image_size)
    if theirs is None or not (theirs.linear and theirs.by_mean):
        raise UserError(
            f"cskd asks the teacher's classifier about each place of a map, but {plan.teacher.name} does not classify "
            f"the mean of a map by one linear layer: choose a CNN that does"
        )
    if ours is None or not ours.linear:
        raise UserError(
            f"cskd asks the student's classifier about each place, but {plan.student.name} does not classify the mean "
            f"of a map, nor a token, by one linear layer: choose another student"
        )
    token = "distilled" if plan.student.has_distillation_token else "logits"
    return [
        plan.term("deit_hard", plan.loss("deit_hard", DeiTHard), token, "logits", 0.5),
        plan.term("cskd", plan.loss("cskd", CSKD), "dense", "dense", 1.0),
    ]


def _distillation_token(plan: Plan, name: str, kind: type[nn.Module], weight: float) -> list[Term]:
    if not plan.student.has_distillation_token:
        raise UserError(
            f"{name} needs a student with a distillation token (deit_tiny_distilled_patch16_224 and the like), and "
            f"{plan.student.name} has none"
        )
    return [plan.term(name, plan.loss(name, kind), "distilled", "logits", weight)]


def leap(plan: Plan) -> list[Term]:
    """One term between the student's deepest level and one after the other of the teacher's blocks.

    Blocks that the user did not name are read through the teacher's final norm, where it has one. Where it has a class
    token, the student's pooled vector is compared with that.
    """
    pairs = plan.pairs(1)
    student = pairs[0][0]
    blocks = [teacher for _, teacher in pairs] if plan.levels else plan.teacher.stages(plan.image_size)
    if len({level.name for level, _ in pairs}) > 1:
        raise UserError("leap compares one level of the student with several of the teacher: give it only one")
    shapes = {(block.channels, *_size(block)) for block in blocks}
    if len(blocks) < 2 or len(shapes) > 1:
        raise UserError(
            f"leap needs a teacher whose blocks output maps of one shape, a plain vision transformer: "
            f"{plan.teacher.name} is none"
        )
    names = [block.name for block in blocks]
    if not plan.levels and all(plan.teacher.has_view(name, THROUGH_NORM) for name in names):
        names = [f"{name}{THROUGH_NORM}" for name in names]
    # The authors' for ImageNet, and for a tenth of its classes; where one ends and the other begins is ours.
    settings = {"threshold": 0.85 if (plan.images or math.inf) < 500_000 else 0.8, **plan.settings.get("leap", {})}
    with_token = all(plan.teacher.has_view(name, CLASS_TOKEN) for name in names)
    loss = plan.loss("leap", LEAP, settings, sizes={"layers": len(blocks), "class_token": with_token, "loss": None})
    if not with_token:
        adapter = plan.adapter(student, blocks[-1])
        return [plan.term("leap", loss, student.name, tuple(names), {"patches": 1.0}, adapter=adapter)]
    both = f"{student.name}+pooled->{names[-1]}+class"
    projections = map_adapter(student, blocks[-1]), nn.Linear(plan.student.pooled_size, blocks[-1].channels)
    plan.adapters[both] = EachLevel(one or nn.Identity() for one in projections)
    places = (student.name, "pooled"), tuple((name, f"{name}{CLASS_TOKEN}") for name in names)
    return [plan.term("leap", loss, *places, {"patches": 1.0, "class": 0.05}, adapter=both)]


def _before_relu(network: Extractor, level: LevelInfo, image_size: int) -> LevelInfo:
    """The normalised map that a ReLU rectifies next, or the level itself where no module returns it."""
    named = getattr(network.network, "before_relu", {}).get(level.name)
    return network.level(named, image_size) if named else level


def _size(level: LevelInfo) -> tuple[int, int]:
    return level.height, level.width
