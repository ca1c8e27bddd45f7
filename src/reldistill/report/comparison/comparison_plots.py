"""The plots of a comparison and of a sweep, as `plots` draws them: inline SVG in the page's colours."""

from __future__ import annotations

import html
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from reldistill.report.plots import QUIET, SERIES, STYLE, epoch_axis, name_ends, style_of, to_page, zoom


@dataclass(frozen=True)
class Point:
    """A variant on a plot: where it stands, its standard deviation upwards, and its colour and dash."""

    name: str
    x: float
    y: float
    deviation: float | None
    style: tuple[str, Any]


def series_styles(variants: Sequence[str], *, alone: str) -> dict[str, tuple[str, Any]]:
    """Colour and dash of each variant, the same in every plot; the student alone is grey."""
    others = [variant for variant in variants if variant != alone]
    styles = {variant: style_of(place) for place, variant in enumerate(others)}
    return {variant: styles.get(variant, (QUIET, (0, (4, 1.5)))) for variant in variants}


def cost_plot(points: Sequence[Point], *, score: str, unit: str) -> str:
    """A test score against what a step costs, with a bar of one standard deviation to each side."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 3.3))
        axes = figure.add_axes((0.085, 0.145, 0.89, 0.82))
        for point in points:
            colour = point.style[0]
            axes.errorbar(
                point.x, point.y, yerr=point.deviation, color=colour, marker="o", markersize=5, capsize=3, linewidth=1.2
            )
        low, high = min(p.x for p in points), max(p.x for p in points)
        room = 0.08 * (high - low) or 0.05 * high or 1.0
        axes.set_xlim(low - room, high + 2.2 * room)
        lows = [p.y - (p.deviation or 0.0) for p in points]
        highs = [p.y + (p.deviation or 0.0) for p in points]
        spare = 0.12 * max(max(highs) - min(lows), 0.5)
        axes.set_ylim(min(lows) - spare, max(highs) + spare)
        _name_points(axes, points)
        axes.set_xlabel(f"training step, {unit}")
        axes.set_ylabel(f"test {score}, last epoch, %")
        axes.yaxis.set_major_locator(MaxNLocator(6))
        return to_page(figure, "cost", f"Test {score} against training cost")


def _name_points(axes: Any, points: Sequence[Point]) -> None:
    """Each name to the right of its point, moved up or down where another name is."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    taken: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda p: -p.y):
        x, y = (point.x - left) / (right - left), (point.y - bottom) / (top - bottom)
        width, step = 0.0145 * len(point.name) + 0.02, 0.062
        to_left = x + width > 1.0
        start = x - width if to_left else x
        y += 0.02
        while any(abs(y - other) < step and start < end and start + width > begin for begin, end, other in taken):
            y -= step
        taken.append((start, start + width, y))
        axes.text(
            x + (-0.012 if to_left else 0.012),
            y,
            point.name,
            color=point.style[0],
            ha="right" if to_left else "left",
            va="center",
            transform=axes.transAxes,
        )


