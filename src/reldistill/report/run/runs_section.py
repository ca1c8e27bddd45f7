"""The page's sections that come from the records: the table, the learning curves, how to reproduce."""

from __future__ import annotations

import html
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from reldistill.report import captions
from reldistill.report.captions import caption
from reldistill.report.intervals import Difference
from reldistill.report.paired import Row, role_of
from reldistill.report.plots import line_key, part_style, parts_plot, score_plot
from reldistill.report.record import RunRecord
from reldistill.report.run.text import best_gain, best_text, gain_text
from reldistill.report.task_report import report_of
from reldistill.report.words import NONE, count, decimals, duration, known, percent, span, times


def comparison_html(rows: Sequence[Row], *, task: str) -> str:
    """The comparison of runs of a task, with each gain and its interval drawn on one scale."""
    best, ends = best_gain(rows), _gain_ends(rows)
    heads = [
        ("text", "run"),
        ("text extra", "network"),
        ("more", "parameters"),
        ("", "last epoch<br>%"),
        ("extra", "95 %<br>interval"),
        ("", "best %<br>(epoch)"),
        ("", "gain<br>points"),
        ("more", _gain_scale(*ends) if ends else ""),
        ("", "time per<br>step"),
        ("", "×<br>alone"),
    ]
    drawn = [i for i in range(len(heads)) if ends or i != 7]
    head = "".join(f'<th class="{heads[i][0]}" scope="col">{heads[i][1]}</th>' for i in drawn)
    body = []
    for row in rows:
        unfinished = row.status in ("running", "stopped")
        gained = row.gain is not None and row.gain.resolved and row.gain.points > 0
        cells = [
            ("text", html.escape(row.label + (f" ({row.status})" if unfinished else ""))),
            ("text extra range", html.escape(row.network).replace("_", "_<wbr>")),
            ("more", count(row.parameters)),
            ("", percent(row.score_last, decimals(row.images))),
            ("extra range", span(row.interval_last, decimals(row.images))),
            ("", best_text(row)),
            (f"{'best ' if row is best else ''}{'beyond' if gained else ''}".strip(), gain_text(row)),
            ("more", _gain_bar(row.gain, *ends) if ends and row.gain else ""),
            ("", duration(row.seconds_per_step)),
            ("", times(row.relative_step_time)),
        ]
        line = "".join(f'<td class="{cells[i][0]}">{cells[i][1]}</td>' for i in drawn)
        body.append(f'<tr class="{row.role}{" unfinished" if unfinished else ""}">{line}</tr>')
    return (
        '<section>\n<h2 id="comparison">Comparison</h2>\n<div class="scroll"><table class="comparison">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>\n"
        f"{caption(report_of(task).caption)}\n</section>"
    )


def _gain_ends(rows: Sequence[Row]) -> tuple[float, float] | None:
    gains = [row.gain for row in rows if row.gain]
    if not gains:
        return None
    return min(0.0, *(g.low for g in gains)), max(0.0, *(g.high for g in gains))


def _place(value: float, low: float, high: float) -> float:
    return 8 + 104 * (value - low) / ((high - low) or 1.0)


def _gain_scale(low: float, high: float) -> str:
    """The scale's ends and its 0, as a heading; an end too near to the 0 is left out."""
    marks = [(0.0, "0")] + [
        (v, f"{v:+.0f}".replace("-", "−")) for v in (math.ceil(low), math.floor(high)) if abs(v) >= 1
    ]
    shown = [
        (value, text)
        for value, text in marks
        if value == 0 or abs(_place(value, low, high) - _place(0, low, high)) > 22
    ]
    labels = "".join(f'<text x="{_place(value, low, high):.1f}" y="14">{text}</text>' for value, text in shown)
    return f'<svg class="gain" viewBox="0 0 120 20" aria-label="gain in points">{labels}</svg>'


