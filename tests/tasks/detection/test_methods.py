"""Methods between two small detectors: their terms, levels and adapters, one training step each, what is refused."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from drawn_objects import drawn_batch
from reldistill.core.checks import UserError
from reldistill.methods.build import build_distiller, build_terms
from reldistill.methods.plan import Choices
from reldistill.methods.table import METHODS
from reldistill.networks.adapters import PyramidAdapter
from reldistill.networks.extract import Extractor
from reldistill.step.distiller import Distiller
from reldistill.step.term import Term
from reldistill.tasks.classification.objective import Classification
from reldistill.tasks.detection.methods import TERMS
from reldistill.tasks.detection.networks.detector_extract import DetectorExtractor
from reldistill.tasks.detection.networks.plain_detectors import make_detector
from reldistill.tasks.detection.objective import Detection

SIDE = 128
SSD = "ssdlite320_mobilenet_v3_large"
ON_DETECTORS = list(TERMS)

TASK = Detection(("one", "two"))


def detector(family: str, *, channels: int = 32, num_outputs: int = 4, outputs: Any = None) -> DetectorExtractor:
    """A tiny one of a family, on the same backbone always."""
    torch.manual_seed(channels)
    if family == "ssd":
        return DetectorExtractor(make_detector(SSD, num_outputs=num_outputs), outputs=outputs, name="small ssd")
    few = {"rpn_post_nms_top_n_train": 50, "rpn_pre_nms_top_n_train": 60, "box_batch_size_per_image": 16}
    network = make_detector(
        f"{family}_mobilenetv3_small_050_fpn",
        num_outputs=num_outputs,
        fpn_channels=channels,
        **(few if family == "fasterrcnn" else {}),
    )
    return DetectorExtractor(network, outputs=outputs, name=f"{family} of {channels}")


def build(method: str, student: Any = "retinanet", teacher: Any = "retinanet", **more: Any) -> Distiller:
    """Of families, or of extractors; the teacher's levels are wider."""
    student = detector(student) if isinstance(student, str) else student
    teacher = detector(teacher, channels=64) if isinstance(teacher, str) else teacher
    return build_distiller(
        method, student=student, teacher=teacher, image_size=SIDE, task=TASK, choices=Choices(**more)
    )


def places(distiller: Distiller, name: str) -> list[tuple[Any, Any]]:
    return [(term.student, term.teacher) for term in distiller.terms if isinstance(term, Term) and term.name == name]


OVERVIEW = (Path(__file__).parents[3] / "docs" / "methods" / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", ON_DETECTORS)
def test_the_overview_page_says_the_default_weights(method: str) -> None:
    table = OVERVIEW.partition("Between two detectors")[2]
    (row,) = re.findall(rf"^\| (?:\[`{method}`\]\({method}\.md\)|`{method}`) \|.*\|$", table, flags=re.MULTILINE)
    said = [
        {name: float(weight) for name, weight in re.findall(r"`([\w.]+)` ([\d.]+)", row.split("|")[column])}
        for column in (3, 4)
    ]
    for family, expected in (("retinanet", said[0]), ("fasterrcnn", said[0] | said[1])):
        module = build(method, family, family)
        found = {f"{t.name}.{p}" if p else t.name: value for t in module.terms for p, value in t.weights.items()}
        assert found | {"task": module.task_weight} == pytest.approx(expected)


@pytest.mark.parametrize("family", ["retinanet", "fcos", "fasterrcnn"])
@pytest.mark.parametrize("method", ON_DETECTORS)
def test_a_step_reaches_the_student_and_what_the_method_learns(method: str, family: str) -> None:
    module = build(method, family, family).train()
    before = copy.deepcopy(module.state_dict())
    optimiser = torch.optim.SGD(module.trainable_parameters(), lr=1e-3)
    torch.manual_seed(0)
    output = module(drawn_batch(2, side=SIDE, inside=120))
    assert output.total.isfinite()
    assert set(output.parts) >= {"task"}
    assert all(value != 0 for value in output.parts.values())
    output.total.backward()
    optimiser.step()
    after = module.state_dict()
    for part in ("student.network.backbone.fpn", "adapters"):
        names = [name for name in before if name.startswith(part) and before[name].is_floating_point()]
        moved = [name for name in names if not torch.equal(before[name], after[name])]
        assert moved or not names
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("teacher"))


