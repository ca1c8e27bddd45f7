from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reldistill.report.intervals import paired_difference, unpaired_difference, wilson_interval
from reldistill.report.paired import baseline_of, comparison_table, difference, hits_by_image, labels
from reldistill.report.record import DataRecord, NetworkRecord, Result, RunRecord, read_record


def by_label(records: list[RunRecord]) -> dict:
    return {row.label: row for row in comparison_table(records)}


def trained_teacher(make_record) -> RunRecord:
    return make_record("none", hits=355, teacher=None, student=NetworkRecord("resnet20", 272_474, 32))


def test_rows_stand_teacher_first_then_the_student_alone(records: list[RunRecord]) -> None:
    assert [row.label for row in comparison_table(records)][:2] == ["teacher", "student alone"]
    assert {row.label for row in comparison_table(records)} == {
        "teacher",
        "student alone",
        "kd",
        "rkd",
        "serkd",
        "sekd",
    }


def test_numbers_of_the_rows(records: list[RunRecord]) -> None:
    rows = by_label(records)
    assert rows["student alone"].score_last == pytest.approx(100 * 330 / 360)
    assert rows["student alone"].gain is None
    assert rows["student alone"].relative_step_time == 1.0
    serkd = rows["serkd"]
    assert serkd.interval_last == pytest.approx(wilson_interval(348, 360))
    assert serkd.gain == unpaired_difference(348, 330, 360)
    assert serkd.gain.points == pytest.approx(5.0)
    assert serkd.baseline == "student alone"
    assert serkd.relative_step_time == pytest.approx(0.0190 / 0.0123)
    assert rows["rkd"].gain.points == pytest.approx(-100 * 4 / 360)
    assert serkd.command == "reldistill distill --data digits --method serkd --out runs/serkd"


def test_a_given_teacher_is_a_row_with_its_accuracy(records: list[RunRecord]) -> None:
    teacher = by_label(records)["teacher"]
    assert (teacher.network, teacher.parameters, teacher.status) == ("resnet20", 272_474, "given")
    assert teacher.score_last == 98.61
    assert teacher.interval_last == pytest.approx(wilson_interval(355, 360))


def test_a_teacher_that_was_trained_here_is_one_row_only(records: list[RunRecord], make_record) -> None:
    rows = comparison_table([*records, trained_teacher(make_record)])
    assert [row.role for row in rows].count("teacher") == 1
    assert rows[0].best_epoch is not None
    assert rows[0].gain is None


def test_a_teacher_of_the_student_s_own_name_is_found_by_its_weights(make_record) -> None:
    teacher = make_record("none", result=Result(score_last=90.0, weights={"last.safetensors": "cd" * 32}))
    alone = make_record("none", hits=320)
    network = NetworkRecord("resnet8", 78_042, 32, "last.safetensors", "cd" * 32, 90.0)
    rows = comparison_table([alone, make_record("kd", teacher=network), teacher])
    assert [(row.label, row.role) for row in rows] == [
        ("teacher", "teacher"),
        ("student alone", "alone"),
        ("kd", "method"),
    ]
    assert rows[2].gain is not None
    assert rows[2].gain.points == pytest.approx(100 * 20 / 360)


@pytest.mark.parametrize(
    "changes",
    [
        {"student": NetworkRecord("resnet14", 172_506, 32)},
        {"student": NetworkRecord("resnet8", 78_042, 32, "timm")},
        {"data": DataRecord("digits", ["0", "1"], 1437, 360, 32, 0, "other")},
        {"epochs": 5},
        {"status": "running"},
        {"status": "stopped"},
        {"method": "kd"},
    ],
)
def test_no_gain_over_a_run_that_differs_in_more_than_the_method(make_record, changes: dict) -> None:
    other = make_record(changes.pop("method", "none"), **changes)
    method = make_record("serkd")
    assert baseline_of(method, [method, other]) is None
    assert all(row.gain is None for row in comparison_table([method, other]))


def test_the_baseline_of_the_same_seed_comes_first(make_record) -> None:
    alone = [make_record("none", seed=seed, hits=330 + seed) for seed in (0, 1)]
    method = make_record("kd", seed=1, hits=340)
    assert baseline_of(method, [*alone, method]) is alone[1]
    assert baseline_of(method, [alone[0], method]) is alone[0]


def test_running_and_stopped_runs_are_shown_but_not_compared(make_record, records: list[RunRecord]) -> None:
    running = make_record("kd+rkd", status="running", result=Result(seconds_per_step=0.02))
    running.history = running.history[:3]
    row = by_label([*records, running])["kd+rkd"]
    assert row.gain is None
    assert row.epochs == 3
    assert row.score_last == running.history[-1].val["accuracy"]
    assert row.seconds_per_step == 0.02


def test_a_run_without_any_epoch_is_a_row_of_blanks(make_record) -> None:
    row = by_label([make_record("kd", status="running", history=[], result=Result())])["kd"]
    assert (row.score_last, row.interval_last, row.best_epoch, row.gain) == (None, None, None, None)


def test_per_image_hits_make_the_comparison_paired(tmp_path: Path, make_record, write_hits) -> None:
    write_hits(tmp_path / "none", make_record("none"), wrong=list(range(30)))
    write_hits(tmp_path / "kd", make_record("kd"), wrong=[*range(20), 100, 101])
    alone, kd = read_record(tmp_path / "none"), read_record(tmp_path / "kd")
    assert by_label([alone, kd])["kd"].gain == paired_difference(10, 2, 360)


@pytest.mark.parametrize(
    "content",
    [
        np.ones(359, dtype=bool),
        np.ones(360, dtype=np.int64),
        np.ones(360, dtype=bool),  # does not add up to the accuracy on record
        np.array([object()] * 360),
        b"not an array",
        None,
    ],
)
def test_hits_that_do_not_fit_are_left_out(tmp_path: Path, make_record, write_hits, content) -> None:
    record = write_hits(tmp_path, make_record("kd"), wrong=[1, 2, 3])
    path = tmp_path / "val_correct.npy"
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    assert hits_by_image(record) is None
    other = write_hits(tmp_path / "other", make_record("none"), wrong=[1])
    found = difference(record, other)
    assert found is not None
    assert not found.paired


def test_labels_tell_runs_apart_by_what_differs(make_record) -> None:
    seeds = [make_record("kd", seed=0), make_record("kd", seed=1), make_record("rkd")]
    assert labels(seeds) == ["kd · seed 0", "kd · seed 1", "rkd"]
    small = make_record("kd", student=NetworkRecord("resnet14", 172_506, 32))
    assert labels([make_record("kd"), small]) == ["kd · resnet8", "kd · resnet14"]
    assert labels([make_record("kd"), make_record("kd")]) == ["kd #1", "kd #2"]
    assert labels([make_record("kd", folder=Path("a")), make_record("kd", folder=Path("b"))]) == ["kd · a", "kd · b"]