def _gain_bar(gain: Difference, low: float, high: float) -> str:
    zero, left, right, dot = (_place(value, low, high) for value in (0.0, gain.low, gain.high, gain.points))
    colour = "var(--good)" if gain.resolved and gain.points > 0 else "var(--ink)"
    return (
        f'<svg class="gain" viewBox="0 0 120 20" aria-hidden="true">'
        f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="-6" y2="26" stroke="var(--quiet)" stroke-dasharray="2 2"/>'
        f'<line x1="{left:.1f}" x2="{right:.1f}" y1="10" y2="10" stroke="{colour}" stroke-width="2"/>'
        f'<circle cx="{dot:.1f}" cy="10" r="4" fill="{colour}"/></svg>'
    )


def curves_section(records: Sequence[RunRecord], names: Sequence[str]) -> str:
    """The score of every run in one plot, and every part of every run's loss."""
    started = [(record, name) for record, name in zip(records, names, strict=True) if record.history]
    if not started:
        nothing = '<p class="small">No epoch is finished yet.</p>'
        return f'<section>\n<h2 id="curves">Learning curves</h2>\n{nothing}\n</section>'
    return (
        f'<section>\n<h2 id="curves">Learning curves</h2>\n{_scores(started, records)}\n'
        f"<h3>Every part of the loss</h3>\n{_parts(started)}\n</section>"
    )


def _scores(started: Sequence[tuple[RunRecord, str]], records: Sequence[RunRecord]) -> str:
    score = started[0][0].score.name
    roles = {name: role_of(record, records) for record, name in started}
    pupils = [(record, name) for record, name in started if roles[name] != "teacher"] or started
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for record, name in pupils:
        points = [(e.epoch, e.val[score]) for e in record.history if known(e.val.get(score))]
        if points:
            curves[name] = [epoch for epoch, _ in points], [value for _, value in points]
    if not curves:
        return f'<p class="small">No {score} was measured yet.</p>'
    references: dict[str, float] = {}
    for record, _ in pupils:
        teacher = record.teacher
        if teacher and teacher.score is not None and known(teacher.score):
            references.setdefault(f"teacher {teacher.name}", teacher.score)
    alone = [name for name in curves if roles[name] == "alone"]
    plot = score_plot(curves, alone=alone, references=references, score=score, title=f"Validation {score} by epoch")
    return f'<div class="wide-plot">{plot}</div>\n{caption(captions.SCORES)}'


def _parts(started: Sequence[tuple[RunRecord, str]]) -> str:
    order = list(dict.fromkeys(p for record, _ in started for e in record.history for p in e.train if p != "total"))
    panels = []
    for place, (record, name) in enumerate(started):
        own = list(dict.fromkeys(part for epoch in record.history for part in epoch.train))
        parts = {part: [epoch.train.get(part, math.nan) for epoch in record.history] for part in own}
        if parts:
            panels.append(
                parts_plot(name, [e.epoch for e in record.history], parts, order=order, prefix=f"parts{place}")
            )
    has_total = any("total" in epoch.train for record, _ in started for epoch in record.history)
    legend = "".join(
        f"<span>{line_key(*part_style(part, order))}{html.escape(part)}</span>"
        for part in (["total"] * has_total) + order
    )
    shown = "".join(f"<div>{panel}</div>" for panel in panels)
    return f'<div class="legend">{legend}</div>\n<div class="panels">{shown}</div>\n{caption(captions.PARTS)}'


# How to reproduce ----------------------------------------------------------------------------------------------------


