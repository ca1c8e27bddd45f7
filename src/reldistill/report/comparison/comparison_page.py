"""`compare.html` and `sweep.html`: one page that opens without a network, in the look of a run's report."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from reldistill.report.captions import caption
from reldistill.report.comparison.comparison_text import caveats, relative_times, setting, spread, verdict
from reldistill.report.comparison.pairs_section import pairs_section
from reldistill.report.comparison.pictures_section import (
    cost_section,
    curves_section,
    features_section,
    gaps_section,
    section,
    shown_name,
    sweep_section,
)
from reldistill.report.comparison.summary import Comparison, Summary
from reldistill.report.paired import ALONE
from reldistill.report.run.page import whole_page
from reldistill.report.seeds import METHOD, SeedDifference
from reldistill.report.words import count, decimals, duration, known, large, percent, signed, size, times

TABLE = """
The score on the test images, which nothing was chosen by and which every run saw once, at its end: mean and standard
deviation over the seeds, after the last epoch and with the weights of the epoch that was best on the validation images.
Differences are of the last epoch, with 95 % intervals drawn beside them; green leaves out 0. FLOPs are of a training
step for one image, teacher included, as far as torch counts them; a multiplication and an addition are two.
"""
AGREEMENT = """
Agreement is the share of test images on which student and teacher say the same class; ECE is the expected calibration
error over 15 bins.
"""


def comparison_page(comparison: Comparison, rows: Sequence[Summary]) -> str:
    """The page, whole."""
    is_sweep = comparison.head.kind == "sweep"
    title = _title(comparison)
    pictures = (
        []
        if is_sweep
        else [
            pairs_section(comparison, rows),
            cost_section(comparison, rows),
            curves_section(comparison),
            features_section(comparison),
            gaps_section(comparison),
        ]
    )
    sections = [
        _header(comparison, rows, title),
        _verdict(comparison, rows),
        sweep_section(comparison, rows) if is_sweep else "",
        _grid_table(comparison, rows) if is_sweep else _table(comparison, rows),
        *pictures,
        _cells(comparison),
        _reproduce(comparison),
        f"<footer>Made by reldistill {html.escape(comparison.head.version)} from {len(comparison.cells)} cells. Every "
        "figure comes from their records.</footer>",
    ]
    return whole_page(title, sections)


def _title(comparison: Comparison) -> str:
    students = ", ".join(dict.fromkeys(cell.plan.student for cell in comparison.cells))
    if comparison.head.kind == "sweep":
        return f"{comparison.cells[0].plan.method}: {' and '.join(comparison.head.over)}"
    teacher = comparison.reference.get("teacher", {}).get("name", "")
    return f"{students} taught by {teacher}" if teacher else students


def _header(comparison: Comparison, rows: Sequence[Summary], title: str) -> str:
    tiles = "".join(
        f'<div class="tile"><div class="what">{html.escape(what)}</div><div class="figure">{figure}<small> %</small>'
        f'</div><div class="note">{html.escape(note)}</div></div>'
        for what, figure, note in _tiles(comparison, rows)
    )
    lead = html.escape(setting(comparison))
    return (
        f'<header>\n<h1>{html.escape(title)}</h1>\n<p class="lead">{lead}</p>\n'
        f'<div class="tiles num">{tiles}</div>\n</header>'
    )


def _tiles(comparison: Comparison, rows: Sequence[Summary]) -> list[tuple[str, str, str]]:
    """The three figures one asks for first: the student alone, the best method (or the chosen points), the teacher."""
    digits, teacher = decimals(comparison.test_images), comparison.reference.get("teacher")
    alone = next((row for row in rows if row.method == ALONE and known(row.mean)), None)
    if comparison.head.kind == "sweep":
        tiles = [(row.variant, percent(row.mean_val, digits), "of the validation images") for row in rows if row.chosen]
    else:
        judged = [row for row in rows if row.method != ALONE and known(row.mean)]
        best = max(judged, key=lambda row: row.mean or 0.0, default=None)
        tiles = [("student alone", percent(alone.mean, digits), _own_size(alone))] if alone else []
        tiles += [(best.variant, percent(best.mean, digits), _gain_note(best, digits))] if best else []
    if teacher:
        note = f"{teacher['name']}, {count(teacher['parameters'])} parameters, {large(teacher['flops'])} FLOPs"
        tiles.append(("teacher", percent(teacher["test"], digits), note))
    return tiles


def _own_size(row: Summary) -> str:
    return f"{row.student}, {count(row.parameters or 0)} parameters, {large(row.flops)} FLOPs"


def _gain_note(row: Summary, digits: int) -> str:
    between, base = (row.vs_kd, "kd") if row.vs_kd else (row.vs_none, "the student alone")
    if between is None:
        return "the best mean"
    word = "beyond noise" if between.beyond_noise else "within noise"
    return f"{signed(between.points, digits)} over {base}, {word}"


def _verdict(comparison: Comparison, rows: Sequence[Summary]) -> str:
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in verdict(comparison, rows))
    small = " ".join(caveats(comparison, rows))
    note = f'<p class="small">{html.escape(small)}</p>' if small else ""
    return f'<section>\n<h2 id="verdict">Verdict</h2>\n<ul class="findings num">{lines}</ul>\n{note}\n</section>'


# Tables --------------------------------------------------------------------------------------------------------------


class _Column(NamedTuple):
    """Of a table: its heading, a row's cell, and how both look (`extra` and `more` are left out on narrow screens)."""

    heading: str
    cell: Callable[[Summary], str]
    look: str = ""
    mark: Callable[[Summary], str] | None = None