def mean_curves(
    curves: Mapping[str, tuple[Sequence[int], np.ndarray]], styles: Mapping[str, tuple[str, Any]], *, score: str
) -> str:
    """A validation score by epoch, the mean of the seeds and a band from least to most.

    Args:
        curves: for each variant the epochs, and the scores of its (seeds, epochs).
        styles: colour and dash of each variant.
        score: its name.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 3.5))
        axes = figure.add_axes((0.085, 0.135, 0.70, 0.83))
        ends, means = [], []
        for name, (epochs, values) in curves.items():
            colour, dash = styles[name]
            mean = values.mean(axis=0)
            marker = "o" if len(epochs) <= 12 else ""
            axes.plot(epochs, mean, color=colour, linestyle=dash, marker=marker, markersize=3)
            if len(values) > 1:
                axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.12, linewidth=0)
            ends.append((float(mean[-1]), name, colour))
            means.append(mean.tolist())
        zoom(axes, means, ())
        name_ends(axes, ends)
        epoch_axis(axes, [1, max(epochs[-1] for epochs, _ in curves.values())])
        axes.set_ylabel(f"validation {score}, %")
        return to_page(figure, "curves", f"Validation {score} by epoch, mean over the seeds")


def sweep_plot(
    lines: Mapping[str, Sequence[tuple[Any, float, float | None]]], *, score: str, name: str, chosen: Mapping[str, int]
) -> str:
    """A validation score over a setting's values, a line for each student (and value of the other setting).

    Args:
        lines: label → (value, mean, standard deviation or None).
        score: its name.
        name: of the setting along the axis.
        chosen: label → place of the point that was chosen, where it lies on that line.
    """
    values = list(dict.fromkeys(value for line in lines.values() for value, _, _ in line))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    place: Any = (lambda value: value) if numbers else values.index
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 3.5))
        axes = figure.add_axes((0.085, 0.145, 0.68, 0.82))
        ends = []
        for number, (label, line) in enumerate(lines.items()):
            colour, dash = style_of(number)
            ordered = sorted(line, key=lambda entry: place(entry[0]))
            x, y = [place(value) for value, _, _ in ordered], [mean for _, mean, _ in ordered]
            spread = [deviation or 0.0 for _, _, deviation in ordered]
            axes.errorbar(x, y, yerr=spread, color=colour, linestyle=dash, marker="o", markersize=4, capsize=3)
            if label in chosen:
                value, mean, _ = line[chosen[label]]
                axes.plot(place(value), mean, marker="o", markersize=10, color=colour, fillstyle="none")
            ends.append((y[-1], label, colour))
        if numbers and min(values) > 0 and max(values) / min(values) >= 8:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks([place(value) for value in values], [_short(value) for value in values])
        axes.margins(y=0.12)
        name_ends(axes, ends)
        axes.set_xlabel(name)
        axes.set_ylabel(f"validation {score}, best epoch, %")
        return to_page(figure, "sweep", f"Validation {score} over {name}")


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


# Features in the plane -----------------------------------------------------------------------------------------------


def embedding(features: np.ndarray, *, perplexity: float = 30.0) -> np.ndarray:
    """(n, D) features → (n, 2) by t-SNE from a PCA start, the same every time; scaled into [-1, 1]."""
    from sklearn.manifold import TSNE  # a second to import, and only needed here
    from threadpoolctl import threadpool_limits

    scaled = features.astype(np.float64)
    scaled = (scaled - scaled.mean(axis=0)) / (scaled.std() or 1.0)
    if len(scaled) < 5 or scaled.shape[1] < 2 or not np.isfinite(scaled).all():
        return np.zeros((len(scaled), 2))
    # One thread: sums in one order, and no threads that wait for each other where others need the cores.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        model = TSNE(2, perplexity=min(perplexity, (len(scaled) - 1) / 3), init="pca", random_state=0, n_jobs=1)
        found = model.fit_transform(scaled)
    found = found - (found.max(axis=0) + found.min(axis=0)) / 2
    return found / (np.abs(found).max() or 1.0)


def embedding_plot(places: np.ndarray, labels: np.ndarray, *, title: str) -> str:
    """(n, 2) places in [-1, 1] as dots in their class's colour; beyond eight classes the colours return as rings."""
    groups = []
    for label in np.unique(labels):
        colour, rings = f"var(--c{int(label) % len(SERIES) + 1})", int(label) // len(SERIES) % 2 == 1
        look = f'fill="none" stroke="{colour}" stroke-width="1"' if rings else f'fill="{colour}" fill-opacity=".75"'
        dots = "".join(
            f'<circle cx="{100 + 92 * x:.1f}" cy="{100 + 92 * y:.1f}" r="2.3"/>' for x, y in places[labels == label]
        )
        groups.append(f"<g {look}>{dots}</g>")
    label = html.escape(title, quote=True)
    frame = '<rect x=".5" y=".5" width="199" height="199" rx="3" fill="none" stroke="var(--rule)"/>'
    return f'<svg class="plot" viewBox="0 0 200 200" role="img" aria-label="{label}">{frame}{"".join(groups)}</svg>'


def class_key(label: int) -> str:
    """The dot of a class, for a legend in the page's text."""
    colour, rings = f"var(--c{label % len(SERIES) + 1})", label // len(SERIES) % 2 == 1
    look = f'fill="none" stroke="{colour}" stroke-width="1.6"' if rings else f'fill="{colour}"'
    return f'<svg class="dot" viewBox="0 0 10 10" aria-hidden="true"><circle cx="5" cy="5" r="4" {look}/></svg>'


def gap_limit(gaps: Sequence[np.ndarray]) -> float:
    """One end for all colour scales: the 99.5 % quantile of the gaps."""
    high = max((float(np.quantile(gap, 0.995)) for gap in gaps if gap.size), default=1.0)
    return high if math.isfinite(high) and high > 0 else 1.0
