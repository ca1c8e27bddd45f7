from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from reldistill.core.checks import UserError
from reldistill.core.types import Batch, ClassLabels, Evaluator, Features, LevelInfo
from reldistill.losses.leap import linear_cka
from reldistill.methods.build import LevelTerms, build_distiller, build_terms, method_names
from reldistill.methods.learned import train_distillation_token
from reldistill.methods.plan import LABELS, Choices
from reldistill.methods.table import METHODS
from reldistill.networks.adapters import MapAdapter, StridedTokeniser
from reldistill.networks.extract import Extractor
from reldistill.step.curriculum import WarmUp
from reldistill.step.distiller import Distiller
from reldistill.tasks.classification.objective import Classification

CLASSES = 4
SIDE = 24


def cnn(*widths: int, classes: int = CLASSES) -> nn.Module:
    """A stage for each width, every one halving the resolution."""
    network = nn.Sequential()
    for number, (ins, outs) in enumerate(zip((3, *widths), widths, strict=False), start=1):
        stage = nn.Sequential(nn.Conv2d(ins, outs, 3, stride=2, padding=1), nn.BatchNorm2d(outs), nn.ReLU())
        network.add_module(f"stage{number}", stage)
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flat", nn.Flatten())
    network.add_module("head", nn.Linear(widths[-1], classes))
    return network


def vit(side: int, patch: int, width: int, depth: int) -> nn.Module:
    return VisionTransformer(
        img_size=side, patch_size=patch, embed_dim=width, depth=depth, num_heads=2, num_classes=CLASSES
    )


def network(kind: str, role: str) -> Extractor:
    """Student and teacher differ in width, depth, patches, input size and normalisation."""
    if role == "teacher":
        made = cnn(8, 16, 20, 24) if kind == "cnn" else vit(32, 4, 32, 4)
        return Extractor(made, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2), input_size=32, name=f"large {kind}")
    made = cnn(6, 12, 16) if kind == "cnn" else vit(SIDE, 6, 16, 3)
    return Extractor(made, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), name=f"small {kind}")


def build(method: str, student: Any = "cnn", teacher: Any = "cnn", **more: Any) -> Distiller:
    """Of kinds of networks, or of networks."""
    torch.manual_seed(0)
    images = more.pop("images", 50)
    pair = {"student": student, "teacher": teacher}
    pair = {role: network(given, role) if isinstance(given, str) else given for role, given in pair.items()}
    return build_distiller(
        method, image_size=SIDE, task=Classification(), images=images, choices=Choices(**more), **pair
    )


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(6, 3, SIDE, SIDE, generator=generator)
    return Batch(images, ClassLabels(torch.arange(6) % CLASSES), torch.arange(6) * 7)


PARTS = {
    "none": [],
    "kd": ["kd"],
    "dkd": ["dkd.target", "dkd.nontarget"],
    "logit_std": ["logit_std"],
    "dist": ["dist.inter", "dist.intra"],
    "fitnets": ["fitnets"],
    "at": ["at"],
    "cwd": ["cwd"],
    "ickd": ["ickd"],
    "patch_kl": ["patch_kl"],
    "features": ["features.pooled", "features.patches", "patch_kl"],
    "sp": ["sp"],
    "cc": ["kd", "cc"],
    "pkt": ["pkt"],
    "vrm": ["vrm.sample", "vrm.class"],
    "crd": ["crd"],
    "reviewkd": ["reviewkd"],
    "vid": ["vid"],
    "ofd": ["ofd"],
    "mgd": ["mgd"],
    "spectralkd": ["kd", "spectralkd"],
    "simkd": ["simkd"],
    "rkd": ["rkd.distance", "rkd.angle"],
    "serkd": ["kd", "serkd.distance", "serkd.angle", "feature"],
    "sekd": ["kd", "sekd.vertex", "sekd.edge", "sekd.spectral"],
}
COMBINED = {
    "kd+rkd": [*PARTS["kd"], *PARTS["rkd"]],
    "serkd+sekd": [*PARTS["serkd"], *PARTS["sekd"][1:]],
}


CHOOSY = ["deit_hard", "deit_soft", "cskd", "leap"]  # about the networks: tested below


def test_every_method_is_tested() -> None:
    assert {*PARTS, *CHOOSY} == {name for name, method in METHODS.items() if method.terms is not None}
    for method in METHODS.values():
        assert method.summary
    assert not METHODS["none"].paper


