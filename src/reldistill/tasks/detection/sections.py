"""The page's pictures of detection: what each network finds in a few images, and which errors it makes."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping, Sequence

import numpy as np

from reldistill.report.captions import caption
from reldistill.report.plots import INK, errors_plot, line_key, style_of
from reldistill.report.run.superpixel_map import open_frame, stored_image
from reldistill.tasks.detection.detections_file import Detections, Shown
from reldistill.tasks.detection.metrics.detection_errors import KINDS, SIZES

_SIDE = 320

BOXES = """
The boxes that are labelled, and those that each network finds with a score of 0.3 or more, each class in its own
colour; a box’s class and score show when the pointer rests on it. The attention is the teacher’s, as SEKD weighs
positions by it: dark is where little weight lies. A good student finds what its teacher finds, with boxes as tight.
"""

ERRORS = """
Wrong detections and missed objects, each counted once, after TIDE (Bolya et al., ECCV 2020): the right place with
another class, the right class with a loose box (IoU 0.1 to 0.5), both, a second box on an object that has been found,
nothing there at all, and objects that no detection touches. The bars say how many points of AP50 would be gained were
that kind of error fixed alone; small objects are below 32² pixels, large ones above 96². Distillation should shorten
the student’s bars towards the teacher’s.
"""


def detections_section(found: Mapping[str, Detections]) -> str:
    """Runs that show the same images share one grid: what is there, what the teacher finds, what each student finds."""
    groups: dict[str, dict[str, Detections]] = {}
    for name, content in found.items():
        if content.images:
            groups.setdefault(_key(content.images), {})[name] = content
    if not groups:
        return ""
    grids = "\n".join(_grid(key, runs) for key, runs in groups.items())
    return f'<section>\n<h2 id="boxes">What is found</h2>\n{grids}\n{caption(BOXES)}\n</section>'


def _grid(key: str, runs: Mapping[str, Detections]) -> str:
    first = next(iter(runs.values()))
    ids = [f"photo-{key}-{i}" for i in range(len(first.images))]
    aspects = [shown.image.shape[0] / shown.image.shape[1] for shown in first.images]
    store = "".join(
        stored_image(shown.image, name, aspect, side=_SIDE)
        for shown, name, aspect in zip(first.images, ids, aspects, strict=True)
    )
    cells = []
    for who, drawings in _rows(runs):
        cells.append(f'<div class="who">{html.escape(who)}</div>')
        label = html.escape(who, quote=True)
        cells += [
            f"{open_frame(name, aspect, f'{label}, image {i + 1}')}{drawing(aspect)}</svg>"
            for i, (drawing, name, aspect) in enumerate(zip(drawings, ids, aspects, strict=True))
        ]
    return (
        f'<svg class="store" aria-hidden="true"><defs>{store}</defs></svg>\n'
        f'<div class="maps" style="--n: {len(ids)}">{"".join(cells)}</div>'
    )


class _Boxes:
    """Boxes over an image 100 units wide, each in its class's colour, named where there is room."""

    def __init__(self, boxes: np.ndarray, classes: Sequence[str]) -> None:
        self.boxes, self.classes = boxes, classes

    def __call__(self, aspect: float) -> str:
        parts = []
        # the best last, on top of the others
        for row in self.boxes[::-1]:
            left, top, right, bottom = (row[:4] * np.array([100, 100 * aspect, 100, 100 * aspect])).tolist()
            label = int(row[4])
            name = self.classes[label] if 0 <= label < len(self.classes) else str(label)
            score = f" {row[5]:.2f}" if len(row) > 5 else ""
            colour = f"hsl({label * 137.508 % 360:.0f} 90% 58%)"
            parts.append(
                f'<rect x="{left:.2f}" y="{top:.2f}" width="{max(right - left, 0):.2f}" '
                f'height="{max(bottom - top, 0):.2f}" fill="none" stroke="{colour}" stroke-width="1.1">'
                f"<title>{html.escape(name)}{score}</title></rect>"
            )
            if right - left >= 2.6 * len(name) + 2 and bottom - top >= 8:
                parts.append(
                    f'<text x="{left + 1.2:.2f}" y="{top + 5.4:.2f}" font-size="5" fill="{colour}" '
                    f'paint-order="stroke" stroke="#000" stroke-width="1.1">{html.escape(name)}</text>'
                )
        return "".join(parts)


