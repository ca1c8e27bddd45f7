"""Held-out images that are training images too are found by their content, read only where sizes are equal."""

from __future__ import annotations

from pathlib import Path

from reldistill.data.copies import copies
from reldistill.data.files import FileReader, Folder


class Counted(Folder):
    """Knows what was read."""

    def read(self, path: str) -> bytes:
        self.__dict__.setdefault("seen", []).append(path)
        return super().read(path)


def files(root: Path, **contents: bytes) -> tuple[FileReader, Counted]:
    for name, content in contents.items():
        (root / name).write_bytes(content)
    store = Counted(root)
    return FileReader(store), store


def test_only_files_of_equal_size_are_read(tmp_path: Path) -> None:
    reader, store = files(tmp_path, a=b"xx", b=b"yyy", c=b"zzzz", d=b"yyy", e=b"qqq", f=b"lonely")
    found = copies(["a", "b", "c"], ["d", "e", "f"], reader)
    assert found.pairs == [("d", "b")]
    assert found.whole
    assert sorted(store.__dict__["seen"]) == ["b", "d", "e"], "each once"


def test_no_more_is_read_than_allowed(tmp_path: Path) -> None:
    contents = {f"{part}{number}": bytes([number]) * 100 for part in "tv" for number in range(20)}
    reader, store = files(tmp_path, **contents)
    train, held = ([name for name in contents if name[0] == part] for part in "tv")
    few = copies(train, held, reader, most_bytes=600)
    assert not few.whole
    assert 0 < len(few.pairs) < 20
    assert len(store.__dict__["seen"]) <= 7
    assert ": at least " in few.in_words("val", reader)
    assert copies(train, held, reader).pairs == list(zip(held, train, strict=True))


def test_it_is_said_in_one_line(tmp_path: Path) -> None:
    reader, _ = files(tmp_path, a=b"1", b=b"1", c=b"2")
    assert copies(["a"], ["b"], reader).in_words("val", reader) == (
        "val images that are training images too, byte by byte: 1 (the first: b is a); what is measured on them says "
        "nothing about new images"
    )
    assert copies(["a"], ["c"], reader).in_words("val", reader) == ""