OVERVIEW = (Path(__file__).parents[2] / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
OVERVIEW = OVERVIEW.partition("Between two detectors")[0]  # those have a test of their own


@pytest.mark.parametrize("method", PARTS)
def test_the_overview_page_says_the_default_weights(method: str) -> None:
    (row,) = re.findall(rf"^\| (?:\[`{method}`\]\({method}\.md\)|`{method}`) \|.*\|$", OVERVIEW, flags=re.MULTILINE)
    said = {name: float(weight) for name, weight in re.findall(r"`([\w.]+)` ([\d.]+)", row.split("|")[3])}
    module = build(method)
    weights = {f"{t.name}.{part}" if part else t.name: value for t in module.terms for part, value in t.weights.items()}
    assert said == weights | ({"task": module.task_weight} if module.task_weight else {})


@pytest.mark.parametrize("method", [*PARTS, *COMBINED])
@pytest.mark.parametrize("pair", ["cnn<-cnn", "vit<-vit", "vit<-cnn", "cnn<-vit"])
def test_a_step_of_every_method_on_every_pair(method: str, pair: str) -> None:
    student, _, teacher = pair.partition("<-")
    module = build(method, student, teacher)
    optimizer = torch.optim.SGD(module.trainable_parameters(), lr=0.01)
    step = module(batch())
    task = ["task"] if module.task_weight else []
    assert list(step.parts) == [*task, *{**PARTS, **COMBINED}[method]]
    assert all(torch.isfinite(value) and value > 0 for value in step.parts.values()), step.parts
    step.total.backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name
    optimizer.step()
    assert torch.isfinite(module(batch()).total)


def test_levels_found_by_the_dry_run() -> None:
    def pairs(method: str, student: str | Extractor, teacher: str) -> list[str]:
        terms = build(method, student, teacher).terms
        return [f"{t.student}<-{t.teacher}" for t in terms if t.student not in ("logits", "pooled")]

    # Stage 4 of the teacher sees 2x2 cells; pyramids are matched from their deep end, blocks by their share of depth.
    assert pairs("sekd", "cnn", "cnn") == ["stage1<-stage2", "stage2<-stage3", "stage3<-stage4"]
    assert pairs("sekd", "vit", "vit") == ["blocks.0<-blocks.1", "blocks.1<-blocks.2"]
    assert pairs("sekd", "vit", "cnn") == ["blocks.0<-stage3", "blocks.1<-stage4"]
    # One superpixel would have no relations, and four have few: not the 3x3 and 2x2 cells at the end.
    assert pairs("serkd", "cnn", "vit") == ["stage2<-blocks.2"] * 2
    assert pairs("serkd", "cnn", "cnn") == ["stage2<-stage2"] * 2
    of_one_level = cnn(6)
    of_one_level.stage1[0] = nn.Conv2d(3, 6, 8, stride=8)
    shallow = Extractor(of_one_level, name="of one level")
    assert pairs("serkd", shallow, "cnn") == ["stage1<-stage2"] * 2, "where there is no other, four will do"
    assert pairs("fitnets", "cnn", "cnn") == ["stage3<-stage4"]
    assert pairs("at", "cnn", "cnn") == pairs("sekd", "cnn", "cnn")
    assert pairs("at", "vit", "vit") == ["blocks.0<-blocks.1", "blocks.1<-blocks.2"]
    assert pairs("patch_kl", "vit", "cnn") == pairs("cwd", "vit", "cnn") == ["blocks.1<-stage4"]


def test_explicit_levels() -> None:
    module = build("fitnets", levels=[("stage1", "stage3"), ("stage2", "stage2")])
    assert [(t.student, t.teacher) for t in module.terms] == [("stage1", "stage3"), ("stage2", "stage2")]
    assert len(module.adapters) == 2
    assert list(module(batch()).parts) == ["task", "fitnets"]
    inner = build("serkd", levels=[("stage2.0", "stage2.0")])
    assert [(t.student, t.teacher) for t in inner.terms[1:]] == [("stage2.0", "stage2.0")] * 2
    twice = build("fitnets", levels=[("stage1", "stage3"), ("stage1", "stage3")])
    assert len(twice.terms) == 1


def test_a_part_that_two_methods_name_counts_once() -> None:
    alone, both = build("serkd").eval(), build("kd+serkd+sekd").eval()
    assert [t.name for t in both.terms].count("kd") == 1
    torch.testing.assert_close(alone(batch()).parts["kd"], both(batch()).parts["kd"])


def test_one_adapter_for_all_terms_between_two_levels() -> None:
    module = build("serkd+sekd+fitnets")
    names = [t.adapter for t in module.terms if t.adapter]
    assert names.count("stage3->stage4") == 2
    assert len(names) == 5
    assert len(module.adapters) == 4


def test_no_adapter_where_the_shapes_agree() -> None:
    module = build("serkd+sekd", teacher=Extractor(cnn(6, 12, 16)))
    assert not module.adapters
    assert all(t.adapter is None for t in module.terms)


def test_method_names() -> None:
    assert method_names("kd") == ["kd"]
    assert method_names("kd+rkd") == ["kd", "rkd"]
    known = rf"is unknown: (did you mean \w+\? )?choose one of {', '.join(METHODS)}, joined by "
    for unknown in ("skd", "", "kd+", "kd,rkd", "KD", "kd + rkd"):
        with pytest.raises(UserError, match=known):
            method_names(unknown)
    with pytest.raises(UserError, match="did you mean kd"):
        method_names("KD")
    for joined, why in (("none+kd", "none is the student alone"), ("kd+rkd+kd", "kd is given twice")):
        with pytest.raises(UserError, match=why):
            method_names(joined)


# What the user sets --------------------------------------------------------------------------------------------------


def test_weights_replace_the_methods_own() -> None:
    plain = build("serkd").eval()(batch())
    changed = build("serkd", weights={"kd": 3.0, "serkd.angle": 7.0, "task": 0.5}).eval()(batch())
    own = {t.name: t.weights for t in build("serkd").terms}
    torch.testing.assert_close(changed.parts["kd"], plain.parts["kd"] * 3 / own["kd"][""])
    torch.testing.assert_close(changed.parts["serkd.angle"], plain.parts["serkd.angle"] * 7 / own["serkd"]["angle"])
    torch.testing.assert_close(changed.parts["task"], plain.parts["task"] / 2)
    for name in ("serkd.distance", "feature"):
        torch.testing.assert_close(changed.parts[name], plain.parts[name])


def test_what_has_no_weight_is_left_out_with_its_adapter() -> None:
    module = build("serkd", weights={"feature": 0.0, "serkd.angle": 0.0, "task": 0})
    assert not module.adapters
    assert list(module(batch()).parts) == ["kd", "serkd.distance"]
    alone = build("kd", weights={"kd": 0.0})
    assert not alone.teachers
    assert list(alone(batch()).parts) == ["task"]


def test_settings_reach_the_losses() -> None:
    settings = {
        "kd": {"temperature": 2.0},
        "serkd": {"iterations": 2, "assignment": "teacher"},
        "feature": {"relative": False},
        "sekd": {"rank": 3},
    }
    losses = {t.name: t.loss for t in build("serkd+sekd", settings=settings).terms}
    assert losses["kd"].temperature == 2.0
    assert (losses["serkd"].settings.iterations, losses["serkd"].settings.assignment) == (2, "teacher")
    assert losses["feature"].relative is False
    assert losses["sekd"].settings.rank == 3


def test_tokenisers_follow_the_kind_of_network() -> None:
    def tokenisers(student: str, teacher: str) -> tuple[str, str]:
        loss = next(t.loss for t in build("serkd", student, teacher).terms if t.name == "serkd")
        return loss.settings.student_tokeniser, loss.settings.teacher_tokeniser

    assert tokenisers("cnn", "vit") == ("average", "none")
    assert tokenisers("vit", "cnn") == ("none", "average")


@pytest.mark.parametrize(("largest", "factor"), [(16, 1), (4, 2)])
def test_the_convolution_tokeniser_is_trained_with_the_step(largest: int, factor: int) -> None:
    settings = {"serkd": {"student_tokeniser": "convolution", "largest_grid": largest}}
    module = build("serkd", settings=settings, levels=[("stage2", "stage2")])
    term = next(t for t in module.terms if t.name == "serkd")
    assert term.adapter == "stage2:tokens"
    tokeniser = next(a for a in module.adapters.values() if isinstance(a, StridedTokeniser))
    assert tokeniser.convolution.stride == (factor, factor)
    assert any(isinstance(a, MapAdapter) for a in module.adapters.values())
    assert term.loss.settings.student_tokeniser == "none"
    step = module(batch())
    step.total.backward()
    assert torch.isfinite(step.total)
    assert tokeniser.convolution.weight.grad.any()


def test_a_curriculum_moves_all_but_the_logit_terms() -> None:
    module = build("serkd+rkd", curriculum=WarmUp(over=0.5)).eval()
    assert list(module(batch(), progress=0.0).parts) == ["task", "kd"]
    half, full = module(batch(), progress=0.25).parts, module(batch()).parts
    for name in full:
        torch.testing.assert_close(half[name], full[name] * (1.0 if name in ("task", "kd") else 0.5))


def test_a_curriculum_replaces_a_methods_own_warm_up() -> None:
    own, given = build("dkd").eval(), build("dkd", curriculum=WarmUp(over=0.5)).eval()
    assert list(own(batch(), progress=0.0).parts) == ["task"]
    full = own(batch()).parts
    for progress, module, share in ((1 / 24, own, 0.5), (1 / 12, own, 1.0), (0.25, given, 0.5), (0.5, given, 1.0)):
        parts = module(batch(), progress=progress).parts
        for name in ("dkd.target", "dkd.nontarget"):
            torch.testing.assert_close(parts[name], full[name] * share)


def test_none_needs_no_teacher() -> None:
    module = build("none", teacher=None, weights={"task": 0.5})
    assert not module.teachers
    torch.testing.assert_close(module.eval()(batch()).total, build("none").eval()(batch()).total / 2)


def test_a_bare_network_gets_images_as_they_come() -> None:
    bare = cnn(6, 12, 16).eval()
    module = build("kd", student=bare, teacher=cnn(8, 16)).eval()
    assert torch.equal(module(batch()).student.logits, bare(batch().images))
    assert module.student.name == "student"


def test_networks_of_other_classes_where_no_class_scores_are_compared() -> None:
    module = build("rkd+fitnets", teacher=cnn(8, 16, classes=9))
    assert torch.isfinite(module(batch()).total)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"method": "skd"}, r"^method 'skd' is unknown: .*choose one of none, kd, "),
        ({"teacher": None}, r"^method 'serkd' needs a teacher$"),
        ({"levels": [("stage9", "stage4")]}, r"^level 'stage9' not in small cnn: it has stage1, stage2, stage3 \("),
        ({"levels": [("stage3", "layer4")]}, r"^level 'layer4' not in large cnn: it has stage1, .*, stage4 \("),
        (
            {"method": "kd+rkd", "levels": [("stage3", "stage4")]},
            r"^levels are given, but method 'kd\+rkd' looks at none$",
        ),
        (
            {"weights": {"serkd": 2.0}},
            r"^'serkd' is not a part of method 'serkd': it has task, kd, serkd.distance, serkd.angle, feature$",
        ),
        (
            {"method": "kd", "weights": {"rkd.angle": 1.0}},
            r"^'rkd.angle' is not a part of method 'kd': it has task, kd$",
        ),
        ({"weights": {"kd": -1.0}}, r"^the weight of 'kd' must be a finite number, at least 0, got -1.0$"),
        ({"weights": {"task": float("nan")}}, r"^the weight of 'task' must be a finite number"),
        (
            {"method": "kd", "weights": {"kd": 0.0, "task": 0.0}},
            r"^nothing to minimise: the weights of 'task' and of all parts of 'kd' are 0$",
        ),
        (
            {"settings": {"rkd": {}}},
            r"^settings for 'rkd', which is not a term of method 'serkd': it has kd, serkd, feature$",
        ),
        (
            {"method": "none", "settings": {"kd": {}}},
            r"^settings for 'kd', which is not a term of method 'none': it has none$",
        ),
        ({"settings": {"kd": {"tau": 2}}}, r"^'tau' is not a setting of kd: it has temperature$"),
        (
            {"settings": {"serkd": {"angle_weight": 2}}},
            r"^'angle_weight' is not a setting of serkd: set the weight of 'serkd.angle' instead$",
        ),
        ({"settings": {"kd": {"temperature": 0}}}, r"^settings of kd: temperature must be above 0, got 0$"),
        ({"settings": {"kd": {"temperature": "warm"}}}, r"^settings of kd: "),
        ({"settings": {"serkd": {"cell": 2.5}}}, r"^settings of serkd: cell must be a whole number, got 2.5$"),
        (
            {"settings": {"serkd": {"student_tokeniser": "median"}}},
            r"^settings of serkd: student_tokeniser must be one of .*convolution, got 'median'$",
        ),
        (
            {"settings": {"serkd": {"student_tokeniser": "convolution", "largest_grid": 0}}},
            r"^settings of serkd: largest_grid must be at least 1, got 0$",
        ),
        (
            {"teacher": Extractor(cnn(8, 16, classes=9), name="other")},
            r"^the teacher other has 9 classes and the student small cnn 4: train the teacher on",
        ),
        (
            {"student": Extractor(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, CLASSES)), name="flat")},
            r"^flat has no place that holds a map or patch tokens at 24x24: only methods on what comes out fit it",
        ),
        (
            {"levels": [("stage3", "stage4")]},
            r"^serkd finds 1 superpixel in stage3 \(3x3\) and stage4 \(2x2\), but needs 3: choose levels",
        ),
        (
            {"settings": {"serkd": {"student_tokeniser": "convolution", "largest_grid": 1}}},
            r"^serkd finds 1 superpixel in ",
        ),
        (
            {"student": Extractor(cnn(4, 4, 4), input_size=4, name="tiny")},
            r"^tiny has no level of 3x3 cells or more at 24x24: give larger images$",
        ),
        ({"teacher": vit(32, 4, 16, 2)}, r"^teacher does not run on 24x24 images: "),
        (
            {"method": "none", "teacher": None, "weights": {"kd": 1.0}},
            r"^'kd' is not a part of method 'none': it has task$",
        ),
        (
            {"method": "none", "teacher": None, "levels": [("a", "b")]},
            r"^levels are given, but method 'none' looks at none$",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_messages(more: dict[str, Any], message: str) -> None:
    method = more.pop("method", "serkd")
    with pytest.raises(UserError, match=message) as caught:
        build(method, **more)
    assert "\n" not in str(caught.value)


def test_terms_alone() -> None:
    student, teacher = network("cnn", "student"), network("vit", "teacher")
    methods = Classification.methods
    plan = methods.plan(student, teacher, SIDE)
    terms = build_terms("serkd", methods, plan)
    assert [t.name for t in terms] == ["kd", "serkd", "feature"]
    assert list(plan.adapters) == ["stage2->blocks.2"]


# Methods that change the student, choose among the teacher's places, or need more than two networks ------------------


def distilled_vit() -> Extractor:
    torch.manual_seed(0)
    settings = {"img_size": SIDE, "patch_size": 6, "embed_dim": 16, "depth": 2, "num_heads": 2}
    made = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=CLASSES, **settings)
    return Extractor(made, name="distilled vit")


