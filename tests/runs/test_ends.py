"""How a run ends, whatever comes between: killed at any write, told to stop, other inputs, a rate too high."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import several_lives
from reldistill.cli.main import main
from small_runs import DISTILL, TRAIN, environment, with_options, write_world

pytestmark = pytest.mark.slow

KILLED = -signal.SIGKILL
SHORT = {"epochs": 2, "precision": "32-true", "method": "kd+rkd"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Images, networks and a finished teacher, with the working directory among them."""
    folder, before = write_world(tmp_path_factory.mktemp("ends")), Path.cwd()
    os.chdir(folder)
    try:
        assert main(with_options(TRAIN, epochs=4, out="teacher", precision="32-true")) == 0
        yield folder
    finally:
        os.chdir(before)


def live(folder: Path, lives: list[tuple[list[str], str]]) -> list[int]:
    """The exit status of each life of a run, in which no time passes."""
    plan = json.dumps([[" ".join(arguments), moment] for arguments, moment in lives])
    done = subprocess.run(
        [sys.executable, several_lives.__file__, plan],
        cwd=folder,
        env={**environment(), "STILL_CLOCK": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=True,
    )
    statuses: list[int] = json.loads(done.stdout)
    assert all(status in (0, KILLED) for status in statuses), done.stderr
    return statuses


def what_is_left(run: Path) -> dict[str, Any]:
    """Every file of a run but the logger's and the checkpoints', without the command and the time of day."""
    left: dict[str, Any] = {}
    for path in sorted(path for path in run.iterdir() if path.is_file() and path.suffix != ".ckpt"):
        content: Any = path.read_bytes()
        if path.name == "record.json":
            content = {k: v for k, v in json.loads(content).items() if k not in ("command", "created")}
        elif path.name == "report.html":
            content = re.sub(rb"<code>.*?</code>", b"", content, flags=re.DOTALL)
        left[path.name] = content
    return left


def said(capfd: pytest.CaptureFixture[str], words: list[str], *, code: int = 2) -> str:
    """The last line of what a command says when it ends with that code."""
    capfd.readouterr()
    assert main(words) == code
    lines = capfd.readouterr().err.splitlines()
    assert "Traceback" not in "".join(lines)
    return lines[-1]


def test_killed_at_any_write_of_its_end_it_leaves_what_others_leave(world: Path) -> None:
    """From the last checkpoint on: weights, pictures, tables, record and report, each half written once."""
    command = with_options(DISTILL, **SHORT)
    # of the second epoch: the images that were right, `best`, `last`, record and table; then what the end writes
    moments = [f"replace:{number}" for number in range(8, 16)]
    runs = {moment: f"killed-{moment.replace(':', '-')}" for moment in moments}
    lives = [(with_options(command, out="whole"), "")]
    for moment, out in runs.items():
        resume = with_options(command, out=out, resume=True)
        lives += [(resume, moment), (resume, "")]
    whole, *statuses = live(world, lives)
    assert (whole, statuses) == (0, [KILLED, 0] * len(moments))
    expected = what_is_left(world / "whole")
    assert {"record.json", "report.html", "metrics.csv", "relations.npz", "student.safetensors"} <= expected.keys()
    for moment, out in runs.items():
        assert what_is_left(world / out) == expected, moment


def test_a_finished_run_without_its_report_gets_it(world: Path) -> None:
    (world / "teacher" / "report.html").unlink()
    assert main(with_options(TRAIN, epochs=4, out="teacher", precision="32-true", resume=True)) == 0
    assert "<h1>" in (world / "teacher" / "report.html").read_text()


@pytest.fixture
def half_done(world: Path) -> list[str]:
    """A run that was killed within its second epoch, and the command that continues it."""
    out = f"half-{len(list(world.iterdir()))}"
    resume = with_options(DISTILL, **SHORT, out=out, resume=True)
    assert live(world, [(resume, "batch:5")]) == [KILLED]
    return resume


def out_of(command: list[str]) -> Path:
    return Path(command[command.index("--out") + 1])


def test_other_images_are_refused(world: Path, half_done: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    record = (out_of(half_done) / "record.json").read_text()
    moved = world / "pics" / "blue" / "00.png"
    moved.rename(world / "pics" / "red" / "20.png")
    try:
        error = said(capfd, half_done)
    finally:
        (world / "pics" / "red" / "20.png").rename(moved)
    assert "the images of pics have changed since the run in" in error
    assert (out_of(half_done) / "record.json").read_text() == record, "what the run began with is still on record"
    assert main(half_done) == 0


def test_other_weights_of_the_teacher_are_refused(
    world: Path, half_done: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    weights = world / "teacher" / "student.safetensors"
    own = weights.read_bytes()
    weights.write_bytes((world / "teacher" / "student-best.safetensors").read_bytes()[:-4] + b"\0\0\0\0")
    try:
        assert "the teacher's weights (" in said(capfd, half_done)
    finally:
        weights.write_bytes(own)
    assert main(half_done) == 0


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_damaged_checkpoint_is_refused(half_done: list[str], name: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = out_of(half_done) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    error = said(capfd, half_done)
    assert f"cannot read checkpoint {path}" in error
    assert "is damaged" in error


def test_missing_best_weights_are_noticed_before_training(
    half_done: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    (out_of(half_done) / "best.ckpt").unlink()
    error = said(capfd, half_done)
    assert "cannot read checkpoint" in error
    assert "best.ckpt" in error


def test_weights_that_are_not_finite_are_not_saved(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    diverging = with_options(TRAIN, epochs=1, lr=1e30, out="diverged", precision="32-true", schedule="constant")
    error = said(capfd, diverging)
    assert "finite" in error
    left = {path.name for path in Path("diverged").iterdir()}
    assert not left & {"student.safetensors", "last.ckpt", "best.ckpt", "report.html"}
    assert "checkpoint is" not in error, "there is none to name"
    assert json.loads(Path("diverged/record.json").read_text())["status"] == "stopped"


def test_one_folder_is_for_one_process(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("taken").mkdir()
    with FileLock("taken/.lock"):
        assert "another process is working in taken" in said(capfd, with_options(TRAIN, epochs=1, out="taken"))
    assert list(Path("taken").iterdir()) in ([], [Path("taken/.lock")])
    assert main(with_options(TRAIN, epochs=1, out="taken")) == 0
    assert not list(Path("taken").glob(".*"))


def test_a_run_does_not_write_into_its_data(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for out in ("pics/run", "pics", "pics/../pics/deep/run"):
        assert "lies in the folder of the data, pics" in said(capfd, with_options(TRAIN, epochs=1, out=out))
    compare = ["compare", "--data", "pics", "--teacher", "teacher", "--student", "nets.py:small", "--methods", "none"]
    assert "lies in the folder of the data" in said(capfd, [*compare, "--out", "pics/compared"])
    assert sorted(path.name for path in Path("pics").iterdir()) == ["blue", "green", "red"]


def test_a_refused_run_leaves_nothing(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said(capfd, with_options(TRAIN, out="new/deep/run", model="nets.py:none"))
    assert not Path("new").exists()
    compare = ["compare", "--data", "nowhere", "--teacher", "teacher", "--student", "nets.py:small"]
    said(capfd, [*compare, "--methods", "none", "--out", "new/compared"])
    assert not Path("new/compared/compare.json").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_ends_it_with_a_checkpoint(world: Path, number: int, code: int) -> None:
    command = with_options(DISTILL, **{**SHORT, "epochs": 30})
    whole, out = "steady", f"signalled-{code}"
    if not Path(whole).exists():
        assert live(world, [(with_options(command, out=whole), "")]) == [0]
    process = subprocess.Popen(
        [sys.executable, "-m", "reldistill", *with_options(command, out=out)],
        cwd=world,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (Path(out) / "last.ckpt").is_file():
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    assert "--resume continues from the last checkpoint" in error.splitlines()[-1]
    assert json.loads((Path(out) / "record.json").read_text())["status"] == "stopped"
    assert main(with_options(command, out=out, resume=True)) == 0
    for name in ("student.safetensors", "student-best.safetensors", "val_correct.npy", "relations.npz"):
        assert (Path(out) / name).read_bytes() == (Path(whole) / name).read_bytes(), name
