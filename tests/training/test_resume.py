"""A run that was killed at any moment and resumed ends bit for bit like one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import several_lives
from reldistill.training.checkpoint import unpack
from small_runs import DISTILL, TRAIN, environment, reldistill, with_options, write_world

pytestmark = pytest.mark.slow

KILLED = -signal.SIGKILL
# 42 training images make 3 batches per epoch: steps after batches 2 and 3.
LONG = {"epochs": 6, "ema": 0.9, "accumulate": 2, "checkpoint_every": 1, "augment": "strong", "method": "serkd+sekd"}
VIT = (
    '{"patch_size":4,"img_size":12,"embed_dim":16,"depth":2,"num_heads":2,'
    '"drop_rate":0.1,"proj_drop_rate":0.1,"attn_drop_rate":0.1,"drop_path_rate":0.2}'
)
STUDENTS = {
    "bf16-mixed": {"student": "nets.py:batch_normed", "precision": "bf16-mixed"},
    "32-true": {"student": "vit_tiny_patch16_224", "student_arguments": VIT, "precision": "32-true", "lr": 0.01},
}
# With 2 files put in place at the start (the record) and 4 or 5 at every save, these fall into the first epoch, between
# `best` and `last`, between `last` and the record, and between epochs.
MOMENTS = ["batch:1", "replace:2", "batch:2", "batch:4", "replace:4", "replace:6", "batch:3", "replace:9", "batch:1"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("resume"))
    assert live(folder, [(with_options(TRAIN, epochs=4, out="teacher"), "")]) == [0]
    return folder


def live(folder: Path, lives: list[tuple[list[str], str]]) -> list[int]:
    plan = json.dumps([[" ".join(arguments), moment] for arguments, moment in lives])
    done = subprocess.run(
        [sys.executable, several_lives.__file__, plan],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    statuses: list[int] = json.loads(done.stdout)
    assert all(status in (0, KILLED) for status in statuses), done.stderr
    return statuses


def what_is_left(run: Path, *, pictures: bool = True) -> dict[str, Any]:
    """All that a run leaves, but for times and its command."""
    record = json.loads((run / "record.json").read_text())
    history = [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in record["history"]]
    files = ["student.safetensors", "student-best.safetensors", "val_correct.npy", *["relations.npz"] * pictures]
    left: dict[str, Any] = {name: (run / name).read_bytes() for name in files}
    times = ("seconds_per_step", "seconds_total", "images_per_second")
    result = {k: v for k, v in record["result"].items() if k not in times}
    assert set(record["result"]) >= set(times)
    assert not [*run.glob(".*")], "half-written files are cleared away"
    return {**left, "history": history, "result": result, "status": record["status"], "notes": record["notes"]}


def test_killed_while_a_teacher_cache_is_filled_and_read(world: Path) -> None:
    cached = {**LONG, **STUDENTS["32-true"], "method": "kd+rkd", "views": 2}
    command = with_options(DISTILL, **cached)
    resume = with_options(command, out="killed-cached", cache_teacher="cache-2", resume=True)
    statuses = live(
        world,
        [
            (with_options(command, out="whole-cached", cache_teacher="cache-1"), ""),
            *((resume, moment) for moment in ("batch:2", "batch:3", "replace:4", "batch:4")),
            (resume, ""),
        ],
    )
    assert statuses == [0, *[KILLED] * 4, 0]
    assert what_is_left(world / "killed-cached") == what_is_left(world / "whole-cached")
    for name in ("0.present.u8", "cache.json"):
        assert (world / "cache-2" / name).read_bytes() == (world / "cache-1" / name).read_bytes()


@pytest.mark.parametrize("precision", STUDENTS)
def test_killed_at_any_moment_and_resumed_is_bit_identical(world: Path, precision: str) -> None:
    command = with_options(DISTILL, **{**LONG, **STUDENTS[precision]})
    whole, killed = f"whole-{precision}", f"killed-{precision}"
    resume = with_options(command, out=killed, resume=True)
    statuses = live(
        world,
        [(with_options(command, out=whole), ""), *((resume, moment) for moment in MOMENTS), (resume, "")],
    )
    assert statuses == [0, *[KILLED] * len(MOMENTS), 0]
    expected, found = what_is_left(world / whole), what_is_left(world / killed)
    assert [epoch["epoch"] for epoch in expected["history"]] == [1, 2, 3, 4, 5, 6]
    assert found == expected
    averaged = load_file(world / whole / "student.safetensors")
    trained = unpack(world / whole / "last.ckpt")["module"]
    assert any(not torch.equal(averaged[k], trained[f"distiller.student.network.{k}"]) for k in averaged)


def test_dropout_and_augmentation_take_part(world: Path) -> None:
    """What the test above compares would be no test if nothing random happened in training."""
    command = with_options(TRAIN, model="nets.py:batch_normed", epochs=1, precision="32-true", augment="none")
    without = with_options(command, out="still", model_arguments='{"dropout":0.0}')
    augmented = with_options(command, out="augmented", augment="strong", model_arguments='{"dropout":0.0}')
    live(world, [(with_options(command, out="dropped"), ""), (without, ""), (augmented, "")])
    weights = [(world / run / "student.safetensors").read_bytes()[-2000:] for run in ("dropped", "still", "augmented")]
    assert len(set(weights)) == 3


def test_killed_after_the_last_epoch_but_before_the_weights_are_written(world: Path) -> None:
    """Patience ends the run early, so this one would train on if it forgot that."""
    command = with_options(TRAIN, epochs=30, patience=2, ema=0.5)
    resume = with_options(command, out="unwritten", resume=True)
    killed = [(resume, "file:student.safetensors"), (resume, "file:report.html"), (resume, "")]
    assert live(world, [(with_options(command, out="written"), ""), *killed]) == [0, KILLED, KILLED, 0]
    expected = what_is_left(world / "written", pictures=False)
    assert 3 <= len(expected["history"]) < 30
    assert expected["result"]["score_best"] is not None
    assert what_is_left(world / "unwritten", pictures=False) == expected


def test_validation_now_and_then(world: Path) -> None:
    """It changes nothing but what is known, and is where it would be when a killed run continues."""
    command = with_options(TRAIN, epochs=5)
    seldom = with_options(command, validate_every=2)
    resume = with_options(seldom, out="seldom-killed", resume=True)
    lives = [(resume, moment) for moment in ("batch:4", "replace:4", "batch:3")]
    plain = [(with_options(command, out="always"), ""), (with_options(seldom, out="seldom"), "")]
    assert live(world, [*plain, *lives, (resume, "")]) == [0, 0, *[KILLED] * 3, 0]
    always, found = (what_is_left(world / name, pictures=False) for name in ("always", "seldom"))
    assert [epoch["epoch"] for epoch in found["history"] if epoch["val"]] == [2, 4, 5]
    assert [epoch for epoch in found["history"] if epoch["val"]] == [always["history"][i] for i in (1, 3, 4)]
    assert found["student.safetensors"] == always["student.safetensors"]
    assert found["result"]["best_epoch"] in (2, 4, 5)
    assert found["result"]["score_last"] == always["result"]["score_last"]
    assert what_is_left(world / "seldom-killed", pictures=False) == found


def test_a_run_of_a_version_that_had_fewer_settings_continues(world: Path) -> None:
    command = with_options(TRAIN, epochs=2, out="earlier")
    assert live(world, [(command, "batch:4")]) == [KILLED]
    record = world / "earlier" / "record.json"
    told = json.loads(record.read_text())
    assert told["settings"].pop("validate_every") == 1
    record.write_text(json.dumps(told))
    refused = reldistill(*with_options(command, validate_every=2, resume=True), cwd=world)
    assert refused.returncode == 2
    assert "was started with validate_every = 1, not 2" in refused.stderr
    assert live(world, [(with_options(command, resume=True), "")]) == [0]


def test_patience_ends_a_run_where_it_was_validated(world: Path) -> None:
    command = with_options(TRAIN, epochs=40, patience=3, validate_every=4, lr=1e-9, out="patient")
    assert live(world, [(command, "")]) == [0]
    history = json.loads((world / "patient" / "record.json").read_text())["history"]
    assert len(history) == 8
    assert [epoch["epoch"] for epoch in history if epoch["val"]] == [4, 8]


def test_the_command_itself_killed_from_outside(world: Path) -> None:
    command = with_options(DISTILL, **{**LONG, **STUDENTS["bf16-mixed"], "epochs": 30, "checkpoint_every": 2})
    assert live(world, [(with_options(command, out="long"), "")]) == [0]
    process = subprocess.Popen(
        [sys.executable, "-m", "reldistill", *with_options(command, out="shot")],
        cwd=world,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not epochs_done(world / "shot"):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == KILLED
    assert 1 <= epochs_done(world / "shot") < 30
    assert live(world, [(with_options(command, out="shot", resume=True), "")]) == [0]
    assert what_is_left(world / "shot") == what_is_left(world / "long")


def epochs_done(run: Path) -> int:
    file = run / "record.json"
    return len(json.loads(file.read_text())["history"]) if file.is_file() else 0


def test_resuming_a_finished_run_returns_its_record_at_once(world: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (world / "teacher").iterdir()}
    again = reldistill(*with_options(TRAIN, epochs=4, out="teacher", resume=True, json=True), cwd=world)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["records"][0]["status"] == "finished"
    assert "epoch" not in again.stderr
    assert "training" not in again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (world / "teacher").iterdir()}


VIT_TEACHER = VIT.replace('"depth":2', '"depth":3')
MEMORIES = {
    "crd+mgd+vrm": {"teacher": "teacher", "settings": '{"crd":{"negatives":8,"dim":8}}'},
    "leap": {"teacher": "vit-teacher", "settings": '{"leap":{"longest_stay":0.4,"smoothing":0.5,"start":"first"}}'},
}


@pytest.mark.parametrize("method", MEMORIES)
def test_what_losses_remember_is_resumed_too(world: Path, method: str) -> None:
    """CRD's bank and LEAP's block, which every later step depends on, and what MGD and VRM draw."""
    if method == "leap":
        train = with_options(TRAIN, model="vit_tiny_patch16_224", model_arguments=VIT_TEACHER, lr=0.01, epochs=12)
        assert live(world, [(with_options(train, out="vit-teacher"), "")]) == [0]
    command = with_options(
        DISTILL, method=method, epochs=4, checkpoint_every=1, precision="32-true", **MEMORIES[method]
    )
    whole, killed = f"whole-{method}", f"killed-{method}"
    resume = with_options(command, out=killed, resume=True)
    lives = [(with_options(command, out=whole), ""), (resume, "batch:2"), (resume, "batch:5"), (resume, "")]
    assert live(world, lives) == [0, KILLED, KILLED, 0]
    assert what_is_left(world / killed) == what_is_left(world / whole)
    expected, found = (unpack(world / run / "last.ckpt")["module"] for run in (whole, killed))
    remembered = [name for name in expected if name.endswith(("student_bank", "log_scales", "loss.block"))]
    assert remembered
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    if method == "leap":
        assert expected[remembered[0]] > 0, "it has moved on"