@pytest.mark.parametrize(("method", "task"), [("deit_hard", 0.5), ("deit_soft", 0.9)])
@pytest.mark.parametrize("teacher", ["cnn", "vit"])
def test_a_distillation_token_learns_from_the_teacher(method: str, task: float, teacher: str) -> None:
    module = build(method, distilled_vit(), teacher)
    assert module.task_weight == task
    step = module(batch())
    assert list(step.parts) == ["task", method]
    network = module.student.network
    gradients = torch.autograd.grad(step.total, [network.head.weight, network.head_dist.weight])
    assert all(gradient.any() for gradient in gradients)
    # The task's loss is the class token's alone, the teacher's the distillation token's.
    only_task = build(method, distilled_vit(), teacher, weights={method: 0.0})(batch()).total
    torch.testing.assert_close(step.parts["task"], only_task.detach())
    with torch.no_grad():
        both = module.eval()(batch()).student.logits
        module.train()
        module.student.eval()
        said = module.student(batch().images, distilled=True)
    torch.testing.assert_close(both, said.logits)
    assert not torch.allclose(said.distilled, said.logits)


@pytest.mark.parametrize("method", ["deit_hard", "deit_soft"])
def test_a_student_without_a_distillation_token_is_told(method: str) -> None:
    with pytest.raises(UserError, match=rf"^{method} needs a student with a distillation token .* small vit has none$"):
        build(method, "vit")


