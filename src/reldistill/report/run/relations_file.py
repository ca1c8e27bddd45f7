"""`relations.npz`: the relations inside the two networks of a run, written by the trainer and drawn by the page."""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reldistill.core.checks import UserError
from reldistill.core.safe_read import read_file

RELATIONS_FILE = "relations.npz"


@dataclass(frozen=True)
class Relations:
    """The file's content; whatever the method does not have is None. n images, token grid (h, w), C channels.

    Args:
        images: (n, H, W, 3) uint8, as the data set holds them.
        labels: (n,) class indices.
        classes: names of the classes.
        student_superpixels: (n, h, w) integers: for each token the superpixel it is assigned to most.
        teacher_superpixels: the same for the teacher, whose grid may differ.
        student_components: (n, h, w, 3) uint8, the student's prediction of the teacher's principal components.
        teacher_components: (n, h, w, 3) uint8, the first three.
        explained: the share of their variance that the student explains.
        level: where the graphs were taken, `student level:teacher level`.
        student_adjacency: (C, C) cosine similarity of the channels, averaged over a batch.
        teacher_adjacency: the same for the teacher.
        student_spectrum: (C,) eigenvalues of the normalised Laplacian, ascending.
        teacher_spectrum: the same for the teacher.
    """

    images: np.ndarray | None = None
    labels: np.ndarray | None = None
    classes: np.ndarray | None = None
    student_superpixels: np.ndarray | None = None
    teacher_superpixels: np.ndarray | None = None
    student_components: np.ndarray | None = None
    teacher_components: np.ndarray | None = None
    explained: np.ndarray | None = None
    level: str = ""
    student_adjacency: np.ndarray | None = None
    teacher_adjacency: np.ndarray | None = None
    student_spectrum: np.ndarray | None = None
    teacher_spectrum: np.ndarray | None = None


_AXES = {
    "images": (4, "iu"),
    "labels": (1, "iu"),
    "classes": (1, "U"),
    "student_superpixels": (3, "iu"),
    "teacher_superpixels": (3, "iu"),
    "student_components": (4, "u"),
    "teacher_components": (4, "u"),
    "explained": (0, "f"),
    "student_adjacency": (2, "f"),
    "teacher_adjacency": (2, "f"),
    "student_spectrum": (1, "f"),
    "teacher_spectrum": (1, "f"),
}


def read_relations(folder: Path) -> Relations | None:
    """What the run folder holds, checked; None where there is no such file, UserError where it cannot be used."""
    path = folder / RELATIONS_FILE
    if not path.exists():
        return None
    found: dict[str, Any] = {}
    try:
        with np.load(io.BytesIO(read_file(path)), allow_pickle=False) as file:
            for name in file.files:
                if name in _AXES:
                    found[name] = file[name]
                elif name == "level":
                    found[name] = str(file[name])
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot read {path} ({reason}): its pictures are left out") from None
    for name, array in found.items():
        if name in _AXES and (problem := _problem(name, array, images=found.get("images"))):
            raise UserError(f"{path}: {name} {problem}; its pictures are left out")
    return Relations(**found)


def _problem(name: str, array: np.ndarray, *, images: np.ndarray | None) -> str | None:
    dimensions, kinds = _AXES[name]
    if array.ndim != dimensions or array.dtype.kind not in kinds:
        return f"is {array.dtype} of shape {array.shape}"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return "holds numbers that are not finite"
    if name.endswith(("images", "components")) and (array.shape[-1] != 3 or array.dtype != np.uint8):
        return f"is {array.dtype} of shape {array.shape}, not uint8 of (n, H, W, 3)"
    if name.endswith(("superpixels", "components")) and images is not None and len(array) != len(images):
        return f"shows {len(array)} images of {len(images)}"
    if name.endswith("adjacency") and array.shape[0] != array.shape[1]:
        return f"is not square: {array.shape}"
    return "is empty" if array.size == 0 else None


def spectral_order(adjacency: np.ndarray) -> np.ndarray:
    """(C, C) → (C,) order of the channels along the Fiedler vector, so that channels that fire together stand together.

    The vector is that of the smallest eigenvalue but one of I - D^(-1/2) W D^(-1/2), W = max(A, 0), scaled back by
    D^(-1/2).
    """
    weights = np.maximum(adjacency.astype(np.float64), 0)
    weights = (weights + weights.T) / 2
    scale = 1 / np.sqrt(np.maximum(weights.sum(axis=1), 1e-12))
    _, vectors = np.linalg.eigh(np.eye(len(weights)) - scale[:, None] * weights * scale)
    return np.argsort(vectors[:, min(1, len(weights) - 1)] * scale, kind="stable")


def thin_out(matrix: np.ndarray, *, most: int = 112) -> np.ndarray:
    """(C, C) → at most (`most`, `most`), each entry the mean of a block: finer detail is only file size."""
    size = len(matrix)
    if size <= most:
        return matrix
    edges = np.linspace(0, size, most + 1).astype(int)
    starts, widths = edges[:-1], np.diff(edges)
    sums = np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)
    return sums / np.outer(widths, widths)
