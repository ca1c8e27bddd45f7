"""Files that exist whole or not at all, and their hash: the one way to write anything."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reldistill.core.checks import UserError

_PART = ".part"
_NEW = os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def check_target(path: Path) -> None:
    """UserError where what has that name is not a regular file, so that nothing else is ever followed or replaced."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # a file in the place of a folder, a name that is too long, a null byte
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "not a regular file")
        raise UserError(f"cannot write {path}: it is {kind}; name a new file, or one that may be replaced")


def check_folder(folder: Path) -> None:
    """UserError where a folder holds anything but folders and regular files: each of them may be written anew."""
    for there in folder.iterdir():
        if not there.is_dir():
            check_target(there)


def write_bytes(path: Path, data: bytes, *, make_folder: bool = False) -> Path:
    """Replace a file's content in one step, on disk before the old content is gone.

    What is written first lies beside the file under an unpredictable name. It is as readable
    as the umask allows.

    Args:
        path: the file.
        data: its new content.
        make_folder: make its folder, for a file that the user names. A run's folder that has gone is not made again.

    Raises:
        UserError: it can't be written: no space, no permission, its folder has gone, it is a link or a device, …
    """
    check_target(path)
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        part = _part_of(path)
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | _NEW, 0o666), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def write_text(path: Path, text: str, *, make_folder: bool = False) -> Path:
    """The same of text, as UTF-8."""
    return write_bytes(path, text.encode("utf-8"), make_folder=make_folder)


def write_arrays(path: Path, **arrays: Any) -> Path:
    """The same of named arrays, as a compressed .npz."""
    import numpy as np  # here, as a command's help needs the records but no arrays

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return write_bytes(path, buffer.getvalue())


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A new folder beside a file, for this user alone and for as long as the block: for what only writes to a path.

    Raises:
        UserError: it can't be made, or what is written into it finds no space.
    """
    check_target(path)
    part = _part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir(mode=0o700)
        yield part
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def allocate(path: Path, size: int) -> None:
    """Make a new file of this many zero bytes, its disk space reserved: what is mapped into memory can't fail later.

    Raises:
        OSError: no space, or a limit on a file's size.
    """
    check_target(path)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | _NEW, 0o666), "wb") as file:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def no_links(path: str, flags: int) -> int:
    """An `opener` for `open` that does not follow a link, for a log that is added to."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def remove_parts(folder: Path) -> None:
    """Remove what a killed process has half written into a folder."""
    for part in folder.glob(f".*{_PART}"):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}{_PART}")