@pytest.mark.parametrize("student", ["cnn", "vit", "distilled vit"])
def test_cskd_asks_both_classifiers_about_each_place(student: str) -> None:
    network = distilled_vit() if student == "distilled vit" else student
    module = build("cskd", network, settings={"cskd": {"targets": "soft"}})
    assert module.task_weight == 0.5
    step = module(batch(), progress=0.0)
    assert list(step.parts) == ["task", "deit_hard", "cskd"]
    step.total.backward()
    for name, parameter in module.student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    late = module(batch(), progress=1.0)
    assert late.parts["cskd"] != step.parts["cskd"]
    torch.testing.assert_close(late.parts["task"], step.parts["task"])


def test_cskds_pairs() -> None:
    with pytest.raises(
        UserError, match=r"^cskd asks the teacher's classifier about each place .* but large vit does not"
    ):
        build("cskd", "vit", "vit")
    hidden = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8), nn.Flatten(), nn.LazyLinear(CLASSES))
    hidden(torch.zeros(1, 3, SIDE, SIDE))
    with pytest.raises(UserError, match=r"^cskd asks the student's classifier .* but odd does not"):
        build("cskd", Extractor(hidden, name="odd"))


@pytest.mark.parametrize(("student", "level"), [("cnn", "stage3"), ("vit", "blocks.2")])
def test_leap_goes_through_the_teachers_blocks_and_stops_there(student: str, level: str) -> None:
    settings = {"leap": {"longest_stay": 0.25, "threshold": 1.0, "start": "first"}}
    module = build("leap", student, "vit", settings=settings, levels=[(level, f"blocks.{i}") for i in range(4)])
    ran: list[str] = []
    for name, block in module.teachers["teacher"].network.blocks.named_children():
        block.register_forward_hook(lambda *_, name=name: ran.append(name))
    for progress, blocks in ((0.0, "0"), (0.25, "0"), (0.3, "01"), (0.5, "01"), (0.75, "012"), (0.8, "0123")):
        ran.clear()
        step = module(batch(), progress=progress)
        assert list(step.parts) == ["task", "leap.patches", "leap.class"]
        assert "".join(ran) == blocks, progress
    step.total.backward()
    assert all(p.grad is not None and p.grad.any() for p in module.adapters.parameters())


