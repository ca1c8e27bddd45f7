"""Labelled images before they become batches: where each comes from, and one pass over all of them."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from PIL import Image

from reldistill.core.checks import UserError, check_range
from reldistill.data.decode import BadImage, fit

T = TypeVar("T")
SPLIT_SEED = "reldistill split 1"  # a constant: the split must not move with the seed of a training run
QUIET_SECONDS = 2.0
MAX_WORKERS = 8
WORTH_THREADS = 5e-4  # seconds per image; below it threads only wait for the interpreter, and two are slower than one


@runtime_checkable
class Reader(Protocol):
    """Gives the image that belongs to a key. Picklable, and safe to call from several threads."""

    def image(self, key: Any) -> Image.Image:
        """The image in RGB; BadImage if it is damaged."""

    def check(self, key: Any) -> tuple[int, int]:
        """(width, height), or BadImage if `image` would raise it."""

    def header_size(self, key: Any) -> tuple[int, int] | None:
        """(width, height) at the least cost; None if unknown."""

    def name(self, key: Any) -> str:
        """The image's name, the same wherever the data lie."""

    def signature(self, key: Any) -> str:
        """Something cheap that changes when the image does."""


@dataclass(frozen=True)
class Samples:
    """The images of one split: keys of a reader, each with its class index."""

    reader: Reader
    keys: Sequence[Any]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.keys)

    def names(self) -> list[str]:
        """The name of every image."""
        return [self.reader.name(key) for key in self.keys]

    def subset(self, positions: Iterable[int]) -> Samples:
        """The images at `positions`, in that order."""
        chosen = list(positions)
        return Samples(self.reader, [self.keys[i] for i in chosen], [self.labels[i] for i in chosen])

    def limited(self, limit: int | None) -> Samples:
        """At most `limit` images, as evenly over the classes as they allow, in their order."""
        return self if limit is None or limit >= len(self) else self.subset(evenly(self.labels, limit))


@dataclass(frozen=True)
class Splits:
    """Training and validation images of one data set.

    Args:
        train: the training images.
        val: the validation images.
        classes: class names; a label is a position in them.
        where: what to call the data in a message.
        default_size: image size to use when none is asked for; None = judge by the images.
        flips: whether a mirrored image still belongs to its class.
        test: images that nothing is chosen by, where some were asked for.
        left_out: what is not used, in words → how often.
    """

    train: Samples
    val: Samples
    classes: tuple[str, ...]
    where: str
    default_size: int | None = None
    flips: bool = True
    test: Samples | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Samples]:
        """The parts that there are, by name."""
        held_out = {} if self.test is None else {"test": self.test}
        return {"train": self.train, "val": self.val, **held_out}

    def without_labels(self) -> Splits:
        """The same images, of no class."""
        parts = {name: replace(samples, labels=[0] * len(samples)) for name, samples in self.parts.items()}
        return replace(self.with_parts(parts), classes=())

    def with_parts(self, parts: Mapping[str, Samples]) -> Splits:
        """The same with other images in its parts."""
        return replace(self, train=parts["train"], val=parts["val"], test=parts.get("test"))


def evenly(labels: Sequence[int], limit: int) -> list[int]:
    """Positions of at most `limit` images, as evenly over the classes as they allow, in their order."""
    seen: dict[int, int] = {}
    turns = []
    for position, label in enumerate(labels):
        turns.append((seen.setdefault(label, 0), label, position))
        seen[label] += 1
    return sorted(position for _, _, position in sorted(turns)[:limit])


def by_hash(positions: Iterable[int], names: Sequence[str], *, prefix: str = "") -> list[int]:
    """`positions` in the order of the hashes of their names (without `prefix`)."""

    def rank(position: int) -> tuple[bytes, int]:
        text = f"{SPLIT_SEED}/{names[position].removeprefix(prefix)}"
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), position

    return sorted(positions, key=rank)


def held_out(positions: Sequence[int], names: Sequence[str], fraction: float, *, prefix: str = "") -> list[int]:
    """About `fraction` of at least two positions: never none, never all of them."""
    count = min(max(round(len(positions) * fraction), 1), len(positions) - 1)
    return by_hash(positions, names, prefix=prefix)[:count]


def split_by_name(
    samples: Samples, fraction: float, *, classes: Sequence[str], where: str, prefix: str = ""
) -> tuple[Samples, Samples]:
    """Cut (train, val), class by class, by a hash of each image's name (without `prefix`).

    The cut depends on nothing but the names: no seed, no order, no library's generator. An image added later moves at
    most one other of its class across it.
    """
    names = samples.names()
    by_class: dict[int, list[int]] = {}
    for position, label in enumerate(samples.labels):
        by_class.setdefault(label, []).append(position)
    chosen: set[int] = set()
    for label, positions in by_class.items():
        if len(positions) < 2:
            raise UserError(
                f"{where}: class {classes[label]!r} has a single image, so it cannot be in both train and val; "
                f"add images or leave the class out"
            )
        chosen.update(held_out(positions, names, fraction, prefix=prefix))
    return (
        samples.subset(i for i in range(len(samples)) if i not in chosen),
        samples.subset(i for i in range(len(samples)) if i in chosen),
    )