def test_levels_are_paired_by_stride() -> None:
    pairs = [("p3", "p3"), ("p4", "p4"), ("p5", "p5"), ("p6", "p6")]
    assert places(build("pkd", "retinanet", "fasterrcnn"), "pkd") == pairs
    assert places(build("pkd", "fasterrcnn", "retinanet"), "pkd") == pairs[:3]
    assert places(build("pkd", "retinanet", "fcos"), "pkd") == [*pairs, ("p7", "p7")]
    # of 320 pixels squeezed from 128, 16 pixels per cell are 6.4
    finest = places(build("pkd", "ssd", "fcos"), "pkd")[0]
    assert finest == ("p4", "p3")
    assert places(build("fgd", levels=[("p3", "p4")]), "fgd") == [("p3", "p4")]
    with pytest.raises(UserError, match="level 'p2' not in retinanet of 32: it has p3, p4, p5, p6, p7"):
        build("fgd", levels=[("p2", "p3")])


@pytest.mark.parametrize("method", ["fgd", "mgd", "pkd"])
def test_the_level_that_faster_rcnn_only_subsamples_is_left_out(method: str) -> None:
    """As in the authors' configurations: P2 to P5. P6 is every other cell of P5."""
    learned = [(name, name) for name in ("p2", "p3", "p4", "p5")]
    assert places(build(method, "fasterrcnn", "fasterrcnn"), method) == learned
    assert places(build(method, "fasterrcnn", "fasterrcnn", levels=[("p6", "p6")]), method) == [("p6", "p6")]
    assert places(build("cwd", "fasterrcnn", "fasterrcnn"), "cwd") == [*learned, ("p6", "p6")]
    assert len(places(build(method), method)) == 5, "RetinaNet's p6 and p7 have weights of their own"


def test_levels_without_a_common_stride() -> None:
    student = detector("retinanet")
    student.survey(SIDE)
    coarse = copy.deepcopy(student)
    coarse.stages = lambda side: [level for level in student.stages(side) if level.name == "p7"]  # type: ignore
    fine = copy.deepcopy(student)
    fine.stages = lambda side: [level for level in student.stages(side) if level.name == "p3"]  # type: ignore
    with pytest.raises(UserError, match=r"\(p7\) and .* \(p3\) share no stride: give the levels to pair"):
        TASK.methods.plan(coarse, fine, SIDE).pairs()
    with pytest.raises(UserError, match="share no level of 3x3 cells or more at 128x128: give larger images"):
        TASK.methods.plan(coarse, coarse, SIDE).pairs(smallest=3)


def test_an_adapter_only_where_levels_differ_and_for_any_size() -> None:
    assert not build("fgd", teacher=detector("fcos")).adapters
    module = build("fgd+sekd").train()
    assert len(module.adapters) == 5
    assert all(isinstance(adapter, PyramidAdapter) for adapter in module.adapters.values())
    assert all(isinstance(adapter.project, nn.Conv2d) for adapter in module.adapters.values())
    for side in (96, 160):
        assert module(drawn_batch(2, side=side)).total.isfinite()


@pytest.mark.parametrize("method", ["fgd", "cwd", "sekd", "serkd", "mgd"])
def test_a_student_of_fixed_size_beside_a_pyramid(method: str) -> None:
    module = build(method, "ssd", "retinanet").train()
    for adapter in module.adapters.values():
        assert isinstance(adapter, PyramidAdapter)
    output = module(drawn_batch(2, side=SIDE, inside=100))
    assert output.total.isfinite()
    output.total.backward()


def test_the_teacher_scores_the_students_proposals() -> None:
    module = build("head_kd", "fasterrcnn", "fasterrcnn").train()
    batch = drawn_batch(2, side=SIDE)
    torch.manual_seed(0)
    output = module(batch)
    proposals = output.student.proposals
    said = module.ask_teacher(batch.images, targets=batch.targets, proposals=proposals)["scores"]
    assert said.shape == output.student.scores.shape == (sum(map(len, proposals)), 4)
    expected = nn.functional.kl_div(
        output.student.scores.log_softmax(1), said.log_softmax(1), reduction="batchmean", log_target=True
    )
    torch.testing.assert_close(output.parts["head_kd"], expected.detach())


