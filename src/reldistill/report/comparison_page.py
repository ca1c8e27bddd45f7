"""`compare.html` and `sweep.html`: one page that opens without a network, in the look of a run's report."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from reldistill.report.captions import caption
from reldistill.report.cells import ARRAYS_FILE, REFERENCE, CellResult, read_arrays
from reldistill.report.compare import ALONE
from reldistill.report.comparison import Comparison, Summary
from reldistill.report.comparison_plots import (
    Point,
    class_key,
    cost_plot,
    embedding,
    embedding_plot,
    gap_limit,
    mean_curves,
    series_styles,
    sweep_plot,
)
from reldistill.report.comparison_text import caveats, relative_times, setting, spread, verdict
from reldistill.report.page import whole_page
from reldistill.report.plots import matrix_plot
from reldistill.report.relations_file import thin_out
from reldistill.report.seeds import METHOD, SeedDifference
from reldistill.report.words import count, decimals, duration, known, large, percent, signed, size, times

_MOST_LEGEND = 20

TABLE = """
Accuracy on the test images, which nothing was chosen by and which every run saw once, at its end: mean and standard
deviation over the seeds, after the last epoch and with the weights of the epoch that was best on the validation images.
Differences are of the last epoch, with 95 % intervals drawn beside them; green leaves out 0. Agreement is the share of
test images on which student and teacher say the same class; ECE is the expected calibration error over 15 bins.
FLOPs are of a training step for one image, teacher included, as far as torch counts them; a multiplication and an
addition are two.
"""
COST = """
Up and to the left is better: more accuracy for less time a step. Bars show one standard deviation over the seeds. Times
are as good as the machine was quiet.
"""
CURVES = """
Mean over the seeds, with a band from the lowest to the highest seed. These are validation images, cut from the training
images; the first third of training may lie below the scale.
"""
TSNE = """
The classifier's input for up to 500 test images, laid out by t-SNE so that what is near in many dimensions stays near;
colours are classes. Look at which classes lie apart and which run into each other: distances between clusters, and
their sizes, mean little. Each panel is laid out on its own, from the first seed.
"""
GAP = """
For each pair of classes, how far the correlation of their two logits over the test images differs between student and
teacher (first seed). A student that has taken over which classes the teacher finds alike has a dark panel. All panels
share one colour scale.
"""
SWEEP = """
Accuracy on the validation images in the best epoch, mean over the seeds with one standard deviation; the ring marks the
point that is chosen. Where a curve is flat within its bars, the setting matters little.
"""


def comparison_page(comparison: Comparison, rows: Sequence[Summary]) -> str:
    """The page, whole."""
    is_sweep = comparison.head.kind == "sweep"
    title = _title(comparison)
    pictures = [] if is_sweep else [_cost(rows), _curves(comparison), _features(comparison), _gaps(comparison)]
    sections = [
        _header(comparison, rows, title),
        _verdict(comparison, rows),
        _sweep(comparison, rows) if is_sweep else "",
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


def _table(comparison: Comparison, rows: Sequence[Summary]) -> str:
    digits, relative = decimals(comparison.test_images), relative_times(rows)
    ends = [_ends([row.vs_none for row in rows]), _ends([row.vs_kd for row in rows])]
    heads = [
        ("text", "method"),
        ("", "last epoch<br>%"),
        ("extra", "best epoch<br>%"),
        ("", "over<br>alone"),
        ("extra", ""),
        ("", "over kd"),
        ("more", ""),
        ("more", "agrees %<br>ECE %"),
        ("extra", "step<br>× alone"),
        ("extra", "memory<br>FLOPs"),
    ]
    best = max((row.mean for row in rows if row.mean is not None), default=None)
    body = []
    for row in rows:
        cells = [
            ("text", "student alone" if row.variant == ALONE else html.escape(row.variant)),
            ("best" if row.mean is not None and row.mean == best else "", spread(row.mean, row.std, digits)),
            ("extra", spread(row.mean_best, row.std_best, digits)),
            (_green(row.vs_none), _points(row.vs_none, digits)),
            ("extra", _bar(row.vs_none, ends[0])),
            (_green(row.vs_kd), _points(row.vs_kd, digits)),
            ("more", _bar(row.vs_kd, ends[1])),
            ("more", _two(percent(row.agreement), percent(row.calibration_error))),
            ("extra", _two(duration(row.seconds_per_step), times(relative[row.variant]))),
            ("extra", _two(size(row.peak_memory), large(row.training_flops))),
        ]
        role = "teacher" if row.method == ALONE else "method"
        body.append(_line("td", cells, role=role))
    return (
        '<section>\n<h2 id="comparison">Comparison</h2>\n<div class="scroll"><table class="comparison">'
        f"<thead>{_line('th', heads)}</thead><tbody>{''.join(body)}</tbody></table></div>\n{caption(TABLE)}\n</section>"
    )


def _grid_table(comparison: Comparison, rows: Sequence[Summary]) -> str:
    digits = decimals(comparison.test_images)
    heads = [
        ("text", "point"),
        ("", "validation<br>%"),
        ("", "test, best<br>epoch %"),
        ("", "test, last<br>epoch %"),
        ("more", "agrees<br>%"),
        ("more", "calibration<br>error %"),
        ("extra", "time per<br>step"),
    ]
    body = []
    for row in rows:
        cells = [
            ("text", html.escape(row.variant) + (" (chosen)" if row.chosen else "")),
            ("best" if row.chosen else "", spread(row.mean_val, row.std_val, digits)),
            ("", spread(row.mean_best, row.std_best, digits)),
            ("", spread(row.mean, row.std, digits)),
            ("more", percent(row.agreement)),
            ("more", percent(row.calibration_error)),
            ("extra", duration(row.seconds_per_step)),
        ]
        body.append(_line("td", cells))
    return (
        '<section>\n<h2 id="points">Points</h2>\n<div class="scroll"><table class="comparison">'
        f"<thead>{_line('th', heads)}</thead><tbody>{''.join(body)}</tbody></table></div>\n</section>"
    )


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


# Pictures ------------------------------------------------------------------------------------------------------------


def _cost(rows: Sequence[Summary]) -> str:
    styles = series_styles([row.variant for row in rows], alone=ALONE)
    points = [
        Point(_name(row.variant), 1e3 * row.seconds_per_step, row.mean, row.std, styles[row.variant])
        for row in rows
        if row.mean is not None and row.seconds_per_step is not None
    ]
    if not points:
        return ""
    plot = cost_plot(points, unit="ms")
    return _section("cost", "Accuracy against training cost", f'<div class="wide-plot">{plot}</div>\n{caption(COST)}')


def _curves(comparison: Comparison) -> str:
    curves = {}
    for variant, cells in comparison.variants.items():
        histories = [
            [epoch.val["accuracy"] for epoch in cell.record.history] for cell in cells if cell.record is not None
        ]
        shortest = min(map(len, histories), default=0)  # seeds may end early, each at its own epoch
        if shortest:
            curves[variant] = np.asarray([history[:shortest] for history in histories])
    if not curves:
        return ""
    styles = series_styles(list(comparison.variants), alone=ALONE)
    named = {_name(variant): values for variant, values in curves.items()}
    plot = mean_curves(named, {_name(variant): style for variant, style in styles.items()})
    return _section("curves", "Learning curves", f'<div class="wide-plot">{plot}</div>\n{caption(CURVES)}')


def _features(comparison: Comparison) -> str:
    """One panel each: untrained, alone, teacher, methods."""
    reference = _reference_arrays(comparison)
    first = _first_cells(comparison)
    if not reference or not first:
        return ""
    labels = reference["labels"][reference["shown"]]
    panels = {"untrained student": reference["untrained_0"]}
    panels |= {"student alone": first[ALONE].arrays()["features"]} if ALONE in first else {}
    panels |= {"teacher": reference["features"]}
    panels |= {variant: cell.arrays()["features"] for variant, cell in first.items() if variant != ALONE}
    shown = "".join(
        f"<figure><figcaption>{html.escape(name)}</figcaption>"
        f"{embedding_plot(embedding(features), labels, title=f't-SNE of {name}')}</figure>"
        for name, features in panels.items()
    )
    legend = _legend(comparison.reference["data"]["classes"])
    return _section("features", "Features", f'{legend}<div class="panels small">{shown}</div>\n{caption(TSNE)}')


def _legend(classes: Sequence[str]) -> str:
    if len(classes) > _MOST_LEGEND:
        return ""
    entries = "".join(f"<span>{class_key(label)}{html.escape(name)}</span>" for label, name in enumerate(classes))
    return f'<div class="legend">{entries}</div>'


def _gaps(comparison: Comparison) -> str:
    reference = _reference_arrays(comparison)
    gaps = {}
    for variant, cell in _first_cells(comparison).items():
        gaps[variant] = np.abs(cell.arrays()["correlation"] - reference["correlation"])
    if not gaps:
        return ""
    limit = gap_limit(list(gaps.values()))
    panels = "".join(
        "<div>"
        + matrix_plot(
            thin_out(gap),
            title=f"{_name(variant)}: {_off_diagonal(gap):.3f}",
            unit="difference of correlations",
            diverging=False,
            limit=limit,
            prefix=f"gap{place}",
        )
        + "</div>"
        for place, (variant, gap) in enumerate(gaps.items())
    )
    body = f'<div class="panels small">{panels}</div>\n{caption(GAP)}'
    return _section("correlation", "Correlation of the logits: distance from the teacher", body)


def _off_diagonal(gap: np.ndarray) -> float:
    return float(gap[~np.eye(len(gap), dtype=bool)].mean())


def _sweep(comparison: Comparison, rows: Sequence[Summary]) -> str:
    name, *others = comparison.head.over
    lines: dict[str, list[tuple[Any, float, float | None]]] = {}
    chosen: dict[str, int] = {}
    several = len({row.student for row in rows}) > 1
    for row in rows:
        if row.mean_val is None:
            continue
        words = ([row.student] if several else []) + [f"{other} = {row.point[other]}" for other in others]
        label = ", ".join(words) or row.student
        lines.setdefault(label, []).append((row.point[name], row.mean_val, row.std_val))
        if row.chosen:
            chosen[label] = len(lines[label]) - 1
    if not lines:
        return ""
    plot = sweep_plot(lines, name=name, chosen=chosen)
    return _section("sweep", "Accuracy over the setting", f'<div class="wide-plot">{plot}</div>\n{caption(SWEEP)}')


def _reference_arrays(comparison: Comparison) -> dict[str, np.ndarray]:
    path = comparison.folder / REFERENCE / ARRAYS_FILE
    return read_arrays(path) if path.is_file() else {}


def _first_cells(comparison: Comparison) -> dict[str, CellResult]:
    """Variant → its first finished seed."""
    found = {
        variant: next((cell for cell in cells if cell.status == "finished"), None)
        for variant, cells in comparison.variants.items()
    }
    return {variant: cell for variant, cell in found.items() if cell is not None}


def _name(variant: str) -> str:
    return "student alone" if variant == ALONE else variant


def _section(anchor: str, title: str, body: str) -> str:
    return f'<section>\n<h2 id="{anchor}">{title}</h2>\n{body}\n</section>'


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
                    ("", html.escape(f"{_name(cell.plan.variant)}, seed {cell.plan.seed}")),
                    ("", best + (f" ({result.best_epoch})" if result and result.best_epoch else "")),
                    ("", percent(test.test_best if test else None, digits)),
                    ("", percent(test.test_last if test else None, digits)),
                    ("", duration(result.seconds_total if result else None)),
                    ("", html.escape(cell.status + (f": {cell.reason}" if cell.reason else ""))),
                ],
            )
        )
    table = f'<table class="plain"><thead>{_line("th", heads)}</thead><tbody>{"".join(lines)}</tbody></table>'
    return _section("cells", "Every run", f'<div class="scroll">{table}</div>')


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
    return _section(
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
