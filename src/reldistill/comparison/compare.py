"""Comparisons and sweeps from start to end: cells that are not finished are run, and then everything is written."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import reldistill
from reldistill.comparison.board import Board
from reldistill.comparison.cells import (
    Axis,
    Cell,
    MethodParts,
    check_choices,
    check_seeds,
    compared_cells,
    read_axes,
    swept_cells,
)
from reldistill.comparison.measure import made_of
from reldistill.comparison.pool import Failure, Job, run_all
from reldistill.comparison.worker import LOG_FILE, run_cell, run_reference
from reldistill.core.checks import UserError, check_range
from reldistill.core.run_files import RECORD_FILE
from reldistill.core.safe_files import write_text
from reldistill.core.trust import note_named
from reldistill.data.samples import cores
from reldistill.methods.build import method_names
from reldistill.report.comparison.cell_records import FAILED_FILE, REFERENCE, read_cell, read_json
from reldistill.report.comparison.comparison_files import write_comparison, write_tables
from reldistill.report.comparison.summary import Comparison, Head, Kind, gather, kind_in
from reldistill.runs.caching import settle_views
from reldistill.runs.folders import (
    MAY_CHANGE_ON_RESUME,
    command_line,
    locked,
    now,
    recorded_settings,
    refuse_among_data,
    refuse_changes,
)
from reldistill.training.progress import say
from reldistill.training.settings import DataSettings, PairSettings, TrainSettings, flat_settings

_OWN = ("method", "seed")  # differ between the cells of a comparison
_NOTHING_KNOWN = MethodParts((), (), looks_inside=False)


def compare(
    data: DataSettings,
    networks: PairSettings,
    training: TrainSettings,
    *,
    methods: Sequence[str],
    seeds: int = 3,
    out: Path,
    jobs: int = 1,
) -> Comparison:
    """Run every method with every seed under the same conditions, and compare them on test images.

    What is in the folder already is not done again; a cell that was cut short continues where it was.

    Args:
        data: the images; a test part is held out whatever `hold_out_test` says.
        networks: teacher and student. Of weights, settings and levels each method gets what it has a use for.
        training: how to train; its seed is the first.
        methods: names as `--method` takes them.
        seeds: how many.
        out: the comparison's folder.
        jobs: cells that run at a time, each in a process of its own.

    Raises:
        UserError: when something given is wrong, or the folder holds a comparison with other settings.
    """
    _check_methods(methods)
    check_seeds(seeds)
    data, training = _for_cells(data, networks, training, jobs)
    head = _head("compare", flat_settings(data, networks, training.for_task(data.task)), leave_out=_OWN)
    with _claimed(out, head, networks) as head:
        reference = _reference(data, [networks], training, methods, out)
        known = _known_parts(reference, networks.student)
        check_choices(networks, {method: known[method] for method in methods if method in known})
        chosen = {method: known.get(method, _NOTHING_KNOWN) for method in methods}
        cells = compared_cells(data, networks, training, methods=chosen, seeds=seeds)
        return _run(_with_notes(head, reference), cells, out=out, jobs=jobs)


def sweep(
    data: DataSettings,
    networks: PairSettings,
    training: TrainSettings,
    *,
    students: Sequence[str],
    over: Sequence[str],
    seeds: int = 1,
    out: Path,
    jobs: int = 1,
) -> Comparison:
    """Run one method at every point of a grid of settings, for one student or several.

    Args:
        data: the images, as in `compare`.
        networks: teacher and method.
        training: how to train; its seed is the first.
        students: names as `--student` takes them.
        over: one or two axes: `serkd.angle=1,10,50` (a part's weight), `serkd:cell=1,2` (a loss's setting),
            `lr=0.1,0.2` (a number of training).
        seeds: how many at each point.
        out: the sweep's folder.
        jobs: cells that run at a time.

    Raises:
        UserError: as `compare`.
    """
    axes = read_axes(over)
    data, training = _for_cells(data, networks, training, jobs)
    cells = planned_sweep(data, networks, training, students=students, over=axes, seeds=seeds)
    settings = flat_settings(data, networks, training.for_task(data.task))
    head = _head("sweep", settings, leave_out=("student", "seed"), over=axes)
    pairs = [dataclasses.replace(networks, student=student) for student in students]
    with _claimed(out, head, networks) as head:
        reference = _reference(data, pairs, training, [networks.method], out)
        for student in students:
            known = _known_parts(reference, student)
            for cell in cells:
                if known and cell.plan.student == student:
                    check_choices(cell.networks, known)
        return _run(_with_notes(head, reference), cells, out=out, jobs=jobs)


def planned_sweep(
    data: DataSettings,
    networks: PairSettings,
    training: TrainSettings,
    *,
    students: Sequence[str],
    over: Sequence[Axis],
    seeds: int,
) -> list[Cell]:
    """A sweep's cells; UserError for what can be known to be wrong without networks."""
    method_names(networks.method)
    if not students or len(set(students)) < len(students):
        raise UserError("--students: give one or more, none twice")
    return swept_cells(data, networks, training, students=students, over=over, seeds=seeds)


