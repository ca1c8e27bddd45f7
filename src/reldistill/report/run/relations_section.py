"""The page's pictures of relations: superpixels over images, channel graphs and their spectra."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from reldistill.report import captions
from reldistill.report.captions import caption
from reldistill.report.plots import matrix_plot, spectrum_plot
from reldistill.report.run.relations_file import Relations, spectral_order, thin_out
from reldistill.report.run.superpixel_map import colour_map, plain_map, region_map, stored_image

_MOST_IMAGES = 6


def superpixel_section(relations: Mapping[str, Relations]) -> str:
    """Runs that show the same images share one grid: the images, the teacher's regions, each student's."""

    def drawn(regions: np.ndarray, image_id: str, aspect: float, label: str) -> str:
        return region_map(regions, image_id=image_id, aspect=aspect, label=label)

    return _grids(relations, "Superpixels", captions.SUPERPIXELS, _superpixel_rows, drawn, prefix="image")


def component_section(relations: Mapping[str, Relations]) -> str:
    """The same for the first three principal components of the features."""

    def drawn(colours: np.ndarray, image_id: str, aspect: float, label: str) -> str:
        return colour_map(colours, aspect=aspect, label=label)

    return _grids(relations, "Principal components", captions.COMPONENTS, _component_rows, drawn, prefix="pca")


_Rows = list[tuple[str, np.ndarray]]


def _grids(
    relations: Mapping[str, Relations],
    title: str,
    text: str,
    rows: Callable[[Mapping[str, Relations]], _Rows],
    drawn: Callable[[np.ndarray, str, float, str], str],
    *,
    prefix: str,
) -> str:
    """A section of one grid for each set of images: the images, then a row of pictures for each network."""
    groups: dict[str, tuple[np.ndarray, dict[str, Relations]]] = {}
    for name, content in relations.items():
        if content.images is not None and rows({name: content}):
            groups.setdefault(_key(content.images), (content.images, {}))[1][name] = content
    if not groups:
        return ""
    grids = "\n".join(
        _grid(f"{prefix}-{key}", images, rows(runs), drawn, _class_names(next(iter(runs.values())), _shown(images)))
        for key, (images, runs) in groups.items()
    )
    anchor = title.lower().replace(" ", "-")
    return f'<section>\n<h2 id="{anchor}">{title}</h2>\n{grids}\n{caption(text)}\n</section>'


def _shown(images: np.ndarray) -> int:
    return min(len(images), _MOST_IMAGES)


def _grid(
    key: str,
    images: np.ndarray,
    rows: _Rows,
    drawn: Callable[[np.ndarray, str, float, str], str],
    classes: Sequence[str],
) -> str:
    shown = _shown(images)
    aspect = images.shape[1] / images.shape[2]
    ids = [f"{key}-{i}" for i in range(shown)]
    store = "".join(stored_image(image, name, aspect) for image, name in zip(images, ids, strict=False))
    cells = ['<div class="who">image</div>']
    cells += [plain_map(image_id=name, aspect=aspect, label=f"image {i + 1}") for i, name in enumerate(ids)]
    for who, pictures in rows:
        cells.append(f'<div class="who">{html.escape(who)}</div>')
        label = html.escape(who, quote=True)
        cells += [drawn(pictures[i], name, aspect, f"{label}, image {i + 1}") for i, name in enumerate(ids)]
    if any(classes):
        cells.append('<div class="who"></div>')
        cells += [f'<div class="class">{html.escape(name)}</div>' for name in classes]
    columns = f"--n: {shown}"
    return (
        f'<svg class="store" aria-hidden="true"><defs>{store}</defs></svg>\n'
        f'<div class="maps" style="{columns}">{"".join(cells)}</div>'
    )


def _superpixel_rows(runs: Mapping[str, Relations]) -> _Rows:
    """(who, regions): every different teacher once, then each run's student with its agreement."""
    rows = _teachers({name: content.teacher_superpixels for name, content in runs.items()})
    for name, content in runs.items():
        student, teacher = content.student_superpixels, content.teacher_superpixels
        if student is None:
            continue
        same_grid = teacher is not None and teacher.shape == student.shape
        agreement = f", {100 * float(np.mean(student == teacher)):.0f}\u00a0%" if same_grid else ""
        rows.append((f"{name}{agreement}", student))
    return rows


def _component_rows(runs: Mapping[str, Relations]) -> _Rows:
    """(who, colours): every different teacher once, then each run's student with what it explains."""
    rows = _teachers({name: content.teacher_components for name, content in runs.items()})
    for name, content in runs.items():
        if content.student_components is not None:
            share = "" if content.explained is None else f", {100 * float(content.explained):.0f}\u00a0%"
            rows.append((f"{name}{share}", content.student_components))
    return rows


