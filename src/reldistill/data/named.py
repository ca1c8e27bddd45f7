"""Data sets known by name: digits, cifar10, cifar100, and whatever timm's names reach."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from reldistill.core.checks import UserError
from reldistill.data.decode import BadImage, to_rgb
from reldistill.data.samples import Samples, Splits, split_by_name

CIFAR = ("cifar10", "cifar100")
NAMES = ("digits", *CIFAR)
TIMM_PREFIXES = {  # → the package that each needs
    "hfds": "datasets",
    "hfids": "datasets",
    "wds": "webdataset",
    "tfds": "tensorflow_datasets",
    "torch": "torchvision",
}
TIMM_VAL_SPLITS = ("validation", "val", "valid", "test")
STREAM_LIMIT = 2 << 30  # bytes of decoded images of a data set that can only be read in order
DIGITS_VAL_FRACTION = 0.2


def cache_folder() -> Path:
    """Where downloads go: `$RELDISTILL_CACHE`, or `~/.cache/reldistill`."""
    return Path(os.environ.get("RELDISTILL_CACHE") or Path.home() / ".cache" / "reldistill")


@contextlib.contextmanager
def _fetching(download: bool) -> Iterator[None]:
    """One process at a time where files may be written; what libraries print is dropped: stdout belongs to results."""
    with contextlib.ExitStack() as stack:
        if download:
            cache_folder().mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(cache_folder() / "download.lock"))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


@dataclass(frozen=True)
class ArrayReader:
    """Images held as (height, width, 3) uint8 arrays, by position."""

    prefix: str
    arrays: Sequence[np.ndarray] | np.ndarray

    def image(self, key: int) -> Image.Image:
        """The image in RGB."""
        return Image.fromarray(self.arrays[key])

    def check(self, key: int) -> tuple[int, int]:
        """(width, height)."""
        height, width, _ = self.arrays[key].shape
        return width, height

    def header_size(self, key: int) -> tuple[int, int] | None:
        """(width, height)."""
        return self.check(key)

    def name(self, key: int) -> str:
        """The position, written out."""
        return f"{self.prefix}/{key:06d}"

    def signature(self, key: int) -> str:
        """A hash of the pixels."""
        return hashlib.blake2b(np.ascontiguousarray(self.arrays[key]).data, digest_size=8).hexdigest()


def digits() -> Splits:
    """scikit-learn's 1,797 scans of handwritten digits, 8×8 greys, four fifths of each class for training."""
    from sklearn.datasets import load_digits  # half a second to import, and only needed here

    bunch = load_digits()
    greys = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    reader = ArrayReader("digits", np.repeat(greys[..., None], 3, axis=3))
    classes = tuple(str(name) for name in bunch.target_names)
    samples = Samples(reader, range(len(greys)), [int(t) for t in bunch.target])
    train, val = split_by_name(samples, DIGITS_VAL_FRACTION, classes=classes, where="digits")
    return Splits(train, val, classes, "digits", default_size=32, flips=False)


def cifar(name: str, *, download: bool) -> Splits:
    """CIFAR-10 or CIFAR-100 as torchvision keeps them in the cache folder."""
    from torchvision import datasets

    build = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    root = cache_folder()
    try:
        with _fetching(download):
            halves = [build(str(root), train=train, download=download) for train in (True, False)]
    except Exception as error:
        reason = " ".join(str(error).split())
        advice = (
            f"check the connection, or put torchvision's files into {root}"
            if download
            else f"pass --download to fetch it into {root} (RELDISTILL_CACHE moves that folder)"
        )
        raise UserError(f"{name}: not available ({reason}); {advice}") from None
    train, val = (
        Samples(ArrayReader(f"{name}/{split}", half.data), range(len(half.data)), [int(t) for t in half.targets])
        for split, half in zip(("train", "test"), halves, strict=True)
    )
    return Splits(train, val, tuple(halves[0].classes), name)