class _Attention:
    """The teacher's attention over an image: darkness where it looks little."""

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights / max(float(weights.max()), 1e-12)

    def __call__(self, aspect: float) -> str:
        rows, columns = self.weights.shape
        width, height = 100 / columns, 100 * aspect / rows
        return "".join(
            f'<rect x="{column * width:.2f}" y="{row * height:.2f}" width="{width + 0.05:.2f}" '
            f'height="{height + 0.05:.2f}" opacity="{0.85 * (1 - weight):.2f}"/>'
            for row, line in enumerate(self.weights)
            for column, weight in enumerate(line)
        )


def _rows(runs: Mapping[str, Detections]) -> list[tuple[str, list[_Boxes | _Attention]]]:
    """(who, a drawing for each image): what is there, every different teacher once, then each run's student."""
    first = next(iter(runs.values()))
    rows: list[tuple[str, list[_Boxes | _Attention]]] = [
        ("what is there", [_Boxes(shown.truth, first.classes) for shown in first.images])
    ]
    teachers: list[list[np.ndarray]] = []
    for name, content in runs.items():
        boxes = [shown.teacher for shown in content.images if shown.teacher is not None]
        if len(boxes) < len(content.images) or any(_same(boxes, known) for known in teachers):
            continue
        teachers.append(boxes)
        extra = "" if len(teachers) == 1 else f", {name}"
        rows.append((f"teacher{extra}", [_Boxes(one, content.classes) for one in boxes]))
        masks = [shown.attention for shown in content.images if shown.attention is not None]
        if len(masks) == len(content.images):
            rows.append((f"teacher's attention, {content.level}{extra}", [_Attention(mask) for mask in masks]))
    for name, content in runs.items():
        boxes = [shown.student for shown in content.images]
        if not any(_same(boxes, known) for known in teachers):  # else it is the teacher's own run
            rows.append((name, [_Boxes(one, content.classes) for one in boxes]))
    return rows


def _same(boxes: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(boxes, others, strict=True))


def _key(images: Sequence[Shown]) -> str:
    digest = hashlib.sha256()
    for shown in images:
        digest.update(str(shown.image.shape).encode() + np.ascontiguousarray(shown.image).tobytes())
    return digest.hexdigest()[:12]


def errors_section(found: Mapping[str, Detections]) -> str:
    """What each kind of error costs each network, as a plot, and how often it happens by size, as a table."""
    tables: dict[str, np.ndarray] = {}
    for name, content in found.items():
        teacher = content.errors.get("teacher")
        if teacher is not None and not any(np.array_equal(teacher, known) for known in tables.values()):
            tables = {f"teacher, {name}" if "teacher" in tables else "teacher": teacher, **tables}
        if "student" in content.errors:
            tables[name] = content.errors["student"]
    if not tables:
        return ""
    plots = ""
    most = max(float(np.nan_to_num(table[:, :, 1]).max()) for table in tables.values())
    for size in range(len(SIZES)):
        if not any(table[:, size, 0].any() for table in tables.values()):
            continue
        costs = {who: table[:, size, 1] for who, table in tables.items()}
        plots += f"<figure>{errors_plot(costs, KINDS, most=most, title=_size_words(size))}</figure>"
    return (
        f'<section>\n<h2 id="errors">Errors</h2>\n{_legend(tables)}\n<div class="panels">{plots}</div>\n'
        f"{_table(tables)}\n{caption(ERRORS)}\n</section>"
    )


def _legend(tables: Mapping[str, np.ndarray]) -> str:
    keys = []
    for place, who in enumerate(tables):
        colour = INK if place == 0 else style_of(place - 1)[0]
        keys.append(f"<span>{line_key(colour, '-')} {html.escape(who)}</span>")
    return f'<p class="legend small">{" ".join(keys)}</p>'


def _size_words(size: int) -> str:
    return "all objects" if size == 0 else f"{SIZES[size]} objects"


def _table(tables: Mapping[str, np.ndarray]) -> str:
    head = "".join(f'<th scope="col">{kind}</th>' for kind in KINDS)
    rows = []
    for who, table in tables.items():
        cells = "".join(
            f"<td>{int(counts[0]):,}<br><span class='range'>{' / '.join(f'{int(c):,}' for c in counts[1:])}</span></td>"
            for counts in table[:, :, 0]
        )
        rows.append(f'<tr><th scope="row">{html.escape(who)}</th>{cells}</tr>')
    return (
        '<div class="scroll"><table class="counts"><thead><tr><th scope="col">how often<br>'
        f"<span class='range'>(small / medium / large)</span></th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
