"""A comparison or sweep in words and tables: verdict, terminal, Markdown and CSV."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reldistill.core.csv_text import csv_text
from reldistill.data.left_out import in_words
from reldistill.report.comparison.summary import BASE, Comparison, Summary
from reldistill.report.paired import ALONE
from reldistill.report.record import encode
from reldistill.report.seeds import METHOD, SeedDifference
from reldistill.report.words import (
    NONE,
    classes_in_words,
    count,
    decimals,
    duration,
    large,
    percent,
    signed,
    size,
    times,
)

_LEAST_COLUMNS = 4


def verdict(comparison: Comparison, rows: Sequence[Summary]) -> list[str]:
    """What can be said, in plain words."""
    words = _compared if comparison.head.kind == "compare" else _chosen
    return [*words(comparison, rows), *_incomplete(comparison)]


def _compared(comparison: Comparison, rows: Sequence[Summary]) -> list[str]:
    digits = decimals(comparison.test_images)
    by_kd = any(row.vs_kd for row in rows if row.method != ALONE)
    judged = [(row, row.vs_kd if by_kd else row.vs_none) for row in rows if row.method != ALONE]
    rivals = sorted(((r, d) for r, d in judged if d), key=lambda pair: -pair[1].points)
    base = BASE if by_kd else "the student alone"
    lines = []
    if rivals:
        better = [row.variant for row, between in rivals if between.low > 0]
        others = [row.variant for row, between in rivals if between.low <= 0]
        lines.append(
            f"Better than {base} beyond noise: {', '.join(better) or 'none'}."
            + (f" Not: {', '.join(others)}." if others else "")
        )
    lines += [_difference_words(row, between, base, digits) for row, between in rivals]
    kd = next((row for row in rows if row.method == BASE and row.vs_none), None)
    if by_kd and kd is not None and kd.vs_none is not None:
        lines.append(_difference_words(kd, kd.vs_none, "the student alone", digits))
    return [*_references(comparison, rows, digits), *lines]


def _references(comparison: Comparison, rows: Sequence[Summary], digits: int) -> list[str]:
    lines = []
    alone = next((row for row in rows if row.method == ALONE and row.mean is not None), None)
    if alone is not None:
        reached, images = f"{spread(alone.mean, alone.std, digits)} %", f"the {comparison.test_images:,} test images"
        score = comparison.score
        lines.append(
            (
                f"The student alone gets {reached} of {images} right "
                if score.counted
                else f"The student alone has {score.name} {reached} on {images} "
            )
            + f"({_seeds(len(alone.seeds))}), the teacher {percent(comparison.reference['teacher']['test'], digits)} %."
        )
        if alone.mean is not None and comparison.reference["teacher"]["test"] <= alone.mean:
            lines.append("The teacher is no better than the student alone: there is little it could pass on.")
    return lines


def _difference_words(row: Summary, between: SeedDifference, base: str, digits: int) -> str:
    name = row.variant
    interval = f"95 % interval {signed(between.low, digits)} to {signed(between.high, digits)}"
    amount = f"{signed(between.points, digits)} points ({interval}, {_seeds(len(between.by_seed))})"
    if between.low > 0:
        return f"{name} beats {base} beyond noise: {amount}."
    if between.high < 0:
        return f"{name} is worse than {base} beyond noise: {amount}."
    return f"{name} and {base} cannot be told apart: {amount}."


def _chosen(comparison: Comparison, rows: Sequence[Summary]) -> list[str]:
    digits = decimals(comparison.test_images)
    lines = []
    for row in rows:
        if row.chosen:
            point = ", ".join(f"{name} = {value}" for name, value in row.point.items())
            reached = f"{spread(row.mean_val, row.std_val, digits)} %"
            score = comparison.score
            validated = f"{reached} of them right" if score.counted else f"{score.name} {reached}"
            lines.append(
                f"{row.student}: the validation images prefer {point}, with {validated} in the best epoch "
                f"({_seeds(len(row.seeds))}). On the test images that point has "
                f"{spread(row.mean_best, row.std_best, digits)} % with those weights, "
                f"{spread(row.mean, row.std, digits)} % after the last epoch."
            )
    return lines


def _incomplete(comparison: Comparison) -> list[str]:
    lines = []
    failed = comparison.failed
    if failed:
        lines.append(f"{len(failed)} of {len(comparison.cells)} cells failed; the same command tries them again.")
        lines += [f"{cell.plan.variant}, seed {cell.plan.seed}: {cell.reason}" for cell in failed]
    open_cells = [cell for cell in comparison.cells if cell.status in ("waiting", "unfinished")]
    if open_cells:
        lines.append(f"{len(open_cells)} of {len(comparison.cells)} cells are not finished yet.")
    return lines


def caveats(comparison: Comparison, rows: Sequence[Summary]) -> list[str]:
    """What the intervals leave out."""
    lines = []
    if comparison.head.kind == "sweep":
        lines.append(
            "The point was chosen on the validation images. Choosing it by the test column would make that column a "
            "validation score."
        )
    judged = [row for row in rows if row.vs_kd or row.vs_none]
    if judged and all(len(row.seeds) < 2 for row in judged):
        lines.append("One seed each: the intervals cover the draw of test images, and not the seed (--seeds 3).")
    elif any(len(row.seeds) == 2 for row in judged):
        lines.append(
            "Two seeds say little of how much seeds differ: with three, intervals are about a quarter as wide."
        )
    if len(judged) > 2:
        lines.append("Each interval stands alone: among many methods that gain nothing, chance lets one look better.")
    return [*lines, *comparison.head.notes]


def spread(mean: float | None, std: float | None, digits: int) -> str:
    """84.2 ± 0.3: mean and standard deviation over the seeds."""
    return percent(mean, digits) + (f" ± {std:.{digits}f}" if std is not None else "")


def difference_text(between: SeedDifference | None, digits: int) -> str:
    """+1.2 (+0.4 to +2.0)."""
    if between is None:
        return NONE
    return f"{signed(between.points, digits)} ({signed(between.low, digits)} to {signed(between.high, digits)})"


def _seeds(number: int) -> str:
    return f"{number} seed{'s' * (number != 1)}"


def relative_times(rows: Sequence[Summary]) -> dict[str, float | None]:
    """Variant → its time per step over that of the student alone."""
    alone = next((row.seconds_per_step for row in rows if row.method == ALONE), None)
    return {
        row.variant: row.seconds_per_step / alone if row.seconds_per_step is not None and alone else None
        for row in rows
    }


# Tables --------------------------------------------------------------------------------------------------------------


def columns(comparison: Comparison, rows: Sequence[Summary]) -> list[tuple[str, list[str]]]:
    """Heading (in lines) and a cell for each row: one table for terminal and Markdown, without what no row has."""
    digits, is_sweep = decimals(comparison.test_images), comparison.head.kind == "sweep"
    relative = relative_times(rows)
    found = [
        ("last\nepoch %", [spread(row.mean, row.std, digits) for row in rows]),
        ("best\nepoch %", [spread(row.mean_best, row.std_best, digits) for row in rows]),
    ]
    if is_sweep:
        validated = [spread(row.mean_val, row.std_val, digits) for row in rows]
        return [
            ("vali-\ndation %", validated),
            *found,
            ("chosen", ["yes" if row.chosen else "" for row in rows]),
            ("time\nper step", [duration(row.seconds_per_step) for row in rows]),
        ]
    found += [
        ("over\nalone", [difference_text(row.vs_none, digits) for row in rows]),
        ("over kd", [difference_text(row.vs_kd, digits) for row in rows]),
        ("agrees\n%", [percent(row.agreement) for row in rows]),
        ("calib.\nerror %", [percent(row.calibration_error) for row in rows]),
        ("time\nper step", [duration(row.seconds_per_step) for row in rows]),
        ("×\nalone", [times(relative[row.variant]) for row in rows]),
        ("memory", [size(row.peak_memory) for row in rows]),
        ("training\nFLOPs", [large(row.training_flops) for row in rows]),
    ]
    return [(heading, cells) for heading, cells in found if set(cells) != {NONE} or heading.startswith("last")]


def print_comparison(comparison: Comparison, rows: Sequence[Summary], console: Console) -> None:
    """Table and verdict for a terminal; the last columns are left out where it is narrow."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim", show_edge=False)
    names = min(max(len(_name(row)) for row in rows), console.width // 3)
    table.add_column("", overflow="fold", min_width=names)
    shown = columns(comparison, rows)
    widths = [max(map(len, [*cells, *heading.splitlines()])) + 3 for heading, cells in shown]
    while len(shown) > _LEAST_COLUMNS and names + 1 + sum(widths[: len(shown)]) > console.width:
        shown.pop()
    for heading, _ in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for place, row in enumerate(rows):
        better = (row.vs_kd is not None and row.vs_kd.low > 0) or row.chosen
        table.add_row(Text(_name(row)), *(Text(cells[place], style="green" if better else "") for _, cells in shown))
    console.print(table)
    for line in [*verdict(comparison, rows), *caveats(comparison, rows)]:
        console.print(Text(f"• {line}"))


def comparison_markdown(comparison: Comparison, rows: Sequence[Summary]) -> str:
    """Table, verdict, how the intervals are made, and the command."""
    shown = columns(comparison, rows)
    lines = [
        "| " + " | ".join(["", *(heading.replace("-\n", "").replace("\n", " ") for heading, _ in shown)]) + " |",
        "| --- |" + " ---: |" * len(shown),
        *(
            "| " + " | ".join([_name(row).replace("|", "\\|"), *(cells[place] for _, cells in shown)]) + " |"
            for place, row in enumerate(rows)
        ),
        "",
        *(f"- {line}" for line in verdict(comparison, rows)),
        "",
        *(f"{line}\n" for line in caveats(comparison, rows)),
        "Scores are of the test images, in percent, mean ± standard deviation over the seeds. "
        + (METHOD if comparison.head.kind == "compare" else ""),
        "",
        f"`{shlex.join(comparison.head.command)}`",
        "",
    ]
    return "\n".join(lines)


def comparison_csv(rows: Sequence[Summary]) -> str:
    """One line for each variant, all figures in full."""
    return csv_text([_flat(row) for row in rows])


def _flat(row: Summary) -> dict[str, Any]:
    plain = {name: value for name, value in encode(row).items() if name not in ("point", "vs_none", "vs_kd", "seeds")}
    point = {f"setting {name}": value for name, value in row.point.items()}
    differences: dict[str, Any] = {}
    for name, between in (("vs_none", row.vs_none), ("vs_kd", row.vs_kd)):
        differences |= {
            name: between.points if between else None,
            f"{name}_low": between.low if between else None,
            f"{name}_high": between.high if between else None,
            f"{name}_beyond_noise": between.beyond_noise if between else None,
        }
    return {**plain, **point, "seeds": len(row.seeds), **differences}


def _name(row: Summary) -> str:
    return "student alone" if row.variant == ALONE else row.variant


def setting(comparison: Comparison) -> str:
    """Which student learns from which teacher, on what."""
    data, teacher = comparison.reference.get("data"), comparison.reference.get("teacher")
    if not data or not teacher:
        return "Nothing is measured yet."
    learners = ", ".join(
        f"{name} ({count(student['parameters'])} parameters)"
        for name, student in comparison.reference["students"].items()
    )
    return (
        f"{learners} taught by {teacher['name']} ({count(teacher['parameters'])}) on {data['name']}: "
        f"{classes_in_words(data['classes'])}, {data['train_images']:,} training, {data['val_images']:,} validation "
        f"and {data['test_images']:,} test images"
        f"{in_words(data.get('left_out', {}))}."
    )