def test_leaps_levels() -> None:
    (term,) = build("leap", teacher="vit").terms
    assert term.weights == {"patches": 1.0, "class": 0.05}
    assert term.teacher[1] == ("blocks.1@norm", "blocks.1@norm@class")
    assert term.student == ("stage3", "pooled")
    assert term.loss.threshold == 0.85
    assert len(term.teacher_places) == 2 * len(term.teacher) == 6, "the first batch looks at all"
    assert build("leap", teacher="vit", images=1_281_167).terms[0].loss.threshold == 0.8
    assert build("leap", teacher="vit", settings={"leap": {"threshold": 0.6}}).terms[0].loss.threshold == 0.6
    levels = [("stage2", "blocks.1"), ("stage2", "blocks.3")]
    (term,) = build("leap", teacher="vit", levels=levels).terms
    assert term.teacher == (("blocks.1", "blocks.1@class"), ("blocks.3", "blocks.3@class"))
    averaging = VisionTransformer(img_size=32, patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=CLASSES,
                                  class_token=False, global_pool="avg")  # fmt: skip
    (term,) = build("leap", teacher=Extractor(averaging, input_size=32)).terms
    assert (term.student, term.teacher[0], term.weights) == ("stage3", "blocks.0", {"patches": 1.0})


def test_spectralkds_levels() -> None:
    def places(depth: int, other: int) -> list[Any]:
        pair = [Extractor(vit(SIDE, 6, 16, count + 1)) for count in (depth, other)]  # the last blocks are left out
        kd, spectral = build("spectralkd", *pair).terms
        assert kd.loss.temperature == 1.0
        return [[int(name.removeprefix("blocks.")) for name in side] for side in (spectral.student, spectral.teacher)]

    assert places(12, 24) == [[0, 1, 6, 7, 8, 9, 10, 11], [0, 1, 18, 19, 20, 21, 22, 23]]
    assert places(4, 9) == [[0, 1, 2, 3], [0, 6, 7, 8]]
    assert places(2, 3) == [[0, 1], [1, 2]]
    module = build("spectralkd", levels=[("stage2", "stage3")])
    assert (module.terms[1].student, module.terms[1].teacher) == (("stage2",), ("stage3",))


