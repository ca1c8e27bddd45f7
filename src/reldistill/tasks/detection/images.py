"""Labelled boxes for detection, as loaders that repeat exactly."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from reldistill.core.checks import LARGEST_SIDE, UserError, printable
from reldistill.data.copies import copies
from reldistill.data.decode import BadImage
from reldistill.data.files import Archive, FileReader, Folder, Store, leads_out
from reldistill.data.left_out import in_words, is_image, kind_of
from reldistill.data.loader import Loader, loaders_of
from reldistill.data.samples import by_hash, check_counts, check_settings, held_out, over_all
from reldistill.tasks.detection.data.box_augment import BoxAugment, BoxTransform
from reldistill.tasks.detection.data.box_loader import DetectionPixels
from reldistill.tasks.detection.data.coco import read_coco
from reldistill.tasks.detection.data.labels import (
    BOXES,
    EMPTY,
    IMAGES,
    LEFT_OUT,
    OUTSIDE,
    UNLISTED,
    Annotated,
    LabelledImages,
    Labels,
    Watched,
    cleaned,
    fingerprint,
)
from reldistill.tasks.detection.data.voc import read_voc
from reldistill.tasks.detection.data.yolo import read_yolo
from reldistill.tasks.detection.layouts import LAYOUTS, is_detection

READERS: dict[str, Callable[[Store, str], Annotated]] = {"coco": read_coco, "voc": read_voc, "yolo": read_yolo}
DEFAULT_SIZE = 800
DEFAULT_SQUARE_SIZE = 320
SMALLEST_SIDE = 32


@dataclass(frozen=True)
class DetectionData:
    """Training and validation images of one data set, with boxes.

    Args:
        name: what the user asked for.
        layout: `coco`, `voc` or `yolo`.
        classes: class names; a label is a position in them.
        train: shuffled, augmented, complete batches only, each of landscape or of portrait images.
        val: every image once, in order, at its own size, with the ignored objects and all areas.
        image_size: the shorter side of training images (both sides where they are square).
        longest_size: what the longer side is kept within.
        skipped: names of bad images that were left out.
        fingerprint: 16 hex digits that change with the images' names, objects, content or split.
        augment: what is done to training images, `auto` resolved.
        counts: what the data hold and what was fixed or left out, in words → how often.
        splits: the images of `train`, `val` and, where there is one, `test`, with their objects.
        test: every held-out image once, in order; None where none were asked for.
        left_out: what else lies with the data and is not used, in words → how often.
    """

    name: str
    layout: str
    classes: tuple[str, ...]
    train: Loader
    val: Loader
    image_size: int
    longest_size: int
    skipped: tuple[str, ...]
    fingerprint: str
    augment: str
    counts: Mapping[str, int]
    splits: Mapping[str, LabelledImages]
    test: Loader | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The counts in one line."""
        counted = ", ".join(f"{number:,} {word}" for word, number in self.counts.items())
        return f"{self.name}: {counted}{in_words(self.left_out)}"


