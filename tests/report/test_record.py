from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reldistill.core.checks import UserError
from reldistill.report.intervals import wilson_interval
from reldistill.report.record import SCHEMA, Epoch, find_runs, read_record, result_of, write_record
from reldistill.report.task_report import report_of

ACCURACY = report_of("classification").score


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def epoch(number: int, accuracy: float, *, seconds: float = 2.0) -> Epoch:
    return Epoch(number, number * 10, seconds, 0.1, {"total": 1.0}, {"accuracy": accuracy, "loss": 0.5})


def test_round_trip_keeps_everything(tmp_path: Path, make_record) -> None:
    record = make_record("serkd", notes=["a warning with “quotes” and <tags>"], command=["reldistill", "a b", "ü"])
    write_record(tmp_path / "run", record)
    again = read_record(tmp_path / "run")
    assert again == record
    assert again.folder == tmp_path / "run"
    assert read_record(tmp_path / "run" / "record.json") == record


def test_file_is_plain_json_that_begins_with_its_schema(tmp_path: Path, make_record) -> None:
    raw = json.loads(write_record(tmp_path, make_record("kd")).read_text(encoding="utf-8"))
    assert next(iter(raw)) == "schema"
    assert raw["schema"] == SCHEMA
    assert raw["student"]["parameters"] == 78_042
    assert "folder" not in raw


def test_what_was_left_out_is_kept_and_older_records_say_nothing_of_it(tmp_path: Path, make_record) -> None:
    record = make_record("kd")
    record.data.left_out = {".heic files": 3, "files in extra/": 1200}
    path = write_record(tmp_path, record)
    assert read_record(tmp_path).data.left_out == {".heic files": 3, "files in extra/": 1200}
    raw = json.loads(path.read_text(encoding="utf-8"))
    del raw["data"]["left_out"]
    path.write_text(json.dumps(raw), encoding="utf-8")
    assert read_record(tmp_path).data.left_out == {}


def test_no_text_of_a_record_can_move_the_cursor(tmp_path: Path, make_record) -> None:
    record = make_record("kd", notes=["\x1b[31mred\nline \x9b"])
    record.settings["settings"] = {"\x1b": ["\u2028"]}
    write_record(tmp_path, record)
    read = read_record(tmp_path)
    assert read.notes == [r"\x1b[31mred\nline \x9b"]
    assert read.settings["settings"] == {r"\x1b": [r"\u2028"]}


def test_numbers_json_cannot_hold_come_back_as_nan(tmp_path: Path, make_record) -> None:
    record = make_record("kd")
    record.history[2].train["kd"] = math.inf
    record.history[3].val["loss"] = math.nan
    text = write_record(tmp_path, record).read_text(encoding="utf-8")
    assert "Infinity" not in text
    assert "NaN" not in text
    again = read_record(tmp_path)
    assert math.isnan(again.history[2].train["kd"])
    assert math.isnan(again.history[3].val["loss"])


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, make_record, monkeypatch, moment: str) -> None:
    write_record(tmp_path, make_record("kd", hits=300))

    def crash(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, moment, crash)
    with pytest.raises(UserError, match="No space left"):
        write_record(tmp_path, make_record("kd", hits=350))
    monkeypatch.undo()
    assert read_record(tmp_path) == make_record("kd", hits=300)
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path: Path, make_record) -> None:
    write_record(tmp_path, make_record("kd"))
    with pytest.raises(TypeError):
        write_record(tmp_path, make_record("kd", settings={"odd": object()}))
    assert read_record(tmp_path) == make_record("kd")


