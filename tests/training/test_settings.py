"""Settings say what is wrong with them before anything is read or built."""

from __future__ import annotations

import math
from typing import Any

import pytest

from reldistill.core.checks import UserError
from reldistill.training.settings import DataSettings, PairSettings, TrainSettings


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("epochs", 0, "epochs 0: give at least 1"),
        ("batch_size", -3, "batch size -3: give at least 1"),
        ("accumulate", 0, "accumulate 0: give at least 1"),
        ("nodes", 0, "nodes 0: give at least 1"),
        ("lr", 0.0, "lr 0.0: give more than 0"),
        ("lr", math.inf, "lr inf: give more than 0"),
        ("weight_decay", -0.1, "weight decay -0.1: give at least 0"),
        ("clip", math.nan, "clip nan: give at least 0"),
        ("patience", -1, "patience -1: give at least 0"),
        ("validate_every", 0, "validate every 0: give at least 1"),
        ("checkpoint_every", -1, "checkpoint every -1: give at least 0"),
        ("ema", 1.0, "ema 1.0: give at least 0 and less than 1"),
        ("label_smoothing", 1.5, "label smoothing 1.5: give at least 0 and less than 1"),
        ("lr_warm_up", -0.5, "lr warm up -0.5: give at least 0 and less than 1"),
        ("milestones", [0.5, 60], "milestones 60: give at least 0 and at most 1"),
        ("seed", -1, "seed -1: give at least 0"),
        ("devices", 0, "devices 0: give at least 1"),
        ("devices", "2.5", "devices: expected a number or auto, got '2.5'"),
        ("optimizer", "adam", "optimizer 'adam' is unknown: choose one of auto, sgd, adamw"),
        ("schedule", "linear", "schedule 'linear' is unknown: choose one of one-cycle, cosine, step, constant"),
        ("precision", "16", "precision '16' is unknown"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_training(setting: str, value: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        TrainSettings(**{setting: value})
    assert said in str(error.value)


@pytest.mark.parametrize(
    "values",
    [{"lr": None, "weight_decay": 0.0}, {"devices": "4"}, {"devices": 4}, {"ema": 0.9999}, {"milestones": []}],
)
def test_what_is_right_passes(values: dict[str, Any]) -> None:
    settings = TrainSettings(**values)
    assert all(getattr(settings, name) == value for name, value in values.items())


@pytest.mark.usefixtures("unchecked_types")
def test_pairs_and_data() -> None:
    with pytest.raises(UserError, match=r"warm up 1\.5: give at least 0 and at most 1"):
        PairSettings(teacher="a", student="b", warm_up=1.5)
    with pytest.raises(UserError, match=r"weight of serkd\.angle -1: give at least 0"):
        PairSettings(teacher="a", student="b", weights={"serkd.angle": -1})
    with pytest.raises(UserError, match="augment 'flop' is unknown: choose one of auto, none, crop"):
        DataSettings(data="digits", augment="flop")  # type: ignore[arg-type]


def test_the_task_follows_from_the_data() -> None:
    assert DataSettings(data="digits").task == "classification"
    assert DataSettings(data="coco:street").task == "detection"
    with pytest.raises(UserError, match="--task detection --data digits: labelled boxes are given as coco:DIR"):
        DataSettings(data="digits", task="detection")
    with pytest.raises(UserError, match="--task classification --data voc:street"):
        DataSettings(data="voc:street", task="classification")


def test_the_batch_follows_from_the_task() -> None:
    assert TrainSettings().for_task("classification").step_images == 128
    assert TrainSettings().for_task("detection").step_images == 8
    assert TrainSettings(batch_size=3).for_task("detection").step_images == 3
