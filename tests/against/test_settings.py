"""The authors' settings that are not our defaults can be had by name, and the levels are those that pages say."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from reldistill.core.types import Batch, ClassLabels
from reldistill.methods.build import build_distiller
from reldistill.methods.plan import Choices
from reldistill.networks import cifar
from reldistill.networks.extract import Extractor
from reldistill.step.distiller import Distiller
from reldistill.step.term import Term
from reldistill.tasks.classification.objective import Classification


def build(method: str, student: str, teacher: str, **more: Any) -> Distiller:
    torch.manual_seed(0)
    networks = [Extractor(timm.create_model(cifar.REGISTERED[name], num_classes=5)) for name in (student, teacher)]
    return build_distiller(
        method, student=networks[0], teacher=networks[1], image_size=32, task=Classification(), choices=Choices(**more)
    )


def places(distiller: Distiller) -> list[Any]:
    return [term.student for term in distiller.terms if isinstance(term, Term)]


def named(*levels: int) -> list[tuple[str, str]]:
    return [(f"layer{level}", f"layer{level}") for level in levels]


def test_the_levels_of_a_vgg() -> None:
    assert places(build("at", "vgg8", "vgg11")) == ["layer1", "layer2", "layer3", "layer5"]
    assert places(build("sekd", "vgg8", "vgg11"))[1:] == ["layer2", "layer3", "layer5"], "as the committed tables"
    literature = build("at", "vgg8", "vgg11", levels=named(2, 3, 4, 5))
    assert places(literature) == ["layer2", "layer3", "layer4", "layer5"]
    (fused,) = places(build("reviewkd", "vgg8", "vgg11", levels=named(2, 3, 4, 5)))
    assert fused == ("layer2", "layer3", "layer4", "layer5", "pooled")


def test_fitnets_of_the_benchmarks() -> None:
    """The plain mean square of the second stage, weight 100."""
    module = build(
        *("fitnets", "resnet8", "resnet14"),
        levels=named(2),
        settings={"fitnets": {"relative": False}},
        weights={"fitnets": 100, "task": 0},
    )
    images = torch.rand(3, 3, 32, 32)
    module.train()
    torch.manual_seed(0)
    value = module(Batch(images, ClassLabels(torch.tensor([0, 1, 2])), torch.arange(3))).parts["fitnets"].item()
    student, teacher = (one(images, levels=("layer2",)).levels["layer2"] for one in (module.student, module.teacher))
    assert value == pytest.approx(100 * ((student - teacher) ** 2).mean().item(), rel=1e-4)
    (term,) = module.terms
    assert term.weights == {"": 100}


def test_ofd_taps_wide_resnets_before_a_relu() -> None:
    normed = ("layer2.0.bn1", "layer3.0.bn1", "bn1")
    (term,) = build("ofd", "wrn_16_1", "wrn_16_2").terms
    assert (term.student, term.teacher) == (normed, normed)
    (mixed,) = build("ofd", "resnet8", "wrn_16_1").terms
    assert (mixed.student, mixed.teacher) == (("layer1", "layer2", "layer3"), normed)
    (chosen,) = build("ofd", "wrn_16_1", "wrn_16_2", levels=named(2, 3)).terms
    assert chosen.student == ("layer2", "layer3"), "a level that is asked for is that level"
    (vid, *_) = build("vid", "wrn_16_1", "wrn_16_2").terms
    assert vid.student == "layer1"


def test_mgd_and_pkt_of_the_code_and_of_the_paper() -> None:
    module = build("mgd", "resnet8", "resnet14", settings={"mgd": {"ratio": 0.15, "masked": "channels"}})
    assert (module.terms[0].loss.ratio, module.terms[0].loss.masked) == (0.15, "channels")
    assert build("mgd", "resnet8", "resnet14").terms[0].loss.ratio == 0.5
    assert build("pkt", "resnet8", "resnet14").terms[0].loss.diagonal == "kept"
    paper = build("pkt", "resnet8", "resnet14", settings={"pkt": {"diagonal": "left_out"}})
    assert paper.terms[0].loss.diagonal == "left_out"