def test_leap_begins_where_the_first_batch_says() -> None:
    module = build("leap", teacher="vit", settings={"leap": {"threshold": 1.0}})
    loss = module.terms[0].loss
    assert loss.chosen() is None
    with torch.no_grad():
        theirs = module.ask_teacher(batch().images)
        student = module.student(batch().images, levels=("stage3",)).levels["stage3"]
        ours = next(iter(module.adapters.values()))[0](student).movedim(1, -1).flatten(0, 2)
    alike = [linear_cka(ours, theirs[f"blocks.{i}@norm"].movedim(1, -1).flatten(0, 2)).item() for i in range(3)]
    module(batch())
    assert loss.chosen() == max(range(3), key=alike.__getitem__)
    assert len(module.terms[0].teacher_places) == 2
    step = module(batch())
    assert list(step.parts) == ["task", "leap.patches", "leap.class"]
    step.total.backward()
    assert all(p.grad is not None and p.grad.any() for p in module.adapters.parameters())
    with pytest.raises(UserError, match=r"^leap compares one level of the student with several of the teacher"):
        build("leap", teacher="vit", levels=[("stage1", "blocks.1"), ("stage2", "blocks.3")])
    with pytest.raises(UserError, match=r"^leap needs a teacher whose blocks .*: large cnn is none$"):
        build("leap")


def test_crd_needs_to_know_how_many_images_there_are() -> None:
    with pytest.raises(UserError, match=r"^crd remembers every training image: give build_distiller their number \(im"):
        build("crd", images=None)
    with pytest.raises(UserError, match=r"^'images' is not a setting of crd: it has dim, negatives, temperature, mom"):
        build("crd", settings={"crd": {"images": 3}})


def test_simkd_gives_the_student_the_teachers_classifier() -> None:
    teacher = network("cnn", "teacher")
    module = build("simkd", teacher=teacher)
    assert module.task_weight == 0
    head = module.export().head
    assert torch.equal(head.weight, teacher.network.head.weight)
    assert not head.weight.requires_grad
    step = module(batch())
    step.total.backward()
    assert module.student.network.projector[0].weight.grad.any()
    assert list(build("simkd", weights={"task": 1.0})(batch()).parts) == ["task", "simkd"]
    assert list(build("kd+simkd")(batch()).parts) == ["kd", "simkd"]
    with pytest.raises(UserError, match=r"^simkd compares what the classifier is fed: leave the levels out$"):
        build("simkd", levels=[("stage1", "stage1")])


def test_an_adapter_is_of_both_its_levels() -> None:
    for levels in ([("stage1", "stage2"), ("stage2", "stage2")], [("stage1", "stage2"), ("stage1", "stage3")]):
        module = build("fitnets", levels=levels)
        assert [t.adapter for t in module.terms] == [f"{ours}->{theirs}" for ours, theirs in levels]
        assert torch.isfinite(module(batch()).total)


# Several teachers ----------------------------------------------------------------------------------------------------


def of_two(method: str, *, student: Any = "cnn", **choices: Any) -> Distiller:
    torch.manual_seed(0)
    student = network(student, "student") if isinstance(student, str) else student
    return build_distiller(
        method,
        student=student,
        teachers={"cnn": network("cnn", "teacher"), "vit": network("vit", "teacher")},
        image_size=SIDE,
        task=Classification(),
        choices=Choices(**choices),
        images=50,
    )


@pytest.mark.parametrize("method", ["kd+rkd", "serkd+sekd", "fitnets", "crd", "reviewkd"])
def test_every_teacher_has_a_method_s_terms(method: str) -> None:
    module = of_two(method)
    alone = {name: build(method, teacher=name) for name in ("cnn", "vit")}
    assert len(module.adapters) == sum(len(one.adapters) for one in alone.values())
    step = module(batch())
    names = [f"{name}.{part}" for name, one in alone.items() for part in list(one(batch()).parts)[1:]]
    assert list(step.parts) == ["task", *names]
    step.total.backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


