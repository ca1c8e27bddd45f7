"""What the report knows of students of features."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from reldistill.report.agreement import agreement
from reldistill.report.draws import draws, means
from reldistill.report.record import RunRecord
from reldistill.report.task_report import Score, TaskReport

_CAPTION = """
Relations is how alike student and teacher relate the held-out images to each other: the correlation of their cosine
similarities over all pairs of images, percent, between their pooled vectors less the mean. 100 less it is the relation
gap. The 95 % interval says how far it may move with another draw of such images (500 draws with replacement, corrected
for their bias). It says how well a student imitates, not how useful its features are: <code>reldistill evaluate RUN
--probe knn --data PHOTOS</code> measures that on labelled images. With <code>--probe-data</code> the score is knn
instead: for how many of the probe's held-out images the 20 nearest training images vote for the right class.
"""


RELATIONS = Score("relations", counted=False, alone=False)
KNN = Score("knn", counted=False, alone=False)


def drawn_scores(record: RunRecord) -> np.ndarray | None:
    """(draws,) scores of draws of the validation images; None where nothing is on record."""
    path = None if record.folder is None or record.result.by_image is None else record.folder / record.result.by_image
    if path is None or not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if record.score.name == KNN.name:
                return means(file["right"])
            student, teacher = file["student"], file["teacher"]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    return agreement(student.astype(np.float64), teacher.astype(np.float64), draws(len(student)))


def _score_of(settings: Mapping[str, Any]) -> Score:
    return RELATIONS if settings.get("probe_data") is None else KNN


REPORT = TaskReport(RELATIONS, _CAPTION, draws=drawn_scores, score_of=_score_of)
