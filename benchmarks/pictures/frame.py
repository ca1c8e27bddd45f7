"""A figure as a file of its own: the report's style, light and dark by the reader's scheme, photographs kept small."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as MatplotlibPath
from PIL import Image

from reldistill.report import plots

WIDTH = 7.4
STUDENT, TEACHER = plots.SERIES[1], plots.INK
Scheme = Literal["both", "light", "dark"]

_CSS = next(Path(plots.__file__).parents[1].rglob("page.css")).read_text(encoding="utf-8")
_LIGHT, _DARK = re.findall(r":root \{(.*?)\}", _CSS, re.DOTALL)
_PNG = re.compile(r"data:image/png;base64,([\sA-Za-z0-9+/=]+)")


def figure(rows: int, columns: int, *, height: float, **options: Any) -> tuple[Figure, Any]:
    """A figure of the page's width and its axes, (rows, columns)."""
    drawn = Figure(figsize=(WIDTH, height), layout="constrained")
    return drawn, drawn.subplots(rows, columns, squeeze=False, **options)


def style() -> Any:
    """The context in which figures are drawn."""
    return matplotlib.rc_context(plots.STYLE)


def colours(scheme: Scheme) -> str:
    """The report's colours as a style sheet."""
    rules = {
        "light": f":root {{{_LIGHT}}}",
        "dark": f":root {{{_LIGHT}}} :root {{{_DARK}}}",
        "both": f":root {{{_LIGHT}}} @media (prefers-color-scheme: dark) {{ :root {{{_DARK}}} }}",
    }
    return " ".join(rules[scheme].split())


def write(drawn: Figure, path: Path, *, title: str, scheme: Scheme = "both") -> None:
    """Write an SVG that needs nothing else."""
    svg = _PNG.sub(_smaller, plots.to_page(drawn, path.stem, title))
    crisp = "image[*|href^='data:image/png'] { image-rendering: pixelated; }"
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head, body = svg.split(">", 1)
    lines = "\n".join(line.rstrip() for line in body.splitlines())
    path.write_text(
        f"{head.replace('<svg', f'<svg {names}', 1)}><style>{colours(scheme)} {crisp}</style>{lines}\n",
        encoding="utf-8",
    )


def _smaller(found: re.Match[str]) -> str:
    """The same picture in fewer bytes: photographs as JPEG, maps and matrices by a palette, without loss."""
    image, out, kind = Image.open(io.BytesIO(base64.b64decode(found[1]))), io.BytesIO(), "png"
    if min(image.size) > 128:
        kind = "jpeg"
        image.convert("RGB").save(out, "JPEG", quality=70, optimize=True)
    elif image.getextrema()[3][0] < 255:  # see-through: laid over a photograph
        image.save(out, "PNG", optimize=True)
    else:
        image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE).save(out, "PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def bare(axes: Axes, title: str = "") -> None:
    """No ticks and no frame, as under an image."""
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if title:
        axes.set_title(title)


def photograph(axes: Axes, image: np.ndarray, title: str = "") -> None:
    """An image (H, W, 3) uint8 as it is."""
    axes.imshow(image, interpolation="none")
    bare(axes, title)


def heat(axes: Axes, values: np.ndarray, title: str = "", *, limit: float | None = None, signed: bool = False) -> None:
    """A map or matrix as colours: from 0 to `limit`, or around 0."""
    most = float(np.abs(values).max()) if limit is None else limit
    colours = (
        {"cmap": "PuOr_r", "vmin": -most, "vmax": most} if signed else {"cmap": "cividis", "vmin": 0, "vmax": most}
    )
    axes.imshow(values, interpolation="none", **colours)
    bare(axes, title)


def over(axes: Axes, image: np.ndarray, values: np.ndarray, title: str = "", *, limit: float | None = None) -> None:
    """An image in grey with a map over it: bright where the map is large."""
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    side = image.shape[0]
    axes.imshow(grey, interpolation="none", extent=(0, side, side, 0))
    strength = np.clip(values / (values.max() if limit is None else limit), 0, 1)
    colours = matplotlib.colormaps["inferno"](strength)
    colours[..., 3] = 0.25 + 0.6 * strength
    axes.imshow(colours, interpolation="none", extent=(0, side, side, 0))
    bare(axes, title)


def regions(axes: Axes, image: np.ndarray, assignment: np.ndarray, title: str = "") -> None:
    """An image with the borders between its superpixels, (h, w) integers."""
    side = image.shape[0]
    axes.imshow(image, interpolation="none", extent=(0, side, side, 0))
    across, down = _borders(assignment), [(y, x) for x, y in _borders(assignment.T)]
    scale = side / np.array(assignment.shape[::-1])
    corners = np.array(across + down) * scale
    borders = MatplotlibPath(corners, [MatplotlibPath.MOVETO, MatplotlibPath.LINETO] * (len(corners) // 2))
    for colour, width, alpha in (("#000000", 1.7, 0.45), ("#ffffff", 0.8, 1.0)):
        axes.add_patch(
            PathPatch(borders, fill=False, edgecolor=colour, linewidth=width, alpha=alpha, capstyle="projecting")
        )
    bare(axes, title)


def _borders(assignment: np.ndarray) -> list[tuple[int, int]]:
    """Ends of the lines between rows, two (x, y) a line, in cells."""
    ends = []
    for row, differ in enumerate(assignment[1:] != assignment[:-1], start=1):
        (turns,) = np.nonzero(np.diff(differ, prepend=False, append=False))
        ends += [(int(column), row) for column in turns]
    return ends


def bars(axes: Axes, labels: Sequence[str], values: Mapping[str, np.ndarray], title: str = "") -> None:
    """Horizontal bars, those of student and teacher side by side."""
    colours = {"student": STUDENT, "teacher": TEACHER}
    height = 0.8 / len(values)
    for place, (who, lengths) in enumerate(values.items()):
        at = np.arange(len(labels)) + (place - (len(values) - 1) / 2) * height
        axes.barh(at, lengths, height=0.88 * height, color=colours.get(who, plots.SERIES[0]), label=who)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    if title:
        axes.set_title(title)


def labelled_bars(
    axes: Axes, labels: Sequence[str], values: Mapping[str, np.ndarray], colours: Mapping[str, Any]
) -> None:
    """Thin bars, each group under its label, where there is no room beside them."""
    height = 0.44 / len(values)
    for place, (who, lengths) in enumerate(values.items()):
        at = np.arange(len(labels)) + 0.1 + (place + 0.5) * height
        axes.barh(at, lengths, height=0.9 * height, color=colours[who], label=who)
    for row, label in enumerate(labels):
        axes.text(0, row, label, va="bottom", fontsize=8)
    axes.set(yticks=[], ylim=(len(labels) - 0.4, -0.45))
    axes.grid(axis="y", visible=False)


def pair_of_matrices(
    student: np.ndarray, teacher: np.ndarray, *, signed: bool = False, extra: int = 0
) -> tuple[Figure, Any]:
    """Student's and teacher's matrix in one scale and their difference in its own, before `extra` free axes."""
    drawn, axes = figure(1, 3 + extra, height=2.6 if not extra else 2.1)
    off = ~np.eye(len(teacher), dtype=bool)
    most = float(np.quantile(np.abs(np.concatenate([student[off], teacher[off]])), 0.995))
    heat(axes[0, 0], student, "student", limit=most, signed=signed)
    heat(axes[0, 1], teacher, "teacher", limit=most, signed=signed)
    change = student - teacher
    heat(axes[0, 2], change, "student − teacher", limit=float(np.quantile(np.abs(change[off]), 0.995)), signed=True)
    return drawn, axes
