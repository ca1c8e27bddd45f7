"""A teacher's outputs for the training images, kept on disk, so that later epochs do without the teacher.

A stored row belongs to one image in one *view*: random changes of the image, which are a function of the view's
number and of the image's index. Epoch e shows view e mod V. In the epochs that fill the cache the losses already see
the values as they are stored, so a run ends the same whether it found the cache full or filled it. Each tensor
records which rows are there: a method that needs more of the teacher than an earlier one adds to what there is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from reldistill.core.checks import UserError
from reldistill.core.safe_files import allocate, write_text
from reldistill.core.safe_read import parse_json, read_file
from reldistill.core.types import TEACHER, Batch

_CARD = "cache.json"
_LOCK = ".lock"
# Stored and live values may differ by rounding (half precision, and a batch of other images), never by more than this
# share of their image's largest.
_TOLERANCE = 0.05


class _Array(NamedTuple):
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


class TeacherCache:
    """A folder with what the terms of one method need of a teacher, for V views of every training image.

    Values are kept in half precision, each row in units of its own largest magnitude; those of maps with the channels
    last, as the networks that made them and the losses that compare them have them.

    Args:
        folder: where; made if it is not there.
        made_of: what the values depend on, by name: weights, data, augmentation, …
        rows: name → shape of one image's part of a tensor.
        images: number of training images.
        views: V.

    Raises:
        UserError: when the folder holds another teacher's, data's, … values, is damaged, or the disk is too small.
    """

    def __init__(
        self,
        folder: Path,
        *,
        made_of: Mapping[str, Any],
        rows: Mapping[str, tuple[int, ...]],
        images: int,
        views: int,
    ) -> None:
        self.folder, self.images, self.views = folder, images, views
        self.view = 0
        made_of = {**made_of, "images": images, "views": views, "layout of maps": "channels last"}
        with self._alone():
            card = self._card() or {"made_of": made_of, "rows": {}}
            _check_same(folder, card, made_of, rows)
            self._checked = not rows.keys() & card["rows"].keys()  # what is new is this run's own
            new = {name: list(shape) for name, shape in rows.items() if name not in card["rows"]}
            if new:
                card["rows"].update(new)
                self._extend(card, new)
        layouts = self._layouts(card)
        self._values, self._scales, self._present = (
            {name: self._map(*layouts[name][part]) for name in rows} for part in range(3)
        )
        self._pending: list[tuple[int, np.ndarray]] = []

    @property
    def bytes(self) -> int:
        """Size of what this run uses of the cache once it is full."""
        return sum(m.nbytes for maps in (self._values, self._scales, self._present) for m in maps.values())

    @property
    def is_full(self) -> bool:
        """Whether every view of every image is there."""
        return all(bool(present.all()) for present in self._present.values())

    def complete(self, batch: Batch, ask: Callable[[Tensor], Mapping[str, Tensor]]) -> Batch:
        """The batch with the teacher's outputs for its images: from the cache, else from the teacher itself.

        Args:
            batch: with indices.
            ask: images → name → (B, …), by the teacher itself.
        """
        if batch.indices is None:
            raise ValueError("a teacher cache knows images by their indices: give Batch(images, targets, indices)")
        indices = batch.indices.cpu().numpy()
        there = np.all([present[self.view, indices] for present in self._present.values()], axis=0)
        if there.any() and not self._checked:
            known = torch.from_numpy(there)
            self._check(self._read(indices[there], batch.images.device), ask(batch.images[known]))
        if not there.all():
            self._write(indices[~there], ask(batch.images[torch.from_numpy(~there)]))
        return dataclasses.replace(
            batch, teachers={**batch.teachers, TEACHER: self._read(indices, batch.images.device)}
        )

    def flush(self) -> None:
        """Write everything to disk, and only then mark it as present."""
        if not self._pending:
            return
        for stored in (*self._values.values(), *self._scales.values()):
            stored.flush()
        for present in self._present.values():
            for view, indices in self._pending:
                present[view, indices] = 1
            present.flush()
        self._pending = []

    def _read(self, indices: np.ndarray, device: torch.device) -> dict[str, Tensor]:
        found = {}
        rows = torch.from_numpy(indices)
        for name, values in self._values.items():
            # index_select on flat rows copies whole rows, with all threads
            half = torch.from_numpy(values[self.view]).flatten(1).index_select(0, rows).to(device)
            scale = torch.from_numpy(self._scales[name][self.view]).index_select(0, rows).to(device)
            found[name] = _as_maps((half * scale[:, None]).view(len(rows), *values.shape[2:]))
        return found

    def _write(self, indices: np.ndarray, outputs: Mapping[str, Tensor]) -> None:
        for name, values in self._values.items():
            tensor = outputs[name].float()
            largest = tensor.flatten(1).abs().amax(dim=1)
            scale = torch.where(largest > 0, largest, 1.0)
            scaled = tensor / scale.view(-1, *[1] * (tensor.ndim - 1))
            new = self._present[name][self.view, indices] == 0  # others have seen what is there: it stays
            values[self.view, indices[new]] = _as_stored(scaled.half()).cpu().numpy()[new]
            self._scales[name][self.view, indices[new]] = scale.cpu().numpy()[new]
        self._pending.append((self.view, indices))

    def _check(self, stored: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
        for name, values in stored.items():
            largest = live[name].float().flatten(1).abs().amax(dim=1)
            gap = (values - live[name].float()).flatten(1).abs().amax(dim=1)
            if (gap > _TOLERANCE * largest).any():
                raise UserError(
                    f"the teacher cache in {self.folder} does not hold this teacher's outputs for these images ({name} "
                    f"differs): it is of another version of the software; give another folder to --cache-teacher"
                )
        self._checked = True

    def _card(self) -> dict[str, Any] | None:
        path = self.folder / _CARD
        if not path.exists():
            return None
        try:
            card = parse_json(read_file(path))
            if {"made_of", "rows"} <= card.keys():
                return card
        except (OSError, ValueError, AttributeError):
            pass
        raise UserError(f"{path} can't be read: it is not a teacher cache's; give another folder to --cache-teacher")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The folder, made if need be, while no other run changes its card."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / _LOCK):
                yield
        except OSError as error:
            raise self._unwritable(error) from error

    def _extend(self, card: Mapping[str, Any], new: Iterable[str]) -> None:
        """Make room for what the card names and the folder lacks."""
        layouts = self._layouts(card)
        files = [file for name in new for file in layouts[name]]
        needed, free = sum(array.nbytes for _, array in files), shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"the teacher cache needs {size_in_words(needed)} for {self.views} views of {self.images:,} images, "
                f"{self.folder} has {size_in_words(free)} left: lower --views or give another folder"
            )
        try:
            for name, array in files:
                allocate(self.folder / name, array.nbytes)
        except OSError as error:
            for name, _ in files:
                (self.folder / name).unlink(missing_ok=True)
            raise self._unwritable(error) from error
        write_text(self.folder / _CARD, json.dumps(card, indent=2))

    def _layouts(self, card: Mapping[str, Any]) -> dict[str, list[tuple[str, _Array]]]:
        """Name → the files of a tensor: its values, their scales, and which rows are there."""
        rows = (self.views, self.images)
        layouts = {}
        for number, (name, shape) in enumerate(card["rows"].items()):
            stored = _as_stored(torch.empty(1, *shape, device="meta")).shape[1:]
            layouts[name] = [
                (f"{number}.f16", _Array(np.dtype(np.float16), (*rows, *stored))),
                (f"{number}.scale.f32", _Array(np.dtype(np.float32), rows)),
                (f"{number}.present.u8", _Array(np.dtype(np.uint8), rows)),
            ]
        return layouts

    def _map(self, name: str, array: _Array) -> np.memmap:
        path = self.folder / name
        if not path.is_file() or path.stat().st_size != array.nbytes:
            raise UserError(
                f"the teacher cache in {self.folder} is damaged ({name} is not as long as it was made): remove it, or "
                f"give another folder to --cache-teacher"
            )
        try:
            return np.memmap(path, array.dtype, "r+", shape=array.shape)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"--cache-teacher {self.folder} can't be written to ({error.strerror}): give another folder")


def _check_same(
    folder: Path, card: Mapping[str, Any], made_of: Mapping[str, Any], rows: Mapping[str, tuple[int, ...]]
) -> None:
    before = card["made_of"]
    for name, value in made_of.items():
        if before.get(name) != value:
            raise UserError(
                f"the teacher cache in {folder} is of {name} {before.get(name)}, not {value}: give another folder to "
                f"--cache-teacher"
            )
    for name, shape in rows.items():
        if card["rows"].get(name, list(shape)) != list(shape):
            raise UserError(
                f"the teacher cache in {folder} holds {name} of shape {tuple(card['rows'][name])}, but this method "
                f"needs {tuple(shape)}: give another folder to --cache-teacher"
            )


def _as_stored(tensor: Tensor) -> Tensor:
    """Of maps (B, C, H, W) → (B, H, W, C)."""
    return tensor.movedim(1, -1) if tensor.ndim == 4 else tensor


def _as_maps(stored: Tensor) -> Tensor:
    """And back."""
    return stored.movedim(-1, 1) if stored.ndim == 4 else stored


def fingerprint_of(network: nn.Module) -> str:
    """16 hex digits of a network's weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def size_in_words(size: float) -> str:
    """A number of bytes in words.

    >>> size_in_words(2_400), size_in_words(1_500_000_000)
    ('2.4 kB', '1.5 GB')
    """
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"