def planned_comparison(
    data: DataSettings, networks: PairSettings, training: TrainSettings, *, methods: Sequence[str], seeds: int
) -> list[Cell]:
    """A comparison's cells by name; what each method is told is only known when the networks are."""
    _check_methods(methods)
    return compared_cells(data, networks, training, methods=dict.fromkeys(methods, _NOTHING_KNOWN), seeds=seeds)


def plan_line(cells: Sequence[Cell], out: Path) -> str:
    """How many cells there are, of what, and how many are finished."""
    variants = len({cell.plan.variant for cell in cells})
    seeds = len({cell.plan.seed for cell in cells})
    kind = "point" if any(cell.plan.point for cell in cells) else "method"
    finished = sum(read_cell(out, cell.plan).status == "finished" for cell in cells)
    epochs = sorted({cell.training.epochs for cell in cells})
    length = " to ".join(str(number) for number in dict.fromkeys((epochs[0], epochs[-1])))
    done = f", {finished} of them finished" if finished else ""
    return (
        f"{len(cells)} cells: {variants} {kind}{'s' * (variants != 1)} × {seeds} seed{'s' * (seeds != 1)}{done}; "
        f"{length} epoch{'s' * (length != '1')} each"
    )


def _check_methods(methods: Sequence[str]) -> None:
    if not methods:
        raise UserError("--methods: give at least one")
    for method in methods:
        method_names(method)
    if len(set(methods)) < len(methods):
        raise UserError("--methods: a method is given twice")