def test_a_teacher_s_parts_are_those_that_it_has_alone() -> None:
    both = of_two("kd+rkd").eval()(batch()).parts
    for name in ("cnn", "vit"):
        torch.manual_seed(0)
        student, teacher = network("cnn", "student"), of_two("kd").teachers[name]
        alone = build_distiller(
            "kd+rkd", student=student, teachers={name: teacher}, image_size=SIDE, task=Classification()
        ).eval()
        parts = alone(batch()).parts
        assert list(parts) == ["task", "kd", "rkd.distance", "rkd.angle"]
        for part in list(parts)[1:]:
            torch.testing.assert_close(both[f"{name}.{part}"], parts[part])


def test_weights_of_all_teachers_and_of_one() -> None:
    module = of_two("kd+rkd", weights={"kd": 3.0, "vit.kd": 0.25, "vit.rkd.angle": 0.0})
    weights = {name: weight for term in module.terms for name, weight in term.named_weights.items()}
    assert weights == {
        "cnn.kd": 3.0,
        "cnn.rkd.distance": 25.0,
        "cnn.rkd.angle": 50.0,
        "vit.kd": 0.25,
        "vit.rkd.distance": 25.0,
        "vit.rkd.angle": 0.0,
    }
    with pytest.raises(UserError, match=r"^'rkd' is not a part of method 'kd': it has task, kd$"):
        of_two("kd", weights={"cnn.rkd": 1.0})
    balanced = of_two("kd", balance=0.5).train()
    balanced(batch())
    assert list(balanced.balance.factors) == ["cnn.kd", "vit.kd"]


def test_what_several_teachers_can_not_have() -> None:
    with pytest.raises(UserError, match=r"^simkd: small cnn has another network's classifier already: .* one teacher$"):
        of_two("simkd")
    with pytest.raises(ValueError, match="one teacher, or teachers by name, not both"):
        build_distiller(
            "kd",
            student=cnn(4),
            teacher=cnn(8),
            teachers={"a": cnn(8)},
            image_size=SIDE,
            task=Classification(),
        )
    with pytest.raises(UserError, match=r"^method 'kd' needs a teacher$"):
        build_distiller("kd", student=cnn(4), teachers={}, image_size=SIDE, task=Classification())


# Tasks that have less than classification ----------------------------------------------------------------------------


class Unlabelled(nn.Module):
    """Nothing but the teacher's outputs."""

    methods = LevelTerms("unlabelled images")

    def forward(self, student: Features, unlabelled: Batch) -> torch.Tensor:
        return 0.0 * student.logits.sum()

    def evaluator(self) -> Evaluator:
        raise AssertionError("nothing is measured here")


WITHOUT_CLASSES = [name for name, one in METHODS.items() if one.terms and one.needs and "classes" not in one.needs]


def test_relations_features_and_samples_need_no_classes() -> None:
    named = "serkd sekd rkd sp pkt cc ickd cwd at fitnets vid patch_kl features leap reviewkd ofd mgd crd"
    assert set(named.split()) <= set(WITHOUT_CLASSES)
    assert not any(METHODS[name].needs_class_scores or METHODS[name].needs_labels for name in WITHOUT_CLASSES)


@pytest.mark.parametrize("method", WITHOUT_CLASSES)
def test_methods_that_need_no_labels_and_no_classes(method: str) -> None:
    teacher = network("vit" if method == "leap" else "cnn", "teacher")
    module = build_distiller(
        method, student=network("cnn", "student"), teacher=teacher, image_size=SIDE, task=Unlabelled(), images=50
    )
    step = module(Batch(batch().images, None, batch().indices))
    leap = {"leap": ["leap.patches", "leap.class"]}
    expected = [part for part in {**PARTS, **leap}[method] if part != "kd"]
    assert list(step.parts) == ["task", *expected]
    step.total.backward()
    assert "logits" not in {place for term in module.terms for place in term.teacher_places}
    assert module.left_out == (("kd",) if "kd" in PARTS.get(method, ()) else ())


@pytest.mark.parametrize(
    ("method", "lacks"),
    [
        ("kd", "class scores, and large cnn has none for the student's classes"),
        ("dkd", "class scores, and large cnn has none for .*; labelled images, and there are none"),
        ("simkd", "class scores, and .*"),
        ("cskd", "class scores, and .*"),
    ],
)
def test_methods_that_a_task_has_not_enough_for(method: str, lacks: str) -> None:
    pair = {"student": network("cnn", "student"), "teacher": network("cnn", "teacher")}
    message = rf"^method '{method}' needs {lacks}: take one of fitnets, at, .*, sekd instead$"
    with pytest.raises(UserError, match=message):
        build_distiller(method, image_size=SIDE, task=Unlabelled(), images=50, **pair)


def test_what_methods_need_is_something_that_tasks_provide() -> None:
    known = Classification.methods.provides
    for name, method in METHODS.items():
        if method.terms is not None:
            assert method.needs <= known, name