def _teachers(found: Mapping[str, np.ndarray | None]) -> _Rows:
    rows: _Rows = []
    for name, pictures in found.items():
        if pictures is not None and not any(np.array_equal(pictures, known) for _, known in rows):
            rows.append((f"teacher, {name}" if rows else "teacher", pictures))
    return rows


def _class_names(content: Relations, shown: int) -> list[str]:
    if content.labels is None:
        return []
    classes = [] if content.classes is None else [str(name) for name in content.classes]
    return [classes[i] if 0 <= i < len(classes) else str(i) for i in content.labels[:shown].tolist()]


def _key(images: np.ndarray) -> str:
    return hashlib.sha256(str(images.shape).encode() + np.ascontiguousarray(images).tobytes()).hexdigest()[:12]


def graph_section(relations: Mapping[str, Relations]) -> str:
    """One line of panels for each run: both graphs, their difference, both spectra; one colour scale for all runs."""
    most, change = _scales(relations.values())
    blocks = [
        _graphs(f"graph{place}", name, content, most=most, change=change)
        for place, (name, content) in enumerate(relations.items())
    ]
    shown = "\n".join(block for block in blocks if block)
    if not shown:
        return ""
    return f'<section>\n<h2 id="graphs">Channel graphs</h2>\n{shown}\n{caption(captions.GRAPHS)}\n</section>'


def _scales(contents: Iterable[Relations]) -> tuple[float, float]:
    """Ends of the colour scales, of similarities and of differences: the 99.5 % quantiles off the diagonals."""
    similarities, changes = [0.2], [0.05]
    for content in contents:
        student, teacher = content.student_adjacency, content.teacher_adjacency
        similarities += [_high(a) for a in (student, teacher) if a is not None]
        if student is not None and teacher is not None and student.shape == teacher.shape:
            changes.append(_high(student - teacher))
    return min(max(similarities), 1.0), max(changes)


def _high(matrix: np.ndarray) -> float:
    off = _off_diagonal(matrix)
    return float(np.quantile(np.abs(off), 0.995)) if off.size else 0.0


def _off_diagonal(matrix: np.ndarray) -> np.ndarray:
    return matrix[~np.eye(len(matrix), dtype=bool)]


def _graphs(prefix: str, name: str, content: Relations, *, most: float, change: float) -> str:
    matrices, said = _matrices(prefix, content, most=most, change=change)
    spectra = {"teacher": content.teacher_spectrum, "student": content.student_spectrum}
    drawn = {who: values for who, values in spectra.items() if values is not None}
    panels = matrices + ([spectrum_plot(drawn, prefix=f"{prefix}spectrum")] if drawn else [])
    if not panels:
        return ""
    student, _, teacher = content.level.partition(":")
    where = f"student {student}, teacher {teacher}" if teacher and teacher != student else student
    cells = "".join(f"<div>{panel}</div>" for panel in panels)
    return (
        f'<h3>{html.escape(name)} <span class="range">{html.escape(where)}</span></h3>\n'
        f'<div class="graphs">{cells}</div>\n{said}'
    )


def _matrices(prefix: str, content: Relations, *, most: float, change: float) -> tuple[list[str], str]:
    """The panels of the graphs that are there, and what to say of their difference."""
    graphs = {"student": content.student_adjacency, "teacher": content.teacher_adjacency}
    drawn = {who: graph for who, graph in graphs.items() if graph is not None}
    if not drawn:
        return [], ""
    order = spectral_order(drawn.get("teacher", next(iter(drawn.values()))))
    unit, signed = "cosine similarity", any(float(graph.min()) < -0.05 for graph in drawn.values())
    panels = []
    for who, graph in drawn.items():
        own = order if len(graph) == len(order) else spectral_order(graph)
        ordered = thin_out(graph[np.ix_(own, own)])
        panels.append(matrix_plot(ordered, title=who, unit=unit, diverging=signed, limit=most, prefix=f"{prefix}{who}"))
    if len(drawn) < 2 or drawn["student"].shape != drawn["teacher"].shape:
        return panels, ""
    difference = drawn["student"] - drawn["teacher"]
    ordered = thin_out(difference[np.ix_(order, order)])
    title, unit = "student − teacher", "difference"
    panels.append(matrix_plot(ordered, title=title, unit=unit, diverging=True, limit=change, prefix=f"{prefix}change"))
    off = np.abs(_off_diagonal(difference))
    mean = f"{off.mean():.3f}" if off.size else "0"
    return panels, f'<p class="small">Mean size of the difference, off the diagonal: {mean}.</p>'
