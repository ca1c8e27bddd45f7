"""All cells of a comparison see the same images, whether their methods ask a teacher or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from reldistill.comparison.cells import Axis, Cell, MethodParts, compared_cells, swept_cells
from reldistill.comparison.compare import _for_cells, compare
from reldistill.core.checks import UserError
from reldistill.core.types import Batch
from reldistill.data.loader import Loader
from reldistill.runs.caching import CACHED_VIEWS
from reldistill.runs.distill import distill
from reldistill.runs.train import train
from reldistill.training.settings import DataSettings, ModelSettings, PairSettings, TrainSettings
from small_runs import write_world

pytestmark = pytest.mark.slow

METHODS = {
    "none": MethodParts([], [], False),
    "kd": MethodParts(["kd"], ["kd"], False),
    "serkd": MethodParts(["kd", "serkd.distance", "serkd.angle", "feature"], ["kd", "serkd", "feature"], True),
}
Epochs = dict[int, list[Batch]]
TRAINING = TrainSettings(epochs=3, batch_size=12, lr=0.05)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("same"))
    network = ModelSettings(model=f"{folder}/nets.py:small")
    train(images(folder), network, replace(TRAINING, epochs=2, lr=0.1), out=folder / "teacher")
    return folder


def images(world: Path, **more: Any) -> DataSettings:
    return DataSettings(data=str(world / "pics"), val_fraction=0.3, **more)


def pair(world: Path, **more: Any) -> PairSettings:
    return PairSettings(teacher=str(world / "teacher"), student=f"{world}/nets.py:small", **more)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Epochs]:
    """Every epoch's batches of the training images, of the cell that runs."""
    found: dict[str, Epochs] = {"now": {}}
    iterate = Loader.__iter__

    def watched(self: Loader) -> Iterator[Batch]:
        epoch, made = self._epoch, list(iterate(self))
        if self._training:  # the Trainer may ask for an epoch again
            found["now"][epoch] = made
        return iter(made)

    monkeypatch.setattr(Loader, "__iter__", watched)
    return found


def images_of(cell: Cell, world: Path, seen: dict[str, Epochs]) -> Epochs:
    seen["now"] = {}
    record = distill(cell.data, cell.networks, cell.training, out=world / cell.networks.student[-1] / cell.plan.cell)
    assert record.settings["views"] == cell.data.views
    return seen["now"]


def same(first: Epochs, second: Epochs) -> bool:
    return all(
        torch.equal(one.images, other.images) and torch.equal(one.indices, other.indices)
        for epoch in range(TRAINING.epochs)
        for one, other in zip(first[epoch], second[epoch], strict=True)
    )


@pytest.mark.parametrize("views", [2, None])
def test_of_a_comparison(views: int | None, world: Path, tmp_path: Path, seen: dict[str, Epochs]) -> None:
    networks = pair(world, cache_teacher=None if views is None else str(tmp_path / "cache"))
    data, training = _for_cells(images(world, views=views), networks, TRAINING, 1)
    cells = compared_cells(data, networks, training, methods=METHODS, seeds=2)
    found = {cell.plan.cell: images_of(cell, tmp_path, seen) for cell in cells}
    for seed in (0, 1):
        alone = found[f"none/seed-{seed}"]
        assert same(alone, found[f"kd/seed-{seed}"])
        assert same(alone, found[f"serkd/seed-{seed}"])
    by_index = [
        {int(i): x for b in epoch for i, x in zip(b.indices, b.images, strict=True)}
        for _, epoch in sorted(alone.items())
    ]
    both = by_index[0].keys() & by_index[2].keys()
    assert all(torch.equal(by_index[0][i], by_index[2][i]) for i in both) == (views == 2)


def test_of_a_sweep(world: Path, tmp_path: Path, seen: dict[str, Epochs]) -> None:
    networks = pair(world, method="kd", cache_teacher=str(tmp_path / "cache"))
    data, training = _for_cells(images(world), networks, TRAINING, 1)
    over = [Axis("kd", (0.5, 2))]
    cells = swept_cells(data, networks, training, students=[networks.student], over=over, seeds=1)
    assert {cell.data.views for cell in cells} == {CACHED_VIEWS}
    assert same(*(images_of(cell, tmp_path, seen) for cell in cells))


def test_a_comparison_is_of_one_rule(world: Path, tmp_path: Path) -> None:
    cached = pair(world, cache_teacher=str(tmp_path / "cache"))
    given: dict[str, Any] = {"methods": ["none"], "seeds": 1, "out": tmp_path / "compared"}
    training = replace(TRAINING, epochs=1)
    compare(images(world), cached, training, **given)
    record = json.loads((tmp_path / "compared" / "none" / "seed-0" / "record.json").read_text())
    assert record["settings"]["views"] == CACHED_VIEWS
    with pytest.raises(UserError, match="was started with views = 16, not 2"):
        compare(images(world, views=2), cached, training, **given)
    head = tmp_path / "compared" / "compare.json"
    older = json.loads(head.read_text())
    del older["settings"]["views"]
    head.write_text(json.dumps(older))
    with pytest.raises(UserError, match="was started with views = None, not 16"):
        compare(images(world), cached, training, **given)
