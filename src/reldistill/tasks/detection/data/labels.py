"""Labelled boxes before they become batches: one form for every layout, what is fixed in it, what is counted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reldistill.core.checks import UserError, check_printable
from reldistill.data.decode import BadImage
from reldistill.data.files import Store
from reldistill.data.samples import Reader

TOLERANCE = 0.01  # pixels; annotations are rounded to about that

IMAGES = "images"
BOXES = "boxes"
EMPTY = "images without objects"
UNLABELLED = "images without a label file, taken as without objects"
UNLISTED = "boxes dropped: their image is not listed"
CLIPPED = "boxes clipped to their image"
FLAT = "boxes dropped: without area inside their image"
POLYGONS = "polygons taken as boxes"
KEYPOINTS = "objects with keypoints, which are not read"
DUPLICATED = "boxes that are another's copy"
LISTED_AGAIN = "images listed more than once"
OUTSIDE = "images from outside the data folder"
LEFT_OUT = "images left out"


class BadLabels(BadImage):
    """An image whose labels cannot be read: where they are and why."""

    def __init__(self, where: str, reason: str, others: int = 0) -> None:
        more = f" ({others} more bad image{'s' * (others > 1)})" if others else ""
        UserError.__init__(
            self,
            f"bad labels {where}: {reason}{more}; fix them, or pass --skip-bad-images to continue without the image",
        )
        self.where, self.reason = where, reason


@dataclass
class Labels:
    """One image and its objects as the annotations give them.

    Args:
        key: the image's path.
        identity: what the annotations call the image.
        size: its width and height, where the annotations give them.
        fractions: whether the boxes are fractions of width and height, not pixels.
        boxes: left, top, right, bottom of each object.
        labels: class index of each.
        ignored: whether each is a crowd or difficult.
        areas: pixels of each; None where the annotations don't give them.
        fault: why they cannot be used, if so.
    """

    key: str
    identity: int | str
    size: tuple[int, int] | None = None
    fractions: bool = False
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    ignored: list[bool] = field(default_factory=list)
    areas: list[float | None] = field(default_factory=list)
    fault: BadLabels | None = None

    def add(self, box: Sequence[float], label: int, *, ignored: bool = False, area: float | None = None) -> None:
        """One more object."""
        left, top, right, bottom = box
        self.boxes.append((left, top, right, bottom))
        self.labels.append(label)
        self.ignored.append(ignored)
        self.areas.append(area)


@dataclass(frozen=True)
class Annotated:
    """What a layout's reader found.

    Args:
        parts: `train`, and `val` and `test` where the layout brings them.
        classes: class names; a label is a position in them.
        counts: what was left out.
        ignored_word: what the layout calls objects that are ignored.
    """

    parts: Mapping[str, list[Labels]]
    classes: tuple[str, ...]
    counts: Counter[str]
    ignored_word: str


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Args:
        corners: (n, 4) float32, left, top, right, bottom in pixels, inside the image.
        labels: (n,) int64.
        ignored: (n,) bool.
        areas: (n,) float32, pixels.
    """

    corners: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    areas: np.ndarray

    def chosen(self, which: np.ndarray) -> Objects:
        """Some of them."""
        return Objects(self.corners[which], self.labels[which], self.ignored[which], self.areas[which])


def cleaned(labels: Labels, size: tuple[int, int], counts: Counter[str]) -> Objects:
    """The objects of an image of (width, height), clipped to it; those without area there are dropped; all counted."""
    width, height = size
    boxes = np.asarray(labels.boxes, dtype=np.float64).reshape(-1, 4)
    if labels.fractions:
        boxes = boxes * (width, height, width, height)
    inside = np.clip(boxes, 0, (width, height, width, height))
    sides = inside[:, 2:] - inside[:, :2]
    kept = np.asarray((sides > TOLERANCE).all(axis=1))
    moved = (np.abs(inside - boxes) > TOLERANCE).any(axis=1)
    counts[DUPLICATED] += len(labels.boxes) - len(set(zip(labels.labels, labels.boxes, strict=True)))
    counts[CLIPPED] += int((moved & kept).sum())
    counts[FLAT] += int((~kept).sum())
    areas = [side if area is None else area for area, side in zip(labels.areas, sides.prod(axis=1), strict=True)]
    return Objects(
        inside.astype(np.float32),
        np.asarray(labels.labels, dtype=np.int64),
        np.asarray(labels.ignored, dtype=bool),
        np.asarray(areas, dtype=np.float32),
    ).chosen(kept)


