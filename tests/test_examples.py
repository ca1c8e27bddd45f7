"""The examples run as they are, three of them as notebooks, and what they print is what they promise."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from examples.notebooks.make import NOTEBOOKS, notebook

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"


def code_of(notebook: Path) -> str:
    """What the cells of a notebook run, one after the other."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def run(name: str, folder: Path) -> str:
    """Standard output of an example run in a folder: of its notebook, where it is one."""
    notebook = NOTEBOOKS.get(name.removesuffix(".py"))
    program = [str(EXAMPLES / name)] if notebook is None else ["-c", code_of(notebook)]
    done = subprocess.run(
        [sys.executable, *program],
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
    assert names == {"detection.py", "loss_alone.py", "own_images.py", "own_loop.py", "own_trainer.py", "unlabelled.py"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_its_script(name: str) -> None:
    committed = json.loads(NOTEBOOKS[name].read_text(encoding="utf-8"))
    expected = notebook((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))
    kept = [{**cell, "outputs": []} if cell["cell_type"] == "code" else cell for cell in committed["cells"]]
    assert {**committed, "cells": kept} == expected, "run: python examples/notebooks/make.py"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_shows_what_it_prints_and_no_path_of_a_machine(name: str) -> None:
    text = NOTEBOOKS[name].read_text(encoding="utf-8")
    assert any(cell.get("outputs") for cell in json.loads(text)["cells"])
    assert not re.search(r"/(home|root|tmp|work|usr|Users)/|[A-Z]:\\\\", text)


def test_own_images(tmp_path: Path) -> None:
    output = run("own_images.py", tmp_path)
    assert percent(output, "teacher") > 90
    assert percent(output, "student by serkd") > percent(output, "student by none")
    assert output.rstrip().endswith("report.html student-best.safetensors student.safetensors")


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


def test_unlabelled(tmp_path: Path) -> None:
    output = run("unlabelled.py", tmp_path)
    assert percent(output, "relations") > 50
    assert percent(output, "knn") > 60
    assert percent(output, "linear") > 80
