from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from benchmarks.cases import Case
from benchmarks.pieces import seconds_by_operator

from benchmarks import relations, speed_page

FIELDS = {"part", "sizes", "ratio", "goal", "met", "measure", "note", "quick", "command", "machine"}
TIMES = {"ratio_quartiles", "seconds", "seconds_quartiles", "rounds", "clock"}


def work(times: int) -> torch.Tensor:
    total = torch.zeros(())
    for _ in range(times):
        total = total + torch.randn(200, 200).sum() * 0
    return total + 1


def case(**changes: object) -> Case:
    given: dict[str, object] = {
        "part": "p",
        "sizes": "s",
        "ours": lambda: work(1),
        "textbook": lambda: work(40),
        "goal": 2.0,
    }
    return Case(**(given | changes))  # type: ignore[arg-type]


def measured(**changes: object) -> dict[str, object]:
    return relations.measured(case(**changes), quick=True, clock="wall", seconds=1.0)


def test_a_faster_form_meets_its_goal() -> None:
    row = measured()
    assert set(row) == FIELDS | TIMES | {"agreement", "tolerance"}
    assert row["ratio"] > 2
    assert row["met"] is True
    assert row["agreement"] == 0
    assert row["rounds"] == 3


def test_other_values_or_too_little_speed_miss_it() -> None:
    assert measured(goal=1e9)["met"] is False
    assert measured(agreement=lambda: 2e-4)["met"] is False
    assert measured(agreement=lambda: 2e-4, tolerance=1e-3)["met"] is True


def test_a_cost_is_ours_over_the_other_and_bounded_above() -> None:
    row = measured(measure="costs", ours=lambda: work(40), textbook=lambda: work(1), compares_values=False)
    assert set(row) == FIELDS | TIMES
    assert row["ratio"] > 2
    assert row["met"] is False
    assert measured(measure="costs")["met"] is True


def test_pieces_are_looked_at_where_the_goal_is_missed() -> None:
    pieces = {"products (3)": 0.0123, "all else": 0.456}
    row = measured(goal=1e9, pieces=lambda: pieces)
    assert row["pieces"] == pieces
    assert "pieces" not in measured(pieces=lambda: pieces)
    row |= {"seconds": {"ours": 0.5, "compared": 1.0}, "goal": 10.0}
    assert speed_page._missed(row) == (
        "- p, s: the goal is 100 ms, ours takes 500 ms; products (3) 12.3 ms, all else 456 ms."
    )
    row |= {"measure": "costs", "seconds": {"ours": 1.25, "compared": 1.0}, "goal": 1.05}
    assert "the goal leaves 50.0 ms to add, ours adds 250 ms" in speed_page._missed(row)


def test_seconds_of_a_call_by_operator() -> None:
    block = torch.ones(64, 64)

    def name_of(operator: str, shapes: Sequence[Sequence[int]]) -> str:
        return "products" if operator == "aten::mm" and [64, 64] in shapes else ""

    found = seconds_by_operator(lambda: (block @ block @ block).sum(), name_of)
    assert list(found) == ["products (2)", "all else"]
    assert all(seconds > 0 for seconds in found.values())


@pytest.mark.parametrize("one", [one for one in relations.all_cases(True) if one.pieces], ids=lambda one: one.part)
@pytest.mark.slow
def test_every_cases_pieces(one: Case) -> None:
    assert one.pieces is not None
    found = one.pieces()
    assert len(found) > 1
    assert all(seconds > 0 for seconds in found.values())


def test_peak_memory_counts_what_was_freed_again() -> None:
    before = relations._peak_from_now_on()
    torch.ones(32 << 20).sum()
    assert 120 < (relations._peak() - before) / relations.MIB < 160


def test_rows_are_replaced_by_part_sizes_and_device(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"

    def row(ratio: float, sizes: str = "s", device: str = "CPU") -> dict[str, object]:
        return {"part": "p", "sizes": sizes, "ratio": ratio, "machine": {"device": device}}

    for one in (row(1), row(2, sizes="t"), row(3, device="GPU"), row(4)):
        relations.write_row(out, one)
    assert [r["ratio"] for r in json.loads(out.read_text())] == [4, 2, 3]


@pytest.mark.slow
def test_quick_run_writes_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the superpixels and one measured in processes of its own; each other case is called once."""
    out = tmp_path / "rows.json"
    relations.main(["--quick", "--only", "superpixel", "--out", str(out)])
    relations.main(["--quick", "--only", "extra MiB", "--out", str(out)])
    rows = json.loads(out.read_text())
    assert [row["measure"] for row in rows] == ["costs", "faster", "fits"]
    assert all(set(row) >= FIELDS and row["quick"] for row in rows)
    assert rows[2]["met"]
    assert rows[2]["extra_mib"]["compared"] is None
    assert capsys.readouterr().out.count("(goal") == 3
    assert speed_page._relations(rows).count("\n| superpixel tokens") == 2


@pytest.mark.filterwarnings("ignore:a channel graph's low eigenvectors did not converge")  # of random maps
@pytest.mark.parametrize("one", relations.all_cases(True), ids=lambda one: f"{one.part} {one.sizes}")
def test_every_case_runs_and_agrees(one: Case) -> None:
    value = one.ours()
    assert value.isfinite().all()
    if one.textbook is not None:
        expected = one.textbook()
        assert expected.isfinite().all()
        if one.measure == "faster":
            assert (
                relations._difference(value, expected) if one.agreement is None else one.agreement()
            ) <= one.tolerance


def test_cases_are_told_apart() -> None:
    for quick in (True, False):
        names = [(one.part, one.sizes) for one in relations.all_cases(quick)]
        assert len(set(names)) == len(names)


def test_speed_page_says_what_the_records_say() -> None:
    assert speed_page.PAGE.read_text(encoding="utf-8") == speed_page.page(), "run: python -m benchmarks.results_page"
