"""COCO annotations: one JSON file per split, boxes as left, top, width, height."""

from __future__ import annotations

import math
import posixpath
import re
from collections import Counter
from typing import Any

from reldistill.core.checks import UserError
from reldistill.core.safe_read import Unreadable, parse_json
from reldistill.data.files import Store, leads_out
from reldistill.tasks.detection.data.labels import (
    LISTED_AGAIN,
    UNLISTED,
    Annotated,
    BadLabels,
    Labels,
    check_classes,
    read_text,
)

SPLIT = re.compile(r"(?<![a-z])(train|validation|valid|val|test)(?![a-z])")
PARTS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}
OTHER_KINDS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")  # COCO's other annotation files
LAYOUT = (
    "expected annotations/instances_train*.json and instances_val*.json beside images/train*/ and images/val*/ "
    "(or train*/ and val*/)"
)


def read_coco(store: Store, where: str) -> Annotated:
    """Find the annotation files of a Store and the images they describe."""
    files = _annotation_files(store, where)
    categories: dict[int, int] | None = None
    classes: tuple[str, ...] = ()
    counts: Counter[str] = Counter()
    parts: dict[str, list[Labels]] = {}
    for part, path in files.items():
        content = _content(store, path)
        named = {_field(c, "id", int, store.where(path)): c for c in content["categories"]}
        if len(named) < len(content["categories"]):
            raise UserError(f"{store.where(path)}: two categories have one id; give each its own")
        names = check_classes((_field(c, "name", str, store.where(path)) for c in named.values()), store.where(path))
        if categories is None:
            categories, classes = {identity: i for i, identity in enumerate(named)}, names
        elif {i: names[n] for n, i in enumerate(named)} != {i: classes[n] for i, n in categories.items()}:
            raise UserError(
                f"{store.where(path)}: its categories (id, name) are not those of {store.where(files['train'])}; "
                f"both must list the same"
            )
        parts[part] = _read_part(store, path, content, categories, counts)
    return Annotated(parts, classes, counts, "crowd boxes")


def _annotation_files(store: Store, where: str) -> dict[str, str]:
    """Split → its annotation file; `train` first."""
    found = [p for p in sorted(store.files) if p.lower().endswith(".json") and p.count("/") <= 1]
    found = [p for p in found if not posixpath.basename(p).startswith(OTHER_KINDS)]
    if not found:
        raise UserError(f"{where}: no annotation file; {LAYOUT}")
    if len(found) == 1 and not SPLIT.search(found[0].lower()):
        return {"train": found[0]}
    by_part: dict[str, list[str]] = {}
    for path in found:
        if match := SPLIT.search(path.lower()):
            by_part.setdefault(PARTS[match[1]], []).append(path)
    chosen = {}
    for part in ("train", "val", "test"):
        paths = by_part.get(part, [])
        instances = [p for p in paths if posixpath.basename(p).startswith("instances_")]
        paths = instances or paths
        if len(paths) > 1:
            raise UserError(
                f"{where}: {' and '.join(paths)} could both be the annotations for {part}; keep one of them there"
            )
        if paths:
            chosen[part] = paths[0]
    if "train" not in chosen:
        raise UserError(f"{where}: found {', '.join(found[:5])}, but no annotations for training; {LAYOUT}")
    return chosen


def _content(store: Store, path: str) -> dict[str, Any]:
    where = store.where(path)
    try:
        content = parse_json(read_text(store, path))
    except Unreadable as error:
        raise UserError(f"{where}: {error}") from None
    for name in ("images", "annotations", "categories"):
        values = content.get(name) if isinstance(content, dict) else None
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise UserError(f"{where}: has no list {name!r} of objects, as COCO's annotations of boxes have")
    return content


