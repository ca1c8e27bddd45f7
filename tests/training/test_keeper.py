"""When a run ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reldistill.report.record import Epoch, result_of
from reldistill.report.task_report import Score
from reldistill.training.keeper import RunKeeper


def epochs_left(scores: list[float | None], *, patience: int, epochs: int = 10) -> int:
    """After epochs of these accuracies; None for one that was not validated."""
    history = [
        Epoch(number, number, 1.0, 0.1, {}, {} if score is None else {"accuracy": score})
        for number, score in enumerate(scores, start=1)
    ]
    result = result_of(history, score=Score("accuracy", counted=True), val_images=10)
    record: Any = SimpleNamespace(history=history, result=result)
    loader: Any = range(3)
    keeper = RunKeeper(Path(), record, loader=loader, seed=0, epochs=epochs, patience=patience)
    keeper.epoch = len(history)
    return keeper.epochs_left


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
    assert epochs_left(scores, patience=3) == expected


def test_without_patience_every_epoch_runs() -> None:
    assert epochs_left([50.0] * 9, patience=0) == 1
    assert epochs_left([50.0] * 10, patience=0) == 0