def a_pair_for(method: str) -> dict[str, Any]:
    if METHODS[method].change_student is train_distillation_token:
        return {"student": distilled_vit(), "teacher": "cnn"}
    return {"student": "cnn", "teacher": "vit" if method == "leap" else "cnn"}


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.terms and name != "none"])
def test_what_a_method_says_it_needs_is_what_its_terms_look_at(method: str) -> None:
    entry = METHODS[method]
    wanted = [
        LABELS.intersection(term.needs) | ({"classes"} if term.compares_class_scores else set())
        for term in build(method, **a_pair_for(method)).terms
    ]
    if method == "simkd":
        wanted = [{"classes"}]  # by the teacher's classifier, which becomes the student's
    needs, all_of_them = frozenset.intersection(*map(frozenset, wanted)), frozenset().union(*wanted)
    told = {"labels", "boxes", "classes"}
    if method == "crd":
        assert (needs, entry.needs & told, entry.uses) == ({"labels"}, set(), {"labels"})
    else:
        assert (needs, all_of_them - needs) == (entry.needs & told, entry.uses)


# A teacher without class scores, images without labels ---------------------------------------------------------------


class Headless(Extractor):
    """Its output is no scores of classes."""

    def survey(self, image_size: int) -> list[LevelInfo]:
        found = super().survey(image_size)
        self.num_classes = 0
        return found


@pytest.mark.parametrize(("method", "kept"), [("serkd", "serkd"), ("kd+rkd", "rkd"), ("dkd+kd+sp", "sp")])
def test_parts_that_compare_class_scores_are_left_out(method: str, kept: str) -> None:
    module = build(method, class_scores=False)
    assert module.left_out == (("dkd", "kd") if "dkd" in method else ("kd",))
    parts = {**PARTS, "serkd": PARTS["serkd"][1:]}[kept]
    assert list(module(batch()).parts) == ["task", *parts]
    assert build(method, teacher=Headless(cnn(8, 16, 20))).left_out == module.left_out
    assert build(method).left_out == ()


def test_what_is_left_out_is_left_out_with_its_settings_and_weights() -> None:
    given = {"weights": {"dkd.target": 3.0, "sp": 2.0}, "settings": {"dkd": {"temperature": 2.0}}}
    module = build("dkd+sp", class_scores=False, **given)
    assert [term.named_weights for term in module.terms] == [{"sp": 2.0}]
    with pytest.raises(UserError, match=r"^'kd' is not a part of method 'dkd\+sp': it has task, sp$"):
        build("dkd+sp", class_scores=False, weights={"kd": 1.0})


def test_a_method_that_falls_away_has_no_say_in_the_tasks_weight_and_the_student() -> None:
    assert build("logit_std+rkd").task_weight == 0.1
    assert build("logit_std+rkd", class_scores=False).task_weight == 1.0
    module = build("simkd+rkd", class_scores=False)
    assert (module.left_out, module.task_weight) == (("simkd",), 1.0)
    assert isinstance(module.export(), nn.Sequential)
    student = distilled_vit()
    assert build("deit_soft+rkd", student, class_scores=False).task_weight == 1.0
    assert not student.network.distilled_training


@pytest.mark.parametrize("method", ["kd", "kd+dkd", "simkd"])
def test_a_method_that_is_nothing_but_class_scores_is_refused(method: str) -> None:
    message = rf"^method '{method.split('+')[0]}' needs class scores, and large cnn has none"
    with pytest.raises(UserError, match=message + r" .*: take one of fitnets, .* instead$"):
        build(method, class_scores=False)


def test_images_without_labels() -> None:
    with pytest.raises(UserError, match=r"^method 'dkd' needs labelled images, and there are none: take one of kd,"):
        build("dkd", labels=False)
    module = build("dkd+kd", labels=False)
    assert module.left_out == ("dkd",)
    unlabelled = Batch(batch().images, None, batch().indices)
    module.task_weight = 0.0
    assert list(module(unlabelled).parts) == ["kd"]
    module = build("crd", labels=False)
    module.task_weight = 0.0
    assert (module.left_out, module.terms[0].loss.contrast) == ((), "instances")
    assert list(module(unlabelled).parts) == ["crd"]
    assert build("crd").terms[0].loss.contrast == "classes"
    with pytest.raises(UserError, match=r"^crd can't contrast classes, .*: set its contrast to instances$"):
        build("crd", labels=False, settings={"crd": {"contrast": "classes"}})


def test_one_of_several_teachers_without_class_scores() -> None:
    teachers = {"cnn": Headless(cnn(8, 16, 20)), "vit": network("vit", "teacher")}
    pair = {"student": network("cnn", "student"), "teachers": teachers}
    module = build_distiller(
        "kd+rkd", image_size=SIDE, task=Classification(), choices=Choices(weights={"kd": 3.0}), **pair
    )
    assert module.left_out == ("cnn.kd",)
    weights = {name: weight for term in module.terms for name, weight in term.named_weights.items()}
    assert list(weights) == ["cnn.rkd.distance", "cnn.rkd.angle", "vit.kd", "vit.rkd.distance", "vit.rkd.angle"]
    assert weights["vit.kd"] == 3.0