class LabelledImages:
    """The images of one split with their objects, which are held in a few large arrays.

    Args:
        reader: gives the image of a key.
        keys: the images' paths.
        identities: what the annotations call them.
        sizes: (width, height) of each.
        objects: of each.
    """

    def __init__(
        self,
        reader: Reader,
        keys: Sequence[str],
        identities: Sequence[int | str],
        sizes: Sequence[tuple[int, int]],
        objects: Sequence[Objects],
    ) -> None:
        self.reader, self.keys, self.identities = reader, list(keys), list(identities)
        self.sizes = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
        self._ends = np.cumsum([len(one.labels) for one in objects], dtype=np.int64)

        def joined(name: str, empty: Any) -> np.ndarray:
            return np.concatenate([empty, *(getattr(one, name) for one in objects)])

        self._all = Objects(
            joined("corners", np.zeros((0, 4), np.float32)),
            joined("labels", np.zeros(0, np.int64)),
            joined("ignored", np.zeros(0, bool)),
            joined("areas", np.zeros(0, np.float32)),
        )

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def boxes(self) -> int:
        """The number of objects, the ignored ones included."""
        return len(self._all.labels)

    @property
    def ignored(self) -> int:
        """The number of ignored objects."""
        return int(self._all.ignored.sum())

    @property
    def empty(self) -> int:
        """The number of images without objects."""
        return int((np.diff(self._ends, prepend=0) == 0).sum())

    def objects(self, index: int) -> Objects:
        """The objects of one image."""
        first = int(self._ends[index - 1]) if index else 0
        part = slice(first, int(self._ends[index]))
        return Objects(*(getattr(self._all, name)[part] for name in ("corners", "labels", "ignored", "areas")))

    def portrait(self) -> np.ndarray:
        """(images,) 1 where an image is higher than wide, else 0."""
        return (self.sizes[:, 1] > self.sizes[:, 0]).astype(np.int64)


def fingerprint(splits: Mapping[str, LabelledImages], classes: Sequence[str]) -> str:
    """16 hex digits that change with the classes and with the images' names, files, objects or split."""
    digest = hashlib.sha256(repr(tuple(classes)).encode("utf-8", "surrogateescape"))
    for name, images in splits.items():
        digest.update(f"\n{name} {len(images)}\n".encode())
        for index, key in enumerate(images.keys):
            line = f"{images.reader.name(key)}\0{images.reader.signature(key)}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
            objects = images.objects(index)
            for part in (objects.corners, objects.labels, objects.ignored, objects.areas):
                digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:16]


def check_classes(names: Iterable[str], where: str) -> tuple[str, ...]:
    """The class names, of which there must be one at least and no two alike."""
    classes = tuple(names)
    if not classes:
        raise UserError(f"{where}: names no classes; give at least one")
    check_printable(classes, where)
    for name, times in Counter(classes).items():
        if times > 1:
            raise UserError(f"{where}: {times} classes are called {name!r}; give each a name of its own")
    return classes


def check_objects(images: Sequence[Labels], where: str) -> None:
    """UserError where no label file has an object: for layouts whose classes are named by the objects alone."""
    faults = [labels.fault for labels in images if labels.fault is not None]
    if faults:
        raise UserError(
            f"{where}: no object can be read: the labels of {len(faults):,} of {len(images):,} images are faulty, the "
            f"first are {faults[0].where}: {faults[0].reason}"
        )
    if not any(labels.boxes for labels in images):
        raise UserError(f"{where}: none of its {len(images):,} images has an object, so there is nothing to learn")


class Watched:
    """A Store that remembers which files were read through it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.opened: set[str] = set()
        self.files, self.folders, self.left_out = store.files, store.folders, store.left_out
        self.key, self.exists, self.signature, self.where = store.key, store.exists, store.signature, store.where

    def read(self, path: str) -> bytes:
        """The content of a file."""
        self.opened.add(path)
        return self._store.read(path)


def read_text(store: Store, path: str) -> str:
    """The text of a file that is not an image."""
    try:
        return store.read(path).decode("utf-8-sig")
    except BadImage as bad:
        raise UserError(f"{bad.where}: {bad.reason}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{store.where(path)}: not UTF-8 text ({error.reason} at byte {error.start})") from None
