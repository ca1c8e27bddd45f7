"""Checkpoints are whole or not at all, and are read as data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from reldistill.core.checks import UserError
from reldistill.core.safe_files import write_bytes
from reldistill.training.checkpoint import FORMAT, unpack


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new/last.ckpt"
    write_bytes(file, b"old", make_folder=True)
    with monkeypatch.context() as patch:

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left"):
            write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    write_bytes(file, b"new")
    assert file.read_bytes() == b"new"
    assert [*file.parent.iterdir()] == [file]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it-ran",)


def test_a_malicious_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": FORMAT, "module": Evil()}, "last.ckpt")
    with pytest.raises(
        UserError, match=r"cannot read checkpoint last.ckpt .*: start again with another --out"
    ) as error:
        unpack(Path("last.ckpt"))
    assert len(str(error.value).splitlines()) == 1
    assert not Path("it-ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x80\x02."])
def test_a_damaged_checkpoint_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(UserError, match="cannot read checkpoint") as error:
        unpack(tmp_path / "last.ckpt")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("state", [{"format": FORMAT + 1}, {"state_dict": {}}, [1, 2]])
def test_another_format_is_refused(state: Any, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of this version"):
        unpack(tmp_path / "last.ckpt")
