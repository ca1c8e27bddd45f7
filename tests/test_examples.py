"""The examples run as they are, and what they print is what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, folder: Path) -> str:
    """Standard output of an example run in a folder."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def percent(output: str, label: str) -> float:
    found = re.findall(rf"^{label} (\d+\.\d) %", output, flags=re.MULTILINE)
    assert len(found) == 1, output
    return float(found[0])


def test_every_example_is_run_here() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == {"detection.py", "loss_alone.py", "own_loop.py", "own_trainer.py"}


def test_loss_alone(tmp_path: Path) -> None:
    output = run("loss_alone.py", tmp_path)
    for part in ("distance", "angle"):
        gaps = [float(gap) for gap in re.findall(rf"{part} (\d\.\d+)", output)]
        assert gaps[-1] < 0.7 * gaps[0], output
    assert percent(output, "student") > 85
    assert percent(output, "teacher") > 85


def test_own_loop(tmp_path: Path) -> None:
    output = run("own_loop.py", tmp_path)
    for part in ("task", "kd", "serkd.distance", "serkd.angle", "feature"):
        values = [float(value) for value in re.findall(rf" {re.escape(part)} (\d+\.\d+)", output)]
        assert len(values) == 8, output
        assert values[-1] < values[0], output
    assert percent(output, "student") > 85


def test_detection(tmp_path: Path) -> None:
    output = run("detection.py", tmp_path)
    for part in ("task", "sekd.vertex", "sekd.edge", "sekd.spectral"):
        values = [float(value) for value in re.findall(rf" {re.escape(part)} (\d+\.\d+)", output)]
        assert len(values) == 4, output
        assert values[-1] < values[0], output
    assert percent(output, "teacher AP50") > 30
    assert percent(output, "student AP50") > 30
    assert re.search(r"^(red|green|blue) [01]\.\d\d at \[\d+, \d+, \d+, \d+\]$", output, flags=re.MULTILINE)


def test_own_trainer(tmp_path: Path) -> None:
    output = run("own_trainer.py", tmp_path)
    assert percent(output, "student") > 85
    assert output.rstrip().endswith("after 10 epochs")
    state = torch.load(tmp_path / "student.pth", weights_only=True)
    assert all(name[0].isdigit() for name in state)  # the bare network's own names
    checkpoints = list(tmp_path.rglob("*.ckpt"))
    assert checkpoints
    for path in checkpoints:
        names = torch.load(path, weights_only=True)["state_dict"]
        assert not [name for name in names if name.startswith("distiller.teacher")]
