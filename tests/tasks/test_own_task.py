"""A task from one file of a user's own goes the whole way: no line of the library knows of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import several_lives
from reldistill.cli.main import main
from reldistill.core import tasks
from small_runs import environment, reldistill

pytestmark = pytest.mark.slow

TEMPLATE = Path(__file__).parents[2] / "docs" / "templates" / "my_task.py"
DATA = ["--task", "my_task.py:Discs", "--data", "discs:300", "--batch-size", "20", "--lr", "0.05", "--epochs", "2"]
DATA += ["--precision", "32-true"]
EXACT = [*DATA, "--teacher", "teacher", "--student", "resnet8"]
DISTILL = ["distill", *EXACT, "--method", "fitnets+serkd"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The task's file and a finished teacher, with the working directory among them."""
    folder, before = tmp_path_factory.mktemp("world"), Path.cwd()
    shutil.copy(TEMPLATE, folder / "my_task.py")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        patch.setattr(tasks, "_opened", dict(tasks._opened))
        patch.setattr(tasks, "_of_files", dict(tasks._of_files))
        os.chdir(folder)
        try:
            assert main(["train", *DATA, "--model", "resnet8", "--epochs", "6", "--out", "teacher"]) == 0
            yield folder
        finally:
            os.chdir(before)


@pytest.fixture(scope="module")
def lives(world: Path) -> Path:
    """The same distillation twice: to the end, and killed within the second epoch, then resumed."""
    again = [*DISTILL, "--checkpoint-every", "1", "--out", "killed", "--resume"]
    whole = [*DISTILL, "--checkpoint-every", "1", "--out", "whole"]
    plan = [[" ".join(words), moment] for words, moment in ((whole, ""), (again, "batch:20"), (again, ""))]
    done = subprocess.run(
        [sys.executable, several_lives.__file__, json.dumps(plan)],
        cwd=world,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert json.loads(done.stdout) == [0, -signal.SIGKILL, 0], done.stderr
    return world


def said(capfd: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What a command prints: its result, or its error."""
    capfd.readouterr()
    assert main(list(words)) == code
    out, err = capfd.readouterr()
    return err if code else out


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "record.json").read_text())
    return found


def test_a_run_records_its_task_and_score(world: Path) -> None:
    made = record(world / "teacher")
    assert made["task"] == "disc sizes"
    assert made["status"] == "finished"
    assert made["settings"]["task"] == "my_task.py:Discs"
    pairs = np.load(world / "teacher" / "guesses.npy")
    share = 100 * (1 - ((pairs[:, 0] - pairs[:, 1]) ** 2).sum() / ((pairs[:, 1] - pairs[:, 1].mean()) ** 2).sum())
    assert made["result"]["score_last"] == pytest.approx(share)
    assert share > 20


def test_killed_and_resumed_it_ends_as_if_it_had_not_been(lives: Path) -> None:
    for name in ("student.safetensors", "student-best.safetensors", "guesses.npy", "discs.json", "relations.npz"):
        assert (lives / "killed" / name).read_bytes() == (lives / "whole" / name).read_bytes(), name


def test_it_has_the_terms_that_need_no_classes(lives: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert {term["name"] for term in record(lives / "whole")["terms"]} == {"fitnets", "feature", "serkd"}
    refused = said(capfd, "distill", *EXACT, "--method", "kd", "--out", "refused", code=2)
    assert "method 'kd' needs class scores" in refused.splitlines()[-1]


def test_it_is_evaluated(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = ["--task", "my_task.py:Discs", "--data", "discs:300", "--val-fraction", "0.1"]
    found = json.loads(said(capfd, "evaluate", "teacher", *data, "--json"))
    assert found["explained"] == pytest.approx(record(world / "teacher")["result"]["score_last"])


def test_it_is_reported(lives: Path) -> None:
    assert main(["report", "whole", "teacher", "--task", "my_task.py:Discs", "--out", "page.html"]) == 0
    page = (lives / "page.html").read_text()
    assert "Some discs" in page
    assert len(re.findall(r"\d\.\d\d of 0\.\d\d", page)) == 8
    assert "95 % intervals over draws of the images" in page


def test_a_record_alone_never_runs_its_file(lives: Path) -> None:
    for command in (["report", "whole"], ["export", "whole"]):
        done = reldistill(*command, cwd=lives)
        assert done.returncode == 2
        assert "task 'disc sizes' is unknown" in done.stderr
        assert "--task FILE.py:NAME" in done.stderr


def test_it_is_exported(lives: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    export = ["export", "whole", "--format", "onnx", "--task", "my_task.py:Discs", "--json"]
    found = json.loads(said(capfd, *export))
    assert found["largest_difference"] < 1e-4
    session = onnxruntime.InferenceSession(lives / "whole" / "export.onnx", providers=["CPUExecutionProvider"])
    assert session.run(["radius"], {"images": np.zeros((3, 3, 16, 16), np.float32)})[0].shape == (3, 1)


def test_it_is_compared(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    compare = ["compare", *EXACT, "--methods", "none", "fitnets", "--seeds", "2", "--val-fraction", "0.5"]
    found = json.loads(said(capfd, *compare, "--out", "compared", "--json"))
    assert [cell["status"] for cell in found["cells"]] == ["finished"] * 4
    difference = found["summary"]["fitnets"]["vs_none"]
    assert difference["low"] < difference["points"] < difference["high"]
    assert "explained" in (world / "compared" / "compare.html").read_text()
    assert main(["report", "compared", "--task", "my_task.py:Discs"]) == 0


def test_a_task_of_ones_own_is_checked(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = {
        "nothing.py:Discs": "no such Python file",
        "my_task.py:Nothing": "my_task.py defines no class 'Nothing'",
        "discs": "task 'discs' is unknown",
    }
    for given, expected in rows.items():
        error = said(capfd, "evaluate", "teacher", "--task", given, "--data", "discs:300", code=2)
        assert expected in error.splitlines()[-1]
    other = said(capfd, "evaluate", "teacher", "--task", "my_task.py:Discs", "--data", "coco:x", code=2)
    assert "labelled boxes are given as coco:DIR" in other


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_opened", dict(tasks._opened))
    monkeypatch.setattr(tasks, "_of_files", dict(tasks._of_files))


def test_it_can_be_registered_from_python(own_registry: None) -> None:
    import reldistill as package
    from reldistill.core.tasks import open_task
    from reldistill.core.user_code import run_file

    task = run_file(TEMPLATE, what="the template").Discs()
    package.register_task(task)
    assert package.DataSettings(data="discs:300").task == "disc sizes"
    assert open_task("disc sizes") is task
    task = type("Namesake", (), {"name": "detection"})()
    with pytest.raises(package.UserError, match="give yours another name"):
        package.register_task(task)


def test_two_files_of_one_name_are_told_apart(own_registry: None, tmp_path: Path) -> None:
    from reldistill.core.checks import UserError
    from reldistill.core.tasks import open_task

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "my_task.py").write_text("class Mine:\n    name = 'a'\n")
    (tmp_path / "b" / "my_task.py").write_text("class Mine:\n    name = 'b'\n")
    here = Path.cwd()
    try:
        os.chdir(tmp_path)
        assert open_task("a/my_task.py:Mine").name == "a"
        assert open_task("a/my_task.py:Mine") is open_task("a/my_task.py:Mine")
        with pytest.raises(UserError, match="another file of that name"):
            open_task("b/my_task.py:Mine")
    finally:
        os.chdir(here)