def _table(comparison: Comparison, rows: Sequence[Summary]) -> str:
    digits, relative = decimals(comparison.test_images), relative_times(rows)
    best = max((row.mean for row in rows if row.mean is not None), default=None)
    agreeing = any(row.agreement is not None for row in rows)
    columns = [
        _Column("method", lambda row: "student alone" if row.variant == ALONE else html.escape(row.variant), "text"),
        _Column(
            "last epoch<br>%",
            lambda row: spread(row.mean, row.std, digits),
            mark=lambda row: "best" if row.mean is not None and row.mean == best else "",
        ),
        _Column("best epoch<br>%", lambda row: spread(row.mean_best, row.std_best, digits), "extra"),
        *_of_differences("over<br>alone", lambda row: row.vs_none, rows, digits=digits, look_of_bar="extra"),
    ]
    if any(row.vs_kd is not None for row in rows):
        columns += _of_differences("over kd", lambda row: row.vs_kd, rows, digits=digits, look_of_bar="more")
    if agreeing:
        columns.append(
            _Column(
                "agrees %<br>ECE %", lambda row: _two(percent(row.agreement), percent(row.calibration_error)), "more"
            )
        )
    columns += [
        _Column(
            "step<br>× alone",
            lambda row: _two(duration(row.seconds_per_step), times(relative[row.variant])),
            "extra",
        ),
        _Column("memory<br>FLOPs", lambda row: _two(size(row.peak_memory), large(row.training_flops)), "extra"),
    ]
    table = _columns_as_table(columns, rows, role=lambda row: "teacher" if row.method == ALONE else "method")
    return section("comparison", "Comparison", f"{table}\n{caption(TABLE + AGREEMENT * agreeing)}")


def _of_differences(
    heading: str,
    of: Callable[[Summary], SeedDifference | None],
    rows: Sequence[Summary],
    *,
    digits: int,
    look_of_bar: str,
) -> list[_Column]:
    """The points, and beside them their intervals drawn on one scale."""
    ends = _ends([of(row) for row in rows])
    return [
        _Column(heading, lambda row: _points(of(row), digits), mark=lambda row: _green(of(row))),
        _Column("", lambda row: _bar(of(row), ends), look_of_bar),
    ]


def _grid_table(comparison: Comparison, rows: Sequence[Summary]) -> str:
    digits = decimals(comparison.test_images)
    columns = [
        _Column("point", lambda row: html.escape(row.variant) + (" (chosen)" if row.chosen else ""), "text"),
        _Column(
            "validation<br>%",
            lambda row: spread(row.mean_val, row.std_val, digits),
            mark=lambda row: "best" if row.chosen else "",
        ),
        _Column("test, best<br>epoch %", lambda row: spread(row.mean_best, row.std_best, digits)),
        _Column("test, last<br>epoch %", lambda row: spread(row.mean, row.std, digits)),
        _Column("agrees<br>%", lambda row: percent(row.agreement), "more"),
        _Column("calibration<br>error %", lambda row: percent(row.calibration_error), "more"),
        _Column("time per<br>step", lambda row: duration(row.seconds_per_step), "extra"),
    ]
    return section("points", "Points", _columns_as_table(columns, rows, role=lambda row: ""))


def _columns_as_table(columns: Sequence[_Column], rows: Sequence[Summary], *, role: Callable[[Summary], str]) -> str:
    heads = _line("th", [(column.look, column.heading) for column in columns])
    body = "".join(
        _line("td", [(c.mark(row) if c.mark else c.look, c.cell(row)) for c in columns], role=role(row)) for row in rows
    )
    return f'<div class="scroll"><table class="comparison"><thead>{heads}</thead><tbody>{body}</tbody></table></div>'


