from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console

from reldistill.report.record import RunRecord
from reldistill.report.run.text import print_table, print_verdict, render_csv, render_markdown, to_json
from reldistill.report.words import count, duration, percent, signed, times


def shown(records: list[RunRecord], *, width: int, colour: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colour, color_system="standard" if colour else None
    )
    print_table(records, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_table_fits_and_loses_nothing(records: list[RunRecord], width: int) -> None:
    text = shown(records, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for piece in (
        "teacher resnet20",
        "student alone",
        "98.6",
        "88.4–94.1",
        "+5.0 ±3.5",
        "1.54×",
    ):
        assert piece in text


def test_numbers_are_right_aligned(records: list[RunRecord]) -> None:
    lines = [line for line in shown(records, width=100).splitlines() if "×" in line and "alone\n" not in line]
    ends = {len(line.rstrip()) for line in lines if line.split()[0] in ("kd", "rkd", "serkd", "sekd")}
    assert len(ends) == 1


def test_the_best_gain_is_bold_and_only_gains_beyond_noise_are_green(records: list[RunRecord]) -> None:
    text = shown(records, width=100, colour=True)
    assert "\x1b[1;32m+5.0 ±3.5\x1b[0m" in text
    assert "\x1b[32m+" not in text
    assert text.count("\x1b[1;32m") == 1


def test_names_are_not_markup(make_record) -> None:
    console = Console(file=io.StringIO(), width=100)
    records = [make_record("none"), make_record("[bold]odd[/]")]
    print_table(records, console)
    print_verdict(records, console)
    assert console.file.getvalue().count("[bold]odd[/]") >= 2  # type: ignore[attr-defined]


def test_markdown_has_the_command_beside_every_number(records: list[RunRecord]) -> None:
    lines = render_markdown(records).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert len({len(row) for row in cells}) == 1
    serkd = next(row for row in cells if row[0] == "serkd")
    assert serkd[3:8] == ["96.7", "94.3–98.1", "96.7 (7)", "**+5.0 ±3.5**", "19.0 ms"]
    assert serkd[-1] == "`reldistill distill --data digits --method serkd --out runs/serkd`"
    assert all(row[-1].startswith("`reldistill") for row in cells[2:])


def test_markdown_escapes(make_record) -> None:
    text = render_markdown([make_record("a|b_c", command=["reldistill", "--x", "a|b`c"])])
    assert "a\\|b\\_c" in text
    assert "``reldistill --x 'a\\|b`c'``" in text


def test_csv_holds_full_figures(records: list[RunRecord]) -> None:
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(render_csv(records)))}
    assert float(rows["serkd"]["gain"]) == pytest.approx(5.0)
    assert float(rows["kd"]["score_last"]) == pytest.approx(100 * 336 / 360)
    assert rows["student alone"]["gain"] == ""
    assert rows["serkd"]["gain_beyond_noise"] == "True"


def test_json_is_one_document(records: list[RunRecord]) -> None:
    records[0].history[0].train["kd"] = float("nan")
    again = json.loads(json.dumps(to_json(records), allow_nan=False))
    assert again["rows"][0]["role"] == "teacher"
    assert any("One seed each" in line for line in again["verdict"])
    assert [record["method"] for record in again["records"]] == [record.method for record in records]


def test_nothing_to_show() -> None:
    assert render_csv([]).strip() == ""
    assert to_json([])["rows"] == []
    shown([], width=80)


def test_words() -> None:
    assert [count(n) for n in (999, 9_999, 78_042, 272_474, 999_600, 11_200_000)] == [
        "999",
        "9,999",
        "78 k",
        "272 k",
        "1 M",
        "11.2 M",
    ]
    assert [duration(s) for s in (None, 0.0123, 0.019, 0.312, 1.5, 75, 3700, 2e-5)] == [
        "–",
        "12.3 ms",
        "19.0 ms",
        "312 ms",
        "1.50 s",
        "1 min 15 s",
        "1 h 01 min",
        "20.0 µs",
    ]
    assert [signed(x) for x in (1.94, -0.5, 0.04, -0.04)] == ["+1.9", "−0.5", "0.0", "0.0"]
    assert (percent(float("nan")), times(None), times(1.305)) == ("–", "–", "1.30×")
