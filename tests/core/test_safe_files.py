"""What is written is there whole or not at all, replaces regular files only, and is as open as the umask lets it be."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reldistill.core.checks import UserError, system_error
from reldistill.core.safe_files import (
    allocate,
    check_target,
    folder_beside,
    no_links,
    remove_parts,
    write_arrays,
    write_bytes,
    write_text,
)


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o027, 0o640)])
def test_the_umask_decides_who_may_read(tmp_path: Path, umask: Callable[[int], int], mask: int, mode: int) -> None:
    umask(mask)
    write_bytes(tmp_path / "w.ckpt", b"1")
    write_text(tmp_path / "record.json", "{}")
    write_arrays(tmp_path / "a.npz", a=np.zeros(2))
    allocate(tmp_path / "0.f16", 8)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}


def _link(path: Path) -> None:
    path.with_name("victim").write_bytes(b"theirs")
    path.symlink_to(path.with_name("victim"))


KINDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "link": (_link, "a symbolic link"),
    "dangling": (lambda path: path.symlink_to("nowhere"), "a symbolic link"),
    "to a device": (lambda path: path.symlink_to("/dev/null"), "a symbolic link"),
    "folder": (Path.mkdir, "a folder"),
    "pipe": (os.mkfifo, "a pipe"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_regular_file_is_replaced(tmp_path: Path, kind: str) -> None:
    make, word = KINDS[kind]
    target = tmp_path / "out.bin"
    make(target)
    before = os.lstat(target)
    for write in (lambda: check_target(target), lambda: write_bytes(target, b"new"), lambda: allocate(target, 4)):
        with pytest.raises(UserError, match=rf"cannot write .*out\.bin: it is {word}; name a new file"):
            write()
    with pytest.raises(UserError, match=word), folder_beside(target):
        pass
    after = os.lstat(target)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    if kind == "link":
        assert (tmp_path / "victim").read_bytes() == b"theirs"


def test_a_device_stays_a_device() -> None:
    with pytest.raises(UserError, match="cannot write /dev/full: it is a device"):
        write_bytes(Path("/dev/full"), b"1")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


@pytest.mark.parametrize("path", ["a-file/x", f"{'x' * 300}.json", "nul\0byte"])
def test_a_place_where_nothing_can_be_is_one_line(tmp_path: Path, path: str) -> None:
    (tmp_path / "a-file").write_text("")
    with pytest.raises(UserError, match="cannot write") as error:
        write_bytes(tmp_path / path, b"1", make_folder=True)
    assert len(str(error.value).splitlines()) == 1


def test_nobody_can_foresee_the_name_that_is_written_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    replace = os.replace

    def noted(source: Any, target: Any) -> None:
        names.append(Path(source).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    for _ in range(3):
        write_bytes(tmp_path / "x.onnx", b"1")
    assert len(set(names)) == 3
    assert all(len(name) > len(".x.onnx..part") + 12 for name in names)
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / "victim").write_bytes(b"theirs")
    (tmp_path / ".x.onnx.guessed.part").symlink_to("victim")
    with pytest.raises(UserError, match="cannot write"):
        write_bytes(tmp_path / "x.onnx", b"mine")
    assert (tmp_path / "victim").read_bytes() == b"theirs", "a link at that name is not followed"


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EACCES])
def test_what_the_system_refuses_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    target = write_bytes(tmp_path / "last.ckpt", b"old")

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if call == "write":
            opened = os.fdopen

            def unwritable(*given: Any) -> Any:
                file = opened(*given, buffering=0)
                return _Refusing(file, refuse)

            patch.setattr(os, "fdopen", unwritable)
        else:
            patch.setattr(os, call, refuse)
        with pytest.raises(UserError, match=rf"cannot write .*last\.ckpt: {os.strerror(code)}"):
            write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [target]


class _Refusing:
    def __init__(self, file: Any, refuse: Callable[..., Any]) -> None:
        self.file, self.write = file, refuse

    def __enter__(self) -> _Refusing:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()


@pytest.fixture
def small_files() -> Iterator[int]:
    """No file may be larger than 4096 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield 4096
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_on_the_size_of_files(tmp_path: Path, small_files: int) -> None:
    target = write_bytes(tmp_path / "last.ckpt", b"old")
    with pytest.raises(UserError, match=r"cannot write .*last\.ckpt: File too large"):
        write_bytes(target, bytes(small_files + 1))
    with pytest.raises(OSError, match="File too large"):
        allocate(tmp_path / "0.f16", small_files + 1)
    with (
        pytest.raises(UserError, match=r"cannot write .*x\.onnx: File too large"),
        folder_beside(tmp_path / "x.onnx") as folder,
    ):
        (folder / "graph.onnx").write_bytes(bytes(small_files + 1))
    assert target.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} <= {"last.ckpt", "0.f16"}


def test_a_folder_that_has_gone_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*last\.ckpt: No such file or directory"):
        write_bytes(tmp_path / "gone" / "last.ckpt", b"1")
    assert not (tmp_path / "gone").exists()
    write_bytes(tmp_path / "new" / "deep" / "export.onnx", b"1", make_folder=True)
    assert (tmp_path / "new" / "deep" / "export.onnx").read_bytes() == b"1"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".last.ckpt.0123.part").write_bytes(b"half")
    (tmp_path / ".export.onnx.4567.part").mkdir()
    (tmp_path / ".export.onnx.4567.part" / "graph.onnx").write_bytes(b"half")
    (tmp_path / "last.ckpt").write_bytes(b"whole")
    remove_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_log_does_not_follow_a_link(tmp_path: Path) -> None:
    _link(tmp_path / "log.txt")
    with pytest.raises(OSError, match=r"log\.txt"), open(tmp_path / "log.txt", "ab", opener=no_links):
        pass


def test_what_the_system_says_is_one_line_that_names_the_file() -> None:
    named = OSError(errno.ENOSPC, "No space left on device", "runs/x/events")
    assert system_error(named, "elsewhere") == "runs/x/events: No space left on device"
    assert system_error(OSError(errno.ENOSPC, "No space left on device"), "runs/x") == "runs/x: No space left on device"
    assert system_error(OSError("Writer is closed")) == "Writer is closed"