def test_missing_record(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no record at .*give a run folder") as error:
        read_record(tmp_path / "nowhere")
    one_line(error)


def test_record_that_was_cut_short(tmp_path: Path, make_record) -> None:
    path = write_record(tmp_path, make_record("kd"))
    path.write_text(path.read_text(encoding="utf-8")[:500], encoding="utf-8")
    with pytest.raises(UserError, match="is not JSON") as error:
        read_record(tmp_path)
    one_line(error)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b"[]", b'{"a": 1}', b"3"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_record(tmp_path)
    assert "record.json" in one_line(error)


def test_unknown_schema_names_the_version_that_wrote_it(tmp_path: Path, make_record) -> None:
    write_record(tmp_path, make_record("kd", schema=7, version="9.1"))
    with pytest.raises(UserError, match=r"schema 7, this reldistill reads schema 1: .*'9\.1'") as error:
        read_record(tmp_path)
    one_line(error)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["student", "parameters"], "many", r'record\.student\.parameters must be a whole number, found "many"'),
        (["student", "parameters"], True, r"record\.student\.parameters must be a whole number"),
        (["history", 1, "train"], [1], r"record\.history\[1\]\.train must be an object"),
        (["history", 0, "val", "accuracy"], "x", r"record\.history\[0\]\.val\.accuracy must be a number"),
        (["history"], {}, r"record\.history must be a list"),
        (["teacher"], 3, r"record\.teacher must be an object"),
        (["status"], "asleep", r"record\.status must be 'running' or 'finished' or 'stopped', found \"asleep\""),
        (["command"], "reldistill", r"record\.command must be a list"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, make_record, place: list, value: object, message: str) -> None:
    path = write_record(tmp_path, make_record("kd"))
    raw = json.loads(path.read_text(encoding="utf-8"))
    inner = raw
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        read_record(tmp_path)
    one_line(error)


def test_missing_field_is_named_and_unknown_ones_are_left_out(tmp_path: Path, make_record) -> None:
    path = write_record(tmp_path, make_record("kd"))
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["from_a_later_version"] = {"x": 1}
    path.write_text(json.dumps(raw), encoding="utf-8")
    assert read_record(tmp_path) == make_record("kd")
    del raw["data"]["classes"]
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(UserError, match=r"record\.data lacks 'classes'"):
        read_record(tmp_path)


def test_result_of_a_history() -> None:
    history = [epoch(1, 80.0), epoch(2, 95.0), epoch(3, 95.0), epoch(4, 90.0)]
    result = result_of(history, score=ACCURACY, val_images=200, seconds_per_step=0.5)
    assert (result.score_last, result.score_best, result.best_epoch) == (90.0, 95.0, 2)
    assert result.score_interval_last == list(wilson_interval(180, 200))
    assert result.seconds_total == 8.0
    assert result.seconds_per_step == 0.5


def test_result_before_the_first_epoch_and_with_an_accuracy_that_is_no_number() -> None:
    assert result_of([], score=ACCURACY, val_images=100).score_last is None
    assert result_of([epoch(1, 50.0), epoch(2, math.nan)], score=ACCURACY, val_images=10).score_last == 50.0
    assert result_of([epoch(1, math.nan)], score=ACCURACY, val_images=10).best_epoch is None


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_best_is_the_first_epoch_of_the_highest_accuracy(accuracies: list[float]) -> None:
    result = result_of([epoch(i + 1, a) for i, a in enumerate(accuracies)], score=ACCURACY, val_images=0)
    assert result.score_best == max(accuracies)
    assert result.best_epoch == accuracies.index(max(accuracies)) + 1
    assert result.score_interval_last is None


def test_find_runs_takes_a_run_a_record_or_a_folder_of_runs(tmp_path: Path, make_record) -> None:
    for name in ("b", "a"):
        write_record(tmp_path / "out" / name, make_record("kd"))
    (tmp_path / "out" / "logs").mkdir()
    both = [tmp_path / "out" / "a", tmp_path / "out" / "b"]
    assert find_runs([tmp_path / "out"]) == both
    assert find_runs([str(both[1])]) == [both[1]]
    assert find_runs([both[1] / "record.json"]) == [both[1]]
    assert find_runs([both[1], tmp_path / "out"]) == [both[1], both[0]]


def test_find_runs_looks_one_level_deep_only(tmp_path: Path, make_record) -> None:
    write_record(tmp_path / "deep" / "er" / "run", make_record("kd"))
    with pytest.raises(UserError, match="no run in"):
        find_runs([tmp_path / "deep"])
    with pytest.raises(UserError, match="no folder"):
        find_runs([tmp_path / "nowhere"])
