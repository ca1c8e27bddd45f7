"""A comparison of methods, or a sweep of settings, whole: its cells, what they have in common, and what follows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reldistill.core.checks import UserError
from reldistill.core.tasks import FALLBACK
from reldistill.report.comparison.cell_records import REFERENCE, CellPlan, CellResult, read_cell, read_json
from reldistill.report.paired import ALONE
from reldistill.report.record import encode
from reldistill.report.seeds import (
    METHOD,
    SeedDifference,
    difference_of_draws,
    difference_over_seeds,
    mean_and_deviation,
)
from reldistill.report.task_report import Score, report_of
from reldistill.report.words import known

SCHEMA = 1
BASE = "kd"
Kind = Literal["compare", "sweep"]
KINDS: tuple[Kind, ...] = ("compare", "sweep")


@dataclass(frozen=True)
class Head:
    """What a comparison was told.

    Args:
        kind: `compare` or `sweep`; also the name of its files.
        version: of reldistill.
        command: the argument vector that began it.
        created: ISO 8601, with time zone.
        settings: every setting that all cells share, by name.
        over: setting → its values, in a sweep.
        notes: what the user was warned of.
    """

    kind: Kind
    version: str
    command: list[str]
    created: str
    settings: dict[str, Any]
    over: dict[str, list[Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Comparison:
    """Head, cells in the order they are run in, and the reference's content (empty until it is measured)."""

    head: Head
    folder: Path
    cells: Sequence[CellResult]
    reference: Mapping[str, Any]

    @property
    def variants(self) -> dict[str, list[CellResult]]:
        """What is compared → its cells, by seed."""
        found: dict[str, list[CellResult]] = {}
        for cell in self.cells:
            found.setdefault(cell.plan.variant, []).append(cell)
        return {variant: sorted(cells, key=lambda cell: cell.plan.seed) for variant, cells in found.items()}

    @property
    def failed(self) -> list[CellResult]:
        """The cells that failed."""
        return [cell for cell in self.cells if cell.status == "failed"]

    @property
    def score(self) -> Score:
        """What the networks are compared by."""
        return report_of(self.head.settings.get("task", FALLBACK)).score_by(self.head.settings)

    @property
    def test_images(self) -> int:
        """How many images every figure of the test rests on."""
        return int(self.reference.get("data", {}).get("test_images", 0))


@dataclass(frozen=True)
class Summary:
    """A variant over its finished seeds. Scores and shares in percent, times in seconds, memory in bytes.

    Args:
        mean: test score of the last epoch, over the seeds.
        std: its standard deviation; None with one seed.
        mean_best: test score of the epoch that was best on the validation images.
        std_best: its standard deviation.
        mean_val: validation score of that epoch: what choices are made by.
        std_val: its standard deviation.
        vs_none: against the student alone.
        vs_kd: against kd.
        agreement: with the teacher.
        calibration_error: expected, over 15 bins.
        correlation_gap: between teacher's and student's logit correlations.
        seconds_per_step: mean over the seeds.
        peak_memory: the largest of the seeds.
        parameters: of the student.
        trained_parameters: of the student and what is trained beside it.
        flops: of the student for an image.
        training_flops: of a training step for an image, the teacher included.
        chosen: whether the validation images prefer it (in a sweep, among its student's points).
    """

    variant: str
    method: str
    student: str
    point: Mapping[str, Any]
    seeds: list[int]
    mean: float | None = None
    std: float | None = None
    mean_best: float | None = None
    std_best: float | None = None
    mean_val: float | None = None
    std_val: float | None = None
    vs_none: SeedDifference | None = None
    vs_kd: SeedDifference | None = None
    agreement: float | None = None
    calibration_error: float | None = None
    correlation_gap: float | None = None
    seconds_per_step: float | None = None
    peak_memory: int | None = None
    parameters: int | None = None
    trained_parameters: int | None = None
    flops: float | None = None
    training_flops: float | None = None
    chosen: bool = False


