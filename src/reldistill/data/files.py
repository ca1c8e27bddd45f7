"""Class folders on disk or inside a zip archive (which is read in place, never unpacked)."""

from __future__ import annotations

import os
import threading
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from reldistill.core.checks import UserError
from reldistill.data.decode import EXTENSIONS, BadImage, check, decode, header_size
from reldistill.data.samples import Samples, Splits, hold_out, split_by_name

VAL_FOLDERS = ("val", "valid", "validation", "test")  # in order of preference
MEMBER_LIMIT = 1 << 30  # bytes; a larger member of an archive is no photograph


@runtime_checkable
class Store(Protocol):
    """Files by their path relative to a root, with `/` between folders; hidden ones are left out."""

    files: dict[str, str]  # path → a signature that changes with the content
    folders: frozenset[str]

    def read(self, path: str) -> bytes:
        """The content of a file; BadImage if it cannot be had."""

    def where(self, path: str) -> str:
        """What to call a file in a message."""


def _hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


class Folder:
    """A folder on disk. Links are followed, except one that leads to a folder it lies in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[str, str] = {}
        folders: set[str] = set()
        self._walk("", (os.path.realpath(root),), folders)
        self.folders = frozenset(folders)

    def _walk(self, prefix: str, ancestors: tuple[str, ...], folders: set[str]) -> None:
        with os.scandir(self.root / prefix) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                path = prefix + entry.name
                if _hidden(entry.name):
                    continue
                if entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if real not in ancestors:
                        folders.add(path)
                        self._walk(path + "/", (*ancestors, real), folders)
                else:
                    broken_link = not os.path.exists(entry.path)
                    self.files[path] = "missing" if broken_link else str(entry.stat().st_size)

    def where(self, path: str) -> str:
        """The path as the user would type it."""
        return str(self.root / path)

    def read(self, path: str) -> bytes:
        """The content of a file."""
        try:
            return (self.root / path).read_bytes()
        except OSError as error:
            raise BadImage(self.where(path), error.strerror or "cannot be read") from None


class Archive:
    """A zip archive. Every process opens it for itself: a handle shared by a fork would share its file position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        self._lock = threading.Lock()
        infos = [info for info in self._zip().infolist() if not _hidden(info.filename.rstrip("/"))]
        self.files = {i.filename: f"{i.file_size}:{i.CRC:08x}" for i in infos if not i.is_dir()}
        folders = {i.filename.rstrip("/") for i in infos if i.is_dir()}
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

    def where(self, path: str) -> str:
        """archive.zip:member."""
        return f"{self.path}:{path}"

    def read(self, path: str) -> bytes:
        """The content of a member, its checksum verified."""
        archive = self._zip()
        size = archive.getinfo(path).file_size
        if size > MEMBER_LIMIT:
            raise BadImage(self.where(path), f"{size:,} bytes, too large for an image")
        try:
            return archive.read(path)
        except Exception as error:  # wrong checksum, unknown compression, encryption, broken stream, input/output
            raise BadImage(self.where(path), " ".join(str(error).split()) or type(error).__name__) from None


@dataclass(frozen=True)
class FileReader:
    """Images of a Store, by path."""

    store: Store

    def image(self, key: str) -> Image.Image:
        """The image in RGB."""
        return decode(self.store.read(key), where=self.store.where(key))

    def check(self, key: str) -> tuple[int, int]:
        """(width, height) of an image that can be decoded."""
        return check(self.store.read(key), where=self.store.where(key))

    def header_size(self, key: str) -> tuple[int, int] | None:
        """(width, height) from the header alone."""
        try:
            return header_size(self.store.read(key))
        except BadImage:
            return None

    def name(self, key: str) -> str:
        """The path inside the folder or archive."""
        return key

    def signature(self, key: str) -> str:
        """Size, and in an archive the checksum."""
        return self.store.files[key]


def _subfolders(store: Store, folder: str) -> list[str]:
    """Names of the folders directly inside `folder` ("" = the root), sorted."""
    prefix = f"{folder}/" if folder else ""
    inside = (f[len(prefix) :] for f in store.folders if f.startswith(prefix))
    return sorted(f for f in inside if f and "/" not in f)


