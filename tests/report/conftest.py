"""Runs as a trainer would leave them, made up: a teacher, the student alone and four methods on the digits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reldistill.report.record import (
    DataRecord,
    Epoch,
    NetworkRecord,
    Result,
    RunRecord,
    TermRecord,
    result_of,
    write_record,
)
from reldistill.report.task_report import report_of

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
        "result": result_of(
            history,
            score=report_of("classification").score,
            val_images=IMAGES,
            seconds_per_step=cost,
            images_per_second=64 / cost,
        ),
    }
    return dataclasses.replace(RunRecord(**values), **changes)


def write_hits(folder: Path, record: RunRecord, *, wrong: list[int]) -> RunRecord:
    """The file of per-image hits, all right but `wrong`; the record is changed to match and written."""
    hits = np.ones(record.data.val_images, dtype=bool)
    hits[wrong] = False
    record.history[-1].val["accuracy"] = 100 * float(hits.mean())
    record.result = result_of(
        record.history,
        score=record.score,
        val_images=len(hits),
        seconds_per_step=record.result.seconds_per_step,
        images_per_second=record.result.images_per_second,
        by_image="val_correct.npy",
    )
    write_record(folder, record)
    np.save(folder / "val_correct.npy", hits)
    record.folder = folder
    return record


def make_quickstart() -> list[RunRecord]:
    hits = {"serkd": 348, "none": 330, "kd": 336, "sekd": 331, "rkd": 326}
    return [make_record(method, hits=n) for method, n in hits.items()]


def make_relations() -> dict[str, np.ndarray]:
    """Arrays of a `relations.npz`: four images, 8 × 8 tokens, 24 channels in three groups."""
    random = np.random.default_rng(0)
    regions = np.arange(64).reshape(1, 8, 8).repeat(4, axis=0) // 4
    members = random.permutation(24) % 3
    teacher = 0.6 * (members[:, None] == members) + 0.4 * np.eye(24)
    return {
        "images": random.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
        "labels": np.array([3, 1, 4, 1]),
        "classes": np.array([str(i) for i in range(10)]),
        "student_superpixels": np.where(random.random((4, 8, 8)) < 0.25, 0, regions).astype(np.int16),
        "teacher_superpixels": regions.astype(np.int16),
        "level": np.array("layer3:layer3"),
        "student_adjacency": (0.8 * teacher + 0.2 * np.eye(24)).astype(np.float32),
        "teacher_adjacency": teacher.astype(np.float32),
        "student_spectrum": np.linspace(0, 1.1, 24).astype(np.float32),
        "teacher_spectrum": np.linspace(0, 1.2, 24).astype(np.float32),
    }


@pytest.fixture(name="make_record", scope="session")
def make_record_fixture() -> Callable[..., RunRecord]:
    return make_record


@pytest.fixture(name="write_hits", scope="session")
def write_hits_fixture() -> Callable[..., RunRecord]:
    return write_hits


@pytest.fixture
def records() -> list[RunRecord]:
    """Out of order: the student alone at 330 of 360, four methods, and a teacher that was given."""
    return make_quickstart()


@pytest.fixture
def relations() -> dict[str, np.ndarray]:
    return make_relations()


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six runs, pictures included, one of them still running. Not to be changed."""
    out = tmp_path_factory.mktemp("quickstart")
    for record in make_quickstart():
        write_record(out / record.method, record)
        np.savez(out / record.method / "relations.npz", **make_relations())
    running = make_record("kd+rkd", status="running", result=Result())
    running.history = running.history[:2]
    write_record(out / "kd+rkd", running)
    return out
