"""Plots as inline SVG: text stays text, colours are the page's variables (so light and dark follow the reader).

Matplotlib draws with placeholder colours; `to_page` replaces them by `var(--…)`, drops what would name an outside
address and makes ids unlike those of every other plot on the page.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

INK, QUIET, RULE, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0a0a{i:02x}" for i in range(1, 9))  # page.css: --c1 … --c8, told apart by the colour-blind too
_VARIABLES = {INK: "ink", QUIET: "quiet", RULE: "rule", PAPER: "paper"} | {c: f"c{i + 1}" for i, c in enumerate(SERIES)}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))

STYLE: Any = {  # matplotlib's stubs list every key of every release
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 8,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": QUIET,
    "axes.facecolor": "none",
    "axes.linewidth": 0.6,
    "axes.labelsize": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.0,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.0,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "text.parse_math": False,
}


def style_of(place: int) -> tuple[str, Any]:
    """Colour and dash pattern of the series at `place`: no two alike among the first 32."""
    return SERIES[place % len(SERIES)], _DASHES[(place // len(SERIES) + place) % len(_DASHES)]


def score_plot(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    *,
    alone: Sequence[str],
    references: Mapping[str, float],
    score: str,
    title: str,
) -> str:
    """A validation score by epoch, one line a run, named at its end; `alone` in ink, references as levels."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 3.5))
        axes = figure.add_axes((0.085, 0.135, 0.70, 0.83))
        ends: list[tuple[float, str, str]] = []
        place = 0
        for name, (epochs, scores) in curves.items():
            colour, dash = (QUIET, (0, (4, 1.5))) if name in alone else style_of(place)
            place += name not in alone
            marker = "o" if len(epochs) <= 12 else ""
            axes.plot(epochs, scores, color=colour, linestyle=dash, marker=marker, markersize=3)
            ends.append((scores[-1], name, colour))
        for name, level in references.items():
            axes.axhline(level, color=INK, linewidth=0.8)
            ends.append((level, name, INK))
        zoom(axes, [scores for _, scores in curves.values()], references.values())
        name_ends(axes, ends)
        epoch_axis(axes, [e for epochs, _ in curves.values() for e in epochs])
        axes.set_ylabel(f"validation {score}, %")
        return to_page(figure, "score", title)


def parts_plot(
    name: str, epochs: Sequence[int], parts: Mapping[str, Sequence[float]], *, order: Sequence[str], prefix: str
) -> str:
    """Epoch means of every weighted loss part of one run, on a logarithmic axis; `total` in ink.

    Parts at or below 0 have no place on that axis and leave a gap.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.15, 2.35))
        axes = figure.add_axes((0.16, 0.175, 0.81, 0.70))
        for part, values in parts.items():
            shown = np.asarray(values, dtype=float)
            shown = np.where(shown > 0, shown, np.nan)
            colour, dash = part_style(part, order)
            marker = "o" if len(epochs) <= 12 else ""
            axes.plot(epochs, shown, color=colour, linestyle=dash, linewidth=1.4, marker=marker, markersize=2.2)
        if any(np.asarray(values, dtype=float).max(initial=0) > 0 for values in parts.values()):
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        epoch_axis(axes, epochs)
        axes.set_title(name)
        axes.set_ylabel("weighted loss")
        return to_page(figure, prefix, f"Loss parts of {name} by epoch")


def errors_plot(costs: Mapping[str, np.ndarray], kinds: Sequence[str], *, most: float, title: str) -> str:
    """Points of AP50 that each kind of error costs, a bar for each network, on an axis from 0 to `most`."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.15, 2.5))
        axes = figure.add_axes((0.30, 0.13, 0.67, 0.77))
        height = 0.8 / len(costs)
        for place, (who, values) in enumerate(costs.items()):
            colour = INK if place == 0 else style_of(place - 1)[0]
            at = np.arange(len(kinds)) + (place - (len(costs) - 1) / 2) * height
            axes.barh(at, np.nan_to_num(values), height=0.9 * height, color=colour, label=who)
        axes.set_yticks(range(len(kinds)), kinds)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.05 * most or 1.0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("points of AP50")
        axes.set_title(title)
        return to_page(figure, f"errors-{title.split()[0]}", f"What errors cost, {title}")


def part_style(part: str, order: Sequence[str]) -> tuple[str, Any]:
    """Colour and dash of a loss part: the same in every panel of the page."""
    return (INK, "-") if part == "total" else style_of(list(order).index(part))


def line_key(colour: str, dash: Any) -> str:
    """A short line as SVG, for a legend in the page's text."""
    pattern = "" if dash == "-" else f' stroke-dasharray="{" ".join(f"{2 * on:g}" for on in dash[1])}"'
    return (
        f'<svg class="key" viewBox="0 0 26 8" aria-hidden="true"><line x1="0" x2="26" y1="4" y2="4" '
        f'stroke="{page_colour(colour)}" stroke-width="2.4"{pattern}/></svg>'
    )