def load_detection(
    data: str,
    *,
    image_size: int | None = None,
    longest_size: int | None = None,
    square: bool = False,
    batch_size: int,
    seed: int = 0,
    augment: str = "auto",
    val_fraction: float = 0.1,
    hold_out_test: bool = False,
    skip_bad_images: bool = False,
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    limit: int | None = None,
) -> DetectionData:
    """Open a data set, look at every image once, and make its loaders. The counts go to stderr in one line.

    Args:
        data: `coco:DIR`, `voc:DIR` or `yolo:DIR`; a `.zip` of it will do.
        image_size: pixels of the shorter side of training images, or of both where `square`; None: 800, or 320 where
            `square`. Validation images keep their own size.
        longest_size: what the longer side is kept within; None: 1333 / 800 of `image_size`.
        square: stretch training images to squares, for a detector that sees images of one size.
        batch_size: images in a batch over all ranks.
        seed: of the order and of the augmentation; the split does not depend on it.
        augment: `none`, `flip`, `multi-scale`, `crop` or `jitter`, see `BoxTransform`; `auto`: `multi-scale`, but
            `crop` where `square`.
        val_fraction: the part of the images that validates, where the data come without such a part.
        hold_out_test: make three parts. What would validate otherwise tests, and `val_fraction` of the training images
            validates; where the layout brings both, they are taken.
        skip_bad_images: leave out images that cannot be decoded, whose size is not the annotations' or whose labels
            cannot be read, instead of stopping at them.
        workers: processes that decode images; None: one per core, at most eight.
        rank: this process.
        world_size: number of processes.
        limit: use at most this many images of each split, for a quick trial.
    """
    for name, size in (("image size", image_size), ("longest size", longest_size)):
        if size is not None and not SMALLEST_SIDE <= size <= LARGEST_SIDE:
            raise UserError(f"{name} {size}: give a number of pixels from {SMALLEST_SIDE} to {LARGEST_SIDE}")
    check_settings(batch_size, val_fraction, workers, limit)
    side = image_size or (DEFAULT_SQUARE_SIZE if square else DEFAULT_SIZE)
    how = BoxAugment.named(augment, side=side, longest=longest_size, square=square)
    layout, store = _open(data)
    watched = Watched(store)
    annotated = READERS[layout](watched, data)
    whole = _parts(annotated.parts, val_fraction, hold_out_test, data)
    parts = {name: _limited(images, limit) for name, images in whole.items()}
    counts = Counter(annotated.counts)
    reader = FileReader(store)
    splits, skipped = _sound(parts, reader, counts, data, skip=skip_bad_images, quiet=rank > 0)
    if splits["train"].boxes == splits["train"].ignored:
        raise UserError(
            f"{data}: none of the {len(splits['train']):,} training images has an object to learn from"
            f"{_said(counts, UNLISTED)}"
        )
    for name, images in splits.items():
        counts[OUTSIDE] += sum(map(leads_out, images.keys))
        if name != "train":
            counts[f"{name} images that are training images too"] += _copies(splits["train"], images, reader)
    check_counts(len(splits["train"]), len(splits["val"]), batch_size, rank, world_size, data)
    loaders = loaders_of(
        splits,
        lambda name, images, count: DetectionPixels(
            images, BoxTransform(how) if name == "train" else None, workers=count
        ),
        batch_size=batch_size,
        seed=seed,
        workers=workers,
        rank=rank,
        world_size=world_size,
        groups=torch.from_numpy(splits["train"].portrait()) if how.shape_stays else None,
    )
    made = DetectionData(
        name=data,
        layout=layout,
        classes=annotated.classes,
        train=loaders["train"],
        val=loaders["val"],
        test=loaders.get("test"),
        image_size=side,
        longest_size=how.longest,
        skipped=skipped,
        fingerprint=fingerprint(splits, annotated.classes),
        augment=how.word,
        counts=_counted(splits, counts, len(skipped), annotated.ignored_word),
        splits=splits,
        left_out=_left_out(store, watched.opened, annotated.parts, whole),
    )
    if rank == 0:
        print(printable(made.summary), file=sys.stderr, flush=True)
    return made


def _said(counts: Counter[str], word: str) -> str:
    return f" ({counts[word]:,} {word})" if counts[word] else ""


def _copies(train: LabelledImages, held: LabelledImages, reader: FileReader) -> int:
    """How many held-out images are training images too."""
    sizes = {
        key: tuple(size)
        for images in (train, held)
        for key, size in zip(images.keys, images.sizes.tolist(), strict=True)
    }
    return len(copies(train.keys, held.keys, reader, mark=lambda key: (sizes[key], reader.store.signature(key))).pairs)


def _left_out(
    store: Store, opened: Collection[str], found: Mapping[str, list[Labels]], used: Mapping[str, list[Labels]]
) -> Counter[str]:
    """What is in a Store beside the images in use and the files that describe them."""
    in_use = {labels.key for images in used.values() for labels in images}
    part_of = {labels.key: part for part, images in found.items() for labels in images}
    counts = Counter(store.left_out)
    for path in store.files:
        if path not in in_use and path not in opened:
            part = f"images of the {part_of[path]} part" if path in part_of else "images in no part"
            counts[part if is_image(path) else kind_of(path)] += 1
    return counts


def _open(data: str) -> tuple[str, Store]:
    layout, _, rest = data.partition(":")
    if not is_detection(data) or not rest:
        raise UserError(f"data {data!r}: give {', '.join(f'{name}:DIR' for name in LAYOUTS)} for labelled boxes")
    path = Path(rest).expanduser()
    if path.is_dir():
        return layout, Folder(path)
    if path.is_file():
        return layout, Archive(path)
    raise UserError(f"data {data!r}: no such file or folder as {path}; give the folder that holds the annotations")