def _field(entry: dict[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    value = entry.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where}: {name!r} is missing or wrong in {str(entry)[:100]}")
    return value


def _folder_of_images(store: Store, path: str, names: list[str]) -> str:
    """The folder under which most of an annotation file's images are."""
    stem, beside = posixpath.splitext(posixpath.basename(path))[0], posixpath.dirname(path)
    tail = stem.removeprefix("instances_")
    words = [tail, match[1] if (match := SPLIT.search(path.lower())) else tail]
    folders = [folder for word in words for folder in (f"images/{word}", word, f"{word}/images")]
    folders += ["images", "", beside, f"{beside}/images"]

    def found(folder: str) -> int:
        keys = (store.key(posixpath.join(folder, name)) for name in names)
        return sum(key in store.files or (leads_out(key) and store.exists(key)) for key in keys)

    best = max(folders, key=found)  # the first of the best
    if names and not found(best):
        existing = [f"{folder}/" for folder in dict.fromkeys(folders) if folder in store.folders]
        looked = f"under {', '.join(existing)} or {store.where('')}" if existing else f"under {store.where('')}"
        raise UserError(
            f"{store.where(path)}: none of its {len(names):,} images (the first is {names[0]}) is {looked}; {LAYOUT}"
        )
    return best


def _read_part(
    store: Store, path: str, content: dict[str, Any], categories: dict[int, int], counts: Counter[str]
) -> list[Labels]:
    where = store.where(path)
    names = [_field(image, "file_name", str, where).replace("\\", "/") for image in content["images"]]
    folder = _folder_of_images(store, path, names)
    by_identity: dict[int | str, Labels] = {}
    for image, name in zip(content["images"], names, strict=True):
        identity = _field(image, "id", (int, str), where)
        if identity in by_identity:
            raise UserError(f"{where}: two images have the id {identity}; give each its own")
        sides = [image.get(side) for side in ("width", "height")]
        size = (int(sides[0]), int(sides[1])) if all(_is_number(side) and side > 0 for side in sides) else None
        by_identity[identity] = Labels(store.key(posixpath.join(folder, name)), identity, size)
    twins = {_digits(identity): identity for identity in by_identity}
    for annotation in content["annotations"]:
        identity = annotation.get("image_id")
        known = isinstance(identity, int | str) and not isinstance(identity, bool)
        labels = by_identity.get(identity) if known else None
        if labels is None:
            if (twin := twins.get(_digits(identity))) is not None:
                raise UserError(
                    f"{where}: annotation {annotation.get('id')} is of image {identity!r}, but that image's id is "
                    f"{twin!r}; write the ids of images and the image_id of annotations alike, best as whole numbers"
                )
            counts[UNLISTED] += 1
        elif reason := _wrong(annotation, categories):
            labels.fault = labels.fault or BadLabels(f"{where}: annotation {annotation.get('id')}", reason)
        else:
            left, top, width, height = annotation["bbox"]
            labels.add(
                (left, top, left + width, top + height),
                categories[annotation["category_id"]],
                ignored=bool(annotation.get("iscrowd", 0)),
                area=annotation.get("area"),
            )
    counts[LISTED_AGAIN] += len(by_identity) - len({labels.key for labels in by_identity.values()})
    return list(by_identity.values())


def _digits(identity: Any) -> str:
    """What ids of different types have in common: 7, 7.0, "7" and "007" are one."""
    try:
        return str(int(identity))
    except (TypeError, ValueError, OverflowError):
        return str(identity)


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _wrong(annotation: dict[str, Any], categories: dict[int, int]) -> str | None:
    """What is wrong with an annotation, if anything."""
    box, area = annotation.get("bbox"), annotation.get("area")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"expected 'bbox' to be [left, top, width, height], found {str(box)[:60]}"
    category = annotation.get("category_id")
    if not isinstance(category, int) or isinstance(category, bool) or category not in categories:
        alike = next((f", which has {known}" for known in categories if _digits(known) == _digits(category)), "")
        return f"category {category!r} is not in the file's categories{alike}"
    if annotation.get("iscrowd") not in (None, 0, 1):
        return f"expected 'iscrowd' to be 0 or 1, found {str(annotation['iscrowd'])[:60]!r}"
    if area is not None and not _is_number(area):
        return f"expected 'area' to be a number, found {str(area)[:60]}"
    return None
