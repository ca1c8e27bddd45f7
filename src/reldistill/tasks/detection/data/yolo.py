"""YOLO labels: one text file per image, one line per object: class, then centre, width and height as fractions."""

from __future__ import annotations

import math
import posixpath
from collections import Counter
from typing import Any

from reldistill.core.checks import UserError
from reldistill.core.safe_read import Unreadable, parse_yaml
from reldistill.data.decode import EXTENSIONS, BadImage
from reldistill.data.files import Store
from reldistill.tasks.detection.data.labels import (
    KEYPOINTS,
    POLYGONS,
    UNLABELLED,
    Annotated,
    BadLabels,
    Labels,
    check_classes,
    check_objects,
    read_text,
)

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
ROUNDING = 0.01  # how far a centre may lie outside the image; further out the numbers are not fractions
FAR = 0.5  # how far a polygon's corner may; the 2 that marks a visible keypoint in poses is further
LAYOUT = "expected data.yaml, or images/train and images/val with labels/train and labels/val beside them"


def read_yolo(store: Store, where: str) -> Annotated:
    """Find the images of a Store, their label files and the class names."""
    settings, described = _settings(store, where)
    images = {part: _images(store, part, settings, described) for part in SPLITS}
    if not images["train"]:
        raise UserError(f"{where}: no images to train on; {LAYOUT}")
    counts: Counter[str] = Counter()
    keypoints = _keypoint_numbers(settings, store.where(described))
    parts = {
        part: [_read_labels(store, path, counts, keypoints) for path in paths]
        for part, paths in images.items()
        if paths
    }
    total = sum(map(len, parts.values()))
    if counts[UNLABELLED] == total:
        raise UserError(f"{where}: none of its {total:,} images has a label file; {LAYOUT}")
    every = [labels for part in parts.values() for labels in part]
    classes = _classes(store, settings, described, every, where)
    for labels in every:
        if labels.labels and max(labels.labels) >= len(classes) and labels.fault is None:
            labels.fault = BadLabels(
                store.where(_label_path(labels.key)), f"class {max(labels.labels)} of {len(classes)} (counted from 0)"
            )
    return Annotated(parts, classes, counts, "ignored objects")


def _settings(store: Store, where: str) -> tuple[dict[str, Any], str]:
    """The content of the data set's YAML file and its path; nothing where there is none."""
    found = [path for path in sorted(store.files) if path.endswith((".yaml", ".yml")) and "/" not in path]
    contents = {}
    for path in found:
        try:
            content = parse_yaml(read_text(store, path))
        except Unreadable as error:
            raise UserError(f"{store.where(path)}: {error}") from None
        if isinstance(content, dict) and "names" in content:
            contents[path] = content
    if len(contents) > 1 and "data.yaml" not in contents:
        raise UserError(f"{where}: {' and '.join(contents)} could both describe the data; call the right one data.yaml")
    path = "data.yaml" if "data.yaml" in contents else next(iter(contents), "")
    return contents.get(path, {}), path


def _images(store: Store, part: str, settings: dict[str, Any], described: str) -> list[str]:
    """The images of a split, in order."""
    entries = [settings[name] for name in SPLITS[part] if settings.get(name)]
    if not entries:
        folders = [form.format(name) for name in SPLITS[part] for form in ("images/{}", "{}/images")]
        entries = [[folder for folder in folders if folder in store.folders][:1]]
        if part == "train" and not entries[0] and "images" in store.folders:
            entries = [["images"]]
    listed = entries[0] if isinstance(entries[0], list) else [entries[0]]
    base = str(settings.get("path") or "")
    return list(dict.fromkeys(path for entry in listed for path in _listed(store, part, str(entry), base, described)))


def _listed(store: Store, part: str, entry: str, base: str, described: str) -> list[str]:
    """The images of a folder, or those that a text file lists."""
    inside = entry = entry.replace("\\", "/")
    while inside.startswith(("../", "./")):  # exporters write ../train/images for the folder beside data.yaml
        inside = inside.partition("/")[2]
    tries = [store.key(path) for path in (posixpath.join(base, entry), entry, inside)]
    for path in tries:
        if path in store.folders:
            return [
                image
                for image in sorted(store.files)
                if image.startswith(f"{path}/") and posixpath.splitext(image)[1].lower() in EXTENSIONS
            ]
        if path in store.files:
            beside = posixpath.dirname(path)
            lines = [line.strip() for line in read_text(store, path).splitlines()]
            return [store.key(posixpath.join(beside, line.replace("\\", "/"))) for line in lines if line]
    if part == "test":  # exporters write this line whether or not there is such a part
        return []
    where = store.where(described)
    raise UserError(f"{where}: {entry!r} is neither a folder nor a list of images inside {store.where('')}")


