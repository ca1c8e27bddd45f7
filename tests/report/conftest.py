"""Runs as a trainer would leave them, made up: a teacher, the student alone and four methods on the digits."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reldistill.report.record import (
    CORRECT_FILE,
    DataRecord,
    Epoch,
    NetworkRecord,
    RunRecord,
    TermRecord,
    result_of,
    write_record,
)

IMAGES = 360


def make_record(method: str = "serkd", **changes: Any) -> RunRecord:
    """A finished run; `hits` (of 360 images at the last epoch), `epochs` and `seed` shape it, the rest are fields."""
    hits, epochs, seed = changes.pop("hits", 340), changes.pop("epochs", 8), changes.pop("seed", 0)
    parts = {"none": ["task"], "kd": ["task", "kd"], "rkd": ["task", "rkd.distance", "rkd.angle"]}.get(
        method, ["task", "kd", f"{method}.distance", f"{method}.angle", f"{method}.feature"]
    )
    final = 100 * hits / IMAGES
    history = []
    for epoch in range(1, epochs + 1):
        fade = math.exp(-1.1 * (epoch - 1))
        train = {part: (1.9 * fade + 0.08) / (i + 1) for i, part in enumerate(parts)}
        correct = IMAGES if final == 100 and epoch == epochs else round(IMAGES * (final - 60 * fade) / 100)
        accuracy = final if epoch == epochs else 100 * correct / IMAGES
        history.append(
            Epoch(
                epoch=epoch,
                step=epoch * 23,
                seconds=2.4,
                learning_rate=0.1 * (1 - epoch / (epochs + 1)),
                train={**train, "total": sum(train.values())},
                val={"accuracy": accuracy, "loss": 1.2 * fade + 0.2},
            )
        )
    distils = method != "none"
    cost = {"none": 0.0123, "kd": 0.0151, "rkd": 0.0155, "serkd": 0.0190, "sekd": 0.0312}.get(method, 0.0170)
    values: dict[str, Any] = {
        "version": "0.1.0",
        "command": ["reldistill", "distill", "--data", "digits", "--method", method, "--out", f"runs/{method}"],
        "created": f"2026-01-0{1 + len(method) % 8}T10:00:00+00:00",
        "task": "classification",
        "method": method,
        "settings": {"epochs": epochs, "batch_size": 64, "lr": 0.1, "seed": seed, "method": method},
        "student": NetworkRecord("resnet8", 78_042, 32),
        "teacher": NetworkRecord("resnet20", 272_474, 32, "teacher/last.safetensors", "ab" * 32, 98.61)
        if distils
        else None,
        "data": DataRecord("digits", [str(i) for i in range(10)], 1437, IMAGES, 32, 0, "5f3a" * 4),
        "terms": [
            TermRecord(name, {part: 1.0 for part in parts if part.split(".")[0] == name}, "layer3", "layer3")
            for name in dict.fromkeys(part.split(".")[0] for part in parts)
        ],
        "environment": {"python": "3.12.1", "torch": "2.9.0", "device": "cpu", "precision": "bf16-mixed", "threads": 2},
        "history": history,
        "status": "finished",
        "result": result_of(history, val_images=IMAGES, seconds_per_step=cost, images_per_second=64 / cost),
    }
    return dataclasses.replace(RunRecord(**values), **changes)


def write_hits(folder: Path, record: RunRecord, *, wrong: list[int]) -> RunRecord:
    """The file of per-image hits, all right but `wrong`; the record is changed to match and written."""
    hits = np.ones(record.data.val_images, dtype=bool)
    hits[wrong] = False
    record.history[-1].val["accuracy"] = 100 * float(hits.mean())
    record.result = result_of(
        record.history,
        val_images=len(hits),
        seconds_per_step=record.result.seconds_per_step,
        images_per_second=record.result.images_per_second,
        correct=CORRECT_FILE,
    )
    write_record(folder, record)
    np.save(folder / CORRECT_FILE, hits)
    record.folder = folder
    return record


@pytest.fixture
def records() -> list[RunRecord]:
    """Teacher apart (given), the student alone at 330 of 360 and four methods."""
    hits = {"serkd": 345, "none": 330, "kd": 336, "sekd": 331, "rkd": 326}
    return [make_record(method, hits=n) for method, n in hits.items()]
