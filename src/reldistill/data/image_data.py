"""Images of one class each, or of none, as loaders that repeat exactly."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reldistill.core.checks import LARGEST_SIDE, UserError, check_axes
from reldistill.core.safe_read import why_not_file
from reldistill.data.augment import Augment, ImageTransform
from reldistill.data.class_folders import read_splits
from reldistill.data.copies import copies
from reldistill.data.decode import BadImage
from reldistill.data.files import Archive, FileReader, Folder
from reldistill.data.left_out import in_words
from reldistill.data.loader import DiskPixels, Loader, MemoryPixels, loaders_of
from reldistill.data.named import CIFAR, NAMES, TIMM_PREFIXES, cifar, digits, from_timm
from reldistill.data.samples import (
    Samples,
    Splits,
    check_all,
    check_counts,
    check_settings,
    decode_all,
    fingerprint,
    hold_out,
)
from reldistill.data.unlabelled import UNLABELLED, open_unlabelled

DEFAULT_SIZE = 224
SMALL_SIDE = 64  # up to this side images are kept in memory, and their own size is the default
MEMORY_LIMIT = 2 << 30  # bytes
COMPARED = 256 << 20  # bytes that are read at most to find images that are in two parts
PROBED = 64  # images whose headers are looked at for the default size
ACCEPTED = (
    f"a folder of class folders, a .zip of it, {', '.join(NAMES)}, or one of timm's names "
    f"({', '.join(f'{p}/…' for p in TIMM_PREFIXES)})"
)


@dataclass(frozen=True)
class ImageData:
    """Training and validation images of one data set.

    Args:
        name: what the user asked for.
        classes: class names; a label is a position in them. Empty for images without labels.
        train: shuffled, augmented, complete batches only.
        val: every image once, in order.
        image_size: side of the square images of a Batch.
        skipped: names of bad images that were left out.
        fingerprint: 16 hex digits that change with the images' names, labels, content, split or size.
        augment: what is done to training images, `auto` resolved.
        in_memory: whether all images are held in memory.
        test: every held-out image once, in order; None where none were asked for.
        left_out: what else lies with the data and is not used, in words → how often.
        notes: warnings of what was found in the data.
        probe: labelled images to measure features by, where there are such.
    """

    name: str
    classes: tuple[str, ...]
    train: Loader
    val: Loader
    image_size: int
    skipped: tuple[str, ...]
    fingerprint: str
    augment: str
    in_memory: bool
    test: Loader | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    probe: ImageData | None = None

    @staticmethod
    def from_tensors(
        train_images: Tensor,
        train_labels: Tensor,
        val_images: Tensor,
        val_labels: Tensor,
        classes: Sequence[str],
        *,
        batch_size: int,
        seed: int = 0,
        augment: str = "auto",
        flips: bool = True,
        name: str = "tensors",
        rank: int = 0,
        world_size: int = 1,
    ) -> ImageData:
        """Your own images, already in memory.

        Args:
            train_images: (n, 3, S, S) uint8, RGB.
            train_labels: (n,) class indices.
            val_images: (m, 3, S, S) uint8.
            val_labels: (m,) class indices.
            classes: the names of the classes.
            batch_size: images in a batch over all ranks.
            seed: of order and augmentation.
            augment: as in `load_images`.
            flips: whether mirrored images still belong to their class.
            name: what to call the data.
            rank: this process.
            world_size: number of processes.

        Raises:
            ValueError: when shapes or types are others; several labels per image, or soft ones, are not read.

        >>> images, labels = torch.zeros(8, 3, 4, 4, dtype=torch.uint8), torch.arange(8) % 2
        >>> data = ImageData.from_tensors(images, labels, images, labels, ["a", "b"], batch_size=4)
        >>> tuple(tuple(batch.images.shape) for batch in data.train)
        ((4, 3, 4, 4), (4, 3, 4, 4))
        """
        digest = hashlib.sha256(repr(tuple(classes)).encode())
        side = train_images.shape[-1]
        for split, images, labels in (("train", train_images, train_labels), ("val", val_images, val_labels)):
            check_axes(images, "n 3 S S", name=f"{split}_images", **{"3": 3, "S": side})
            check_axes(labels, "n", name=f"{split}_labels", n=len(images))
            if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
                raise ValueError(f"{split}_labels: expected whole numbers, one class per image, got {labels.dtype}")
            if images.shape[-2] != side or images.dtype != torch.uint8:
                raise ValueError(
                    f"{split}_images: expected square uint8 images of side {side}, got {images.dtype} "
                    f"of shape {tuple(images.shape)}"
                )
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
                raise ValueError(f"{split}_labels: expected values in 0 … {len(classes) - 1}")
            for tensor in (images, labels.long()):
                digest.update(tensor.cpu().contiguous().numpy().data)
        check_counts(len(train_images), len(val_images), batch_size, rank, world_size, name)
        how = Augment.named(augment, flips=flips)
        ranks: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "rank": rank, "world_size": world_size}
        train = MemoryPixels(train_images.permute(0, 2, 3, 1), train_labels.long(), how)
        val = MemoryPixels(val_images.permute(0, 2, 3, 1), val_labels.long(), None)
        return ImageData(
            name=name,
            classes=tuple(classes),
            image_size=side,
            skipped=(),
            train=Loader(train, training=True, **ranks),
            val=Loader(val, training=False, **ranks),
            fingerprint=digest.hexdigest()[:16],
            augment=how.word,
            in_memory=True,
        )


def load_images(
    data: str,
    *,
    image_size: int | None = None,
    batch_size: int,
    seed: int = 0,
    augment: str = "auto",
    val_fraction: float = 0.1,
    hold_out_test: bool = False,
    skip_bad_images: bool = False,
    workers: int | None = None,
    download: bool = False,
    in_memory: bool | None = None,
    rank: int = 0,
    world_size: int = 1,
    limit: int | None = None,
    labelled: bool = True,
) -> ImageData:
    """Open a data set, look at every image once, and make its loaders.

    Args:
        data: a folder of class folders, with `train/` and `val/` or `test/` (or other usual names, see
            `data.class_folders.ROLES`) inside or to be split here; a `.zip` of the same; `digits`, `cifar10`,
            `cifar100`; or one of timm's names such as `hfds/owner/name`, `torch/fashion_mnist`, `wds/FOLDER`.
        image_size: side of the square images to make. None: the images' own, where all are square, alike and at most
            64 pixels wide, else 224.
        batch_size: images in a batch over all ranks.
        seed: of the order and of the augmentation; the split does not depend on it.
        augment: `none`; `crop`: random crops; `crop-flip`: and horizontal flips; `strong`: and colours and erasing;
            `auto`: `crop-flip`, but `crop` where a mirrored image is another class's.
        val_fraction: the part of each class that validates, where the data come without such a part.
        hold_out_test: make three parts. What would validate otherwise tests, and `val_fraction` of each class of the
            training images validates; where the data have a `val/` beside their `test/`, these are taken.
        skip_bad_images: leave out images that cannot be decoded, instead of stopping at them.
        workers: processes that decode images kept on disk; None: one per core, at most eight.
        download: fetch a named data set that is not there yet.
        in_memory: hold all images in memory, decoded and scaled; None: where they are at most 64 pixels wide and take
            at most 2 GiB.
        rank: this process.
        world_size: number of processes.
        limit: use at most this many images of each split, evenly over the classes, for a quick trial.
        labelled: False leaves the labels out; `data` may then also be `unlabelled:` and any folder or .zip of images
            or a text file of their paths, see `data.unlabelled`.
    """
    if image_size is not None and not 4 <= image_size <= LARGEST_SIDE:
        raise UserError(f"image size {image_size}: give a number of pixels from 4 to {LARGEST_SIDE}")
    check_settings(batch_size, val_fraction, workers, limit)
    if data.startswith(UNLABELLED) and not labelled:
        splits = open_unlabelled(data, val_fraction=val_fraction, hold_out_test=hold_out_test, open_named=open_splits)
    else:
        splits = open_splits(data, val_fraction=val_fraction, download=download, hold_out_test=hold_out_test)
    if not labelled:
        splits = splits.without_labels()
    how = Augment.named(augment, flips=splits.flips)
    if limit is not None and limit < len(splits.classes):
        raise UserError(
            f"limit {limit}: {splits.where} has {len(splits.classes)} classes; give at least one image each"
        )
    splits = splits.with_parts({part: samples.limited(limit) for part, samples in splits.parts.items()})
    _check_every_class(splits)
    check_counts(len(splits.train), len(splits.val), batch_size, rank, world_size, splits.where)
    quiet = rank > 0
    side, uniform = _choose_size(splits, image_size)
    keep = _fits(splits, side) if in_memory is None else in_memory
    content = _look_at_all(splits, side if keep else None, quiet)
    if uniform and any(not isinstance(size, BadImage) and size != (side, side) for size in content.sizes):
        side = DEFAULT_SIZE  # an image outside the first sample had another size
        keep = bool(in_memory)
        content = _look_at_all(splits, side if keep else None, quiet)
    splits, pixels, skipped = _without_bad(splits, content, skip_bad_images)
    check_counts(len(splits.train), len(splits.val), batch_size, rank, world_size, splits.where)

    def source(split: str, samples: Samples, count: int) -> MemoryPixels | DiskPixels:
        own = how if split == "train" else None
        if pixels is None:
            return DiskPixels(samples, ImageTransform(side, own), workers=count, labelled=labelled)
        labels = torch.as_tensor(samples.labels, dtype=torch.int64) if labelled else None
        return MemoryPixels(pixels[split], labels, own)

    loaders = loaders_of(
        splits.parts, source, batch_size=batch_size, seed=seed, workers=workers, rank=rank, world_size=world_size
    )
    return ImageData(
        name=data,
        classes=splits.classes,
        train=loaders["train"],
        val=loaders["val"],
        test=loaders.get("test"),
        image_size=side,
        skipped=skipped,
        fingerprint=fingerprint(splits, side),
        augment=how.word,
        in_memory=keep,
        left_out=splits.left_out,
        notes=() if quiet else _copied(splits),
    )


def open_splits(data: str, *, val_fraction: float = 0.1, download: bool = False, hold_out_test: bool = False) -> Splits:
    """Find the images of `data` and their labels, without decoding any."""
    is_of_timm = data.partition("/")[0] in TIMM_PREFIXES and not Path(data).expanduser().exists()
    if data in NAMES or is_of_timm:
        splits = _open_named(data, val_fraction=val_fraction, download=download)
        return hold_out(splits, val_fraction) if hold_out_test else splits
    path = Path(data).expanduser()
    if path.is_dir():
        return read_splits(Folder(path), where=data, val_fraction=val_fraction, hold_out_test=hold_out_test)
    if path.is_file():
        return read_splits(Archive(path), where=data, val_fraction=val_fraction, hold_out_test=hold_out_test)
    if path.exists():
        raise UserError(f"data {data!r} {why_not_file(path)}; give {ACCEPTED}")
    beside = path.parent
    near = difflib.get_close_matches(path.name, [p.name for p in beside.iterdir()] if beside.is_dir() else [], n=3)
    near = [str(beside / name) for name in near] + difflib.get_close_matches(data, NAMES, n=1)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    what = "no such file or folder" if beside.is_dir() else f"no such folder as {beside}"
    raise UserError(f"data {data!r}: {what}; {hint}give {ACCEPTED}")


def _open_named(data: str, *, val_fraction: float, download: bool) -> Splits:
    if data == "digits":
        return digits()
    if data in CIFAR:
        return cifar(data, download=download)
    return from_timm(data, download=download, val_fraction=val_fraction)


def _choose_size(splits: Splits, asked: int | None) -> tuple[int, bool]:
    """(side, whether it was taken from some images and must be that of all)."""
    if asked is not None or splits.default_size is not None:
        return asked or splits.default_size or DEFAULT_SIZE, False
    found = set()
    for samples in splits.parts.values():
        step = max(1, len(samples) // PROBED)
        found |= {samples.reader.header_size(key) for key in list(samples.keys)[::step]}
    found.discard(None)
    if len(found) == 1 and (size := found.pop()) and size[0] == size[1] <= SMALL_SIDE:
        return size[0], True
    return DEFAULT_SIZE, False


def _copied(splits: Splits) -> tuple[str, ...]:
    """A warning for each held-out part in which there are training images."""
    reader, train = splits.train.reader, splits.train
    if not isinstance(reader, FileReader):
        return ()
    held = {part: samples for part, samples in splits.parts.items() if part != "train" and samples.reader == reader}
    found = {p: copies(train.keys, held[p].keys, reader, most_bytes=COMPARED) for p in held}
    return tuple(text for part, one in found.items() if (text := one.in_words(part, reader)))


def _fits(splits: Splits, side: int) -> bool:
    return side <= SMALL_SIDE and sum(map(len, splits.parts.values())) * 3 * side * side <= MEMORY_LIMIT


@dataclass(frozen=True)
class _Content:
    """What one pass over all images found: for each split the decoded images, and each image's size or fault."""

    pixels: dict[str, Tensor] | None
    found: dict[str, list[tuple[int, int] | BadImage]]

    @property
    def sizes(self) -> list[tuple[int, int] | BadImage]:
        return [size for found in self.found.values() for size in found]


