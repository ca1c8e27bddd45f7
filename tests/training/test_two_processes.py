"""Two processes on the CPU (gloo), through the command: what one process computes, written once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from small_runs import DISTILL, TRAIN, environment, reldistill, with_options, write_world

pytestmark = pytest.mark.slow

# Small weights and steps: training amplifies the float32 rounding that two halves of a sum differ by.
WEIGHTS = json.dumps(
    {
        "serkd.distance": 1,
        "serkd.angle": 2,
        "sekd.vertex": 1,
        "sekd.edge": 1,
        "sekd.spectral": 1,
        "rkd.distance": 1,
        "rkd.angle": 2,
    }
)
# Two batches a step, a checkpoint in the middle of each epoch, no dropout: its masks are each rank's own.
COMMAND = with_options(
    DISTILL,
    method="serkd+sekd+rkd",
    epochs=2,
    lr=0.005,
    weights=WEIGHTS,
    ema=0.9,
    accumulate=2,
    checkpoint_every=1,
    precision="32-true",
    accelerator="cpu",
    json=True,
)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Any]]:
    folder = write_world(tmp_path_factory.mktemp("ranks"))
    assert reldistill(*with_options(TRAIN, epochs=4, out="teacher"), cwd=folder).returncode == 0
    found = {
        devices: reldistill(*with_options(COMMAND, devices=devices, out=devices), cwd=folder) for devices in (1, 2)
    }
    for done in found.values():
        assert done.returncode == 0, done.stderr
    return folder, found


def test_losses_accuracies_and_weights_are_those_of_one_process(answers: tuple[Path, dict[int, Any]]) -> None:
    folder, _ = answers
    one, two = (json.loads((folder / f"{n}/record.json").read_text()) for n in (1, 2))
    assert len(one["history"]) == len(two["history"]) == 2
    before, after = (epoch["train"]["total"] for epoch in one["history"])
    assert after < 0.99 * before, "there was something to learn"
    for expected, found in zip(one["history"], two["history"], strict=True):
        assert found["train"] == pytest.approx(expected["train"], rel=2e-5)
        assert found["val"]["accuracy"] == expected["val"]["accuracy"]
        assert found["val"]["loss"] == pytest.approx(expected["val"]["loss"], rel=1e-5)
        assert found["step"] == expected["step"]
        assert found["learning_rate"] == expected["learning_rate"]
    for file in ("student.safetensors", "student-best.safetensors"):
        weights = load_file(folder / "2" / file)
        for name, expected in load_file(folder / "1" / file).items():
            torch.testing.assert_close(weights[name], expected, rtol=1e-4, atol=1e-6)
    assert (folder / "1/val_correct.npy").read_bytes() == (folder / "2/val_correct.npy").read_bytes()


def test_only_the_first_process_writes_and_speaks(answers: tuple[Path, dict[int, Any]]) -> None:
    folder, found = answers
    names = {n: sorted(path.name for path in (folder / str(n)).iterdir()) for n in (1, 2)}
    assert names[1] == names[2]
    assert len([*(folder / "2/tensorboard").glob("events*")]) == 1
    assert json.loads(found[2].stdout)["records"][0]["status"] == "finished"
    for line in ("2/2", "validation images of 3 classes"):
        assert found[2].stderr.count(line) == found[1].stderr.count(line) == 1
    assert "Warning" not in found[2].stderr
    assert "site-packages" not in found[2].stderr


@pytest.mark.parametrize("killed", ["the first", "the other"])
def test_a_killed_process_ends_the_other_with_one_line(answers: tuple[Path, dict[int, Any]], killed: str) -> None:
    folder, _ = answers
    out = killed.split()[-1]
    options = with_options(COMMAND, devices=2, epochs=500, out=out)
    process = subprocess.Popen(
        [sys.executable, "-m", "reldistill", *options],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 120
        while not (folder / out / "last.ckpt").is_file() and time.monotonic() < until:
            time.sleep(0.1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (other,) = [int(child) for child in children if b"reldistill" in Path(f"/proc/{child}/cmdline").read_bytes()]
        os.kill(process.pid if killed == "the first" else other, signal.SIGKILL)
        said = process.communicate(timeout=60)[1]  # until both have closed it
    finally:
        process.kill()
    assert "Traceback" not in said
    if killed == "the other":
        assert process.returncode == 2
        line = "reldistill: process 2 of 2 was ended by signal 9, so the run ends; the same command with --resume"
    else:
        line = "reldistill: the first of the run's processes is gone, so the run ends; the same command with --resume"
    assert said.count("so the run ends") == said.count(line) == 1
    assert not Path(f"/proc/{other}").exists() or "Z" in Path(f"/proc/{other}/stat").read_text()


def test_a_run_continues_on_as_many_devices_as_it_began_on(answers: tuple[Path, dict[int, Any]]) -> None:
    folder, _ = answers
    record = folder / "2" / "record.json"
    before = record.read_text()
    environment_of = json.loads(before)["environment"]
    assert (environment_of["devices"], environment_of["nodes"]) == (2, 1)
    record.write_text(json.dumps({**json.loads(before), "status": "stopped"}))
    try:
        done = reldistill(*with_options(COMMAND, devices=1, out=2, resume=True), cwd=folder)
    finally:
        record.write_text(before)
    assert done.returncode == 2
    assert "the run in 2 began on 2 devices, not 1, and would end differently" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it is not refused")
def test_batch_norm_over_processes_of_a_cpu_is_refused(answers: tuple[Path, dict[int, Any]]) -> None:
    folder, _ = answers
    done = reldistill(*with_options(COMMAND, devices=2, out="synced", sync_batch_norm=True), cwd=folder)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("reldistill: --sync-batch-norm needs GPUs")
    assert not (folder / "synced").exists()