def _line(kind: str, cells: Sequence[tuple[str, str]], *, role: str = "") -> str:
    inner = "".join(f'<{kind} class="{look}">{text}</{kind}>' for look, text in cells)
    return f'<tr class="{role}">{inner}</tr>'


def _green(between: SeedDifference | None) -> str:
    return "beyond" if between is not None and between.low > 0 else ""


def _points(between: SeedDifference | None, digits: int) -> str:
    if between is None:
        return percent(None)
    return _two(signed(between.points, digits), f"{signed(between.low, digits)} to {signed(between.high, digits)}")


def _two(first: str, second: str) -> str:
    """Two lines of a cell, the second quiet."""
    return f"{first}<br><span class='range'>{second}</span>"


def _ends(differences: Sequence[SeedDifference | None]) -> tuple[float, float]:
    found = [between for between in differences if between]
    return min([0.0, *(d.low for d in found)]), max([0.0, *(d.high for d in found)])


def _bar(between: SeedDifference | None, ends: tuple[float, float]) -> str:
    """The interval on a scale that all rows share, with the line at 0."""
    if between is None:
        return ""
    low, high = ends

    def place(value: float) -> float:
        return 4 + 72 * (value - low) / ((high - low) or 1.0)

    colour = "var(--good)" if between.low > 0 else "var(--ink)"
    zero, left, right, dot = (place(value) for value in (0.0, between.low, between.high, between.points))
    return (
        f'<svg class="gain narrow" viewBox="0 0 80 20" aria-hidden="true">'
        f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="-9" y2="29" stroke="var(--quiet)" stroke-dasharray="2 2"/>'
        f'<line x1="{left:.1f}" x2="{right:.1f}" y1="10" y2="10" stroke="{colour}" stroke-width="2"/>'
        f'<circle cx="{dot:.1f}" cy="10" r="3.5" fill="{colour}"/></svg>'
    )


# Every run, and how to repeat it -------------------------------------------------------------------------------------


def _cells(comparison: Comparison) -> str:
    digits = decimals(comparison.test_images)
    heads = [("", text) for text in ("cell", "validation, best (epoch)", "test, best", "test, last", "time", "status")]
    lines = []
    for cell in comparison.cells:
        result, test = cell.record.result if cell.record else None, cell.test
        best = percent(result.score_best if result else None, digits)
        lines.append(
            _line(
                "td",
                [
                    ("", html.escape(f"{shown_name(cell.plan.variant)}, seed {cell.plan.seed}")),
                    ("", best + (f" ({result.best_epoch})" if result and result.best_epoch else "")),
                    ("", percent(test.test_best if test else None, digits)),
                    ("", percent(test.test_last if test else None, digits)),
                    ("", duration(result.seconds_total if result else None)),
                    ("", html.escape(cell.status + (f": {cell.reason}" if cell.reason else ""))),
                ],
            )
        )
    table = f'<table class="plain"><thead>{_line("th", heads)}</thead><tbody>{"".join(lines)}</tbody></table>'
    return section("cells", "Every run", f'<div class="scroll">{table}</div>')


def _reproduce(comparison: Comparison) -> str:
    head, data = comparison.head, comparison.reference.get("data") or {}
    settings = {name: value for name, value in head.settings.items() if value not in (None, "", [], {})}
    blocks = "".join(
        f"<h3>{title}</h3>\n{_listed(values)}\n"
        for title, values in (
            ("Data", {name: value for name, value in data.items() if name != "classes"}),
            ("Settings", settings),
            ("Environment", _environment(comparison)),
        )
        if values
    )
    method = f"<h3>Intervals</h3>\n{caption(METHOD)}" if head.kind == "compare" else ""
    command = html.escape(shlex.join(head.command))
    return section(
        "reproduce",
        "How to reproduce",
        f'<dl class="commands"><dt>command</dt><dd><code>{command}</code></dd></dl>\n{method}\n{blocks}',
    )


def _environment(comparison: Comparison) -> dict[str, Any]:
    record = next((cell.record for cell in comparison.cells if cell.record), None)
    return {"reldistill": comparison.head.version, **(record.environment if record else {})}


def _listed(values: dict[str, Any]) -> str:
    lines = (
        f"<dt>{html.escape(name)}</dt><dd>"
        f"{html.escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))}</dd>"
        for name, value in values.items()
    )
    return f"<dl>{''.join(lines)}</dl>"