def reproduce_section(records: Sequence[RunRecord], names: Sequence[str]) -> str:
    """Commands, data, settings, loss terms and environment; what is common to all runs is said once."""
    runs_of: dict[str, list[str]] = {}
    for record, name in zip(records, names, strict=True):
        runs_of.setdefault(shlex.join(record.command), []).append(name)
    commands = "".join(
        f"<dt>{html.escape(', '.join(runs))}</dt><dd><code>{html.escape(command)}</code></dd>"
        for command, runs in runs_of.items()
    )
    blocks = [
        ("Data", [_data(record) for record in records]),
        ("Settings", [{k: v for k, v in record.settings.items() if k != "method"} for record in records]),
        ("Environment", [{"reldistill": record.version, **record.environment} for record in records]),
    ]
    tables = "".join(f"<h3>{title}</h3>\n{_shared(values, names)}\n" for title, values in blocks)
    return (
        f'<section>\n<h2 id="reproduce">How to reproduce</h2>\n<h3>Commands</h3>\n'
        f'<dl class="commands">{commands}</dl>\n<h3>Networks</h3>\n{_networks(records)}\n'
        f"{tables}{_terms(records, names)}\n</section>"
    )


def _data(record: RunRecord) -> dict[str, Any]:
    data = record.data
    named = ", ".join(data.classes[:12]) + (", …" if len(data.classes) > 12 else "")
    return {
        "name": data.name,
        "classes": f"{len(data.classes)}: {named}" if data.classes else "no labels",
        "images": f"{data.train_images:,} training, {data.val_images:,} validation",
        "image size": f"{data.image_size} × {data.image_size} px",
        "fingerprint": data.fingerprint or NONE,
    }


def _networks(records: Sequence[RunRecord]) -> str:
    """Every different network once, by the part it has."""
    found: dict[tuple[str, str], None] = {}
    for record in records:
        learns = role_of(record, records) != "teacher"
        for role, network in (("student" if learns else "teacher", record.student), ("teacher", record.teacher)):
            if network is None:
                continue
            weights = f", sha256 {network.weights_sha256[:16]}…" if network.weights_sha256 else ""
            speed = f", {duration(network.seconds_per_image)} an image" if network.seconds_per_image else ""
            side = network.input_size
            words = f"{network.name}: {network.parameters:,} parameters, input {side} × {side} px"
            start = "random" if network.pretrained == "no" else network.pretrained
            licence = f", licence {network.licence}" if network.licence else ""
            found[role, f"{words}, starting weights: {start}{licence}{weights}{speed}"] = None
    lines = (f"<dt>{role}</dt><dd>{html.escape(words)}</dd>" for role, words in sorted(found))
    return f"<dl>{''.join(lines)}</dl>"


def _shared(values: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """What all agree on as a list, the rest as a table with a column for each thing they differ in."""
    keys = list(dict.fromkeys(key for value in values for key in value))
    same = [key for key in keys if all(key in v and _text(v[key]) == _text(values[0][key]) for v in values)]
    listed = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(_text(values[0][key]))}</dd>" for key in same)
    differing = [key for key in keys if key not in same]
    table = ""
    if differing:
        head = "".join(f"<th>{html.escape(key)}</th>" for key in ["run", *differing])
        lines = "".join(
            f"<tr><td>{html.escape(name)}</td>"
            + "".join(f"<td>{html.escape(_text(value[key]) if key in value else NONE)}</td>" for key in differing)
            + "</tr>"
            for name, value in zip(names, values, strict=True)
        )
        table = _plain_table(head, lines)
    return (f"<dl>{listed}</dl>" if listed else "") + table


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _terms(records: Sequence[RunRecord], names: Sequence[str]) -> str:
    lines = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(term.name)}</td>"
        f"<td>{html.escape(', '.join(f'{part} × {weight:g}' for part, weight in term.weights.items()))}</td>"
        f"<td>{html.escape(term.student)}</td><td>{html.escape(term.teacher)}</td></tr>"
        for record, name in zip(records, names, strict=True)
        for term in record.terms
    )
    if not lines:
        return ""
    heads = ("run", "term", "parts × weight", "in the student", "in the teacher")
    return f"<h3>Loss terms</h3>\n{_plain_table(''.join(f'<th>{head}</th>' for head in heads), lines)}"


def _plain_table(head: str, lines: str) -> str:
    inner = f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="scroll"><table class="plain">{inner}</table></div>'