def _look_at_all(splits: Splits, side: int | None, quiet: bool) -> _Content:
    """Decode every image, to keep it at `side` or (None) only to know that it is sound."""
    if side is None:
        return _Content(None, {name: check_all(samples, quiet=quiet) for name, samples in splits.parts.items()})
    decoded = {name: decode_all(samples, side, quiet=quiet) for name, samples in splits.parts.items()}
    pixels = {name: torch.from_numpy(array) for name, (array, _) in decoded.items()}
    return _Content(pixels, {name: sizes for name, (_, sizes) in decoded.items()})


def _without_bad(
    splits: Splits, content: _Content, skip: bool
) -> tuple[Splits, dict[str, Tensor] | None, tuple[str, ...]]:
    """Leave bad images out, or stop at the first and report how many there are; no class may be left empty."""
    bad = [found for found in content.sizes if isinstance(found, BadImage)]
    if bad and not skip:
        raise BadImage(bad[0].where, bad[0].reason, others=len(bad) - 1)
    pixels = content.pixels
    skipped: list[str] = []
    sound: dict[str, Samples] = {}
    for split, samples in splits.parts.items():
        found = content.found[split]
        good = [i for i, size in enumerate(found) if not isinstance(size, BadImage)]
        if len(good) < len(samples):
            names = samples.names()
            skipped += [names[i] for i in range(len(samples)) if isinstance(found[i], BadImage)]
            if pixels is not None:
                pixels = {**pixels, split: pixels[split][torch.tensor(good, dtype=torch.int64)]}
            samples = samples.subset(good)
        sound[split] = samples
    splits = splits.with_parts(sound)
    _check_every_class(splits, after=f" after leaving out {len(skipped)} bad images" if skipped else "")
    return splits, pixels, tuple(skipped)


def _check_every_class(splits: Splits, *, after: str = "") -> None:
    for split, samples in splits.parts.items():
        for label in sorted(set(range(len(splits.classes))) - set(samples.labels)):
            raise UserError(
                f"{splits.where}: class {splits.classes[label]!r} has no images in {split}{after}; "
                f"add some, or remove the class from train and val{in_words(splits.left_out)}"
            )