@dataclass(frozen=True)
class DatasetReader:
    """Images of a random-access data set that timm opened, by position."""

    prefix: str
    dataset: Any

    def _open(self, key: int) -> Image.Image:
        if (reader := getattr(self.dataset, "reader", None)) is not None:
            return Image.open(reader[key][0])  # timm's own __getitem__ puts another image in a damaged one's place
        return self.dataset[key][0]

    def image(self, key: int) -> Image.Image:
        """The image in RGB."""
        try:
            image = self._open(key)
            image.load()
            return to_rgb(image)
        except Exception as error:  # whatever the library behind it raises on a damaged image
            raise BadImage(self.name(key), " ".join(str(error).split()) or type(error).__name__) from None

    def check(self, key: int) -> tuple[int, int]:
        """(width, height) of an image that can be decoded."""
        return self.image(key).size

    def header_size(self, key: int) -> tuple[int, int] | None:
        """(width, height); None for a damaged image."""
        try:
            return self._open(key).size
        except Exception:  # reported by `check` and `image`
            return None

    def name(self, key: int) -> str:
        """The position, written out."""
        return f"{self.prefix}:{key:08d}"

    def signature(self, key: int) -> str:
        """Nothing cheap is known of one image; the number of images is in every fingerprint."""
        return ""


def _open_timm(name: str, split: str, download: bool) -> Any:
    from timm.data import create_dataset

    prefix, _, rest = name.partition("/")
    root = Path(rest) if prefix == "wds" and Path(rest).is_dir() else cache_folder()
    options: dict[str, Any] = {} if prefix in ("hfds", "wds") else {"download": download}
    mode = "" if prefix == "hfds" else "RGB"  # "" = leave the conversion to us
    with _fetching(download):
        return create_dataset(name, root=str(root), split=split, input_img_mode=mode, **options)


def _timm_labels(dataset: Any) -> list[int]:
    if (targets := getattr(dataset, "targets", None)) is not None:
        return [int(t) for t in targets]
    reader = getattr(dataset, "reader", None)
    if reader is not None and hasattr(reader, "iter_targets"):
        return [int(t) for t in reader.iter_targets()]
    items = dataset if reader is None else reader
    return [int(items[i][1]) for i in range(len(dataset))]


def _timm_classes(dataset: Any) -> dict[int, str]:
    """Label → class name, as far as the data set tells."""
    if names := getattr(dataset, "classes", None):
        return {i: str(name) for i, name in enumerate(names)}
    to_index = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None) or {}
    return {int(i): str(name) for name, i in to_index.items()}


def _timm_samples(name: str, split: str, download: bool) -> tuple[Samples, dict[int, str]]:
    import torch

    dataset = _open_timm(name, split, download)
    prefix = f"{name}:{split}"
    if not isinstance(dataset, torch.utils.data.IterableDataset):
        labels = _timm_labels(dataset)
        return Samples(DatasetReader(prefix, dataset), range(len(labels)), labels), _timm_classes(dataset)
    arrays, labels, total = [], [], 0
    for image, label in dataset:
        arrays.append(np.asarray(to_rgb(image)))
        labels.append(int(label))
        total += arrays[-1].nbytes
        if total > STREAM_LIMIT:
            raise UserError(
                f"{name}: can only be read in order, and does not fit into {STREAM_LIMIT >> 30} GiB of memory; "
                f"save it as a folder of class folders"
            )
    return Samples(ArrayReader(prefix, arrays), range(len(arrays)), labels), _timm_classes(dataset)


def _missing(name: str, package: str) -> UserError:
    install = "'reldistill[hub]'" if package in ("datasets", "webdataset") else package.replace("_", "-")
    return UserError(f"{name}: needs the package {package!r}; install it with: pip install {install}")


def from_timm(name: str, *, download: bool, val_fraction: float) -> Splits:
    """A data set by one of timm's names, e.g. `hfds/owner/name` or `torch/fashion_mnist`."""
    package = TIMM_PREFIXES[name.partition("/")[0]]
    if importlib.util.find_spec(package) is None:
        raise _missing(name, package)
    try:
        train, known = _timm_samples(name, "train", download)
        val = None
        for split in TIMM_VAL_SPLITS:
            try:
                val, _ = _timm_samples(name, split, download)
                if min(val.labels) >= 0:
                    break
                val = None  # the labels of some test sets are kept secret, and given as -1
            except UserError:
                raise
            except Exception:  # every library reports a missing split in its own way; the next name is tried
                continue
    except UserError:
        raise
    except ImportError as error:
        raise _missing(name, error.name or str(error)) from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        fetched = download or name.partition("/")[0] not in ("torch", "tfds")
        advice = "check the name and the connection" if fetched else "check the name, or pass --download to fetch it"
        raise UserError(f"{name}: cannot be opened ({reason[:300]}); {advice}") from None
    count = max([*known, *train.labels, *(val.labels if val else ())]) + 1
    classes = tuple(known.get(i, str(i)) for i in range(count))
    if val is None:
        train, val = split_by_name(train, val_fraction, classes=classes, where=name)
    return Splits(train, val, classes, name)
