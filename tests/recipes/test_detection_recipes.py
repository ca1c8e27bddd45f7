"""The recipes of detection run: drawn images stand in for COCO and Pascal VOC, two steps for the schedule."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import reldistill.runs.distill
from drawn_boxes import draw_large, write_coco, write_voc
from reldistill.cli.main import main
from reldistill.core.checks import UserError
from reldistill.recipes import RECIPES
from reldistill.recipes.detection import Family, Pair
from reldistill.tasks.detection.networks.plain_detectors import make_detector

pytestmark = pytest.mark.slow

NAMES = ("coco-detector", "voc-detector")
DATA = {"coco-detector": "coco:coco", "voc-detector": "voc:voc"}
# p7 of smaller images is made from a map one cell wide: PyTorch 2.15 may get that wrong in bfloat16
SMALL = ["--epochs", "1", "--batch-size", "2", "--image-size", "96", "--no-pretrained-backbone", "--workers", "0"]
TEACHER = '{"norm": "group", "fpn_channels": 64}'


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders of both layouts, and a teacher that has learned their three classes."""
    folder = tmp_path_factory.mktemp("recipes")
    tested = draw_large(2, seed=1, first=90)
    write_coco(folder / "many", train=draw_large(33), val=tested)
    write_coco(folder / "coco", train=draw_large(5), val=tested)
    write_voc(folder / "voc/VOC2007", trainval=draw_large(3), test=tested)
    write_voc(folder / "voc/VOC2012", trainval=draw_large(2, first=10))
    before = Path.cwd()
    os.chdir(folder)
    train = ["train", "--data", "coco:many", "--image-size", "96", "--augment", "none", "--workers", "0"]
    network = ["--model", "fcos_mobilenet_v3_small_fpn", "--model-arguments", TEACHER]
    rates = ["--epochs", "3", "--batch-size", "2", "--optimizer", "adamw", "--lr", "0.003"]
    try:
        assert main([*train, *network, *rates, "--out", "teacher"]) == 0
        yield folder
    finally:
        os.chdir(before)


@pytest.mark.parametrize(
    ("name", "family", "pair", "student"),
    [
        ("coco-detector", "retinanet", "r50-r18", "retinanet_resnet18_fpn"),
        ("coco-detector", "fasterrcnn", "r101-r50", "fasterrcnn_resnet50_fpn"),
        ("voc-detector", "fasterrcnn", "r50-mobilenet-v2", "fasterrcnn_mobilenet_v2_fpn"),
        ("voc-detector", "retinanet", "r101-efficientnet-b0", "retinanet_efficientnet_b0_fpn"),
    ],
)
def test_two_steps(world: Path, name: str, family: str, pair: str, student: str) -> None:
    chosen = ["--data", DATA[name], "--family", family, "--pair", pair, "--teacher", "teacher", "--out", pair]
    assert main(["run", name, *chosen, *SMALL]) == 0
    record = json.loads(Path(pair, "record.json").read_text())
    assert record["status"] == "finished"
    assert record["method"] == "sekd"
    assert record["student"]["name"] == student
    assert record["teacher"]["name"] == "fcos_mobilenet_v3_small_fpn"
    assert record["history"][-1]["step"] == 2
    assert {"task", "sekd.vertex", "sekd.edge", "sekd.spectral"} <= record["history"][-1]["train"].keys()
    settings = record["settings"]
    assert settings["lr"] == pytest.approx({"retinanet": 0.00125, "fasterrcnn": 0.0025}[family])
    assert settings["milestones"] == pytest.approx([2 / 3, 8 / 9])
    assert (settings["schedule"], settings["used_optimizer"]) == ("step", "sgd")


class Asked(Exception):
    """Carries what a recipe asked for."""


@pytest.mark.parametrize("family", get_args(Family))
@pytest.mark.parametrize("pair", get_args(Pair))
def test_every_pair_has_its_networks(monkeypatch: pytest.MonkeyPatch, family: str, pair: str) -> None:
    def ask(*given: Any, **more: Any) -> None:
        raise Asked(*given)

    monkeypatch.setattr(reldistill.runs.distill, "distill", ask)
    found = []
    for name in NAMES:
        with pytest.raises(Asked) as asked:
            RECIPES[name](data=DATA[name], out=Path("out"), family=family, pair=pair, teacher_weights="a.pth")
        found.append(asked.value.args)
    (_, networks, training), (_, other, shorter) = found
    assert networks == other
    assert (training.epochs, shorter.epochs) == (12, 17)
    assert training.lr == shorter.lr == {"retinanet": 0.005, "fasterrcnn": 0.01}[family]
    assert networks.student_arguments == {"pretrained_backbone": True}
    sizes = [
        sum(parameter.numel() for parameter in make_detector(network, num_outputs=3).parameters())
        for network in (networks.teacher, networks.student)
    ]
    assert sizes[0] > sizes[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_that_nobody_publishes_is_asked_for(name: str) -> None:
    with pytest.raises(UserError, match=r"nobody publishes weights of fasterrcnn_resnet101_fpn: give the folder"):
        RECIPES[name](data=DATA[name], out=Path("out"), family="fasterrcnn", pair="r101-r50")
