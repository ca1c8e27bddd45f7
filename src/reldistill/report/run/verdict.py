"""What the comparison says, in plain words, and no more than it says."""

from __future__ import annotations

from collections.abc import Sequence

from reldistill.report.intervals import Difference
from reldistill.report.paired import Row, baseline_of, comparison_table, difference, in_order, labels, role_of
from reldistill.report.record import RunRecord
from reldistill.report.words import classes_in_words, count, decimals, known, percent, signed, span, times


def verdict(records: Sequence[RunRecord]) -> str:
    """Lines: the setting, each method against the student alone, and what one seed can and cannot separate."""
    return "\n".join([*setting(records), *findings(records), *caveats(records)]) or "No runs."


def findings(records: Sequence[RunRecord]) -> list[str]:
    """The scores to hold against, each method's gain from the largest down, and what is not judged."""
    rows = comparison_table(records)
    gains, repeated = _gains(rows)
    return [
        *_references(rows),
        *(_over_seeds([row for row in gains if row.method == method]) for method in sorted(repeated)),
        *(_one_gain(row, row.gain) for row in gains if row.gain and row.method not in repeated),
        *_best_two(records, gains),
        *(line for row in rows if (line := _not_judged(row))),
    ]


def _gains(rows: Sequence[Row]) -> tuple[list[Row], set[str]]:
    """The compared rows, the largest gain first, and the methods that ran with several seeds."""
    gains = sorted((row for row in rows if row.gain), key=lambda row: -(row.gain.points if row.gain else 0))
    return gains, {row.method for row in gains if len({r.seed for r in gains if r.method == row.method}) > 1}


def setting(records: Sequence[RunRecord]) -> list[str]:
    """Which student learns from which teacher, on what."""
    lines: dict[str, None] = {}
    for record in in_order(records):
        if role_of(record, records) == "teacher":
            continue
        student, teacher, data = record.student, record.teacher, record.data
        source = f" learns from {teacher.name} ({count(teacher.parameters)})" if teacher else ""
        alone_of_pair = not teacher and any(r.teacher and r.student.name == student.name for r in records)
        if not alone_of_pair:
            images = f"{data.train_images:,} training and {data.val_images:,} validation images"
            learner = f"{student.name} ({count(student.parameters)} parameters){source}"
            lines[f"{learner} on {data.name}: {classes_in_words(data.classes)}, {images}."] = None
    return list(lines)


def _references(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        if row.role == "method" or not known(row.score_last):
            continue
        digits = decimals(row.images)
        interval = f" (95 % interval {span(row.interval_last, digits)})" if row.interval_last else ""
        name = row.label if row.role == "alone" else f"{row.label} {row.network}".replace(f"· {row.network} ", "")
        value = f"{percent(row.score_last, digits)} %"
        counted = f"{value} of the validation images right"
        reached = counted if row.score.counted else f"{row.score.name} {value} on the validation images"
        lines.append(f"{name}: {reached}{interval}.")
    teachers = [row.score_last for row in rows if row.role == "teacher" and row.score_last is not None]
    alone = [row.score_last for row in rows if row.role == "alone" and row.score_last is not None]
    if teachers and alone and max(teachers) <= min(alone):
        lines.append("The teacher is no better than the student alone: there is little it could pass on.")
    return lines


def _one_gain(row: Row, gain: Difference) -> str:
    digits = decimals(gain.images)
    amount = f"{row.label}: {signed(gain.points, digits)} points over the student alone"
    interval = f"95 % interval {signed(gain.low, digits)} to {signed(gain.high, digits)}"
    if gain.resolved:
        word = "better" if gain.points > 0 else "worse"
        return f"{amount} ({interval}): {word} by more than the sampling noise of the validation images{_cost(row)}."
    if round(abs(gain.points), digits) >= round(gain.margin, digits):  # "within ±2.7" would contradict a gain of 2.8
        test = f", exact paired test p = {gain.p_value:.3f}" if gain.p_value is not None else ""
        return f"{amount} ({interval}{test}): at the edge of the sampling noise, not beyond it{_cost(row)}."
    resolution = f"{gain.images:,} validation images resolve about ±{gain.margin:.{digits}f}"
    return f"{amount}; {resolution}, so this is within noise{_cost(row)}."


def _cost(row: Row) -> str:
    return f" ({times(row.relative_step_time)} the time per step)" if known(row.relative_step_time) else ""


def _over_seeds(rows: Sequence[Row]) -> str:
    points = [row.gain.points for row in rows if row.gain]
    digits = decimals(rows[0].images)
    return (
        f"{rows[0].method}: {signed(sum(points) / len(points), digits)} points over the student alone on average of "
        f"{len(points)} seeds, {signed(min(points), digits)} to {signed(max(points), digits)} by seed."
    )


def _best_two(records: Sequence[RunRecord], gains: Sequence[Row]) -> list[str]:
    """The best method against the runner-up: the choice a reader is about to make."""
    if len(gains) < 2:
        return []
    ordered = in_order(records)
    names = labels(ordered)
    first, second = (ordered[names.index(row.label)] for row in gains[:2])
    if baseline_of(first, records) is not baseline_of(second, records):
        return []
    between = difference(first, second)
    return [_pair(gains[0].label, gains[1].label, between)] if between else []


def _pair(first: str, second: str, between: Difference) -> str:
    digits = decimals(between.images)
    if between.resolved:
        return f"{first} beats {second} by {between.points:.{digits}f} points, more than the sampling noise."
    return (
        f"{first} and {second} are {abs(between.points):.{digits}f} points apart, resolved to about "
        f"±{between.margin:.{digits}f}: the images cannot tell which is better."
    )


def _not_judged(row: Row) -> str | None:
    if row.status == "running":
        return f"{row.label} is still running ({row.epochs} epochs so far): not judged yet."
    if row.status == "stopped":
        return f"{row.label} was cut short after {row.epochs} epochs: not judged."
    if row.role == "method" and row.gain is None:
        score = percent(row.score_last, decimals(row.images))
        if not row.score.alone:
            interval = f" (95 % interval {span(row.interval_last, decimals(row.images))})" if row.interval_last else ""
            return f"{row.label}: {row.score.name} {score} % on the validation images{interval}."
        return (
            f"{row.label}: {score} %; no finished run of the student alone with the same student, images and epochs "
            "is here to compare with (--method none)."
        )
    return None


def caveats(records: Sequence[RunRecord]) -> list[str]:
    """What the intervals leave out."""
    gains, repeated = _gains(comparison_table(records))
    if not gains:
        return []
    lines = []
    if any(row.method not in repeated for row in gains):
        lines.append(
            "One seed each: the intervals cover the choice of validation images, not the seed, which alone can move a "
            "score by as much. Small differences need further seeds (--seed)."
        )
    if any(row.gain and not row.gain.paired for row in gains):
        lines.append(
            "Where it is not on record which images each network got right, the intervals are the wider, unpaired ones."
        )
    if len(gains) > 1:
        lines.append(
            f"Each interval stands alone: among {len(gains)} methods that gain nothing, chance puts at least one "
            f"outside its interval in up to {min(5 * len(gains), 100)} % of such comparisons."
        )
    return lines