def hold_out(splits: Splits, fraction: float, *, prefix: str = "") -> Splits:
    """What validates becomes the test part, and another part of each class is cut from the training images to validate.

    A teacher that was trained on the same data without a test part has therefore never learned from the test images.
    """
    train, val = split_by_name(splits.train, fraction, classes=splits.classes, where=splits.where, prefix=prefix)
    return replace(splits, train=train, val=val, test=splits.val)


def fingerprint(splits: Splits, image_size: int) -> str:
    """16 hex digits that change with the images' names, labels, signatures, split or size."""
    digest = hashlib.sha256(repr((splits.classes, image_size)).encode("utf-8", "surrogateescape"))
    for split in splits.parts.values():
        digest.update(f"\n{len(split)}\n".encode())
        for key, label in zip(split.keys, split.labels, strict=True):
            line = f"{split.reader.name(key)}\0{label}\0{split.reader.signature(key)}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def cores() -> int:
    """The number of CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes(asked: int | None, *, batches: int, world_size: int) -> int:
    """How many processes decode images: as asked, or one per core and at most MAX_WORKERS; never more than batches."""
    return min(min(MAX_WORKERS, max(1, cores() // world_size)) if asked is None else asked, batches)


class TooFewImages(UserError):
    """Fewer training images than a batch holds."""

    def __init__(self, images: int, batch_size: int, where: str) -> None:
        super().__init__(
            f"{where}: batch size {batch_size} is larger than the {images} training images; give at most {images}"
        )
        self.images = images


def check_settings(batch_size: int, val_fraction: float, workers: int | None, limit: int | None) -> None:
    """UserError for settings of a data set that make no sense."""
    check_range("batch_size", batch_size, 1)
    check_range("val_fraction", val_fraction, 0, 1, open_start=True, open_end=True)
    check_range("workers", workers, 0)
    check_range("limit", limit, 1)


def check_counts(train: int, val: int, batch_size: int, rank: int, world_size: int, where: str) -> None:
    """UserError where there are too few images for the batches or the processes."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of {world_size}")
    if batch_size % world_size:
        raise UserError(f"batch size {batch_size} cannot be shared equally by {world_size} processes; give a multiple")
    if batch_size > train:
        raise TooFewImages(train, batch_size, where)
    if val < world_size:
        raise UserError(
            f"{where}: {val} validation images for {world_size} processes; add images or use fewer processes"
        )


def over_all(work: Callable[[int], T], count: int, *, verb: str, quiet: bool = False) -> list[T | BadImage]:
    """`work(i)` for i < count, in threads; a BadImage it raises stands in its place. Progress goes to stderr."""
    chunk = 128
    start = last = time.monotonic()

    def run(first: int) -> list[T | BadImage]:
        results: list[T | BadImage] = []
        for i in range(first, min(first + chunk, count)):
            try:
                results.append(work(i))
            except BadImage as bad:
                results.append(bad)
        return results

    results = run(0)
    slow = time.monotonic() - start > WORTH_THREADS * len(results)
    with ThreadPoolExecutor(cores() if slow else 1) as pool:
        for part in pool.map(run, range(chunk, count, chunk)):
            results += part
            now = time.monotonic()
            if not quiet and now - start > QUIET_SECONDS and (now - last > QUIET_SECONDS or len(results) == count):
                last = now
                print(f"{verb} images: {len(results):,} of {count:,}", file=sys.stderr, flush=True)
    return results


def check_all(samples: Samples, *, quiet: bool = False) -> list[tuple[int, int] | BadImage]:
    """(width, height) of every image, or what is wrong with it."""
    return over_all(lambda i: samples.reader.check(samples.keys[i]), len(samples), verb="checking", quiet=quiet)


def decode_all(
    samples: Samples, side: int, *, quiet: bool = False
) -> tuple[np.ndarray, list[tuple[int, int] | BadImage]]:
    """All images as one (n, side, side, 3) uint8 array, and (width, height) of each or what is wrong with it."""
    pixels = np.zeros((len(samples), side, side, 3), dtype=np.uint8)

    def work(i: int) -> tuple[int, int]:
        image = samples.reader.image(samples.keys[i])
        pixels[i] = np.asarray(fit(image, side))
        return image.size

    return pixels, over_all(work, len(samples), verb="reading", quiet=quiet)