def read_comparison(folder: Path) -> Comparison:
    """The comparison in a folder, its cells as they are now.

    Raises:
        UserError: when there is none, or it cannot be read.
    """
    kind = kind_in(folder)
    if kind is None:
        raise UserError(f"no comparison in {folder}: it holds neither compare.json nor sweep.json")
    path = folder / f"{kind}.json"
    content = read_json(path)
    if content.get("schema") != SCHEMA:
        raise UserError(f"{path} has schema {content.get('schema')!r}, this reldistill reads schema {SCHEMA}")
    try:
        head = Head(**{name: content[name] for name in _names(Head)})
        plans = [CellPlan(**{name: cell[name] for name in _names(CellPlan)}) for cell in content["cells"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: {error}; the file was edited or comes from another program") from None
    return gather(head, folder, plans)


def kind_in(folder: Path) -> Kind | None:
    """Which of the two a folder holds, if any."""
    return next((kind for kind in KINDS if (folder / f"{kind}.json").is_file()), None)


def _names(kind: Any) -> list[str]:
    return [item.name for item in fields(kind)]


def gather(head: Head, folder: Path, plans: Sequence[CellPlan]) -> Comparison:
    """A comparison with what its folder holds now."""
    file = folder / REFERENCE / f"{REFERENCE}.json"
    return Comparison(
        head, folder, [read_cell(folder, plan) for plan in plans], read_json(file) if file.is_file() else {}
    )


def summaries(comparison: Comparison) -> list[Summary]:
    """One for each variant, in the order of the cells."""
    arrays = _arrays(comparison)
    found = [_summary(comparison, variant, arrays) for variant in comparison.variants]
    if comparison.head.kind == "compare":
        return found
    best = {student: _preferred(found, student) for student in {summary.student for summary in found}}
    return [replace(summary, chosen=best[summary.student] is summary) for summary in found]


def _arrays(comparison: Comparison) -> dict[str, Mapping[str, np.ndarray]]:
    """Of the finished cells, by name."""
    return {cell.plan.cell: cell.arrays() for cell in comparison.cells if cell.status == "finished"}


def _preferred(found: Sequence[Summary], student: str) -> Summary | None:
    """The point with the best mean validation score: the first of those, where several are."""
    own = [summary for summary in found if summary.student == student and known(summary.mean_val)]
    return max(own, key=lambda summary: summary.mean_val or 0.0, default=None)


def _summary(comparison: Comparison, variant: str, arrays: Mapping[str, Mapping[str, np.ndarray]]) -> Summary:
    cells = comparison.variants[variant]
    plan, done = cells[0].plan, [cell for cell in cells if cell.test is not None and cell.record is not None]
    student = comparison.reference.get("students", {}).get(plan.student, {})
    method = student.get("methods", {}).get(plan.method) or {}
    summary = Summary(
        variant,
        plan.method,
        plan.student,
        plan.point,
        [cell.plan.seed for cell in done],
        parameters=student.get("parameters"),
        flops=student.get("flops"),
        trained_parameters=method.get("trained_parameters"),
        training_flops=method.get("training_flops"),
    )
    if not done:
        return summary
    tests = [cell.test for cell in done if cell.test]
    results = [cell.record.result for cell in done if cell.record]
    steps = [result.seconds_per_step for result in results if result.seconds_per_step is not None]
    mean, std = mean_and_deviation([test.test_last for test in tests])
    mean_best, std_best = mean_and_deviation([test.test_best for test in tests])
    mean_val, std_val = mean_and_deviation([result.score_best or 0.0 for result in results])
    return replace(
        summary,
        mean=mean,
        std=std,
        mean_best=mean_best,
        std_best=std_best,
        mean_val=mean_val,
        std_val=std_val,
        vs_none=_against(comparison, cells, ALONE, arrays),
        vs_kd=_against(comparison, cells, BASE, arrays),
        agreement=_mean([test.agreement for test in tests]),
        calibration_error=_mean([test.calibration_error for test in tests]),
        correlation_gap=_mean([test.correlation_gap for test in tests]),
        seconds_per_step=float(np.mean(steps)) if steps else None,
        peak_memory=max(test.peak_memory for test in tests),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else None


def _against(
    comparison: Comparison, cells: Sequence[CellResult], base: str, arrays: Mapping[str, Mapping[str, np.ndarray]]
) -> SeedDifference | None:
    if cells[0].plan.method == base or comparison.head.kind != "compare":
        return None
    return _difference(comparison, cells, comparison.variants.get(base, ()), arrays)


def every_pair(comparison: Comparison, variants: Sequence[str]) -> dict[tuple[str, str], SeedDifference]:
    """(one, other) → the difference of the two, for all of the variants that have finished a seed in common."""
    arrays = _arrays(comparison)
    found: dict[tuple[str, str], SeedDifference] = {}
    for one, other in itertools.combinations(variants, 2):
        between = _difference(comparison, comparison.variants[one], comparison.variants[other], arrays)
        if between is not None:
            found |= {(one, other): between, (other, one): between.reversed()}
    return found


def _difference(
    comparison: Comparison,
    cells: Sequence[CellResult],
    other_cells: Sequence[CellResult],
    arrays: Mapping[str, Mapping[str, np.ndarray]],
) -> SeedDifference | None:
    """Over the seeds that both have finished."""
    own, others = (
        {cell.plan.seed: cell for cell in some if cell.plan.cell in arrays and cell.test}
        for some in (cells, other_cells)
    )
    both = sorted(set(own) & set(others))
    if not both:
        return None

    def stacked(of: Mapping[int, CellResult], name: str) -> np.ndarray:
        return np.stack([arrays[of[seed].plan.cell][name] for seed in both])

    if comparison.score.counted:
        return difference_over_seeds(stacked(own, "correct_last"), stacked(others, "correct_last"))
    scores, other_scores = ([of[seed].test.test_last for seed in both] for of in (own, others))  # type: ignore[union-attr]
    drawn, others_drawn = stacked(own, "drawn"), stacked(others, "drawn")
    return difference_of_draws(scores, other_scores, drawn, others_drawn, images=comparison.test_images)


# As JSON -------------------------------------------------------------------------------------------------------------


def comparison_json(comparison: Comparison, rows: Sequence[Summary], verdict: Sequence[str]) -> dict[str, Any]:
    """The content of compare.json or sweep.json."""
    return {
        "schema": SCHEMA,
        **encode(comparison.head),
        "data": comparison.reference.get("data"),
        "teacher": comparison.reference.get("teacher"),
        "cells": [_cell_json(cell) for cell in comparison.cells],
        "summary": {row.variant: _summary_json(row) for row in rows},
        "verdict": list(verdict),
        "statistics": METHOD,
    }


def _cell_json(cell: CellResult) -> dict[str, Any]:
    result = cell.record.result if cell.record else None
    test = encode(cell.test) if cell.test else {}
    return {
        **encode(cell.plan),
        "status": cell.status,
        "reason": cell.reason,
        "test_last": test.get("test_last"),
        "test_best": test.get("test_best"),
        "val_last": result.score_last if result else None,
        "val_best": result.score_best if result else None,
        "best_epoch": result.best_epoch if result else None,
        "epochs": len(cell.record.history) if cell.record else 0,
        "agreement": test.get("agreement"),
        "calibration_error": test.get("calibration_error"),
        "correlation_gap": test.get("correlation_gap"),
        "seconds_per_step": result.seconds_per_step if result else None,
        "seconds_total": result.seconds_total if result else None,
        "peak_memory": test.get("peak_memory"),
    }


def _summary_json(row: Summary) -> dict[str, Any]:
    content = {name: value for name, value in encode(row).items() if name not in ("variant", "vs_none", "vs_kd")}
    for name, between in (("vs_none", row.vs_none), ("vs_kd", row.vs_kd)):
        content[name] = {**encode(between), "beyond_noise": between.beyond_noise} if between else None
    return content