def _label_path(image: str) -> str:
    """The label file of an image: `labels` in the place of the last folder called `images`."""
    *folders, name = image.split("/")
    for at in range(len(folders) - 1, -1, -1):
        if folders[at] == "images":
            folders[at] = "labels"
            break
    return "/".join([*folders, f"{posixpath.splitext(name)[0]}.txt"])


def _keypoint_numbers(settings: dict[str, Any], where: str) -> int | None:
    """How many numbers follow each box in the labels of a pose data set; None for labels without keypoints."""
    if "kpt_shape" not in settings:
        return None
    shape = settings["kpt_shape"]
    whole = isinstance(shape, list) and len(shape) == 2 and all(type(number) is int for number in shape)
    if not whole or shape[0] < 1 or shape[1] not in (2, 3):
        raise UserError(f"{where}: expected 'kpt_shape' to be [keypoints, 2 or 3], found {str(shape)[:60]!r}")
    return shape[0] * shape[1]


def _read_labels(store: Store, image: str, counts: Counter[str], keypoints: int | None) -> Labels:
    labels = Labels(image, image, fractions=True)
    path = _label_path(image)
    if not store.exists(path):
        counts[UNLABELLED] += 1
        return labels
    try:
        for number, line in enumerate(store.read(path).decode("utf-8-sig", "replace").splitlines(), 1):
            if line.strip():
                _read_line(line, f"{store.where(path)} line {number}", labels, counts, keypoints)
    except BadLabels as bad:
        labels.fault = bad
    except BadImage as bad:
        labels.fault = BadLabels(bad.where, bad.reason)
    return labels


def _read_line(line: str, where: str, labels: Labels, counts: Counter[str], keypoints: int | None) -> None:
    try:
        first, *numbers = (float(word) for word in line.split())
    except ValueError:
        raise BadLabels(where, f"expected a class and 4 fractions, found {line.strip()[:60]!r}") from None
    if not first.is_integer() or first < 0:
        raise BadLabels(where, f"expected a class number first, found {line.strip()[:60]!r}")
    if keypoints is not None:
        if len(numbers) != 4 + keypoints:
            raise BadLabels(
                where,
                f"expected a class, 4 fractions and {keypoints} numbers of keypoints (kpt_shape), found "
                f"{len(numbers)} numbers after the class",
            )
        counts[KEYPOINTS] += 1
        numbers = numbers[:4]
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        if not all(-FAR <= at <= 1 + FAR for at in numbers):
            raise BadLabels(
                where, "expected a polygon's corners as fractions (are they keypoints? name their kpt_shape)"
            )
        counts[POLYGONS] += 1
        left, right, top, bottom = (pick(numbers[i::2]) for i in (0, 1) for pick in (min, max))
    elif len(numbers) == 4:
        x, y, width, height = numbers
        left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    else:
        raise BadLabels(where, f"expected a class and 4 fractions, found {len(numbers)} numbers after the class")
    sound = all(map(math.isfinite, numbers)) and left <= right and top <= bottom
    centre = ((left + right) / 2, (top + bottom) / 2)
    if not sound or not all(-ROUNDING <= at <= 1 + ROUNDING for at in centre):
        raise BadLabels(where, f"expected fractions of the image's width and height, found {line.strip()[:60]!r}")
    labels.add((left, top, right, bottom), int(first))


def _classes(
    store: Store, settings: dict[str, Any], described: str, images: list[Labels], where: str
) -> tuple[str, ...]:
    """The class names: of the YAML file, of classes.txt, or else the classes' numbers."""
    if (names := settings.get("names")) is not None:
        if isinstance(names, dict):
            if set(names) != set(range(len(names))):
                raise UserError(f"{store.where(described)}: 'names' must number the classes 0, 1, 2, …")
            names = [names[i] for i in range(len(names))]
        if not isinstance(names, list):
            raise UserError(f"{store.where(described)}: 'names' must be a list of class names")
        if not all(isinstance(name, str | int | float) for name in names):
            raise UserError(f"{store.where(described)}: 'names' must be a list of class names, each a text")
        return check_classes((str(name) for name in names), store.where(described))
    for path in ("classes.txt", "labels/classes.txt"):
        if path in store.files:
            lines = (line.strip() for line in read_text(store, path).splitlines())
            return check_classes((line for line in lines if line), store.where(path))
    check_objects(images, where)
    count = max((label for labels in images for label in labels.labels), default=-1) + 1
    return check_classes((str(i) for i in range(count)), where)