def matrix_plot(matrix: np.ndarray, *, title: str, unit: str, diverging: bool, limit: float, prefix: str) -> str:
    """A square matrix as colours with its scale below: from 0 to `limit`, or from -limit to limit."""
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(2.3, 2.8))
        axes = figure.add_axes((0.04, 0.17, 0.92, 0.92 * 2.3 / 2.8))
        low, colours = (-limit, "PuOr_r") if diverging else (0.0, "cividis")
        image = axes.imshow(matrix, cmap=colours, vmin=low, vmax=limit, interpolation="none", aspect="equal")
        axes.set(xticks=[], yticks=[])
        axes.set_title(title)
        bar = figure.colorbar(image, cax=figure.add_axes((0.04, 0.135, 0.92, 0.022)), orientation="horizontal")
        bar.outline.set_visible(False)
        bar.ax.xaxis.set_major_locator(MaxNLocator(4))
        bar.set_label(unit, labelpad=1)
        bar.ax.tick_params(length=0, pad=2)
        return to_page(figure, prefix, f"{title}: {unit}")


def spectrum_plot(spectra: Mapping[str, np.ndarray], *, prefix: str) -> str:
    """Eigenvalues of both graphs against their place in the order, 0 to 1, so that different C can be compared."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.3, 2.8))
        axes = figure.add_axes((0.14, 0.165, 0.83, 0.76))
        for name, values in spectra.items():
            place = (np.arange(len(values)) + 0.5) / len(values)
            dashed = name == "student"
            axes.plot(
                place,
                values,
                color=SERIES[1] if dashed else INK,
                linestyle=(0, (4, 1.5)) if dashed else "-",
                label=name,
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=min(0.0, *(float(v.min()) for v in spectra.values())))
        axes.set_xlabel("place among the eigenvalues (0 smallest, 1 largest)")
        axes.set_ylabel("eigenvalue")
        axes.set_title("spectrum")
        axes.legend(loc="lower right", labelcolor=INK)
        return to_page(figure, prefix, "Eigenvalues of the normalised Laplacian, student and teacher")


def page_colour(placeholder: str) -> str:
    """The page's variable for one of the placeholder colours."""
    return f"var(--{_VARIABLES[placeholder]})"


def zoom(axes: Axes, curves: Iterable[Sequence[float]], levels: Iterable[float]) -> None:
    """Where the comparison happens: from the lowest point after a third of any run, up to the top of what is shown."""
    late = np.concatenate([np.asarray(values, dtype=float)[len(values) // 3 :] for values in curves])
    low, high = float(late.min()), max(float(late.max()), *levels, 0.0)
    room = max(high - low, 1.0)
    floor = low - 0.1 * room
    axes.set_ylim(floor if low < 0 else max(floor, 0.0), min(high + 0.08 * room, 100.0 + 0.02 * room))


def name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names beside the ends of their lines, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    step = 0.058 * (high - low)
    heights = np.asarray(sorted(min(max(end[0], low), high) for end in ends))
    ordered = sorted(ends, key=lambda end: end[0])
    spread = heights.copy()
    for _ in range(200):
        for i in range(len(spread) - 1):
            overlap = step - (spread[i + 1] - spread[i])
            if overlap > 1e-9:
                spread[i] -= overlap / 2
                spread[i + 1] += overlap / 2
        spread += max(0.0, low - spread[0]) - max(0.0, spread[-1] - high)
    for y, height, (value, name, colour) in zip(spread, heights, ordered, strict=True):
        transform = axes.get_yaxis_transform()
        axes.plot([1.005, 1.03], [height, y], color=colour, linewidth=0.6, transform=transform, clip_on=False)
        short = name if len(name) <= 24 else name[:23] + "…"
        axes.text(1.038, y, f"{short} {value:.1f}", color=colour, va="center", transform=transform, fontsize=8)


def epoch_axis(axes: Axes, epochs: Sequence[int]) -> None:
    """Whole epochs along the x axis."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    first, last = min(epochs), max(epochs)
    room = 0.5 if first == last else 0.02 * (last - first)
    axes.set_xlim(first - room, last + room)


def to_page(figure: Figure, prefix: str, title: str) -> str:
    """A figure as inline SVG in the page's colours; `prefix` must be unlike every other plot's on the page."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": prefix}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's fonts draw the text, not matplotlib's
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    box = re.findall(r'viewBox="([^"]*)"', head)[0]
    for placeholder, variable in _VARIABLES.items():
        body = body.replace(placeholder, f"var(--{variable})")
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", body)
    body = re.sub(r"font: (bold )?([\d.]+)px [^;\"]*", r"font: \1\2px var(--font)", body)
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return f'<svg class="plot" viewBox="{box}" role="img" aria-label="{label}">{body.strip()}'
