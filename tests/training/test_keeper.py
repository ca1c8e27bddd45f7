"""When a run ends, and what a step may draw."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import lightning as L
import pytest
import torch

from reldistill.core.types import Batch
from reldistill.networks.extract import Extractor
from reldistill.report.record import DataRecord, Epoch, NetworkRecord, RunRecord, result_of
from reldistill.step.distiller import Distiller
from reldistill.tasks.classification.objective import Classification
from reldistill.training.keeper import RunKeeper
from reldistill.training.module import DistillationModule
from reldistill.training.teacher_cache import TeacherCache


class Three:
    """Batches that are never asked for."""

    def __len__(self) -> int:
        return 3

    def set_position(self, epoch: int, batch: int = 0) -> None:
        raise AssertionError

    def __iter__(self) -> Iterator[Batch]:
        raise AssertionError


def keeper_of(scores: list[float | None], *, patience: int = 0, seed: int = 0) -> RunKeeper:
    """Of ten epochs, after some of these accuracies; None for one that was not validated."""
    network, data = NetworkRecord("net", 1, 8), DataRecord("images", ["a", "b"], 30, 10, 8)
    record = RunRecord("0", [], "", "classification", "none", {}, network, None, data)
    record.history = [
        Epoch(number, number, 1.0, 0.1, {}, {} if score is None else {"accuracy": score})
        for number, score in enumerate(scores, start=1)
    ]
    record.result = result_of(record.history, score=record.score, val_images=10)
    keeper = RunKeeper(Path(), record, loader=Three(), seed=seed, epochs=10, patience=patience)
    keeper.epoch = len(scores)
    return keeper


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], 10),
        ([50.0], 9),
        ([50.0, 40.0], 8),
        ([50.0, 40.0, 40.0], 7),
        ([50.0, 40.0, 40.0, 50.0], 0),  # three epochs, none of them better
        ([50.0, 40.0, 40.0, 60.0], 6),
        ([50.0, 40.0, 40.0, 60.0, 10.0, 10.0], 4),
        ([50.0, None, None, None], 6),  # never after an epoch that was not validated
        ([50.0, None, None, None, 40.0], 0),
    ],
)
def test_patience_is_the_number_of_epochs_without_a_better_score(scores: list[float | None], expected: int) -> None:
    assert keeper_of(scores, patience=3).epochs_left == expected


def test_without_patience_every_epoch_runs() -> None:
    assert keeper_of([50.0] * 9).epochs_left == 1
    assert keeper_of([50.0] * 10).epochs_left == 0


def drawn(keeper: RunKeeper, *, epoch: int = 0, batch: int = 0, rank: int = 0) -> tuple[float, int]:
    """What the first draw of a step is, and which of three views of the images it sees."""
    student = Extractor(torch.nn.Flatten())
    module = DistillationModule(Distiller(student, {}, terms=[], adapters={}, task=Classification()))
    module.teacher_cache = Mock(spec=TeacherCache, views=3)
    keeper.epoch, keeper.batch = epoch, batch
    with torch.random.fork_rng(devices=[]):
        keeper.on_train_batch_start(Mock(spec=L.Trainer, global_rank=rank), module, None, 0)
        return float(torch.rand(())), module.teacher_cache.view


def test_a_step_is_seeded_by_run_position_and_rank() -> None:
    keepers = [keeper_of([], seed=seed) for seed in (0, 1)]
    steps = [{}, {"epoch": 1}, {"batch": 1}, {"rank": 1}, {"epoch": 1, "batch": 1}]
    first = {drawn(keeper, **step)[0] for keeper in keepers for step in steps}
    assert len(first) == 10
    assert drawn(keepers[0], epoch=1)[0] == drawn(keeper_of([], seed=0), epoch=1)[0]


def test_epochs_go_through_the_views_of_the_images() -> None:
    assert [drawn(keeper_of([]), epoch=epoch)[1] for epoch in range(5)] == [0, 1, 2, 0, 1]
