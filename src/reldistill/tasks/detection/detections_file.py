"""`detections.npz`: what the networks of a detection run find in a few images, and the errors they make in all."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reldistill.core.checks import UserError
from reldistill.core.safe_files import write_arrays
from reldistill.core.safe_read import read_file
from reldistill.tasks.detection.metrics.detection_errors import KINDS, SIZES

PICTURES_FILE = "detections.npz"


@dataclass(frozen=True)
class Shown:
    """One image, and boxes as rows of left, top, right, bottom (shares of its width and height) and class index.

    Args:
        image: (H, W, 3) uint8.
        truth: (n, 5).
        student: (m, 6), the last column the score.
        teacher: (m, 6); None for a run without one.
        attention: (h, w) weight of each position in the teacher's attention, mean 1; None where there is none.
    """

    image: np.ndarray
    truth: np.ndarray
    student: np.ndarray
    teacher: np.ndarray | None = None
    attention: np.ndarray | None = None


@dataclass(frozen=True)
class Detections:
    """The file's content.

    Args:
        images: the images shown.
        classes: names of the classes.
        level: where the attention was taken; empty for none.
        errors: `student`, and `teacher` where there is one → (6, 4, 2): kind (`KINDS`) and size of the object
            (`SIZES`) → how often, and the points of AP50 that it costs.
    """

    images: Sequence[Shown]
    classes: Sequence[str]
    level: str
    errors: Mapping[str, np.ndarray]


def write_detections(folder: Path, content: Detections) -> None:
    """Write the file into a run's folder."""
    arrays = {"classes": np.array(list(content.classes)), "level": np.array(content.level)}
    for number, shown in enumerate(content.images):
        for name in ("image", "truth", "student", "teacher", "attention"):
            if (array := getattr(shown, name)) is not None:
                arrays[f"{name}_{number}"] = array
    arrays |= {f"errors_{who}": values for who, values in content.errors.items()}
    write_arrays(folder / PICTURES_FILE, **arrays)


def read_detections(folder: Path) -> Detections | None:
    """What the run folder holds; None where there is no such file, UserError where it cannot be used."""
    path = folder / PICTURES_FILE
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(read_file(path)), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        count = sum(name.startswith("image_") for name in arrays)
        names = ("image", "truth", "student", "teacher", "attention")
        images = [Shown(**{n: arrays[f"{n}_{i}"] for n in names if f"{n}_{i}" in arrays}) for i in range(count)]
        errors = {who: arrays[f"errors_{who}"] for who in ("student", "teacher") if f"errors_{who}" in arrays}
        found = Detections(images, [str(name) for name in arrays["classes"]], str(arrays["level"]), errors)
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot read {path} ({reason}): its pictures are left out") from None
    if problem := _problem(found):
        raise UserError(f"{path}: {problem}; its pictures are left out")
    return found


def _problem(found: Detections) -> str | None:
    for shown in found.images:
        if shown.image.ndim != 3 or shown.image.shape[-1] != 3 or shown.image.dtype != np.uint8 or not shown.image.size:
            return f"an image is {shown.image.dtype} of shape {shown.image.shape}"
        for boxes, columns in ((shown.truth, 5), (shown.student, 6), (shown.teacher, 6)):
            if boxes is not None and (boxes.ndim != 2 or boxes.shape[1] != columns or not np.isfinite(boxes).all()):
                return f"boxes are of shape {boxes.shape}, or not finite"
    for who, values in found.errors.items():
        if values.shape != (len(KINDS), len(SIZES), 2):
            return f"errors of the {who} are of shape {values.shape}"
    return None
