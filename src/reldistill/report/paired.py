"""Runs side by side: who is the baseline of whom, what was gained, and whether the images can tell.

A run is compared with the student alone (method `none`) only where all that matters besides the method is the same: the
student and its starting weights, the images and the planned length. Only finished runs are compared, by the score
(accuracy, AP) of their last epoch (the best epoch was chosen on the same images).
"""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from reldistill.core.safe_read import read_file
from reldistill.report.draws import interval_of_draws
from reldistill.report.intervals import Difference, paired_difference, unpaired_difference, wilson_interval
from reldistill.report.record import NetworkRecord, Result, RunRecord, result_of
from reldistill.report.task_report import Score, report_of
from reldistill.report.words import known

ALONE = "none"
Role = Literal["teacher", "alone", "method"]


@dataclass(frozen=True)
class Row:
    """One line of the comparison; scores in percent, times in seconds, None where there is nothing to say.

    Args:
        role: `teacher`, `alone` (the student alone) or `method`.
        label: short and unlike every other row's.
        method: of the run; empty for a teacher that was given.
        network: name of the network whose score this is.
        parameters: of that network.
        images: validation images.
        score: what is compared.
        score_last: after the last epoch (a given teacher: as measured before training).
        interval_last: its 95 % interval: Wilson's of a counted score, of others by draws of the images.
        score_best: of the best epoch.
        best_epoch: which one.
        epochs: finished so far.
        gain: over the student alone.
        baseline: label of the run that is the student alone.
        seconds_per_step: of training.
        relative_step_time: seconds_per_step over the baseline's.
        status: of the run; `given` for a teacher that was not trained here.
        seed: of the run.
        command: what was typed to get these numbers.
        folder: the run's folder name.
    """

    role: Role
    label: str
    method: str
    network: str
    parameters: int
    images: int
    score: Score
    score_last: float | None
    interval_last: tuple[float, float] | None
    score_best: float | None
    best_epoch: int | None
    epochs: int
    gain: Difference | None
    baseline: str | None
    seconds_per_step: float | None
    relative_step_time: float | None
    status: str
    seed: Any
    command: str
    folder: str


def comparison_table(records: Sequence[RunRecord]) -> list[Row]:
    """The rows of the comparison: teachers, then the student alone, then the methods, each in order of creation."""
    ordered = in_order(records)
    names = labels(ordered)
    rows = _given_teachers(ordered)
    for record, name in zip(ordered, names, strict=True):
        result, base = outcome(record), baseline_of(record, ordered)
        role = role_of(record, ordered)
        step, base_step = result.seconds_per_step, outcome(base).seconds_per_step if base else None
        drawn = resampled(record)
        interval = result.score_interval_last
        if drawn is not None and result.score_last is not None:
            interval = list(interval_of_draws(drawn, observed=result.score_last))
        rows.append(
            Row(
                role=role,
                label=name,
                method=record.method,
                network=record.student.name,
                parameters=record.student.parameters,
                images=record.data.val_images,
                score=record.score,
                score_last=result.score_last,
                interval_last=(interval[0], interval[1]) if interval else None,
                score_best=result.score_best,
                best_epoch=result.best_epoch,
                epochs=len(record.history),
                gain=difference(record, base) if base and role == "method" else None,
                baseline=names[_position(base, ordered)] if base and role == "method" else None,
                seconds_per_step=step,
                relative_step_time=step / base_step if step is not None and base_step and known(step) else None,
                status=record.status,
                seed=record.settings.get("seed"),
                command=shlex.join(record.command),
                folder=record.folder.name if record.folder else "",
            )
        )
    return sorted(rows, key=lambda row: ("teacher", "alone", "method").index(row.role))


