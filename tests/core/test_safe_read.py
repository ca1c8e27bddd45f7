"""Files that anybody may have written: YAML 1.2 by hand-made values, and every way to be unreadable."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reldistill.core.safe_read import Unreadable, dump_yaml, parse_json, parse_yaml, read_file, why_not_file

YAML_12: dict[str, Any] = {
    "1:1": "1:1", "12:30:45": "12:30:45", "yes": "yes", "no": "no", "on": "on", "Off": "Off", "y": "y", "true": True,
    "False": False, "~": None, "null": None, "1_000": "1_000", "010": 10, "0o10": 8, "0x1F": 31, "-7": -7, "1e-3": 1e-3,
    "1E3": 1000.0, ".5": 0.5, "5.": 5.0, "-.inf": float("-inf"), "2024-01-31": "2024-01-31", "'1'": "1", "=": "=",
    "<<": "<<", "1.2.3": "1.2.3", "0b1": "0b1", "e5": "e5",
}  # fmt: skip


@pytest.mark.parametrize("text", YAML_12)
def test_scalars_are_those_of_yaml_1_2(text: str) -> None:
    found = parse_yaml(f"a: {text}")["a"]
    assert found == YAML_12[text]
    assert type(found) is type(YAML_12[text])


text = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]))  # what an option may be
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))


@given(values)
def test_what_is_dumped_is_read_again(value: Any) -> None:
    assert parse_yaml(dump_yaml({"a": value})) == {"a": value}


@pytest.mark.parametrize("name", [*YAML_12, "1e2", "3", "1.5", "-", "? a", "#", " a", "a: b", "\n", ""])
def test_text_that_looks_like_something_else_is_dumped_as_text(name: str) -> None:
    assert parse_yaml(dump_yaml([name])) == [name]


def test_bytes_may_be_utf_16_with_its_mark() -> None:
    assert parse_yaml("a: ä".encode("utf-16")) == {"a": "ä"}
    assert parse_yaml("\ufeffa: ä".encode()) == {"a": "ä"}


def test_aliases_are_read_while_they_stay_small() -> None:
    assert parse_yaml("a: &x [1, 2]\nb: *x") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 200_000, "nested too deep"),
        ("a: &a [*a]", "more than 100,000 values"),
        (
            "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]),
            "100,000 values",
        ),
        ("a: 1\na: 2", "'a' is named twice, line 2"),
        ("!!python/object/apply:os.mkdir [it-ran]", "is not YAML"),
        ("a: [1", "is not YAML"),
    ],
)
def test_what_no_settings_are(text: str, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        parse_yaml(text)


def test_json_that_is_none() -> None:
    for text, why in (
        ("[" * 200_000, "nested too deep"),
        ("9" * 5000, "too many digits"),
        (b"\xff", "is not"),
        ("{", "line 1"),
    ):
        with pytest.raises(Unreadable, match=why):
            parse_json(text)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert (
        why_not_file(tmp_path / "pipe") == why_not_file(Path("/dev/zero")) == "is a pipe, socket or device, not a file"
    )
    assert why_not_file(tmp_path) == "is a folder, not a file"
    assert why_not_file(tmp_path / "gone") == "no such file"
    assert why_not_file(tmp_path / "circle").startswith("cannot be read (")
    assert why_not_file(Path("a\0b")).startswith("cannot be read (")
    assert why_not_file(Path("x" * 300)).startswith("cannot be read (")
    assert read_file(tmp_path / "link", limit=5) == b"12345"
    with pytest.raises(Unreadable, match="5 bytes, more than the 4"):
        read_file(tmp_path / "file", limit=4)