def _for_cells(
    data: DataSettings, networks: PairSettings, training: TrainSettings, jobs: int
) -> tuple[DataSettings, TrainSettings]:
    """The settings as every cell gets them: a test part, the same views, one device, its share of the cores."""
    check_range("jobs", jobs, 1)
    if str(training.devices) not in ("auto", "1") or training.nodes != 1:
        raise UserError("every cell of a comparison runs on one device: leave --devices and --nodes, and give --jobs")
    workers = max(1, cores() // jobs) if data.workers is None and jobs > 1 else data.workers
    return (
        dataclasses.replace(settle_views(data, networks), hold_out_test=True, workers=workers),
        dataclasses.replace(training, devices=1),
    )


def _head(kind: Kind, settings: dict[str, Any], *, leave_out: Sequence[str], over: Sequence[Axis] = ()) -> Head:
    return Head(
        kind=kind,
        version=reldistill.__version__,
        command=command_line(),
        created=now(),
        settings={name: value for name, value in settings.items() if name not in {*leave_out, *MAY_CHANGE_ON_RESUME}},
        over={axis.name: list(axis.values) for axis in over},
    )


@contextlib.contextmanager
def _claimed(out: Path, head: Head, networks: PairSettings) -> Iterator[Head]:
    """The folder for this comparison alone: no other process works in it, and it holds nothing else."""
    refuse_among_data(out, head.settings["data"])
    with locked(out):
        there = kind_in(out)
        if there is None and (out / RECORD_FILE).is_file():
            raise UserError(f"{out} holds a run: give another --out")
        if there is not None and there != head.kind:
            raise UserError(f"{out} holds a {there}.json: give another --out")
        head = dataclasses.replace(
            head, notes=teacher_notes(networks.teacher_weights or networks.teacher, head.settings)
        )
        if there is not None:
            before = read_json(out / f"{there}.json")
            what = {"compare": "the comparison", "sweep": "the sweep"}[there]
            refuse_changes(before.get("settings", {}), head.settings, what=f"{what} in {out}")
            head = dataclasses.replace(head, created=before.get("created", head.created))
        yield head


def teacher_notes(teacher: str, settings: dict[str, Any]) -> list[str]:
    """A warning where the teacher's own run may have learned from what is a test image here."""
    own = recorded_settings(teacher)
    fraction = own.get("val_fraction")
    if own.get("data") != settings["data"] or own.get("hold_out_test") or fraction == settings["val_fraction"]:
        return []
    return [
        f"The teacher was trained with --val-fraction {fraction}, this comparison has {settings['val_fraction']}: "
        "where the data bring no test part, the teacher may have learned from images that are test images here."
    ]


def _reference(
    data: DataSettings, pairs: Sequence[PairSettings], training: TrainSettings, methods: Sequence[str], out: Path
) -> dict[str, Any]:
    """What all cells have in common, measured once; again when a method or student is new."""
    for pair in pairs:
        note_named(pair.student)
        note_named(pair.teacher)
    file = out / REFERENCE / f"{REFERENCE}.json"
    if file.is_file():
        before = read_json(file)
        origin = made_of(data, pairs[0])
        # earlier versions did not record what theirs was made of; their settings alone identify such comparisons
        same = before.get("made_of", origin) == origin
        has = {(student, method) for student, found in before["students"].items() for method in found["methods"]}
        wanted = {(pair.student, method) for pair in pairs for method in methods}
        if same and wanted <= has:
            return before
        if same:
            methods = list(dict.fromkeys([*(method for _, method in sorted(has)), *methods]))
    say("looking at images and networks")
    work = functools.partial(run_reference, data, pairs, training, methods, out)
    failures: list[Failure] = []

    def ended(_: Job, failure: Failure | None) -> None:
        failures.extend([failure] if failure else [])

    run_all([Job(REFERENCE, out / REFERENCE, work)], at_once=1, ended=ended, look=lambda running: None)
    if failures:
        where = "" if failures[0].by_user else f" (see {out / REFERENCE / LOG_FILE})"
        raise UserError(f"{failures[0].reason}{where}")
    return read_json(file)


def _with_notes(head: Head, reference: dict[str, Any]) -> Head:
    """With the warnings of the teacher's measurement."""
    return dataclasses.replace(head, notes=[*head.notes, *reference["teacher"].get("notes", ())])


def _known_parts(reference: dict[str, Any], student: str) -> dict[str, MethodParts]:
    """Method → its parts and settings. One that does not fit the pair is left out; its cells tell why."""
    names = [item.name for item in dataclasses.fields(MethodParts)]
    return {
        method: MethodParts(**{name: found[name] for name in names})
        for method, found in reference["students"][student]["methods"].items()
        if found
    }


def _run(head: Head, cells: Sequence[Cell], *, out: Path, jobs: int) -> Comparison:
    plans = [cell.plan for cell in cells]
    for note in head.notes:
        say(f"note: {note}")
    say(plan_line(cells, out))
    write_tables(gather(head, out, plans))
    left = [cell for cell in cells if read_cell(out, cell.plan).status != "finished"]
    work = [Job(c.plan.cell, out / c.plan.cell, functools.partial(run_cell, c, out)) for c in left]
    if work:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        with Board(cells, finished=len(cells) - len(left), root=out, at_once=jobs) as board:

            def ended(job: Job, failure: Failure | None) -> None:
                (job.folder / FAILED_FILE).unlink(missing_ok=True)
                if failure is not None:
                    write_text(job.folder / FAILED_FILE, failure.reason + "\n", make_folder=out.is_dir())
                comparison = gather(head, out, plans)
                write_tables(comparison)
                test = next(cell.test for cell in comparison.cells if cell.plan.cell == job.name)
                board.end(job, failure, test.test_last if test else None)

            run_all(work, at_once=jobs, ended=ended, look=board.look)
    comparison = gather(head, out, plans)
    write_comparison(comparison)
    return comparison