def _images_by_class(store: Store, folder: str) -> dict[str, list[str]]:
    """Class folder directly inside `folder` → paths of the images below it; both sorted."""
    prefix = f"{folder}/" if folder else ""
    classes: dict[str, list[str]] = {name: [] for name in _subfolders(store, folder)}
    for path in sorted(store.files):
        if path.startswith(prefix) and os.path.splitext(path)[1].lower() in EXTENSIONS:
            name, slash, _ = path[len(prefix) :].partition("/")
            if slash:
                classes[name].append(path)
    return classes


def _look_through(store: Store) -> str:
    """The folder that holds the data: single folders that only hold folders are passed by."""
    folder = ""
    while len(inside := _subfolders(store, folder)) == 1:
        below = f"{folder}/{inside[0]}" if folder else inside[0]
        if inside[0].lower() in VAL_FOLDERS or not _subfolders(store, below):
            break
        folder = below
    return folder


def _split_folders(store: Store, top: str, where: str) -> tuple[str | None, str | None, str | None]:
    """(training, validation, test folder) inside `top`; a folder only counts if it holds folders.

    Where nothing else could validate, the test folder does, and there is none to test on.
    """
    prefix = f"{top}/" if top else ""
    found = {name.lower(): prefix + name for name in _subfolders(store, top) if _subfolders(store, prefix + name)}
    val = next((found[name] for name in VAL_FOLDERS if name in found), None)
    if val and "train" not in found:
        raise UserError(f"{where}: has {val}/ but no train/ beside it; name the training folder train")
    test = found.get("test")
    return found.get("train"), val, test if test != val else None


def _labelled(reader: FileReader, images: dict[str, list[str]], classes: tuple[str, ...]) -> Samples:
    pairs = [(path, label) for label, name in enumerate(classes) for path in images.get(name, ())]
    return Samples(reader, [path for path, _ in pairs], [label for _, label in pairs])


def read_splits(store: Store, *, where: str, val_fraction: float, hold_out_test: bool = False) -> Splits:
    """Find the class folders of a Store, and its training, validation and (if asked for) test images."""
    top = _look_through(store)
    train_folder, val_folder, test_folder = _split_folders(store, top, where)
    folder = top if train_folder is None else train_folder
    train_images = _images_by_class(store, folder)
    classes = tuple(train_images)
    _check_classes(store, train_images, where if train_folder is None else f"{where}: {train_folder}/")
    train = _labelled(FileReader(store), train_images, classes)
    if val_folder is None:
        train, val = split_by_name(train, val_fraction, classes=classes, where=where, prefix=f"{folder}/")
    else:
        val = _same_classes(store, val_folder, classes, train_folder=folder, where=where)
    splits = Splits(train, val, classes, where)
    if hold_out_test and test_folder is not None:
        return replace(splits, test=_same_classes(store, test_folder, classes, train_folder=folder, where=where))
    return hold_out(splits, val_fraction, prefix=f"{folder}/") if hold_out_test else splits


def _same_classes(store: Store, folder: str, classes: tuple[str, ...], *, train_folder: str, where: str) -> Samples:
    """The images of a part that is not for training; UserError unless it holds the training folder's classes."""
    images = _images_by_class(store, folder)
    for name in sorted(set(images) ^ set(classes)):
        there, lacking = (train_folder, folder) if name in classes else (folder, train_folder)
        raise UserError(
            f"{where}: class {name!r} is in {there}/ but not in {lacking}/; both must hold the same classes"
        )
    return _labelled(FileReader(store), images, classes)


def _check_classes(store: Store, images: dict[str, list[str]], where: str) -> None:
    layout = "expected one folder of images per class"
    if not any(images.values()):
        others = sorted(path for path in store.files if os.path.splitext(path)[1].lower() not in EXTENSIONS)
        loose = len(store.files) - len(others)
        found = f"{loose} images outside class folders" if loose else "no images"
        also = f" ({len(others)} other files, e.g. {others[0]})" if others else ""
        raise UserError(f"{where}: no class folders with images: found {found}{also}; {layout}")
    if len(images) == 1:
        raise UserError(f"{where}: only one class, {next(iter(images))!r}; {layout}, at least two")