def test_a_teacher_with_other_outputs_scores_the_data_s_classes() -> None:
    teacher = detector("retinanet", channels=64, num_outputs=91, outputs=(17, 3, 90))
    module = build("head_kd", teacher=teacher).train()
    batch = drawn_batch(2, side=SIDE)
    said = module.ask_teacher(batch.images, targets=batch.targets)["scores"]
    assert said.shape == module(batch).student.scores.shape


def test_scores_of_other_places_are_refused() -> None:
    for student, teacher in (("retinanet", "fcos"), ("retinanet", "fasterrcnn"), ("ssd", "ssd")):
        with pytest.raises(UserError, match="head_kd compares two RetinaNets, FCOS or Faster R-CNNs with the same"):
            build("head_kd", student, teacher)
    with pytest.raises(UserError, match="with the same anchors and classes"):
        build("head_kd", teacher=detector("retinanet", num_outputs=6))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in TERMS])
def test_methods_that_are_for_classification(method: str) -> None:
    with pytest.raises(UserError, match=rf"method '{method}' is not for detection: choose one of none, fitnets, "):
        build(method)


def test_methods_and_networks_that_are_for_detection() -> None:
    network = Extractor(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.LazyLinear(3)))
    network(torch.rand(1, 3, 32, 32))
    methods = Classification.methods
    plan = methods.plan(network, network, 32)
    for name in [name for name, one in METHODS.items() if one.terms is None]:
        assert name in TERMS
        with pytest.raises(UserError, match=rf"method '{name}' is not for classification: choose one of none, kd, dkd"):
            build_terms(name, methods, plan)
    with pytest.raises(UserError, match="the teacher fcos of 32 is not a network for classification: student and"):
        methods.plan(network, detector("fcos"), 32)
    with pytest.raises(UserError, match="the student network is not a network for detection: student and teacher must"):
        build("pkd", student=network)


def test_bare_detectors_of_torchvision() -> None:
    pair = [detector("fcos").network, detector("fcos", channels=64).network]
    module = build_distiller("pkd", student=pair[0], teacher=pair[1], image_size=SIDE, task=TASK).train()
    assert isinstance(module.student, DetectorExtractor)
    assert module(drawn_batch(2)).total.isfinite()
    assert type(module.export()) is type(pair[0])


def test_settings_and_weights_are_the_users() -> None:
    module = build("cwd", settings={"cwd": {"temperature": 3.0}}, weights={"cwd": 0.1, "task": 0.5})
    assert module.terms[0].loss.temperature == 3.0
    assert module.terms[0].weights == {"": 0.1}
    assert module.task_weight == 0.5


def test_balance_and_a_task_of_no_weight() -> None:
    module = build("fgd", "fcos", "fcos", balance=0.5).train()
    assert module(drawn_batch(2)).total.isfinite()
    alone = build("pkd", "fcos", "fcos", weights={"task": 0.0}).train()
    output = alone(drawn_batch(2))
    output.total.backward()
    heads = [p for n, p in alone.named_parameters() if n.startswith("student.network.head")]
    assert all(p.grad is not None for p in heads)
    assert not any(p.grad.any() for p in heads)


def test_a_batch_without_boxes_says_what_is_missing() -> None:
    batch = drawn_batch(2)
    bare = type(batch)(batch.images)
    with pytest.raises(ValueError, match="the student returned no losses: it must be a detector in training mode"):
        build("none")(bare)
    with pytest.raises(ValueError, match="fgd needs the boxes of a batch"):
        build("fgd", weights={"task": 0.0})(bare)


@pytest.mark.parametrize(
    ("family", "temperature", "weights"),
    [
        ("retinanet", 0.5, {"foreground": 1e-3, "background": 5e-4, "attention": 5e-4, "global": 5e-6}),
        ("fcos", 0.8, {"foreground": 1.6e-3, "background": 8e-4, "attention": 8e-4, "global": 8e-6}),
        ("fasterrcnn", 0.5, {"foreground": 5e-5, "background": 2.5e-5, "attention": 5e-5, "global": 5e-7}),
    ],
)
def test_settings_of_fgd_are_its_authors(family: str, temperature: float, weights: dict[str, float]) -> None:
    """Their configurations of RetinaNet, FCOS and Faster R-CNN, by the student's family."""
    (term, *_) = build("fgd", family, "retinanet").terms
    assert term.loss.temperature == temperature
    assert term.weights == pytest.approx(weights)
