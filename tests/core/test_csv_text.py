"""Cells that a spreadsheet would run, and numbers that stay numbers."""

from __future__ import annotations

import csv
import io

import pytest

from reldistill.core.csv_text import csv_text


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", '=HYPERLINK("http://x")'])
def test_text_never_begins_like_a_formula(cell: str) -> None:
    rows = list(csv.reader(io.StringIO(csv_text([{cell: cell}], None))))
    for row in rows:
        assert not row[0].lstrip().startswith(("=", "+", "-", "@"))
        assert row[0].isprintable()


def test_numbers_and_other_text_stay_as_they_are() -> None:
    rows = [{"run": "kd, rkd", "gain": -1.25, "n": -3, "best": None, "hit": True}, {"run": 'a "b"', "gain": 1e-7}]
    assert csv_text(rows) == 'run,gain,n,best,hit\n"kd, rkd",-1.25,-3,,True\n"a ""b""",1e-07,,,\n'
    assert csv_text(rows, ["gain", "gone"]) == "gain,gone\n-1.25,\n1e-07,\n"
    assert csv_text([]) == "\n"
