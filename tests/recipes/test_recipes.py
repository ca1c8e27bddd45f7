"""Every recipe runs: a small folder stands in for its data set, one epoch for its schedule."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reldistill.cli.main import main
from reldistill.networks.zoo import load_network
from reldistill.recipes import RECIPES
from small_runs import TRAIN, TRUST, reldistill, with_options, write_images, write_world

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A teacher; `many` with a batch of the CIFAR recipes' size; `few` with train/ and val/, as ImageNet comes."""
    folder = write_world(tmp_path_factory.mktemp("recipes"))
    write_images(folder / "many", count=50)
    write_images(folder / "few/train", count=4)
    write_images(folder / "few/val", count=4, seed=1)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(with_options(TRAIN, epochs=4, out="teacher")) == 0
        yield folder
    finally:
        os.chdir(before)


def run(name: str, *arguments: str) -> dict[str, Any]:
    assert main(["run", name, "--method", "kd", "--out", f"out-{name}", *arguments, *TRUST]) == 0
    record: dict[str, Any] = json.loads(Path(f"out-{name}/record.json").read_text())
    assert record["status"] == "finished"
    assert record["method"] == "kd"
    return record


def test_every_recipe_is_tested_here() -> None:
    assert {*RECIPES} - {"coco-detector", "voc-detector"} == {
        "cifar10-resnet20",
        "cifar100",
        "imagenet-deit-tiny",
        "imagenet-resnet18",
    }


def test_cifar10_resnet20(world: Path) -> None:
    record = run("cifar10-resnet20", "--data", "many", "--teacher", "teacher", "--epochs", "1")
    assert record["student"]["name"] == "resnet20"
    assert record["settings"]["lr"] == 0.2
    assert record["settings"]["batch_size"] == 128
    assert record["settings"]["schedule"] == "one-cycle"
    assert record["data"]["image_size"] == 32


def test_cifar100_trains_its_teacher_first_and_resumes(world: Path) -> None:
    arguments = ("--data", "many", "--teacher", "nets.py:small", "--student", "resnet8", "--epochs", "8")
    record = run("cifar100", *arguments)
    teacher = json.loads(Path("out-cifar100/teacher/record.json").read_text())
    assert teacher["status"] == "finished"
    assert teacher["method"] == "none"
    assert record["teacher"]["weights_sha256"] == teacher["result"]["weights"]["student.safetensors"]
    for settings in (record["settings"], teacher["settings"]):
        assert settings["schedule"] == "step"
        assert settings["milestones"] == [0.625, 0.75, 0.875]
        assert settings["weight_decay"] == 5e-4
        assert settings["batch_size"] == 64
        assert settings["nesterov"] is False
    assert [epoch["learning_rate"] for epoch in record["history"]] == pytest.approx(
        [0.05] * 4 + [0.005, 0.0005, 5e-5, 5e-5]
    )
    assert run("cifar100", *arguments, "--resume")["created"] == record["created"]


class Asked(Exception):
    """Carries what a recipe asked for."""


def test_cifar100_has_the_literatures_networks_normalisation_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr("reldistill.runs.train.train", lambda *given, **_: asked.append(given))
    monkeypatch.setattr("reldistill.runs.distill.distill", lambda *given, **_: asked.append(given))
    RECIPES["cifar100"](out=Path("out"), teacher="resnet50", student="mobilenetv2_half", method="kd")
    (_, network, taught), (_, pair, schedule) = asked
    assert (network.model, taught.lr, taught.nesterov) == ("resnet50_cifar", 0.05, False)
    assert (pair.teacher, pair.student, schedule.lr) == ("out/teacher", "mobilenetv2_half", 0.01)
    assert pair.weights == {"task": 0.1, "kd": 0.9}
    for name, arguments in ((network.model, network.model_arguments), (pair.student, pair.student_arguments)):
        loaded = load_network(name, num_classes=100, arguments=arguments)
        assert (loaded.mean, loaded.std) == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
    asked.clear()
    weights = {"teacher_weights": "vgg13.pth", "method": "rkd"}
    RECIPES["cifar100"](out=Path("out"), teacher="vgg13", student="resnet18", **weights)
    ((_, pair, schedule),) = asked
    assert (pair.teacher, pair.student, schedule.lr) == ("vgg13_cifar", "resnet18", 0.05)
    assert (pair.weights, pair.student_arguments) == ({}, {})
    assert load_network(pair.teacher, num_classes=100, arguments=pair.teacher_arguments).std == (0.2675, 0.2565, 0.2761)


def test_imagenet_resnet18(world: Path) -> None:
    record = run("imagenet-resnet18", "--data", "few", "--teacher", "teacher", "--epochs", "1", "--batch-size", "6")
    assert record["student"]["name"] == "resnet18"
    assert record["settings"]["lr"] == pytest.approx(0.2 * 6 / 512)
    assert record["data"]["image_size"] == 224


def test_imagenet_deit_tiny(world: Path) -> None:
    teacher = ("--teacher", "nets.py:small", "--teacher-weights", "teacher/student.safetensors")
    record = run("imagenet-deit-tiny", "--data", "few", *teacher, "--epochs", "1", "--batch-size", "6")
    assert record["student"]["name"] == "deit_tiny_patch16_224"
    assert record["settings"]["used_optimizer"] == "adamw"
    assert record["settings"]["augment"] == "strong"


def test_quickstart(tmp_path: Path) -> None:
    done = reldistill(
        *("quickstart", "--out", "q", "--methods", "none", "serkd", "--epochs", "1", "--teacher-epochs", "2", "--json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [record["method"] for record in answer["records"]] == ["none", "none", "serkd"]
    assert {record["data"]["val_images"] for record in answer["records"]} == {359}
    names = {path.name for path in (tmp_path / "q").iterdir()}
    assert names == {"teacher", "none", "serkd", "report.html"}
    page = (tmp_path / "q/report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert 'src="http' not in page
    again = reldistill("quickstart", "--out", "q", cwd=tmp_path)
    assert again.returncode == 2
    assert "already holds a quickstart: continue it with --resume" in again.stderr
