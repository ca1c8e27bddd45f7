"""`compare` and `sweep`: heavy imports wait until they run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reldistill.cli.forms import Answer, Given, part_of
from reldistill.training.settings import DataSettings, PairSettings, TrainSettings


def compare_(given: Given) -> Answer | None:
    """`reldistill compare`."""
    from reldistill.comparison.compare import compare, planned_comparison

    groups = _cell_settings(given)
    chosen = {"methods": given["methods"], "seeds": given["seeds"]}
    if given["dry_run"]:
        return _planned(planned_comparison(*groups, **chosen), given["out"])
    return _comparison(compare(*groups, **chosen, out=given["out"], jobs=given["jobs"]))


def sweep_(given: Given) -> Answer | None:
    """`reldistill sweep`."""
    from reldistill.comparison.cells import read_axes
    from reldistill.comparison.compare import planned_sweep, sweep

    groups = _cell_settings(given, student="")
    chosen = {"students": given["students"], "seeds": given["seeds"]}
    if given["dry_run"]:
        return _planned(planned_sweep(*groups, **chosen, over=read_axes(given["over"])), given["out"])
    return _comparison(sweep(*groups, **chosen, over=given["over"], out=given["out"], jobs=given["jobs"]))


def _cell_settings(given: Given, **fixed: Any) -> tuple[Any, Any, Any]:
    """What the runs of a comparison share; which of them a method or a student belongs to is decided later."""
    known = {**given, "hold_out_test": True, **({} if "method" in given else {"method": "none"}), **fixed}
    return part_of(known, DataSettings), part_of(known, PairSettings), part_of(known, TrainSettings)


def _planned(cells: Sequence[Any], out: Path) -> Answer:
    from reldistill.comparison.compare import plan_line
    from reldistill.report.comparison.cell_records import read_cell

    rows = [{"cell": cell.plan.cell, "status": read_cell(out, cell.plan).status} for cell in cells]

    def show() -> None:
        print(plan_line(cells, out))
        for row in rows:
            print(f"  {row['cell']}  {row['status']}")

    return Answer(rows, show)


def _comparison(found: Any, *, page: Path | None = None) -> Answer:
    """A comparison's or sweep's table and verdict; exit code 1 where a cell failed."""
    from reldistill.report.comparison.comparison_text import print_comparison, verdict
    from reldistill.report.comparison.summary import comparison_json, summaries

    rows = summaries(found)

    def show() -> None:
        from rich.console import Console

        print_comparison(found, rows, Console(highlight=False))
        print(f"report: {page or found.folder / f'{found.head.kind}.html'}")

    return Answer(comparison_json(found, rows, verdict(found, rows)), show, 1 if found.failed else 0)


def comparison_again(folder: Path, *, out: Path | None, markdown: Path | None, csv: Path | None) -> Answer:
    """A comparison's or sweep's tables and page, made again from what is in its folder."""
    from reldistill.core.safe_files import write_text
    from reldistill.report.comparison.comparison_files import write_comparison
    from reldistill.report.comparison.comparison_text import comparison_csv, comparison_markdown
    from reldistill.report.comparison.summary import read_comparison, summaries

    found = read_comparison(folder)
    rows = summaries(found)
    page = write_comparison(found, page=out)
    for path, text in ((markdown, lambda: comparison_markdown(found, rows)), (csv, lambda: comparison_csv(rows))):
        if path is not None:
            write_text(path, text(), make_folder=True)
    return dataclasses.replace(_comparison(found, page=page), code=0)
