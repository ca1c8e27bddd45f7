"""Two processes on the CPU (gloo), through the command: what one process computes, written once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from small_runs import DISTILL, TRAIN, reldistill, with_options, write_world

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
