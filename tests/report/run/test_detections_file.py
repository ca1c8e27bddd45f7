from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drawn_results import random_results
from reldistill.core.checks import UserError
from reldistill.core.safe_files import write_arrays
from reldistill.report.paired import comparison_table
from reldistill.report.record import Epoch, RunRecord, result_of, write_record
from reldistill.report.run.render import render_html
from reldistill.report.run.verdict import verdict
from reldistill.tasks.detection.detections_file import (
    PICTURES_FILE,
    Detections,
    Shown,
    read_detections,
    write_detections,
)
from reldistill.tasks.detection.metrics.coco_ap import coco_scores
from reldistill.tasks.detection.metrics.detection_results import to_arrays
from reldistill.tasks.detection.sections import detections_section, errors_section

CLASSES = ["cat", "dog", "bird <small>"]


def shown(*, teacher: bool = True) -> Shown:
    image = np.full((40, 60, 3), 128, np.uint8)
    truth = np.array([[0.1, 0.1, 0.6, 0.9, 2]], np.float32)
    found = np.array([[0.1, 0.1, 0.5, 0.9, 1, 0.8], [0.2, 0.2, 0.9, 0.9, 0, 0.4]], np.float32)
    return Shown(image, truth, found, found[:1] if teacher else None, np.ones((4, 6)) if teacher else None)


def detections(*, teacher: bool = True) -> Detections:
    errors = {"student": np.arange(48.0).reshape(6, 4, 2)}
    if teacher:
        errors["teacher"] = errors["student"] / 2
    return Detections([shown(teacher=teacher)] * 2, CLASSES, "p3" if teacher else "", errors)


def detector_run(folder: Path, make_record, method: str, *, seed: int, **changes) -> RunRecord:
    """A finished run of detection whose student found random boxes."""
    images = random_results(24, classes=3, seed=seed)
    ap = coco_scores(images, classes=3).values["ap"]
    history = [Epoch(1, 10, 2.0, 0.1, {"total": 1.0, "task": 1.0}, {"AP": ap, "AP50": 2 * ap})]
    record = make_record(method, task="detection", history=history, **changes)
    record.data.classes, record.data.val_images = CLASSES, len(images)
    record.result = result_of(history, score=record.score, val_images=len(images), by_image="val_detections.npz")
    write_record(folder, record)
    write_arrays(folder / "val_detections.npz", **to_arrays(images))
    record.folder = folder
    return record


@pytest.mark.parametrize("teacher", [True, False])
def test_what_is_written_is_read(tmp_path: Path, teacher: bool) -> None:
    content = detections(teacher=teacher)
    write_detections(tmp_path, content)
    found = read_detections(tmp_path)
    assert found is not None
    assert (found.classes, found.level) == (CLASSES, content.level)
    assert set(found.errors) == set(content.errors)
    for one, other in zip(found.images, content.images, strict=True):
        for name in ("image", "truth", "student", "teacher", "attention"):
            np.testing.assert_equal(getattr(one, name), getattr(other, name))


def test_no_file_is_no_detections(tmp_path: Path) -> None:
    assert read_detections(tmp_path) is None


@pytest.mark.parametrize("broken", ["bytes", "boxes", "errors"])
def test_a_file_that_cannot_be_used_is_said_in_one_line(tmp_path: Path, broken: str) -> None:
    content = detections()
    if broken == "boxes":
        content.images[0].truth[0, 0] = np.nan
    if broken == "errors":
        content.errors["student"] = np.zeros((2, 2))  # type: ignore[index]
    write_detections(tmp_path, content)
    if broken == "bytes":
        (tmp_path / PICTURES_FILE).write_bytes(b"no archive")
    with pytest.raises(UserError, match="left out") as said:
        read_detections(tmp_path)
    assert "\n" not in str(said.value)


def test_boxes_of_every_network_stand_over_the_images() -> None:
    page = detections_section({"student alone": detections(), "sekd": detections()})
    assert page.count("<image ") == 2
    assert [page.count(f">{who}<") for who in ("what is there", "teacher", "student alone", "sekd")] == [1, 1, 1, 1]
    assert "teacher&#x27;s attention, p3" in page
    assert "bird &lt;small&gt;" in page
    assert "<small>" not in page
    # two images: truth, teacher, two students with two boxes each; and the attention's cells
    assert page.count("<title>") == 2 * (1 + 1 + 2 + 2)


def test_a_teachers_own_run_is_shown_once() -> None:
    content = detections()
    own = Detections([Shown(s.image, s.truth, s.teacher) for s in content.images], CLASSES, "", {})  # type: ignore[arg-type]
    page = detections_section({"sekd": content, "its own run": own})
    assert "its own run" not in page


def test_errors_are_counted_by_size_for_every_network() -> None:
    page = errors_section({"sekd": detections()})
    assert page.count("<figure>") == 4
    assert "14 / " not in page.split("<tbody>")[0]
    assert "0<br>" in page
    assert "2 / 4 / 6" in page
    assert errors_section({}) == ""


def test_runs_of_detection_are_compared_by_draws_of_the_images(tmp_path: Path, make_record) -> None:
    runs = [
        detector_run(tmp_path / "none", make_record, "none", seed=0),
        detector_run(tmp_path / "sekd", make_record, "sekd", seed=1),
    ]
    rows = {row.role: row for row in comparison_table(runs)}
    low, high = rows["alone"].interval_last or (0, 0)
    assert low < (rows["alone"].score_last or 0) < high
    gain = rows["method"].gain
    assert gain is not None
    assert gain.paired
    assert gain.low < gain.points < gain.high
    assert gain.points == pytest.approx((rows["method"].score_last or 0) - (rows["alone"].score_last or 0))
    assert "AP" in verdict(runs)
    assert "images right" not in verdict(runs)
    write_detections(tmp_path / "sekd", detections())
    page = render_html([tmp_path], tmp_path / "report.html").read_text()
    assert "validation AP, %" in page
    assert 'id="boxes"' in page
    assert "McNemar" not in page


def test_runs_of_two_tasks_are_not_put_on_one_page(tmp_path: Path, make_record) -> None:
    detector_run(tmp_path / "boxes", make_record, "none", seed=0)
    write_record(tmp_path / "classes", make_record("none"))
    with pytest.raises(UserError, match="classification and of detection"):
        render_html([tmp_path], tmp_path / "report.html")
