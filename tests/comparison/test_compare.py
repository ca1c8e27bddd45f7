"""`reldistill compare` and `sweep` as their user meets them, on images and networks that take seconds."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reldistill.cli.main import main
from reldistill.comparison.compare import teacher_notes
from small_runs import COLOURS, TRAIN, environment, with_options, write_images, write_world

pytestmark = pytest.mark.slow

SHARED = ["--data", "pics", "--val-fraction", "0.3", "--batch-size", "10", "--lr", "0.05", "--teacher", "teacher"]
COMPARE = ["compare", *SHARED, "--student", "nets.py:small", "--epochs", "2", "--precision", "32-true"]
METHODS = ["--methods", "none", "kd", "serkd"]
TIMES = ("seconds_per_step", "seconds_total", "peak_memory")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Images, networks and a finished teacher, with the working directory among them; one thread in every process."""
    folder = write_world(tmp_path_factory.mktemp("world"))
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        os.chdir(folder)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            assert main(with_options(TRAIN, epochs=4, out="teacher")) == 0
            yield folder
        finally:
            os.chdir(before)
            torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def compared(world: Path) -> Path:
    """Three methods with two seeds, two cells at a time."""
    assert main([*COMPARE, *METHODS, "--seeds", "2", "--jobs", "2", "--out", "compared"]) == 0
    return world / "compared"


def content(folder: Path, kind: str = "compare") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{kind}.json").read_text())
    return found


def lasting(folder: Path, kind: str = "compare") -> dict[str, Any]:
    """All that is the same in every run of the same comparison: everything but times, memory and the command."""
    found = content(folder, kind)
    for place in [*found["cells"], *found["summary"].values()]:
        for name in TIMES:
            place.pop(name, None)
    return {name: value for name, value in found.items() if name not in ("command", "created")}


def test_compare_says_all_that_was_measured(compared: Path) -> None:
    found = content(compared)
    assert [cell["cell"] for cell in found["cells"]] == [
        *("none/seed-0", "kd/seed-0", "serkd/seed-0"),
        *("none/seed-1", "kd/seed-1", "serkd/seed-1"),
    ]
    for cell in found["cells"]:
        assert cell["status"] == "finished"
        assert cell["epochs"] == 2
        assert 1 <= cell["best_epoch"] <= 2
        for share in ("test_last", "test_best", "val_best", "agreement", "calibration_error"):
            assert 0 <= cell[share] <= 100
        assert cell["seconds_per_step"] > 0
        assert cell["peak_memory"] > 1 << 20
    assert [found["data"][f"{part}_images"] for part in ("train", "val", "test")] == [30, 12, 18]
    for name, row in found["summary"].items():
        tests = [cell["test_last"] for cell in found["cells"] if cell["method"] == name]
        assert row["mean"] == pytest.approx(np.mean(tests))
        assert row["std"] == pytest.approx(np.std(tests, ddof=1))
        assert row["parameters"] == 1491
        assert row["flops"] > 0
    summary = found["summary"]
    assert summary["none"]["vs_none"] is None
    assert summary["kd"]["vs_kd"] is None
    for between in (summary["serkd"]["vs_kd"], summary["serkd"]["vs_none"], summary["kd"]["vs_none"]):
        assert between["low"] <= between["points"] <= between["high"]
        assert len(between["by_seed"]) == 2
    assert summary["serkd"]["training_flops"] > summary["kd"]["training_flops"] > summary["none"]["training_flops"]
    assert any("kd" in line for line in found["verdict"])


def test_compare_leaves_tables_and_a_page_without_a_network(compared: Path) -> None:
    rows = list(csv.DictReader((compared / "compare.csv").read_text().splitlines()))
    assert [row["variant"] for row in rows] == ["none", "kd", "serkd"]
    assert float(rows[2]["vs_kd_low"]) <= float(rows[2]["vs_kd"])
    assert "| serkd |" in (compared / "compare.md").read_text()
    page = (compared / "compare.html").read_text()
    for anchor in ("verdict", "comparison", "cost", "curves", "features", "correlation", "cells", "reproduce"):
        assert f'id="{anchor}"' in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert "https://" not in page
    for panel in ("untrained student", "student alone", "teacher", "kd", "serkd"):
        assert f"t-SNE of {panel}" in page


