"""Tables, verdict and page of a comparison and of a sweep, from cells that were made up."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from reldistill.core.checks import UserError
from reldistill.report.comparison.cell_records import CellPlan, dump_json
from reldistill.report.comparison.comparison_files import write_comparison
from reldistill.report.comparison.comparison_page import comparison_page
from reldistill.report.comparison.comparison_plots import embedding
from reldistill.report.comparison.comparison_text import comparison_csv, comparison_markdown, print_comparison, verdict
from reldistill.report.comparison.pairs_section import pairs_markdown
from reldistill.report.comparison.summary import (
    Comparison,
    Head,
    every_pair,
    gather,
    kind_in,
    read_comparison,
    summaries,
)
from reldistill.report.record import RunRecord, write_record

IMAGES = 2000
Make = Callable[..., RunRecord]


def write_reference(folder: Path, students: tuple[str, ...] = ("resnet8",)) -> None:
    random = np.random.default_rng(9)
    (folder / "reference").mkdir(parents=True)
    known = {"trained_parameters": 78_042, "training_flops": 4e7}
    methods = {"none": known, "kd": known, "rkd": known}
    teacher = {"name": "resnet20", "parameters": 272_474, "flops": 8e7, "test": 97.5, "val": 98.0}
    content = {
        "data": {
            "name": "digits", "classes": [str(i) for i in range(10)], "train_images": 1295, "val_images": 143,
            "test_images": IMAGES, "image_size": 32, "skipped": 0, "fingerprint": "ab",
        },
        "teacher": teacher,
        "students": {
            name: {"name": name, "parameters": 78_042, "flops": 2e7, "methods": methods}
            for name in students
        },
    }  # fmt: skip
    (folder / "reference/reference.json").write_text(dump_json(content))
    np.savez(
        folder / "reference/test.npz",
        labels=np.arange(IMAGES) % 10,
        shown=np.arange(0, IMAGES, 50),
        predicted=np.arange(IMAGES) % 10,
        features=random.normal(0, 1, (40, 6)),
        correlation=np.eye(10),
        untrained_0=random.normal(0, 1, (40, 6)),
    )


def write_cell(folder: Path, record: RunRecord, *, accuracy: float, seed: int, val: float | None = None) -> None:
    """A finished cell; images are right where a common difficulty and some of their own chance allow it."""
    random = np.random.default_rng(seed + round(100 * accuracy))
    hard = np.random.default_rng(0).random(IMAGES)
    order = np.argsort(hard + 0.05 * random.random(IMAGES))
    correct = np.zeros(IMAGES, dtype=bool)
    correct[order[: round(accuracy / 100 * IMAGES)]] = True
    if val is not None:
        record.result.score_best = val
    write_record(folder, record)
    np.savez(
        folder / "test.npz",
        correct_last=correct,
        correct_best=correct,
        features=random.normal(0, 1, (40, 6)),
        correlation=np.eye(10) + 0.1,
    )
    test = {
        "test_last": 100 * float(correct.mean()), "test_best": 100 * float(correct.mean()), "agreement": 90.0,
        "calibration_error": 2.5, "correlation_gap": 0.1, "peak_memory": 3 << 28, "test_images": IMAGES,
    }  # fmt: skip
    (folder / "test.json").write_text(json.dumps(test))


def compared(
    folder: Path, make_record: Make, accuracies: Mapping[str, list[float | None]], **settings: Any
) -> Comparison:
    """Method → accuracy for each seed; None for a cell that failed."""
    write_reference(folder)
    plans = []
    for method, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            plans.append(CellPlan(f"{method}/seed-{seed}", method, method, "resnet8", seed))
            cell = folder / plans[-1].cell
            if accuracy is None:
                cell.mkdir(parents=True)
                (cell / "failed.txt").write_text("the loss is not finite at batch 3, in kd\n")
            else:
                write_cell(cell, make_record(method, seed=seed), accuracy=accuracy, seed=seed)
    head = Head("compare", "0.1.0", ["reldistill", "compare", "--out", "x"], "2026-01-01T00:00:00+00:00", settings)
    return gather(head, folder, plans)


CLEAR = {"none": [90.0, 90.4, 90.2], "kd": [92.0, 92.5, 92.2], "rkd": [94.6, 95.0, 94.9], "serkd": [92.3, 92.1, 92.6]}


def test_summary_is_mean_deviation_and_paired_differences(tmp_path: Path, make_record: Make) -> None:
    rows = {row.variant: row for row in summaries(compared(tmp_path, make_record, CLEAR))}
    assert rows["rkd"].mean == pytest.approx(np.mean(CLEAR["rkd"]))
    assert rows["rkd"].std == pytest.approx(np.std(CLEAR["rkd"], ddof=1))
    between = rows["rkd"].vs_kd
    assert between is not None
    assert between.by_seed == pytest.approx([2.6, 2.5, 2.7])
    assert between.points == pytest.approx(2.6)
    assert rows["none"].vs_none is None
    assert rows["kd"].vs_kd is None
    assert rows["kd"].vs_none is not None
    assert rows["kd"].vs_none.beyond_noise
    assert rows["serkd"].training_flops is None, "nothing is known of a method that the reference has not"


def test_verdict_says_who_beats_kd_and_who_does_not(tmp_path: Path, make_record: Make) -> None:
    comparison = compared(tmp_path, make_record, {**CLEAR, "sekd": [88.0, 88.2, 88.1]})
    lines = verdict(comparison, summaries(comparison))
    assert lines[0] == (
        "The student alone gets 90.2 ± 0.2 % of the 2,000 test images right (3 seeds), the teacher 97.5 %."
    )
    assert lines[1] == "Better than kd beyond noise: rkd. Not: serkd, sekd."
    assert lines[2].startswith("rkd beats kd beyond noise: +2.6 points (95 % interval +")
    assert lines[3].startswith("serkd and kd cannot be told apart: +0.1 points (95 % interval −")
    assert lines[4].startswith("sekd is worse than kd beyond noise: −4.1 points")
    assert lines[5].startswith("kd beats the student alone beyond noise: +2.0 points")


def test_without_kd_the_student_alone_is_what_counts(tmp_path: Path, make_record: Make) -> None:
    comparison = compared(tmp_path, make_record, {name: CLEAR[name][:1] for name in ("none", "rkd")})
    rows = summaries(comparison)
    lines = verdict(comparison, rows)
    assert "Better than the student alone beyond noise: rkd." in lines
    assert "1 seed" in lines[-1]
    assert "One seed each" in comparison_markdown(comparison, rows)


def test_a_failed_cell_is_told_and_left_out(tmp_path: Path, make_record: Make) -> None:
    comparison = compared(tmp_path, make_record, {**CLEAR, "kd": [92.0, None, 92.2], "sekd": [None, None, None]})
    rows = {row.variant: row for row in summaries(comparison)}
    assert rows["kd"].seeds == [0, 2]
    assert rows["rkd"].vs_kd is not None
    assert rows["rkd"].vs_kd.by_seed == pytest.approx([2.6, 2.7])
    assert rows["sekd"].mean is None
    lines = verdict(comparison, list(rows.values()))
    assert "4 of 15 cells failed; the same command tries them again." in lines
    assert "kd, seed 1: the loss is not finite at batch 3, in kd" in lines
    page = write_comparison(comparison).read_text()
    assert "failed: the loss is not finite" in page


def test_files_are_read_back(tmp_path: Path, make_record: Make) -> None:
    comparison = compared(tmp_path, make_record, CLEAR, epochs=8)
    page = write_comparison(comparison)
    assert kind_in(tmp_path) == "compare"
    again = read_comparison(tmp_path)
    assert again.head == comparison.head
    before = {path: path.read_bytes() for path in tmp_path.glob("compare.*")}
    assert len(before) == 4
    assert write_comparison(again) == page
    assert {path: path.read_bytes() for path in tmp_path.glob("compare.*")} == before
    content = json.loads((tmp_path / "compare.json").read_text())
    assert content["summary"]["rkd"]["vs_kd"]["beyond_noise"] is True
    assert "://" not in page.read_text().replace("http://www.w3.org/", "")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda content: content.update(schema=9), "schema 9"),
        (lambda content: content["cells"][0].pop("seed"), "'seed'"),
        (lambda content: content.pop("settings"), "'settings'"),
    ],
)
def test_an_edited_file_is_one_line(
    change: Callable[[dict[str, Any]], Any], text: str, tmp_path: Path, make_record: Make
) -> None:
    write_comparison(compared(tmp_path, make_record, {"none": [90.0]}))
    content = json.loads((tmp_path / "compare.json").read_text())
    change(content)
    (tmp_path / "compare.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=text):
        read_comparison(tmp_path)


def test_no_comparison(tmp_path: Path) -> None:
    assert kind_in(tmp_path) is None
    with pytest.raises(UserError, match="holds neither"):
        read_comparison(tmp_path)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_terminal_table_fits(width: int, tmp_path: Path, make_record: Make) -> None:
    comparison = compared(tmp_path, make_record, CLEAR)
    console = Console(width=width, record=True, file=io.StringIO())
    print_comparison(comparison, summaries(comparison), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "student alone" in text
    assert "95.0" in text or "94.8" in text
    assert ("FLOPs" in text) == (width == 200)


def test_markdown_and_csv(tmp_path: Path, make_record: Make) -> None:
    comparison = compared(tmp_path, make_record, CLEAR)
    rows = summaries(comparison)
    lines = comparison_markdown(comparison, rows).splitlines()
    assert lines[0].startswith("|  | last epoch % | best epoch % | over alone | over kd |")
    assert len({line.count("|") for line in lines[:6]}) == 1
    assert comparison_csv(rows).splitlines()[0].startswith("variant,method,student,mean,std,")
    assert len(comparison_csv(rows).splitlines()) == 5


def test_every_method_against_every_other(tmp_path: Path, make_record: Make) -> None:
    comparison = compared(tmp_path, make_record, {**CLEAR, "sekd": [None, None, None]})
    rows = summaries(comparison)
    pairs = every_pair(comparison, ["none", "kd", "rkd", "sekd"])
    assert set(pairs) == set(itertools.permutations(["none", "kd", "rkd"], 2)), "a method without a run has no pair"
    of_kd = {row.variant: row.vs_kd for row in rows}
    assert pairs["rkd", "kd"] == of_kd["rkd"]
    mirrored, between = pairs["kd", "rkd"], pairs["rkd", "kd"]
    assert (mirrored.points, mirrored.low, mirrored.high) == (-between.points, -between.high, -between.low)
    assert mirrored.by_seed == pytest.approx([-2.6, -2.5, -2.7])
    assert mirrored.reversed() == between
    lines = pairs_markdown(comparison, rows)
    assert lines[0] == "| ahead of | rkd | serkd | kd | none |", "the best mean first"
    assert lines[2] == "| rkd |  | **+2.5** | **+2.6** | **+4.6** |"
    assert lines[3] == "| serkd | **−2.5** |  | +0.1 | **+2.1** |"
    page = comparison_page(comparison, rows)
    assert '<td class="behind">−2.5</td><td class=""></td><td class="">+0.1</td><td class="beyond">+2.1</td>' in page


def test_two_methods_need_no_table_of_pairs(tmp_path: Path, make_record: Make) -> None:
    comparison = compared(tmp_path, make_record, {name: CLEAR[name] for name in ("none", "kd")})
    assert pairs_markdown(comparison, summaries(comparison)) == []
    assert "Every pair" not in comparison_page(comparison, summaries(comparison))


def test_columns_that_say_nothing_are_left_out(tmp_path: Path, make_record: Make) -> None:
    without_kd = {name: values for name, values in CLEAR.items() if name != "kd"}
    comparison = compared(tmp_path / "all", make_record, CLEAR)
    page, text = write_comparison(comparison).read_text(), comparison_markdown(comparison, summaries(comparison))
    assert all(">over kd<" in page and "agrees" in one and "Agreement is" in page for one in (page, text))
    comparison = compared(tmp_path / "some", make_record, without_kd)
    rows = [replace(row, agreement=None, calibration_error=None) for row in summaries(comparison)]
    page, text = comparison_page(comparison, rows), comparison_markdown(comparison, rows)
    assert "over<br>alone" in page
    assert not any(
        word in one for one in (page, text) for word in ("over kd", "agrees", "ECE", "Agreement is", "calib.")
    )
    head, *body = (line.count("|") for line in text.splitlines()[:5])
    assert set(body) == {head}


def test_a_sweep_is_chosen_by_validation_and_not_by_test(tmp_path: Path, make_record: Make) -> None:
    students = ("resnet8", "resnet14")
    write_reference(tmp_path, students)
    plans = []
    for student in students:
        for value, (val, test) in {1: (95.0, 91.0), 10: (97.0, 92.0), 50: (96.0, 94.0)}.items():
            place = f"{student}/kd={value}"
            plans.append(CellPlan(f"{place}/seed-0", f"{student} · kd={value}", "kd", student, 0, {"kd": value}))
            write_cell(tmp_path / plans[-1].cell, make_record("kd"), accuracy=test, seed=0, val=val)
    over = {"kd": [1, 10, 50]}
    comparison = gather(Head("sweep", "0.1.0", ["reldistill"], "2026-01-01", {}, over), tmp_path, plans)
    rows = summaries(comparison)
    assert [row.variant for row in rows if row.chosen] == ["resnet8 · kd=10", "resnet14 · kd=10"]
    lines = verdict(comparison, rows)
    assert lines[0].startswith("resnet8: the validation images prefer kd = 10, with 97.0 %")
    assert "92.0 % with those weights" in lines[0]
    page = write_comparison(comparison).read_text()
    assert (tmp_path / "sweep.json").is_file()
    assert "resnet14" in page
    assert 'id="sweep"' in page


def test_embedding_is_the_same_every_time_and_keeps_neighbours() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = 10 * np.eye(3)[labels] + random.normal(0, 0.1, (60, 3))
    places = embedding(features)
    assert np.array_equal(places, embedding(features))
    assert np.abs(places).max() == pytest.approx(1)
    distance = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(axis=1)] == labels).all()
    assert not embedding(np.full((8, 3), np.nan)).any()
