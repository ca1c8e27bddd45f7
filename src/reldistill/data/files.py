"""Files of a folder on disk or inside a zip archive (which is read in place, never unpacked)."""

from __future__ import annotations

import os
import posixpath
import stat
import threading
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from reldistill.core.checks import UserError
from reldistill.data.decode import BadImage, check, decode, header_size

HIDDEN = "hidden files"
SPECIAL = "special files such as pipes"
CIRCLES = "links in a circle"
MEMBER_LIMIT = 1 << 30  # bytes; a larger member of an archive is not a photograph


@runtime_checkable
class Store(Protocol):
    """Files by their path relative to a root, with `/` between folders; hidden ones are left out."""

    files: dict[str, str]  # path → a signature that changes with the content
    folders: frozenset[str]
    left_out: Counter[str]  # what is not among them, in words → how often

    def key(self, path: str) -> str:
        """The path by which `files` has a file, however it was written; one that leads out of the root stays so."""

    def exists(self, path: str) -> bool:
        """Whether there is such a file, be it hidden or outside the root."""

    def signature(self, path: str) -> str:
        """A file's value in `files`; for one that is hidden or outside the root, the value that it would have."""

    def read(self, path: str) -> bytes:
        """The content of a file; BadImage if it cannot be had."""

    def where(self, path: str) -> str:
        """What to call a file in a message."""


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def leads_out(key: str) -> bool:
    """Whether a file's key is that of a file outside the root."""
    return key.startswith(("/", "../"))


class Folder:
    """A folder on disk. Links are followed, except one that leads to a folder it lies in; pipes are never opened."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, str] = {}
        self.left_out: Counter[str] = Counter()
        folders: set[str] = set()
        self._walk("", (os.path.realpath(root),), folders)
        self.folders = frozenset(folders)

    def _walk(self, prefix: str, ancestors: tuple[str, ...], folders: set[str]) -> None:
        try:
            with os.scandir(self.root / prefix) as found:
                entries = sorted(found, key=lambda e: e.name)
        except OSError as error:
            raise UserError(f"{self.where(prefix)}: cannot be listed ({error.strerror or error})") from None
        for entry in entries:
            path = prefix + entry.name
            if _hidden(entry.name):
                self.left_out[HIDDEN] += 1
            elif entry.is_dir():
                real = os.path.realpath(entry.path)
                if real in ancestors:
                    self.left_out[CIRCLES] += 1
                else:
                    folders.add(path)
                    self._walk(path + "/", (*ancestors, real), folders)
            elif not os.path.exists(entry.path):
                self.files[path] = "missing"  # a broken link
            elif entry.is_file():
                self.files[path] = str(entry.stat().st_size)
            else:
                self.left_out[SPECIAL] += 1

    def key(self, path: str) -> str:
        """The path inside the folder; of a file elsewhere, as it was written."""
        path = posixpath.normpath(path)
        if path in self.files or not leads_out(path):
            return path
        for root in (os.path.abspath(self.root), os.path.realpath(self.root)):
            whole = posixpath.normpath(posixpath.join(root, path))
            if whole.startswith(f"{root}/"):
                return whole[len(root) + 1 :]
        return path

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return path in self.files or os.path.isfile(self.root / path)

    def signature(self, path: str) -> str:
        """The file's size."""
        return self.files.get(path) or str(os.stat(self.root / path).st_size)

    def where(self, path: str) -> str:
        """The path as the user would type it."""
        return str(self.root / path)

    def read(self, path: str) -> bytes:
        """The content of a file."""
        try:
            if not stat.S_ISREG(os.stat(self.root / path).st_mode):
                raise BadImage(self.where(path), "a folder, pipe or device, not a file")
            return (self.root / path).read_bytes()
        except OSError as error:
            raise BadImage(self.where(path), error.strerror or "cannot be read") from None
        except ValueError as error:
            if isinstance(error, BadImage):
                raise
            raise BadImage(self.where(path), f"not a file's name ({error})") from None