def test_a_finished_comparison_is_not_run_again(compared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in compared.rglob("*/*") if path.is_file()}
    expected = lasting(compared)
    assert main([*COMPARE, *METHODS, "--seeds", "2", "--out", "compared", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["summary"] == content(compared)["summary"]
    assert "6 of them finished" in err
    assert before == {path: path.stat().st_mtime_ns for path in compared.rglob("*/*") if path.is_file()}
    assert lasting(compared) == expected


def test_methods_start_from_the_same_student_and_see_the_same_batches(world: Path, compared: Path) -> None:
    """A kd that has no weight is the student alone, to the last bit."""
    weightless = [*COMPARE, "--methods", "none", "kd", "--seeds", "1", "--weights", '{"kd": 0}', "--out", "weightless"]
    assert main(weightless) == 0
    weights = [Path(f"weightless/{name}/seed-0/student.safetensors").read_bytes() for name in ("none", "kd")]
    assert weights[0] == weights[1] == (compared / "none/seed-0/student.safetensors").read_bytes()
    assert weights[0] != (compared / "none/seed-1/student.safetensors").read_bytes()
    assert weights[0] != (compared / "kd/seed-0/student.safetensors").read_bytes()


def test_a_cell_is_the_run_that_distill_makes(world: Path, compared: Path) -> None:
    command = ["distill", *COMPARE[1:], "--method", "kd", "--seed", "1", "--hold-out-test", "--out", "single"]
    assert main([*command, "--devices", "1"]) == 0
    expected = (compared / "kd/seed-1/student.safetensors").read_bytes()
    assert Path("single/student.safetensors").read_bytes() == expected


def test_report_makes_tables_and_page_again(compared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = {name: (compared / f"compare.{name}").read_bytes() for name in ("csv", "md", "html", "json")}
    for name in ("csv", "md", "html"):
        (compared / f"compare.{name}").unlink()
    assert main(["report", "compared", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == json.loads(files["json"])
    assert files == {name: (compared / f"compare.{name}").read_bytes() for name in files}
    assert main(["report", "compared", "--out", "elsewhere.html"]) == 0
    assert Path("elsewhere.html").read_bytes() == files["html"]


def test_labels_of_the_test_images_choose_nothing(world: Path) -> None:
    """The same images under other labels in test/: only what is measured there changes."""
    write_images(world / "whole/train", count=14)
    write_images(world / "whole/test", count=6, seed=1)
    shutil.copytree(world / "whole", world / "mislabelled")
    names = list(COLOURS)
    for name, other in zip(names, names[1:] + names[:1], strict=True):
        shutil.rmtree(world / "mislabelled/test" / name)
        shutil.copytree(world / "whole/test" / other, world / "mislabelled/test" / name)
    found = {}
    for data in ("whole", "mislabelled"):
        command = with_options([*COMPARE, "--methods", "kd", "--seeds", "1"], data=data, epochs=3, lr=0.01)
        assert main([*command, "--out", f"on-{data}"]) == 0
        found[data] = content(Path(f"on-{data}"))
    chosen = [[(c["best_epoch"], c["val_best"]) for c in found[data]["cells"]] for data in found]
    assert chosen[0] == chosen[1]
    for name in ("student.safetensors", "student-best.safetensors"):
        assert Path(f"on-whole/kd/seed-0/{name}").read_bytes() == Path(f"on-mislabelled/kd/seed-0/{name}").read_bytes()
    assert found["whole"]["teacher"]["test"] > 50 > found["mislabelled"]["teacher"]["test"]


def test_a_failed_cell_leaves_the_others_alone_and_is_tried_again(
    world: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One method's loss overflows."""
    command = [*COMPARE, "--methods", "none", "kd", "--seeds", "1", "--out", "failing"]
    assert main([*command, "--weights", '{"kd": 1e39}']) == 1
    out, err = capfd.readouterr()
    assert "2/2  kd, seed 0  failed: the loss is not finite" in err
    assert "1 of 2 cells failed" in out
    assert "Traceback" not in err
    found = content(Path("failing"))
    assert [cell["status"] for cell in found["cells"]] == ["finished", "failed"]
    assert "the loss is not finite" in found["cells"][1]["reason"]
    assert found["summary"]["kd"]["mean"] is None
    assert Path("failing/compare.html").is_file()
    assert main(["report", "failing"]) == 0
    capfd.readouterr()
    assert main([*command, "--weights", '{"kd": 1e39}']) == 1
    assert "1 of them finished" in capfd.readouterr().err


def test_settings_that_changed_are_refused_by_name(compared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for change, text in (
        ({"epochs": 3}, "the comparison in compared was started with epochs = 2, not 3"),
        ({"lr": 0.2}, "was started with lr = 0.05, not 0.2"),
        ({"student": "resnet8"}, "was started with student = nets.py:small, not resnet8"),
    ):
        assert main([*with_options(COMPARE, **change), *METHODS, "--out", "compared"]) == 2
        assert text in capfd.readouterr().err.splitlines()[-1]


def test_methods_and_seeds_can_be_added(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    short = with_options(COMPARE, epochs=1)
    assert main([*short, "--methods", "none", "--seeds", "1", "--out", "growing"]) == 0
    before = Path("growing/none/seed-0/record.json").read_bytes()
    assert main([*short, "--methods", "none", "kd+rkd", "--seeds", "1", "--out", "growing"]) == 0
    assert "2 cells: 2 methods × 1 seed, 1 of them finished" in capfd.readouterr().err
    assert Path("growing/none/seed-0/record.json").read_bytes() == before
    assert content(Path("growing"))["summary"]["kd+rkd"]["vs_none"]["over_seeds"] is None


WRONG: list[tuple[list[str], str]] = [
    (["--methods", "wishful"], "method 'wishful' is unknown"),
    (["--methods", "none", "none"], "a method is given twice"),
    ([*METHODS, "--seeds", "0"], "seeds 0: give at least 1"),
    ([*METHODS, "--jobs", "0"], "jobs 0: give at least 1"),
    ([*METHODS, "--devices", "2"], "every cell of a comparison runs on one device"),
    ([*METHODS, "--weights", '{"sekd.edge": 1}'], "'sekd.edge' is not a part of any of the methods"),
    ([*METHODS, "--data", "nowhere"], "data 'nowhere'"),
    ([*METHODS, "--teacher", "nets.py:small"], "its weights are not for these classes"),
    ([*METHODS, "--out", "teacher"], "teacher holds a run: give another --out"),
]


@pytest.mark.parametrize(("changes", "text"), WRONG, ids=lambda value: "")
def test_wrong_input_is_one_line(
    changes: list[str], text: str, world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = [] if "--out" in changes else ["--out", str(tmp_path / "x")]
    assert main([*COMPARE, *changes, *out]) == 2
    said, err = capfd.readouterr()
    assert said == ""
    assert err.splitlines()[-1].startswith("reldistill: ")
    assert text in err.splitlines()[-1]
    assert "Traceback" not in err


def test_dry_run_says_the_cells_and_touches_nothing(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*COMPARE, *METHODS, "--out", "dry", "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert "9 cells: 3 methods × 3 seeds; 2 epochs each" in out
    assert "serkd/seed-2  waiting" in out
    assert not Path("dry").exists()


def test_a_teacher_that_may_know_the_test_images_is_mentioned(world: Path) -> None:
    settings = {"data": "pics", "val_fraction": 0.3}
    assert teacher_notes("teacher", settings) == []
    assert teacher_notes("resnet8", settings) == []
    assert teacher_notes("teacher", {**settings, "data": "others", "val_fraction": 0.2}) == []
    (note,) = teacher_notes("teacher", {**settings, "val_fraction": 0.2})
    assert "trained with --val-fraction 0.3, this comparison has 0.2" in note


# Killed, and continued --------------------------------------------------------------------------------------------

DIGITS = ["--data", "digits", "--image-size", "8", "--batch-size", "64", "--lr", "0.1", "--precision", "32-true"]


def test_killed_in_a_cell_and_gone_on_with_ends_like_one_that_was_not(tmp_path: Path) -> None:
    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "reldistill", *arguments]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command(*arguments),
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return done

    run("train", *DIGITS, "--model", "resnet8", "--epochs", "2", "--out", "teacher")
    compare = ["compare", *DIGITS, "--teacher", "teacher", "--student", "resnet8", "--methods", "none", "kd"]
    compare += ["--seeds", "1", "--epochs", "4", "--out"]
    process = subprocess.Popen(
        command(*compare, "killed"),
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    record, deadline = tmp_path / "killed/kd/seed-0/record.json", time.monotonic() + 300
    while time.monotonic() < deadline and not (record.is_file() and json.loads(record.read_text())["history"]):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    time.sleep(0.5)  # its cell dies with it
    epochs = len(json.loads(record.read_text())["history"])
    assert 1 <= epochs < 4
    time.sleep(1.0)
    assert len(json.loads(record.read_text())["history"]) == epochs, "the cell went on without its comparison"
    finished = (tmp_path / "killed/none/seed-0/test.json").stat().st_mtime_ns
    assert "1 of them finished" in run(*compare, "killed").stderr
    assert (tmp_path / "killed/none/seed-0/test.json").stat().st_mtime_ns == finished
    run(*compare, "whole")
    assert lasting(tmp_path / "killed") == lasting(tmp_path / "whole")


# Sweeps --------------------------------------------------------------------------------------------------------------


def test_sweep_over_a_weight_for_two_students(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", *SHARED, "--epochs", "1", "--method", "kd", "--over", "kd=0.5,2", "--out", "swept"]
    command += ["--students", "nets.py:small", "nets.py:batch_normed"]
    assert main([*command, "--jobs", "2", "--json"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found == content(world / "swept", "sweep")
    assert "4 cells: 4 points × 1 seed; 1 epoch each" in err
    assert found["over"] == {"kd": [0.5, 2]}
    assert [cell["point"] for cell in found["cells"]] == [{"kd": 0.5}, {"kd": 2}] * 2
    record = json.loads((world / "swept" / found["cells"][1]["cell"] / "record.json").read_text())
    assert record["terms"][0]["weights"] == {"kd": 2}
    for student in ("nets.py:small", "nets.py:batch_normed"):
        own = [row for row in found["summary"].values() if row["student"] == student]
        assert [row["chosen"] for row in own].count(True) == 1
        assert max(row["mean_val"] for row in own) == next(row["mean_val"] for row in own if row["chosen"])
    page = (world / "swept/sweep.html").read_text()
    assert 'id="sweep"' in page
    assert {path.name for path in (world / "swept").glob("sweep.*")} == {
        f"sweep.{s}" for s in ("json", "csv", "md", "html")
    }
    before = page
    (world / "swept/sweep.html").unlink()
    assert main(["report", "swept"]) == 0
    assert (world / "swept/sweep.html").read_text() == before


def test_sweep_over_a_loss_setting_and_a_number_of_training(world: Path) -> None:
    command = ["sweep", *SHARED, "--epochs", "1", "--method", "kd", "--students", "nets.py:small", "--out", "grid"]
    assert main([*command, "--over", "kd:temperature=2,4", "lr=0.01"]) == 0
    points = [cell["point"] for cell in content(world / "grid", "sweep")["cells"]]
    assert points == [{"kd:temperature": 2, "lr": 0.01}, {"kd:temperature": 4, "lr": 0.01}]
    settings = json.loads((world / "grid/nets.py.small/kd.temperature=4,lr=0.01/seed-0/record.json").read_text())[
        "settings"
    ]
    assert (settings["settings"], settings["lr"]) == ({"kd": {"temperature": 4}}, 0.01)


@pytest.mark.parametrize(
    ("over", "text"),
    [
        ("angle=1,2", "'angle' is not a part of any of the methods: they have task, kd"),
        ("sekd:k=1,2", "'sekd' is not a loss of any of the methods: they have kd"),
        ("kd=x", "kd takes numbers, got 'x'"),
    ],
)
def test_sweep_over_what_the_method_has_not(
    over: str, text: str, world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", *SHARED, "--method", "kd", "--students", "nets.py:small", "--out", str(tmp_path / "x")]
    assert main([*command, "--over", over]) == 2
    assert text in capfd.readouterr().err.splitlines()[-1]


def test_a_reference_is_of_the_teacher_and_the_images_it_was_measured_with(
    world: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A comparison that is refused after measuring leaves its reference; another teacher's must not take it over."""
    assert main(with_options(TRAIN, epochs=4, seed=1, out="other-teacher")) == 0
    first = [*COMPARE, "--methods", "none", "kd", "--seeds", "1", "--out", "referred"]
    assert main([*first, "--weights", '{"serkd.angle": 2}']) == 2
    reference = world / "referred" / "reference" / "reference.json"
    before = json.loads(reference.read_text())
    assert not (world / "referred" / "compare.json").exists()
    assert main([*with_options(first, teacher="other-teacher"), "--weights", '{"serkd.angle": 2}']) == 2
    after = json.loads(reference.read_text())
    assert before["made_of"]["teacher_sha256"] != after["made_of"]["teacher_sha256"]
    assert before["teacher"]["calibration_error"] != after["teacher"]["calibration_error"]
    measured = reference.stat().st_mtime_ns
    assert main([*with_options(first, teacher="other-teacher"), "--weights", '{"serkd.angle": 2}']) == 2
    assert reference.stat().st_mtime_ns == measured, "what is there for the same teacher is taken"
