"""The list of mutants fits the tree, so that it can be run any time."""

from __future__ import annotations

from pathlib import Path

import pytest

from mutants import MUTANTS, ROOT, SOURCE, TESTS, Mutant, Refused, ending_in, mutated, named_tests, outcome


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_line_occurs_once_and_its_tests_are_there(mutant: Mutant) -> None:
    path, text = mutated(mutant, ROOT)
    assert text != path.read_text(encoding="utf-8")
    compile(text, str(path), "exec")
    assert named_tests(mutant, ROOT)


def test_names_are_unlike() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in {
        SOURCE / "sums.py": "def total(a, b):\n    return a + b\n",
        SOURCE / "more" / "sums.py": "",
        TESTS
        / "test_sums.py": "from reldistill.sums import total\n\n\ndef test_total():\n    assert total(2, 2) == 4\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / SOURCE / "__init__.py").touch()
    return tmp_path


@pytest.mark.parametrize(("fault", "expected"), [("a * b", "alive"), ("a - b", "killed"), ("a +", "broken: ")])
def test_what_becomes_of_a_mutant(tree: Path, fault: str, expected: str) -> None:
    mutant = Mutant("sum", "reldistill/sums.py", "a + b", fault, "test_sums.py::test_total")
    assert outcome(mutant, tree).startswith(expected)
    assert "a + b" in (tree / SOURCE / "sums.py").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"line": "a - b"}, "'a - b' occurs 0 times in"),
        ({"line": "a"}, "'a' occurs 3 times in"),
        ({"file": "sums.py"}, "sums.py: 2 files below"),
        ({"file": "gone.py"}, "gone.py: 0 files below"),
        ({"tests": "test_sums.py::test_gone"}, "has no test test_gone"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(tree: Path, more: dict[str, str], message: str) -> None:
    given = {"name": "sum", "file": "reldistill/sums.py", "line": "a + b", "fault": "a", "tests": "test_sums.py"}
    with pytest.raises(Refused, match=message):
        outcome(Mutant(**{**given, **more}), tree)


def test_a_file_is_found_by_the_end_of_its_path(tree: Path) -> None:
    assert ending_in("more/sums.py", tree / SOURCE) == tree / SOURCE / "more" / "sums.py"