def _parts(
    found: Mapping[str, list[Labels]], val_fraction: float, hold_out_test: bool, where: str
) -> dict[str, list[Labels]]:
    """Training and validation images, and those to test on if asked for."""
    train, val, test = found["train"], found.get("val"), found.get("test")
    if val is None:
        val, test = test, None
    if val is None:
        train, val = _cut(train, val_fraction, where)
    if not hold_out_test:
        return {"train": train, "val": val}
    if test is None:
        test = val
        train, val = _cut(train, val_fraction, where)
    return {"train": train, "val": val, "test": test}


def _cut(images: list[Labels], fraction: float, where: str) -> tuple[list[Labels], list[Labels]]:
    """(train, val) by the images' names alone."""
    if len(images) < 2:
        raise UserError(f"{where}: a single image cannot be in both train and val; add images")
    chosen = set(held_out(range(len(images)), [image.key for image in images], fraction))
    return (
        [image for i, image in enumerate(images) if i not in chosen],
        [image for i, image in enumerate(images) if i in chosen],
    )


def _limited(images: list[Labels], limit: int | None) -> list[Labels]:
    """At most `limit` images, picked by the hashes of their names, in their order."""
    if limit is None:
        return images
    return [images[i] for i in sorted(by_hash(range(len(images)), [image.key for image in images])[:limit])]


def _sound(
    parts: Mapping[str, list[Labels]], reader: FileReader, counts: Counter[str], where: str, *, skip: bool, quiet: bool
) -> tuple[dict[str, LabelledImages], tuple[str, ...]]:
    """The images that can be decoded, with cleaned objects; the names of the others, unless one of them is an error."""
    splits: dict[str, LabelledImages] = {}
    found = {part: _looked_at(images, reader, quiet) for part, images in parts.items()}
    bad = [size for sizes in found.values() for size in sizes if isinstance(size, BadImage)]
    if bad and not skip:
        raise type(bad[0])(bad[0].where, bad[0].reason, others=len(bad) - 1)
    skipped: list[str] = []
    for part, images in parts.items():
        good: list[tuple[Labels, tuple[int, int]]] = []
        for labels, size in zip(images, found[part], strict=True):
            if isinstance(size, BadImage):
                skipped.append(reader.name(labels.key))
            else:
                good.append((labels, size))
        if images and not good:
            raise UserError(
                f"{where}: all {len(images):,} {part} images would be left out, the first for {bad[0].where}: "
                f"{bad[0].reason}"
            )
        splits[part] = LabelledImages(
            reader,
            [labels.key for labels, _ in good],
            [labels.identity for labels, _ in good],
            [size for _, size in good],
            [cleaned(labels, size, counts) for labels, size in good],
        )
    return splits, tuple(skipped)


def _looked_at(images: list[Labels], reader: FileReader, quiet: bool) -> list[tuple[int, int] | BadImage]:
    """(width, height) of every image, or what is wrong with it or its labels."""

    def look(i: int) -> tuple[int, int]:
        labels = images[i]
        if labels.fault is not None:
            raise labels.fault
        size = reader.check(labels.key)
        if labels.size not in (None, size):
            (width, height), where = labels.size, reader.store.where(labels.key)
            raise BadImage(where, f"{size[0]}x{size[1]} pixels upright, but {width}x{height} in the annotations")
        return size

    return over_all(look, len(images), verb="checking", quiet=quiet)


def _counted(
    splits: Mapping[str, LabelledImages], fixed: Counter[str], skipped: int, ignored_word: str
) -> dict[str, int]:
    """What the data hold, in numbers; what was fixed or left out, only where there is any."""
    counts = {IMAGES: sum(map(len, splits.values())), BOXES: sum(images.boxes for images in splits.values())}
    noteworthy = {
        EMPTY: sum(images.empty for images in splits.values()),
        f"{ignored_word}, not learned from and ignored in the metrics": sum(i.ignored for i in splits.values()),
        **fixed,
        LEFT_OUT: skipped,
    }
    return counts | {word: number for word, number in noteworthy.items() if number}