class Archive:
    """A zip archive. Every process opens it for itself: a handle shared by a fork would share its file position.

    Members that were packed with `\\` between folders, or with `./` in front, are found by their usual paths.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        self._lock = threading.Lock()
        self.files: dict[str, str] = {}
        self._members: dict[str, str] = {}  # path → the name in the archive, where it is another
        folders: set[str] = set()
        hidden: set[str] = set()
        for info in self._zip().infolist():
            name = info.filename.replace("\\", "/")
            member = self.key(name)
            parts = member.split("/")
            if member == ".":
                continue
            if at := next((i for i, part in enumerate(parts, 1) if _hidden(part)), 0):
                hidden.add("/".join(parts[:at]))
            elif name.endswith("/"):
                folders.add(member)
            else:
                self.files[member] = f"{info.file_size}:{info.CRC:08x}"
                if member != info.filename:
                    self._members[member] = info.filename
        self.left_out = Counter({HIDDEN: len(hidden)} if hidden else {})
        for member in [*folders, *self.files]:
            parent = member.rpartition("/")[0]
            while parent and parent not in folders:
                folders.add(parent)
                parent = parent.rpartition("/")[0]
        self.folders = frozenset(folders)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_handle", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _handle=None, _lock=threading.Lock())

    def _zip(self) -> zipfile.ZipFile:
        with self._lock:
            if self._handle is None or self._handle[0] != os.getpid():
                try:
                    self._handle = os.getpid(), zipfile.ZipFile(self.path)
                except zipfile.BadZipFile as error:
                    raise UserError(
                        f"{self.path}: not a readable zip archive ({error}); give a folder of class folders or a .zip"
                    ) from None
                except OSError as error:
                    raise UserError(f"{self.path}: {error.strerror or error}") from None
            return self._handle[1]

    def key(self, path: str) -> str:
        """The path of a member."""
        return posixpath.normpath(path).lstrip("/")

    def exists(self, path: str) -> bool:
        """Whether there is such a member; a hidden one counts as absent."""
        return path in self.files

    def signature(self, path: str) -> str:
        """The member's size and checksum."""
        return self.files[path]

    def where(self, path: str) -> str:
        """archive.zip:member."""
        return f"{self.path}:{path}"

    def read(self, path: str) -> bytes:
        """The content of a member, its checksum verified."""
        if path not in self.files:
            raise BadImage(self.where(path), "no such file in the archive")
        archive, member = self._zip(), self._members.get(path, path)
        size = archive.getinfo(member).file_size
        if size > MEMBER_LIMIT:
            raise BadImage(self.where(path), f"{size:,} bytes, too large for an image")
        try:
            return archive.read(member)
        except Exception as error:  # wrong checksum, unknown compression, encryption, broken stream, input/output
            raise BadImage(self.where(path), " ".join(str(error).split()) or type(error).__name__) from None


@dataclass(frozen=True)
class FileReader:
    """Images of a Store, by path.

    Args:
        store: where they are.
        checksums: path → CRC-32 of what was read; copies for other processes keep none.
    """

    store: Store
    checksums: dict[str, int] | None = field(default_factory=dict, compare=False, repr=False)

    def __reduce__(self) -> tuple[type[FileReader], tuple[Store, None]]:
        return FileReader, (self.store, None)

    def _read(self, key: str) -> bytes:
        content = self.store.read(key)
        if self.checksums is not None:
            self.checksums[key] = zlib.crc32(content)
        return content

    def image(self, key: str) -> Image.Image:
        """The image in RGB."""
        return decode(self._read(key), where=self.store.where(key))

    def check(self, key: str) -> tuple[int, int]:
        """(width, height) of an image that can be decoded."""
        return check(self._read(key), where=self.store.where(key))

    def header_size(self, key: str) -> tuple[int, int] | None:
        """(width, height) from the header alone."""
        try:
            return header_size(self._read(key))
        except BadImage:
            return None

    def name(self, key: str) -> str:
        """The path inside the folder or archive; of a file elsewhere, as the annotations write it."""
        return key

    def signature(self, key: str) -> str:
        """Size and, once it was read, the checksum: images of equal size that trade places are another data set."""
        crc = None if self.checksums is None else self.checksums.get(key)
        return self.store.signature(key) + ("" if crc is None else f":{crc:08x}")
