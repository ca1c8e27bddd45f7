"""What the report knows of detection."""

from __future__ import annotations

import functools
import io
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from reldistill.core.safe_read import read_file
from reldistill.report.draws import draws
from reldistill.report.record import RunRecord
from reldistill.report.task_report import Score, Section, TaskReport
from reldistill.tasks.detection.detections_file import Detections, read_detections
from reldistill.tasks.detection.metrics.detection_results import from_arrays
from reldistill.tasks.detection.metrics.resampled_ap import average_precisions, match

_CAPTION = """
AP is COCO’s average precision, the mean over IoU 0.5 to 0.95 and over the classes, on the validation images. The 95 %
interval says how far it may move with another draw of such images (500 draws with replacement, corrected for their
bias). Gains are over the student alone at the last epoch, ± half their 95 % interval over the same draws for both,
which is drawn beside them; green marks a gain whose interval keeps clear of 0. The best epoch was picked on these same
images and flatters every run a little.
"""


def drawn_precisions(record: RunRecord) -> np.ndarray | None:
    """(draws,) APs of draws of the validation images; None where it is not on record what was found in them."""
    path = None if record.folder is None or record.result.by_image is None else record.folder / record.result.by_image
    if path is None or not path.is_file():
        return None
    return _drawn_from(path, path.stat().st_mtime_ns, record.data.val_images, len(record.data.classes))


@functools.lru_cache(maxsize=256)
def _drawn_from(path: Path, _modified: int, images: int, classes: int) -> np.ndarray | None:
    try:
        with np.load(io.BytesIO(read_file(path)), allow_pickle=False) as file:
            found = from_arrays({name: file[name] for name in file.files})
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error):
        return None
    if len(found) != images:
        return None
    return average_precisions(match(found, classes=classes), draws(images))


def _found(runs: Mapping[str, Detections]) -> str:
    from reldistill.tasks.detection.sections import detections_section  # here, as only a page needs a plotting library

    return detections_section(runs)


def _errors(runs: Mapping[str, Detections]) -> str:
    from reldistill.tasks.detection.sections import errors_section

    return errors_section(runs)


REPORT = TaskReport(
    Score("AP", counted=False),
    _CAPTION,
    draws=drawn_precisions,
    sections=(Section(read_detections, _found), Section(read_detections, _errors)),
)
