"""The page's pictures of relations: superpixels over images, channel graphs and their spectra."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping

import numpy as np

from reldistill.report.plots import matrix_plot, spectrum_plot
from reldistill.report.relations_file import Relations, spectral_order, thin_out
from reldistill.report.superpixel_map import image_data, plain_map, region_map

_MOST_IMAGES = 6


def superpixel_section(relations: Mapping[str, Relations]) -> str:
    """Runs that show the same images share one grid: the images, the teacher's regions, each student's."""
    groups: dict[str, dict[str, Relations]] = {}
    for name, content in relations.items():
        if content.images is not None and (
            content.student_superpixels is not None or content.teacher_superpixels is not None
        ):
            groups.setdefault(_key(content.images), {})[name] = content
    if not groups:
        return ""
    grids = "\n".join(_grid(key, runs) for key, runs in groups.items())
    return (
        f'<section>\n<h2 id="superpixels">Superpixels</h2>\n{grids}\n'
        '<p class="caption">Each patch of the image belongs to the superpixel token it contributes to most; the lines are the borders, '
        "and a colour is the same superpixel in every row. The percentage is the share of patches that student and teacher give to "
        "the same superpixel. A good student cuts objects where its teacher does; a regular checkerboard means that "
        "the tokens tell the patches apart by position only.</p>\n</section>"
    )


def _grid(key: str, runs: Mapping[str, Relations]) -> str:
    first = next(iter(runs.values()))
    assert first.images is not None
    shown = min(len(first.images), _MOST_IMAGES)
    aspect = first.images.shape[1] / first.images.shape[2]
    ids = [f"image-{key}-{i}" for i in range(shown)]
    store = "".join(_stored(image, name, aspect) for image, name in zip(first.images, ids, strict=False))
    cells = ['<div class="who">image</div>']
    cells += [plain_map(image_id=name, aspect=aspect, label=f"image {i + 1}") for i, name in enumerate(ids)]
    for who, regions in _rows(runs):
        cells.append(f'<div class="who">{html.escape(who)}</div>')
        label = html.escape(who, quote=True)
        cells += [
            region_map(regions[i], image_id=name, aspect=aspect, label=f"{label}, image {i + 1}")
            for i, name in enumerate(ids)
        ]
    captions = _class_names(first, shown)
    if any(captions):
        cells.append('<div class="who"></div>')
        cells += [f'<div class="class">{html.escape(name)}</div>' for name in captions]
    columns = f"grid-template-columns: minmax(5.5rem, 9rem) repeat({shown}, minmax(0, 7.5rem))"
    return f'<svg class="store" aria-hidden="true"><defs>{store}</defs></svg>\n<div class="maps" style="{columns}">{"".join(cells)}</div>'


def _rows(runs: Mapping[str, Relations]) -> list[tuple[str, np.ndarray]]:
    """(who, regions): every different teacher once, then each run's student with its agreement."""
    rows: list[tuple[str, np.ndarray]] = []
    teachers: list[np.ndarray] = []
    for name, content in runs.items():
        regions = content.teacher_superpixels
        if regions is not None and not any(np.array_equal(regions, known) for known in teachers):
            teachers.append(regions)
            rows.append(("teacher" if len(teachers) == 1 else f"teacher, {name}", regions))
    for name, content in runs.items():
        student, teacher = content.student_superpixels, content.teacher_superpixels
        if student is None:
            continue
        same_grid = teacher is not None and teacher.shape == student.shape
        agreement = f", {100 * float(np.mean(student == teacher)):.0f} %" if same_grid else ""
        rows.append((f"student, {name}{agreement}", student))
    return rows


def _stored(image: np.ndarray, name: str, aspect: float) -> str:
    small = ' class="small"' if max(image.shape[:2]) <= 64 else ""
    return f'<image id="{name}"{small} width="100" height="{100 * aspect:g}" preserveAspectRatio="none" href="{image_data(image)}"/>'


def _class_names(content: Relations, shown: int) -> list[str]:
    if content.labels is None:
        return []
    classes = [] if content.classes is None else [str(name) for name in content.classes]
    return [classes[i] if 0 <= i < len(classes) else str(i) for i in content.labels[:shown].tolist()]


def _key(images: np.ndarray) -> str:
    return hashlib.sha256(str(images.shape).encode() + np.ascontiguousarray(images).tobytes()).hexdigest()[:12]


def graph_section(relations: Mapping[str, Relations]) -> str:
    """One line of panels for each run: both graphs, their difference, both spectra."""
    blocks = [_graphs(f"graph{place}", name, content) for place, (name, content) in enumerate(relations.items())]
    shown = "\n".join(block for block in blocks if block)
    if not shown:
        return ""
    return (
        f'<section>\n<h2 id="graphs">Channel graphs</h2>\n{shown}\n'
        '<p class="caption">Each row and column is a channel, its colour how alike two channels respond (cosine similarity, '
        "averaged over a batch). Channels stand in the order of the teacher’s Fiedler vector, so that groups that respond together form "
        "blocks. The student has learned the teacher’s relations where its matrix shows the same blocks, the difference is "
        "pale, and the two spectra (eigenvalues of the normalised Laplacian; small ones count the groups) lie on each other."
        "</p>\n</section>"
    )


def _graphs(prefix: str, name: str, content: Relations) -> str:
    student, teacher = content.student_adjacency, content.teacher_adjacency
    reference = teacher if teacher is not None else student
    panels = []
    said = ""
    if reference is not None:
        order = spectral_order(reference)
        signed = any(a is not None and float(a.min()) < -0.05 for a in (student, teacher))
        for who, adjacency in (("student", student), ("teacher", teacher)):
            if adjacency is not None:
                own = order if len(adjacency) == len(order) else spectral_order(adjacency)
                panels.append(
                    matrix_plot(
                        thin_out(adjacency[np.ix_(own, own)]),
                        title=who,
                        unit="cosine similarity",
                        diverging=signed,
                        limit=1.0,
                        prefix=f"{prefix}{who}",
                    )
                )
        if student is not None and teacher is not None and student.shape == teacher.shape:
            change = (student - teacher)[np.ix_(order, order)]
            off = np.abs(change[~np.eye(len(change), dtype=bool)])
            limit = max(float(np.quantile(off, 0.99)) if off.size else 0.0, 0.1)
            panels.append(
                matrix_plot(
                    thin_out(change),
                    title="student − teacher",
                    unit="difference",
                    diverging=True,
                    limit=limit,
                    prefix=f"{prefix}change",
                )
            )
            said = (
                f" Two channels’ similarity differs from the teacher’s by {off.mean():.3f} on average."
                if off.size
                else ""
            )
    spectra = {"teacher": content.teacher_spectrum, "student": content.student_spectrum}
    drawn = {who: values for who, values in spectra.items() if values is not None}
    if drawn:
        panels.append(spectrum_plot(drawn, prefix=f"{prefix}spectrum"))
    if not panels:
        return ""
    where = f' <span class="range">{html.escape(content.level.replace(":", " : "))}</span>' if content.level else ""
    cells = "".join(f"<div>{panel}</div>" for panel in panels)
    note = f'<p class="small">{said.strip()}</p>' if said else ""
    return f'<h3>{html.escape(name)}{where}</h3>\n<div class="graphs">{cells}</div>\n{note}'
