"""Images without labels go the whole way: distilled, killed, resumed, compared, exported, used by what follows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import several_lives
from reldistill.cli.main import main
from small_runs import environment, with_options, write_world

pytestmark = pytest.mark.slow

DATA = ["--data", "unlabelled:pics", "--batch-size", "12", "--lr", "0.1", "--val-fraction", "0.3", "--epochs", "2"]
DATA += ["--precision", "32-true", "--trust", "nets.py:small"]
DISTILL = ["distill", *DATA, "--teacher", "teacher", "--student", "resnet8", "--method", "serkd"]
LABELLED = ["--data", "pics", "--val-fraction", "0.3", "--batch-size", "12", "--lr", "0.1", "--epochs", "2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Images, a finished teacher, and a student that was killed in its second epoch and resumed, beside a whole one."""
    folder, before = write_world(tmp_path_factory.mktemp("features")), Path.cwd()
    train = ["train", *LABELLED, "--model", "nets.py:small", "--epochs", "4", "--out", "teacher"]
    whole = [*DISTILL, "--checkpoint-every", "1", "--out", "whole"]
    again = [*DISTILL, "--checkpoint-every", "1", "--out", "killed", "--resume"]
    plan = [[" ".join(w), moment] for w, moment in ((train, ""), (whole, ""), (again, "batch:5"), (again, ""))]
    done = subprocess.run(
        [sys.executable, several_lives.__file__, json.dumps(plan)],
        cwd=folder,
        env={**environment(), "STILL_CLOCK": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert json.loads(done.stdout) == [0, 0, -signal.SIGKILL, 0], done.stderr
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


def record(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "record.json").read_text())
    return found


def said(capfd: pytest.CaptureFixture[str], words: list[str], *, code: int = 0) -> str:
    capfd.readouterr()
    assert main(words) == code
    out, err = capfd.readouterr()
    return err if code else out


def test_killed_and_resumed_it_is_the_same(world: Path) -> None:
    for name in ("student.safetensors", "student-best.safetensors", "similarities.npz", "relations.npz", "metrics.csv"):
        assert Path("killed", name).read_bytes() == Path("whole", name).read_bytes(), name


def test_what_is_on_record(world: Path) -> None:
    found = record("whole")
    assert (found["task"], found["data"]["classes"], found["status"]) == ("features", [], "finished")
    parts = found["history"][-1]["train"]
    assert parts.keys() == {"feature", "serkd.distance", "serkd.angle", "pooled", "total"}, "no class scores, no labels"
    assert -100 <= found["history"][-1]["val"]["relations"] <= 100
    page = Path("whole/report.html").read_text()
    assert "no labels" in page
    assert "0 classes" not in page


def test_the_student_has_no_head_and_gets_one(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone = load_file("whole/student.safetensors")
    assert not [name for name in backbone if name.startswith("fc.")]
    assert main(["train", *LABELLED, "--model", "whole", "--epochs", "1", "--lr", "1e-6", "--out", "tuned"]) == 0
    assert "its head starts from random weights" in caplog.text
    tuned = load_file("tuned/student.safetensors")
    assert tuned["fc.weight"].shape[0] == 3
    weights = [name for name in backbone if backbone[name].ndim == 4]
    assert weights
    for name in weights:
        np.testing.assert_allclose(tuned[name], backbone[name], atol=1e-4, err_msg="it starts from the backbone")


def test_a_frozen_backbone_stays_what_it_is(world: Path) -> None:
    words = ["train", *LABELLED, "--model", "whole", "--freeze", "backbone", "--out", "probe"]
    assert main(words) == 0
    backbone, probe = load_file("whole/student.safetensors"), load_file("probe/student.safetensors")
    assert all(np.array_equal(backbone[name], probe[name]) for name in backbone), "norms' statistics too"
    assert probe.keys() - backbone.keys() == {"fc.weight", "fc.bias"}


def test_features_are_probed_and_class_scores_are_not_there(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "whole", "--data", "pics", "--val-fraction", "0.3"]
    found = json.loads(said(capfd, [*words, "--probe", "knn", "linear", "retrieval", "--json"]))
    assert found["probes"].keys() == {"knn", "linear", "retrieval"}
    for one in found["probes"].values():
        assert one["interval"][0] <= one["score"] <= one["interval"][1]
    assert found["probes"]["knn"]["score"] > 100 / 3
    assert "no class scores: measure its features by --probe" in said(capfd, words, code=2)
    assert "probe 'k' is unknown: choose one of knn, linear, retrieval" in said(capfd, [*words, "--probe", "k"], code=2)
    unlabelled = ["evaluate", "whole", "--data", "unlabelled:pics", "--probe", "knn"]
    assert "--probe measures features by one class per image" in said(capfd, unlabelled, code=2)


@pytest.mark.usefixtures("traceable")
def test_the_backbone_is_exported(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    out = said(capfd, ["export", "whole", "--format", "onnx", "--out", "backbone.onnx"])
    assert "features and last map (B, 64) and (B, 64, 3, 3)" in out
    assert main(["export", "whole", "--out", "backbone.safetensors"]) == 0


def test_methods_are_compared_by_relations(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["compare", *DATA, "--teacher", "teacher", "--student", "resnet8", "--seeds", "1", "--epochs", "1"]
    assert main([*words, "--methods", "serkd", "rkd", "--out", "compared"]) == 0
    found = json.loads(Path("compared/compare.json").read_text())
    assert {cell["variant"]: cell["status"] for cell in found["cells"]} == {"serkd": "finished", "rkd": "finished"}
    assert all(0 < cell["test_last"] < 100 for cell in found["cells"])
    assert found["teacher"]["test"] == 100, "it relates images as it does itself"


def test_labels_are_left_out_on_request(world: Path) -> None:
    words = with_options([*DISTILL, "--task", "features", "--out", "asked"], data="pics", epochs=1)
    assert main(words) == 0
    assert record("asked")["data"]["classes"] == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", *DATA, "--model", "resnet8"], "there is nothing to learn from but a teacher"),
        (with_options(DISTILL, method="kd"), "needs class scores"),
        (with_options(DISTILL, teacher="resnet8"), "no pretrained weights exist"),
        ([*DISTILL, "--balance", "1"], "the weight of 'task' can't be 0"),
        ([*DISTILL, "--label-smoothing", "0.1"], "there are no labels"),
        ([*DISTILL, "--weights", '{"task": 1}'], "has no loss of its own"),
    ],
)
def test_what_makes_no_sense_is_refused(
    world: Path, capfd: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    error = said(capfd, [*words, "--out", "refused"], code=2)
    assert expected in error
    assert not Path("refused").exists()


def test_a_teacher_with_a_head_for_other_classes_is_taken_without(
    world: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """On labelled images: its nearest neighbours are measured, and kd is left out, which is said."""
    words = ["distill", *LABELLED, "--teacher", "teacher", "--trust", "nets.py:small", "--student", "resnet8"]
    words += ["--teacher-head", "none", "--method", "serkd", "--epochs", "1", "--out", "headless"]
    error = said(capfd, words, code=2)
    assert "no better than guessing or than random weights" in error, "colours are told apart by any weights"
    assert main([*words, "--accept-weak-teacher"]) == 0
    err = capfd.readouterr().err
    assert "by the 20 nearest neighbours of its features" in err
    assert "left out of serkd: kd" in err
    found = record("headless")
    assert "kd" not in found["history"][-1]["train"]
    assert found["history"][-1]["train"]["task"] > 0
    assert found["teacher"]["score"] > 100 / 3


def test_teachers_without_class_scores_are_compared_too(world: Path) -> None:
    words = ["compare", *LABELLED, "--teacher", "teacher", "--trust", "nets.py:small", "--student", "resnet8"]
    words += ["--teacher-head", "none", "--accept-weak-teacher", "--methods", "none", "serkd", "--seeds", "1"]
    assert main([*words, "--epochs", "1", "--out", "both"]) == 0
    found = json.loads(Path("both/compare.json").read_text())
    assert found["teacher"]["test"] > 100 / 3, "its nearest neighbours' classes"
    assert found["teacher"]["calibration_error"] is None
    for cell in found["cells"]:
        assert cell["status"] == "finished"
        assert 0 <= cell["agreement"] <= 100
        assert cell["correlation_gap"] is None


def test_a_probe_is_the_score_where_it_is_given(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*DISTILL, "--probe-data", "pics", "--accept-weak-teacher", "--out", "probed"]
    assert main(words) == 0
    found = record("probed")
    values = found["history"][-1]["val"]
    assert values.keys() == {"relations", "knn"}
    assert found["result"]["score_last"] == values["knn"]
    assert found["teacher"]["score"] > 100 / 3
    right = np.load("probed/similarities.npz")["right"]
    assert values["knn"] == pytest.approx(100 * right.mean())
    assert "validation knn, %" in Path("probed/report.html").read_text()
    assert record("whole")["history"][-1]["train"] == found["history"][-1]["train"], "measuring changes no training"
    assert "no such file or folder" in said(capfd, with_options(words, probe_data="nowhere", out="other"), code=2)
    words = ["distill", *LABELLED, "--teacher", "teacher", "--student", "resnet8", "--probe-data", "pics", "--out", "x"]
    assert "--probe-data measures students without labels" in said(capfd, words, code=2)


def test_methods_are_compared_by_a_probe(world: Path) -> None:
    words = ["compare", *DATA, "--teacher", "teacher", "--student", "resnet8", "--seeds", "1", "--epochs", "1"]
    words += ["--probe-data", "pics", "--accept-weak-teacher", "--methods", "serkd", "rkd", "--out", "by-probe"]
    assert main(words) == 0
    found = json.loads(Path("by-probe/compare.json").read_text())
    assert {cell["status"] for cell in found["cells"]} == {"finished"}
    assert found["teacher"]["test"] > 100 / 3
