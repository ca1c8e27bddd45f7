"""Images without labels: any tree of them, an archive, a list of paths, or a data set whose labels are left out."""

from __future__ import annotations

import codecs
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from reldistill.core.checks import UserError
from reldistill.core.safe_read import Unreadable, read_file, shortened
from reldistill.data.class_folders import split_name
from reldistill.data.files import Archive, FileReader, Folder, Store
from reldistill.data.left_out import is_image, kind_of
from reldistill.data.samples import Samples, Splits, held_out

UNLABELLED = "unlabelled:"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
LIST_ENDINGS = (".txt", ".lst", ".list")
ACCEPTED = f"{UNLABELLED} and a folder of images, a .zip, a text file of paths, or a data set's name"


def open_unlabelled(
    data: str, *, val_fraction: float, hold_out_test: bool, open_named: Callable[..., Splits]
) -> Splits:
    """Find images, whatever folders they lie in.

    Folders at the top that are called like splits are taken for them (`train/`, `val/`, `test/` and their like, see
    `data.class_folders.ROLES`); else `val_fraction` of the images is held out by a hash of their names.

    Args:
        data: `unlabelled:` and a folder, a .zip, a text file of paths (one per line, relative to the file's folder;
            empty lines and those that begin with # don't count), or a named data set.
        val_fraction: the share of the images that validates where the data bring no such part.
        hold_out_test: hold out another such share for a test.
        open_named: opens a data set by name, labels and all.

    Raises:
        UserError: no such place, or too few images.
    """
    given = data.removeprefix(UNLABELLED)
    if not given:
        raise UserError(f"data {data}: give {ACCEPTED}")
    path = Path(given).expanduser()
    if path.is_dir():
        return _of_store(Folder(path), data, val_fraction=val_fraction, hold_out_test=hold_out_test)
    if path.is_file() and path.suffix.lower() in LIST_ENDINGS:
        return _of_list(path, data, val_fraction=val_fraction, hold_out_test=hold_out_test)
    if path.is_file():
        if path.suffix.lower() != ".zip" and not zipfile.is_zipfile(path):
            raise UserError(f"{path}: neither a .zip nor a list of paths ({', '.join(LIST_ENDINGS)}): give {ACCEPTED}")
        return _of_store(Archive(path), data, val_fraction=val_fraction, hold_out_test=hold_out_test)
    return open_named(given, val_fraction=val_fraction, hold_out_test=hold_out_test)


def _of_store(store: Store, where: str, *, val_fraction: float, hold_out_test: bool) -> Splits:
    images = [path for path in sorted(store.files) if is_image(path)]
    others = Counter(kind_of(path) for path in store.files if not is_image(path))
    top = _only_folder(store)
    roles = {
        folder: split.role
        for folder in store.folders
        if folder.rpartition("/")[0] == top and (split := split_name(folder.rpartition("/")[2]))
    }
    if "train" not in roles.values():
        splits = _cut(store, images, where, val_fraction=val_fraction, hold_out_test=hold_out_test)
        return replace(splits, left_out=store.left_out + others)
    by_role: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    aside: Counter[str] = Counter()
    for path in images:
        folder = "/".join(path.split("/")[: 1 + (top.count("/") + 1 if top else 0)])
        role = roles.get(folder)
        if role is None or (role == "test" and not hold_out_test):
            aside[f"files in {folder}/" if folder != path else "images outside the splits"] += 1
        else:
            by_role[role].append(path)
    if by_role["val"] and (by_role["test"] or not hold_out_test):
        _check(by_role["train"], where, least=1, folder="its training folder")
        parts = {role: _samples(store, keys) for role, keys in by_role.items() if keys}
        splits = Splits(parts["train"], parts["val"], (), where, test=parts.get("test"))
    else:
        cut = _cut(store, by_role["train"], where, val_fraction=val_fraction, hold_out_test=hold_out_test)
        splits = replace(cut, val=_samples(store, by_role["val"])) if by_role["val"] else cut
    return replace(splits, left_out=store.left_out + others + aside)


def _of_list(path: Path, where: str, *, val_fraction: float, hold_out_test: bool) -> Splits:
    try:
        content = read_file(path)
        lines = content.decode("utf-16" if content.startswith(UTF_16) else "utf-8-sig").splitlines()
    except Unreadable as error:
        raise UserError(f"{path} {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a list of paths, one per line in UTF-8 or UTF-16") from None
    store = Folder(path.parent)
    keys = [store.key(line) for line in map(str.strip, lines) if line and not line.startswith("#")]
    for key in keys:
        if not store.exists(key):
            shown = shortened(store.where(key))
            raise UserError(f"{path}: no such image: {shown} (one path a line, relative to the list's folder)")
    return _cut(store, sorted(set(keys)), where, val_fraction=val_fraction, hold_out_test=hold_out_test)


def _cut(store: Store, keys: Sequence[str], where: str, *, val_fraction: float, hold_out_test: bool) -> Splits:
    """Training, validation and perhaps test images, by hashes of their names."""
    _check(keys, where, least=3 if hold_out_test else 2)
    parts: list[Samples] = []
    rest = list(range(len(keys)))
    for _ in range(2 if hold_out_test else 1):
        chosen = set(held_out(rest, keys, val_fraction))
        parts.append(_samples(store, [keys[i] for i in sorted(chosen)]))
        rest = [i for i in rest if i not in chosen]
    train = _samples(store, [keys[i] for i in rest])
    return Splits(train, parts[-1], (), where, test=parts[0] if hold_out_test else None)


def _samples(store: Store, keys: Sequence[str]) -> Samples:
    return Samples(FileReader(store), list(keys), [0] * len(keys))


def _check(keys: Sequence[str], where: str, *, least: int = 2, folder: str = "") -> None:
    if len(keys) < least:
        found = f"{len(keys) or 'no'} image{'' if len(keys) == 1 else 's'} found{folder and f' in {folder}'}"
        raise UserError(f"{where}: {found}; give a folder, .zip or list of at least {least}")


def _only_folder(store: Store) -> str:
    """The folder that holds everything else, as archives have it, or the root."""
    top = ""
    while True:
        depth = top.count("/") + 1 if top else 0
        names = {path.split("/")[depth] for path in (*store.files, *store.folders) if path.count("/") >= depth}
        below = f"{top}/{names.pop()}" if top and len(names) == 1 else names.pop() if len(names) == 1 else ""
        if not below or below not in store.folders or split_name(below.rpartition("/")[2]):
            return top
        top = below
