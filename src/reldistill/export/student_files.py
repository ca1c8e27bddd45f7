"""A run's student as a file that needs nothing of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reldistill.core.checks import UserError
from reldistill.core.run_files import BEST_WEIGHTS, LAST_WEIGHTS
from reldistill.core.safe_files import check_target, sha256, write_bytes, write_text
from reldistill.export.onnx_files import onnx_file
from reldistill.networks.cards import read_card
from reldistill.networks.weights import read_weights
from reldistill.report.record import read_record
from reldistill.tasks.base import AnyTask, task_named

FORMATS = ("safetensors", "onnx")


def export_run(
    run: Path, *, format: str = "safetensors", out: Path | None = None, best: bool = False, raw: bool = False
) -> dict[str, Any]:
    """Write a finished run's student.

    Args:
        run: the run's folder.
        format: `safetensors`: the state dict of the bare network, with what its task puts beside it; `onnx`: a graph,
            compared with the network before it counts as written (see the task's `graph`).
        out: the file; by default `export.FORMAT` or `export-best.FORMAT` in the run's folder.
        best: the best epoch's weights.
        raw: ONNX without the normalisation.

    Raises:
        UserError: when the run isn't finished, the format is unknown, a package is missing, the file can't be written
            or is the run's own, or the ONNX graph's outputs differ from the network's.
    """
    if format not in FORMATS:
        raise UserError(f"format '{format}' is unknown: choose one of {', '.join(FORMATS)}")
    if raw and format != "onnx":
        raise UserError("--raw leaves the normalisation out of an ONNX graph: add --format onnx")
    task = task_named(read_record(run).task)
    source = run / (BEST_WEIGHTS if best else LAST_WEIGHTS)
    if not source.is_file():
        raise UserError(f"{run} has no {source.name}: the run is not finished (continue it with --resume)")
    target = out or run / f"export{'-best' if best else ''}.{format}"
    if target.resolve() in [(run / own).resolve() for own in (LAST_WEIGHTS, BEST_WEIGHTS)]:
        raise UserError(f"{target} is the run's own file: give another --out")
    check_target(target)
    card = read_card(source)
    result = {"file": str(target), "format": format, "input_size": card.input_size, "classes": list(card.classes)}
    if format == "onnx":
        result |= _write_graph(task, run, target, source, raw=raw)
    else:
        result |= _write_weights(task, target, source)
    result["sha256"] = sha256(target)
    return result


def _write_weights(task: AnyTask, target: Path, source: Path) -> dict[str, Any]:
    read_weights(source, what="the student")  # damaged weights are not exported
    beside = task.companions(read_card(source), target)
    for path in beside.files:
        check_target(path)
    write_bytes(target, source.read_bytes(), make_folder=True)
    for path, text in beside.files.items():
        write_text(path, text)
    return {**beside.result, "summary": f"{target}: {beside.said or 'safetensors'}"}


def _write_graph(task: AnyTask, run: Path, target: Path, source: Path, *, raw: bool) -> dict[str, Any]:
    form = task.graph(run, source=source, raw=raw)
    with onnx_file(target, form) as graph:
        figures = form.compare(graph)
    said = figures.pop("said")
    return {**figures, "summary": f"{target}: onnx, {said}"}
