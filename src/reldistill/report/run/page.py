"""One `report.html` that opens without a network: style, plots and images are inside, and nothing is fetched or run."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from reldistill.core.checks import UserError
from reldistill.core.safe_files import check_target, write_text
from reldistill.data.left_out import in_words
from reldistill.report.paired import Row, comparison_table, in_order, labels, outcome, role_of
from reldistill.report.record import RunRecord, find_runs, read_record
from reldistill.report.run.relations_file import read_relations
from reldistill.report.run.relations_section import component_section, graph_section, superpixel_section
from reldistill.report.run.runs_section import comparison_html, curves_section, reproduce_section
from reldistill.report.run.text import best_gain
from reldistill.report.run.verdict import caveats, findings, setting
from reldistill.report.task_report import Section, report_of
from reldistill.report.words import count, decimals, known, percent, signed, times

_OF_EVERY_TASK = (
    Section(read_relations, superpixel_section),
    Section(read_relations, component_section),
    Section(read_relations, graph_section),
)

_NOTHING_OUTSIDE = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render_html(run_folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write the page about one run or many.

    Args:
        run_folders: run folders, or folders of such.
        out: the page, e.g. `runs/report.html`; an existing one is replaced whole.

    Returns:
        `out`.
    """
    target = Path(out)
    check_target(target)
    records = in_order([read_record(folder) for folder in find_runs(run_folders)])
    tasks = sorted({record.task for record in records})
    if len(tasks) > 1:
        raise UserError(f"these runs are of {' and of '.join(tasks)}, which no table can compare: report them apart")
    names = labels(records)
    problems: list[str] = []
    pictures = _pictures(records, names, (*report_of(tasks[0]).sections, *_OF_EVERY_TASK), problems)
    return write_text(target, _page(records, names, pictures, problems), make_folder=True)


def _pictures(
    records: Sequence[RunRecord], names: Sequence[str], sections: Sequence[Section], problems: list[str]
) -> list[str]:
    """Each section by the files in the runs' folders; one line more for each file that cannot be used."""
    found: dict[Any, dict[str, Any]] = {}
    for read in dict.fromkeys(section.read for section in sections):
        found[read] = {}
        for record, name in zip(records, names, strict=True):
            try:
                content = read(record.folder) if record.folder else None
            except UserError as error:
                problems.append(f"{name}: {error}")
                continue
            if content is not None:
                found[read][name] = content
    return [section.render(found[section.read]) for section in sections]


def _page(records: Sequence[RunRecord], names: Sequence[str], pictures: Sequence[str], problems: Sequence[str]) -> str:
    rows = comparison_table(records)
    sections = [
        _header(records, rows),
        _verdict(records),
        comparison_html(rows, task=records[0].task),
        curves_section(records, names),
        *pictures,
        reproduce_section(records, names),
        _warnings(records, names, problems),
        _footer(records),
    ]
    return whole_page(_title(records), sections)


def whole_page(title: str, sections: Sequence[str]) -> str:
    """The sections that there are, with style and head."""
    style = resources.files("reldistill.report").joinpath("page.css").read_text(encoding="utf-8")
    body = "\n".join(section for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_NOTHING_OUTSIDE}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _title(records: Sequence[RunRecord]) -> str:
    shown = [r for r in records if role_of(r, records) != "teacher"] or records
    students = list(dict.fromkeys(record.student.name for record in shown))
    teachers = list(dict.fromkeys(record.teacher.name for record in shown if record.teacher))
    title = ", ".join(students[:3]) + (" …" if len(students) > 3 else "")
    return f"{title} taught by {', '.join(teachers[:3])}" if teachers else f"{title}, trained alone"


def _header(records: Sequence[RunRecord], rows: Sequence[Row]) -> str:
    lead = " ".join(setting(records)[:3])
    return (
        f'<header>\n<h1>{html.escape(_title(records))}</h1>\n<p class="lead">{html.escape(lead)}</p>\n'
        f'<div class="tiles num">{_tiles(rows)}</div>\n</header>'
    )


def _tiles(rows: Sequence[Row]) -> str:
    """The three figures one asks for first: the student alone, the best method, the teacher."""
    alone = next((row for row in rows if row.role == "alone" and known(row.score_last)), None)
    teacher = next((row for row in rows if row.role == "teacher" and known(row.score_last)), None)
    judged = [row for row in rows if row.role == "method" and known(row.score_last)]
    best = best_gain(rows) or max(judged, key=lambda row: row.score_last or 0.0, default=None)
    tiles = [(alone, _size(alone)), (best, _gain_note(best)), (teacher, _size(teacher))]
    return "".join(
        f'<div class="tile"><div class="what">{html.escape(row.label)}</div>'
        f'<div class="figure">{percent(row.score_last, decimals(row.images))}<small> %</small></div>'
        f'<div class="note">{note}</div></div>'
        for row, note in tiles
        if row is not None
    )


def _size(row: Row | None) -> str:
    return f"{html.escape(row.network)}, {count(row.parameters)} parameters" if row else ""


def _gain_note(row: Row | None) -> str:
    if row is None:
        return ""
    if row.gain is None:
        return "still running" if row.status == "running" else _size(row)
    word = "beyond sampling noise" if row.gain.resolved else "within sampling noise"
    cost = f", {times(row.relative_step_time)} time per step" if known(row.relative_step_time) else ""
    return f"{signed(row.gain.points, decimals(row.images))} points, {word}{cost}"


def _verdict(records: Sequence[RunRecord]) -> str:
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in findings(records))
    small = " ".join(caveats(records))
    note = f'<p class="small">{html.escape(small)}</p>' if small else ""
    return f'<section>\n<h2 id="verdict">Verdict</h2>\n<ul class="findings num">{lines}</ul>\n{note}\n</section>'


def _warnings(records: Sequence[RunRecord], names: Sequence[str], problems: Sequence[str]) -> str:
    lines: dict[str, list[str]] = {}
    for record, name in zip(records, names, strict=True):
        for note in record.notes:
            lines.setdefault(note, []).append(name)
        if record.data.skipped:
            lines.setdefault(f"{record.data.skipped:,} unreadable images were left out", []).append(name)
        if record.data.left_out:
            lines.setdefault(in_words(record.data.left_out).removeprefix("; ").capitalize(), []).append(name)
    items = [
        f"{html.escape(note)} <span class='range'>({html.escape(', '.join(runs))})</span>"
        for note, runs in lines.items()
    ]
    items += [html.escape(problem) for problem in problems]
    content = "".join(f"<li>{item}</li>" for item in items)
    shown = f'<ul class="findings">{content}</ul>' if items else '<p class="small">None.</p>'
    return f'<section>\n<h2 id="warnings">Warnings</h2>\n{shown}\n</section>'


def _footer(records: Sequence[RunRecord]) -> str:
    days = sorted({_day(record.created) for record in records})
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    versions = ", ".join(sorted({record.version for record in records}))
    epochs = sum(len(record.history) for record in records)
    total = sum(outcome(record).seconds_total or 0.0 for record in records)
    return (
        f"<footer>Made by reldistill {html.escape(versions)} from {len(records)} run record"
        f"{'s' * (len(records) != 1)} of {html.escape(span)} ({epochs} epochs, {total / 60:.0f} min of training). "
        "Every figure comes from those records.</footer>"
    )


def _day(created: str) -> str:
    try:
        return datetime.fromisoformat(created.replace("Z", "+00:00")).date().isoformat()
    except ValueError:
        return created
