"""The record of a run: one JSON file in its folder, the single source of every figure that is shown of it.

A run folder holds `record.json` and, where the trainer wrote them, `val_correct.npy` (which validation images the last
epoch got right) and `relations.npz` (see `relations_file`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reldistill.core.checks import UserError, escaped
from reldistill.core.run_files import RECORD_FILE
from reldistill.core.safe_files import write_text
from reldistill.core.safe_read import Unreadable, parse_json, read_file
from reldistill.report.intervals import wilson_interval
from reldistill.report.task_report import Score, report_of

SCHEMA = 1

Status = Literal["running", "finished", "stopped"]


@dataclass
class Epoch:
    """What one epoch left: times in seconds, accuracies in percent.

    Args:
        epoch: counted from 1.
        step: optimiser steps since the start of the run, at the end of this epoch.
        seconds: wall-clock time of the epoch, validation included.
        learning_rate: at the end of the epoch.
        train: epoch mean of every weighted part by name, and of their sum as `total`.
        val: what was measured on the validation images, by name: the task's score and others.
    """

    epoch: int
    step: int
    seconds: float
    learning_rate: float
    train: dict[str, float]
    val: dict[str, float]


@dataclass
class NetworkRecord:
    """One network of the run.

    Args:
        name: as the user gave it.
        parameters: trainable or not; adapters are not the network's.
        input_size: height = width of the images it receives, pixels.
        pretrained: where its starting weights came from in words, e.g. `no`, `timm`, or a file name.
        weights_sha256: of the file that held the starting weights, where there was one.
        score: before training, on the validation images, percent (the teacher's is its score, full stop).
        licence: of its starting weights, "unknown: …" where nobody says; None where they are random.
        seconds_per_image: forward pass on the run's device.
    """

    name: str
    parameters: int
    input_size: int
    pretrained: str = "no"
    weights_sha256: str | None = None
    score: float | None = None
    licence: str | None = None
    seconds_per_image: float | None = None


@dataclass
class DataRecord:
    """The images.

    Args:
        name: what the user asked for.
        classes: class names.
        train_images: how many there are to learn from.
        val_images: how many there are to validate by.
        image_size: pixels.
        skipped: how many could not be read and were left out.
        fingerprint: changes with any image, label or split.
        left_out: what else lay with the data and was not used, in words → how often.
    """

    name: str
    classes: list[str]
    train_images: int
    val_images: int
    image_size: int
    skipped: int = 0
    fingerprint: str = ""
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass
class TermRecord:
    """One loss term: its parts' weights by name, and the level it reads in each network (`logits` for the logits)."""

    name: str
    weights: dict[str, float]
    student: str
    teacher: str


@dataclass
class Result:
    """Where the run stands: see `result_of`. Scores in percent; `by_image` and `weights` describe files beside it.

    Args:
        score_last: of the last epoch; the one that is compared.
        score_best: of the best epoch, which was picked on the same images and is flattered by that.
        best_epoch: the first epoch that reached it, counted from 1.
        score_interval_last: [low, high], Wilson 95 % over the choice of validation images.
        seconds_per_step: median time of a training step, data loading included.
        seconds_total: wall-clock time of all epochs.
        images_per_second: training images.
        by_image: name of the file with what the last epoch made of each validation image, in the data set's order.
        weights: file name → sha256 of what the run saved.
    """

    score_last: float | None = None
    score_best: float | None = None
    best_epoch: int | None = None
    score_interval_last: list[float] | None = None
    seconds_per_step: float | None = None
    seconds_total: float | None = None
    images_per_second: float | None = None
    by_image: str | None = None
    weights: dict[str, str] = field(default_factory=dict)


@dataclass
class RunRecord:
    """One run, whole.

    Args:
        version: of reldistill.
        command: the argument vector, so that `shlex.join(command)` repeats the run.
        created: ISO 8601, with time zone.
        task: e.g. `classification`.
        method: e.g. `serkd`, `none` for the student alone, `kd+rkd`.
        settings: every setting of the run by name (`epochs`, `batch_size`, `seed`, …), as JSON values.
        student: the trained network (in a teacher's own run, that is the teacher).
        teacher: the network it learned from, None where there was none.
        data: the images.
        terms: the loss terms in force.
        environment: versions, device, precision and threads, as JSON values.
        history: one entry an epoch.
        result: kept up to date during the run.
        status: `finished` means that it ended as planned (early stopping included), `stopped` that it was cut short.
        notes: every warning the user was shown.
        schema: version of this format.
        folder: where it was read from; not written.
    """

    version: str
    command: list[str]
    created: str
    task: str
    method: str
    settings: dict[str, Any]
    student: NetworkRecord
    teacher: NetworkRecord | None
    data: DataRecord
    terms: list[TermRecord] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    history: list[Epoch] = field(default_factory=list)
    result: Result = field(default_factory=Result)
    status: Status = "running"
    notes: list[str] = field(default_factory=list)
    schema: int = SCHEMA
    folder: Path | None = field(default=None, compare=False, repr=False)

    @property
    def score(self) -> Score:
        """What networks of its task are compared by."""
        return report_of(self.task).score_by(self.settings)


def result_of(
    history: Sequence[Epoch],
    *,
    score: Score,
    val_images: int,
    seconds_per_step: float | None = None,
    images_per_second: float | None = None,
    by_image: str | None = None,
    weights: dict[str, str] | None = None,
) -> Result:
    """The Result that follows from a history: what the trainer stores after every epoch."""
    result = Result(
        seconds_per_step=seconds_per_step,
        seconds_total=sum(epoch.seconds for epoch in history) if history else None,
        images_per_second=images_per_second,
        by_image=by_image,
        weights=dict(weights or {}),
    )
    scores = [(epoch.val.get(score.name, math.nan), epoch.epoch) for epoch in history]
    reached = [(value, epoch) for value, epoch in scores if math.isfinite(value)]
    if reached:
        result.score_last = reached[-1][0]
        result.score_best, result.best_epoch = max(reached, key=lambda pair: (pair[0], -pair[1]))
        if score.counted and val_images > 0:
            hits = round(result.score_last / 100 * val_images)
            result.score_interval_last = list(wilson_interval(hits, val_images))
    return result


# Writing and reading -------------------------------------------------------------------------------------------------


def write_record(path: str | Path, record: RunRecord) -> Path:
    """Write `record` as JSON into a run folder (or to a `.json` path): whole or not at all, whenever the run dies."""
    target = _record_path(Path(path))
    text = json.dumps(encode(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_text(target, text, make_folder=True)


def read_record(path: str | Path) -> RunRecord:
    """The record of a run folder (or of a `.json` path); UserError in one line where it cannot be had."""
    source = _record_path(Path(path))
    if not os.path.lexists(source):
        raise UserError(f"no record at {source}: give a run folder, the one that --out named")
    try:
        raw = escaped(parse_json(read_file(source)))
    except Unreadable as error:
        raise UserError(f"{source} {error}: it was edited or cut short; run again") from None
    if not isinstance(raw, dict) or "schema" not in raw:
        raise UserError(f"{source} is not a run's record: it names no schema; give a folder that --out named")
    if raw["schema"] != SCHEMA:
        raise UserError(
            f"{source} has schema {raw['schema']!r}, this reldistill reads schema {SCHEMA}: "
            f"use the version that wrote it ({raw.get('version', 'unknown')!r})"
        )
    try:
        record = _decode(RunRecord, raw, "record")
    except _Mismatch as error:
        raise UserError(f"{source}: {error}; the file was edited or comes from another program") from None
    record.folder = source.parent
    return typing.cast(RunRecord, record)


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """The run folders among `paths`: each is one, or holds some directly inside (by name); in order, none twice."""
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        folder = path.parent if path.name == RECORD_FILE else path
        if not folder.is_dir():
            raise UserError(f"no folder {path}: give run folders, or a folder that holds some")
        inside = [folder] if (folder / RECORD_FILE).is_file() else []
        inside = inside or sorted(child for child in folder.iterdir() if (child / RECORD_FILE).is_file())
        if not inside:
            raise UserError(f"no run in {path}: neither it nor a folder directly inside holds {RECORD_FILE}")
        found.update(dict.fromkeys(inside))
    return list(found)


def _record_path(path: Path) -> Path:
    return path if path.suffix == ".json" else path / RECORD_FILE


def encode(value: Any) -> Any:
    """Dataclasses as dicts, paths as text, and numbers that JSON cannot hold (inf, nan) as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value) if not (f.name == "folder" and isinstance(value, RunRecord))]
        names.sort(key=lambda name: name != "schema")  # the first thing a reader needs
        return {name: encode(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value


class _Mismatch(Exception):
    """A value that is not what the format says; the message names the place."""


def _decode(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: the few annotations that records use, checked. Unknown keys are left out."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):  # only `X | None` occurs
        return None if value is None else _decode(inner[0], value, where)
    if origin is Literal:
        return value if value in inner else _fail(where, " or ".join(map(repr, inner)), value)
    if origin is list:
        items = value if isinstance(value, list) else _fail(where, "a list", value)
        return [_decode(inner[0], item, f"{where}[{i}]") for i, item in enumerate(items)]
    if origin is dict:
        pairs = value if isinstance(value, dict) else _fail(where, "an object", value)
        return {key: _decode(inner[1], item, f"{where}.{key}") for key, item in pairs.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if kind is float and value is None:
        return math.nan  # as `encode` wrote it
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    exact = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    return value if exact else _fail(where, {str: "text", int: "a whole number"}.get(kind, "a number"), value)


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        _fail(where, "an object", value)
    hints, found = typing.get_type_hints(kind), {}
    for item in dataclasses.fields(kind):
        if item.name == "folder":
            continue
        if item.name in value:
            found[item.name] = _decode(hints[item.name], value[item.name], f"{where}.{item.name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise _Mismatch(f"{where} lacks {item.name!r}")
    return kind(**found)


def _fail(where: str, expected: str, value: Any) -> typing.NoReturn:
    found = json.dumps(value)
    raise _Mismatch(f"{where} must be {expected}, found {found if len(found) < 60 else found[:57] + '…'}")
