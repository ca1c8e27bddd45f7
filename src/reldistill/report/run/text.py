"""The comparison as text: on the terminal, as Markdown, CSV and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reldistill.core.csv_text import csv_text
from reldistill.report.paired import Row, comparison_table
from reldistill.report.record import RunRecord, encode
from reldistill.report.run.verdict import verdict
from reldistill.report.words import NONE, count, decimals, duration, percent, signed, span, times

INTERVALS = (
    "The 95 % interval says how far the last epoch's score may move with another draw of validation images; "
    "the gain is over the student alone at the last epoch, ± half its 95 % interval."
)


def best_gain(rows: Sequence[Row]) -> Row | None:
    """The row with the largest gain, where one gained anything."""
    gains = [row for row in rows if row.gain and row.gain.points > 0]
    return max(gains, key=lambda row: row.gain.points if row.gain else 0.0, default=None)


def gain_text(row: Row) -> str:
    """+1.9 ± 2.6, in points."""
    if row.gain is None:
        return NONE
    digits = decimals(row.images)
    return f"{signed(row.gain.points, digits)} ±{row.gain.margin:.{digits}f}"


def best_text(row: Row) -> str:
    """97.2 (9): percent and the epoch."""
    if row.score_best is None:
        return NONE
    return f"{percent(row.score_best, decimals(row.images))} ({row.best_epoch})"


def print_table(records: Sequence[RunRecord], console: Console) -> None:
    """The comparison for a terminal of 80 columns or more; the best gain bold, gains beyond sampling noise green."""
    rows = comparison_table(records)
    best = best_gain(rows)
    networks = len({row.network for row in rows if row.role != "teacher"}) > 1
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, int(console.width >= 90), 0, 0),
        header_style="dim",
        show_edge=False,
    )
    table.add_column("", overflow="fold")
    for heading in (
        "para-\nmeters",
        "last\n%",
        "95 %\ninterval",
        "best %\n(epoch)",
        "gain\npoints",
        "time per\nstep",
        "×\nalone",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for place, row in enumerate(rows):
        digits, unfinished = decimals(row.images), row.status in ("running", "stopped")
        gain_style = " ".join(
            ["bold"] * (row is best) + ["green"] * bool(row.gain and row.gain.resolved and row.gain.points > 0)
        )
        name = (
            f"{row.label} {row.network}"
            if row.label == "teacher" or (networks and row.network not in row.label)
            else row.label
        )
        cells = [
            Text(f"{name} ({row.status})" if unfinished else name, style="italic" if unfinished else ""),
            Text(count(row.parameters)),
            Text(percent(row.score_last, digits)),
            Text(span(row.interval_last, digits), style="dim"),
            Text(best_text(row)),
            Text(gain_text(row), style=gain_style),
            Text(duration(row.seconds_per_step)),
            Text(times(row.relative_step_time)),
        ]
        last_teacher = row.role == "teacher" and any(r.role != "teacher" for r in rows[place + 1 : place + 2])
        table.add_row(*cells, end_section=last_teacher)
    console.print(table)
    console.print(Text(INTERVALS, style="dim"))


def print_verdict(records: Sequence[RunRecord], console: Console) -> None:
    """The verdict's lines, names in them left as they are."""
    for line in verdict(records).splitlines():
        console.print(Text(f"• {line}"))


COLUMNS = (
    "Run",
    "Network",
    "Parameters",
    "Last epoch, %",
    "95 % interval",
    "Best, % (epoch)",
    "Gain, points",
    "Step",
    "×",
)


def render_markdown(records: Sequence[RunRecord]) -> str:
    """The same table as Markdown, with the command beside every number."""
    rows = comparison_table(records)
    best = best_gain(rows)
    lines = [
        "| " + " | ".join([*COLUMNS, "Command"]) + " |",
        "| --- | --- |" + " ---: |" * (len(COLUMNS) - 2) + " --- |",
    ]
    for row in rows:
        digits = decimals(row.images)
        gain = f"**{gain_text(row)}**" if row is best else gain_text(row)
        cells = [
            _plain(row.label + (f" ({row.status})" if row.status in ("running", "stopped") else "")),
            _plain(row.network),
            count(row.parameters),
            percent(row.score_last, digits),
            span(row.interval_last, digits),
            best_text(row),
            gain,
            duration(row.seconds_per_step),
            times(row.relative_step_time),
            _code(row.command),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", INTERVALS, ""])


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    for mark in "\\`*_[]<>|~":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _code(command: str) -> str:
    """A command as code inside a table's cell: a longer fence than any run of backticks in it, pipes escaped."""
    if not command:
        return ""
    fence = "`"
    while fence in command:
        fence += "`"
    pad = " " if command.startswith("`") or command.endswith("`") else ""
    return f"{fence}{pad}{' '.join(command.split())}{pad}{fence}".replace("|", "\\|")


def flat_row(row: Row) -> dict[str, Any]:
    """A row with plain values only: the columns of the CSV and the entries of the JSON."""
    low, high = row.interval_last or (None, None)
    gain = row.gain
    return {
        "run": row.label,
        "role": row.role,
        "method": row.method,
        "network": row.network,
        "parameters": row.parameters,
        "val_images": row.images,
        "score_last": row.score_last,
        "score_last_low": low,
        "score_last_high": high,
        "score_best": row.score_best,
        "best_epoch": row.best_epoch,
        "epochs": row.epochs,
        "gain": gain.points if gain else None,
        "gain_low": gain.low if gain else None,
        "gain_high": gain.high if gain else None,
        "gain_paired": gain.paired if gain else None,
        "gain_p_value": gain.p_value if gain else None,
        "gain_beyond_noise": gain.resolved if gain else None,
        "baseline": row.baseline,
        "seconds_per_step": row.seconds_per_step,
        "relative_step_time": row.relative_step_time,
        "status": row.status,
        "seed": row.seed,
        "folder": row.folder,
        "command": row.command,
    }


def render_csv(records: Sequence[RunRecord]) -> str:
    """The comparison with full figures: accuracies in percent, times in seconds, nothing where nothing is known."""
    return csv_text([encode(flat_row(row)) for row in comparison_table(records)])


def to_json(records: Sequence[RunRecord]) -> dict[str, Any]:
    """What `report --json` prints: the rows, the verdict and every record whole."""
    return {
        "rows": [encode(flat_row(row)) for row in comparison_table(records)],
        "verdict": verdict(records).splitlines(),
        "records": [encode(record) for record in records],
    }