def in_order(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Teachers' own runs, the student alone, then the methods; each as created."""
    places = ("teacher", "alone", "method")
    return sorted(records, key=lambda record: (places.index(role_of(record, records)), record.created))


def role_of(record: RunRecord, records: Sequence[RunRecord]) -> Role:
    """`teacher` where another run learned from this run's network; else by the method."""
    for other in records:
        teacher = other.teacher
        if teacher is None or other is record or other.data.fingerprint != record.data.fingerprint:
            continue
        by_weights = teacher.weights_sha256 is not None and teacher.weights_sha256 in outcome(record).weights.values()
        by_name = record.method == ALONE and teacher.name == record.student.name != other.student.name
        if by_weights or by_name:
            return "teacher"
    return "alone" if record.method == ALONE else "method"


def outcome(record: RunRecord) -> Result:
    """The run's result; read off its history where the run has not stored one."""
    if record.result.score_last is not None:
        return record.result
    derived = result_of(record.history, score=record.score, val_images=record.data.val_images)
    derived.seconds_per_step = record.result.seconds_per_step
    derived.weights = record.result.weights
    return derived


def baseline_of(record: RunRecord, records: Sequence[RunRecord]) -> RunRecord | None:
    """The finished run of the student alone to hold `record` against: of the same seed, else the first of another."""
    if record.status != "finished" or role_of(record, records) == "teacher":
        return None
    same = [r for r in records if _comparable(r) == _comparable(record) and role_of(r, records) == "alone"]
    finished = [r for r in same if r.status == "finished" and known(outcome(r).score_last)]
    if any(r is record for r in finished):
        return record
    return min(finished, key=lambda r: (r.settings.get("seed") != record.settings.get("seed"), r.created), default=None)


def difference(record: RunRecord, other: RunRecord) -> Difference | None:
    """Score of `record` minus `other`'s at the last epoch: paired where both say which images they got right."""
    ours, others, images = *(outcome(r).score_last for r in (record, other)), record.data.val_images
    if ours is None or others is None or images == 0 or images != other.data.val_images:
        return None
    if not record.score.counted:
        return _resampled_difference(record, other, points=ours - others)
    this_hits, other_hits = hits_by_image(record), hits_by_image(other)
    if this_hits is not None and other_hits is not None:
        return paired_difference(int((this_hits & ~other_hits).sum()), int((other_hits & ~this_hits).sum()), images)
    return unpaired_difference(round(ours / 100 * images), round(others / 100 * images), images)


def _resampled_difference(record: RunRecord, other: RunRecord, *, points: float) -> Difference | None:
    """Of two scores, by draws of the images that both see; None where it is not on record what either made of them."""
    this, that = resampled(record), resampled(other)
    if this is None or that is None:
        return None
    return Difference(
        points, *interval_of_draws(this - that, observed=points), images=record.data.val_images, paired=True
    )


def resampled(record: RunRecord) -> np.ndarray | None:
    """The scores of draws of the validation images, the same draws for all runs; None where nothing is on record."""
    draws = report_of(record.task).draws
    return None if draws is None else draws(record)


def hits_by_image(record: RunRecord) -> np.ndarray | None:
    """(val_images,) booleans of the last epoch; None where the file is missing or does not belong to this result."""
    name, accuracy = record.result.by_image, record.result.score_last
    if record.folder is None or name is None or accuracy is None:
        return None
    try:
        hits = np.load(io.BytesIO(read_file(record.folder / name)), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(hits, np.ndarray) and hits.dtype == np.bool_ and hits.shape == (record.data.val_images,)
    return hits if fits and int(hits.sum()) == round(accuracy / 100 * len(hits)) else None


def labels(records: Sequence[RunRecord]) -> list[str]:
    """A short name for each run: its method, and what else is needed to tell it from the others."""
    base = ["teacher" if role_of(r, records) == "teacher" else _method_word(r) for r in records]
    extras: list[Callable[[RunRecord], str]] = [
        lambda r: r.student.name,
        lambda r: f"seed {r.settings.get('seed')}",
        lambda r: f"{r.settings.get('epochs')} epochs",
        lambda r: r.folder.name if r.folder else r.created,
    ]
    names = list(base)
    for extra in extras:
        groups = {name: [i for i, other in enumerate(names) if other == name] for name in names}
        for name, members in groups.items():
            if len({extra(records[i]) for i in members}) > 1:
                for i in members:
                    names[i] = f"{name} · {extra(records[i])}"
    return [name if names.count(name) == 1 else f"{name} #{names[:i].count(name) + 1}" for i, name in enumerate(names)]


def _method_word(record: RunRecord) -> str:
    return "student alone" if record.method == ALONE else record.method


def _comparable(record: RunRecord) -> Hashable:
    student = record.student
    images = (record.data.fingerprint or record.data.name, record.data.val_images, record.data.image_size)
    start = (student.name, student.parameters, student.pretrained, student.weights_sha256)
    return (record.task, *start, *images, str(record.settings.get("epochs")))


def _position(record: RunRecord, records: Sequence[RunRecord]) -> int:
    return next(i for i, other in enumerate(records) if other is record)


def _given_teachers(records: Sequence[RunRecord]) -> list[Row]:
    """A row for every teacher whose own run is not among the records."""
    trained = {(r.student.name, r.data.fingerprint) for r in records if role_of(r, records) == "teacher"}
    found: dict[Hashable, tuple[RunRecord, NetworkRecord]] = {}
    for record in records:
        teacher = record.teacher
        if teacher and (teacher.name, record.data.fingerprint) not in trained:
            found.setdefault((teacher.name, teacher.weights_sha256, record.data.fingerprint), (record, teacher))
    rows = []
    for record, teacher in found.values():
        images, score = record.data.val_images, teacher.score
        counted = record.score.counted and images > 0 and score is not None and known(score)
        rows.append(
            Row(
                role="teacher",
                label="teacher" if len(found) == 1 and not trained else f"teacher · {teacher.name}",
                method="",
                network=teacher.name,
                parameters=teacher.parameters,
                images=images,
                score=record.score,
                score_last=score,
                interval_last=wilson_interval(round((score or 0) / 100 * images), images) if counted else None,
                score_best=None,
                best_epoch=None,
                epochs=0,
                gain=None,
                baseline=None,
                seconds_per_step=None,
                relative_step_time=None,
                status="given",
                seed=None,
                command=shlex.join(record.command),
                folder=record.folder.name if record.folder else "",
            )
        )
    return rows
