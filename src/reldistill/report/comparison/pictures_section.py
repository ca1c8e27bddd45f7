"""The pictures of a comparison's page: cost, curves, features, correlations, sweeps."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from reldistill.report.captions import caption
from reldistill.report.comparison.cell_records import ARRAYS_FILE, REFERENCE, CellResult, read_arrays
from reldistill.report.comparison.comparison_plots import (
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
from reldistill.report.comparison.summary import Comparison, Summary
from reldistill.report.paired import ALONE
from reldistill.report.plots import matrix_plot
from reldistill.report.run.relations_file import thin_out

_MOST_LEGEND = 20

COST = """
Up and to the left is better: more for less time a step. Bars show one standard deviation over the seeds. Times
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
The score on the validation images in the best epoch, mean over the seeds with one standard deviation; the ring marks
the point that is chosen. Where a curve is flat within its bars, the setting matters little.
"""


def cost_section(comparison: Comparison, rows: Sequence[Summary]) -> str:
    """What each variant reaches, and what a step of it takes."""
    styles = series_styles([row.variant for row in rows], alone=ALONE)
    points = [
        Point(shown_name(row.variant), 1e3 * row.seconds_per_step, row.mean, row.std, styles[row.variant])
        for row in rows
        if row.mean is not None and row.seconds_per_step is not None
    ]
    if not points:
        return ""
    score = comparison.score.name
    plot = cost_plot(points, score=score, unit="ms")
    title = f"{score[0].upper()}{score[1:]} against training cost"
    return section("cost", title, f'<div class="wide-plot">{plot}</div>\n{caption(COST)}')


def curves_section(comparison: Comparison) -> str:
    """The score by epoch."""
    curves, score = {}, comparison.score.name
    for variant, cells in comparison.variants.items():
        histories = [
            {epoch.epoch: epoch.val[score] for epoch in cell.record.history if score in epoch.val}
            for cell in cells
            if cell.record is not None
        ]
        # seeds may end early, each at its own epoch
        common = sorted(set.intersection(*map(set, histories))) if histories else []
        if common:
            curves[variant] = common, np.asarray([[history[epoch] for epoch in common] for history in histories])
    if not curves:
        return ""
    styles = series_styles(list(comparison.variants), alone=ALONE)
    named = {shown_name(variant): values for variant, values in curves.items()}
    plot = mean_curves(named, {shown_name(variant): style for variant, style in styles.items()}, score=score)
    return section("curves", "Learning curves", f'<div class="wide-plot">{plot}</div>\n{caption(CURVES)}')


def features_section(comparison: Comparison) -> str:
    """t-SNE, one panel each: untrained, alone, teacher, methods."""
    reference = _reference_arrays(comparison)
    first = _first_cells(comparison)
    if "features" not in reference or not first:
        return ""
    shown = reference["shown"]
    labels = reference["labels"][shown] if "labels" in reference else np.zeros_like(shown)  # one colour without labels
    panels = {"untrained student": reference["untrained_0"]}
    panels |= {"student alone": first[ALONE].arrays()["features"]} if ALONE in first else {}
    panels |= {"teacher": reference["features"]}
    panels |= {variant: cell.arrays()["features"] for variant, cell in first.items() if variant != ALONE}
    figures = "".join(
        f"<figure><figcaption>{html.escape(name)}</figcaption>"
        f"{embedding_plot(embedding(features), labels, title=f't-SNE of {name}')}</figure>"
        for name, features in panels.items()
    )
    legend = _legend(comparison.reference["data"]["classes"])
    return section("features", "Features", f'{legend}<div class="panels small">{figures}</div>\n{caption(TSNE)}')


def _legend(classes: Sequence[str]) -> str:
    if len(classes) > _MOST_LEGEND:
        return ""
    entries = "".join(f"<span>{class_key(label)}{html.escape(name)}</span>" for label, name in enumerate(classes))
    return f'<div class="legend">{entries}</div>'


def gaps_section(comparison: Comparison) -> str:
    """Where student and teacher differ in which classes go together."""
    reference = _reference_arrays(comparison)
    gaps: dict[str, np.ndarray] = {}
    if "correlation" not in reference:
        return ""
    for variant, cell in _first_cells(comparison).items():
        gaps[variant] = np.abs(cell.arrays()["correlation"] - reference["correlation"])
    if not gaps:
        return ""
    limit = gap_limit(list(gaps.values()))
    panels = "".join(
        "<div>"
        + matrix_plot(
            thin_out(gap),
            title=f"{shown_name(variant)}: {_off_diagonal(gap):.3f}",
            unit="difference of correlations",
            diverging=False,
            limit=limit,
            prefix=f"gap{place}",
        )
        + "</div>"
        for place, (variant, gap) in enumerate(gaps.items())
    )
    body = f'<div class="panels small">{panels}</div>\n{caption(GAP)}'
    return section("correlation", "Correlation of the logits: distance from the teacher", body)


def _off_diagonal(gap: np.ndarray) -> float:
    return float(gap[~np.eye(len(gap), dtype=bool)].mean())


def sweep_section(comparison: Comparison, rows: Sequence[Summary]) -> str:
    """The score over the setting."""
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
    score = comparison.score.name
    plot = sweep_plot(lines, score=score, name=name, chosen=chosen)
    return section(
        "sweep",
        f"{score[0].upper()}{score[1:]} over the setting",
        f'<div class="wide-plot">{plot}</div>\n{caption(SWEEP)}',
    )


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


def shown_name(variant: str) -> str:
    """What a variant is called on the page."""
    return "student alone" if variant == ALONE else variant


def section(anchor: str, title: str, body: str) -> str:
    """A part of the page."""
    return f'<section>\n<h2 id="{anchor}">{title}</h2>\n{body}\n</section>'
