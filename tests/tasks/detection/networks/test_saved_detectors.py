"""A detector's classes are matched by name, however its run is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reldistill.core.checks import UserError
from reldistill.core.run_files import LAST_WEIGHTS
from reldistill.networks.cards import write_weights
from reldistill.tasks.detection.networks.saved_detectors import open_detector

NAME = "fcos_resnet18_fpn"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    opened = open_detector(NAME, role="student", classes=["ant", "bee", "cat"], min_size=64, max_size=64)
    write_weights(folder / LAST_WEIGHTS, opened.extractor.network.state_dict(), opened.card)
    return folder


@pytest.mark.parametrize("how", ["run", "run as weights", "file as weights"])
def test_outputs_are_found_by_name(run: Path, how: str) -> None:
    name = str(run) if how == "run" else NAME
    weights = {"run": None, "run as weights": str(run), "file as weights": str(run / LAST_WEIGHTS)}[how]
    moved = open_detector(name, role="teacher", classes=["cat", "ant", "bee"], weights=weights)
    assert moved.card.classes == ("cat", "ant", "bee")
    assert moved.card.detector == {"outputs": [3, 1, 2], "num_outputs": 4}
    with pytest.raises(UserError, match="its weights don't know the class dog of the data"):
        open_detector(name, role="teacher", classes=["cat", "ant", "dog"], weights=weights)


def test_weights_that_are_not_finite_are_refused(run: Path, tmp_path: Path) -> None:
    opened = open_detector(str(run), role="model", classes=None)
    state = dict(opened.extractor.network.state_dict())
    last = list(state)[-1]
    state[last] = torch.full_like(state[last], float("inf"))
    write_weights(tmp_path / LAST_WEIGHTS, state, opened.card)
    with pytest.raises(UserError, match=rf"not finite, first in {last}"):
        open_detector(str(tmp_path), role="teacher", classes=None)
