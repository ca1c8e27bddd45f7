"""Pascal VOC annotations: one XML file per image, in one folder per year.

A box there counts pixels from 1, both ends included: `xmin` 1 and `xmax` 10 are ten pixels wide. Here it becomes the
edges 0 and 10.
"""

from __future__ import annotations

import codecs
import math
import posixpath
import re
from collections import Counter
from dataclasses import dataclass
from xml.etree import ElementTree

from reldistill.core.checks import UserError
from reldistill.data.decode import EXTENSIONS, BadImage
from reldistill.data.files import Store
from reldistill.tasks.detection.data.labels import (
    Annotated,
    BadLabels,
    Labels,
    check_classes,
    check_objects,
    read_text,
)

IMAGE_FOLDERS = ("JPEGImages", "images")
LISTS = ("train", "val", "trainval", "test")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
DECLARED = re.compile(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)""")
MARKS = {  # how a file begins → its encoding, whatever it declares
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    b"<\0?": "utf-16-le",
    b"\0<\0": "utf-16-be",
}
SUBSETS_OF_GB18030 = ("gb2312", "gbk")  # what is declared as one often holds characters of the next
LAYOUT = "expected VOC2007/ or VOC2012/ (or the folder itself) with Annotations/ and JPEGImages/ inside"


@dataclass(frozen=True)
class _Year:
    """One folder of annotations and images; `lists` are its image lists by name."""

    annotations: str
    images: str
    lists: dict[str, list[str]]


def read_voc(store: Store, where: str) -> Annotated:
    """Find the years of a Store.

    Where there is an annotated test list (that of 2007), the benchmark's convention holds: train on the `trainval`
    lists of all years, validate on `test`. Else train on `train` and validate on `val`.
    """
    years = _years(store)
    if not years:
        raise UserError(f"{where}: no annotations with images beside them; {LAYOUT}")
    has_test = any(year.lists.get("test") for year in years)
    lists = {"train": "trainval", "val": "test"} if has_test else {"train": "train", "val": "val"}
    known = {part: [one for year in years for one in _read_list(store, year, name)] for part, name in lists.items()}
    if not known["train"]:
        raise UserError(f"{where}: no images to train on: its lists in ImageSets/Main/ are empty")
    names = sorted({name for images in known.values() for _, found in images for name in found})
    if not names:
        check_objects([labels for images in known.values() for labels, _ in images], where)
    classes = check_classes(names, where)
    for images in known.values():
        for labels, found in images:
            labels.labels = [classes.index(name) for name in found]
    parts = {part: [labels for labels, _ in images] for part, images in known.items() if images}
    return Annotated(parts, classes, Counter(), "difficult objects")


def _years(store: Store) -> list[_Year]:
    years = []
    for folder in sorted(store.folders):
        parent, name = posixpath.split(folder)
        images = [path for each in IMAGE_FOLDERS if (path := posixpath.join(parent, each)) in store.folders]
        if name == "Annotations" and images:
            years.append(_Year(folder, images[0], _lists(store, parent, folder)))
    return years


def _lists(store: Store, parent: str, annotations: str) -> dict[str, list[str]]:
    """The image lists of a year; without any, all its annotated images are there to train on."""
    lists = {}
    for name in LISTS:
        path = posixpath.join(parent, "ImageSets/Main", f"{name}.txt")
        if path in store.files:
            lists[name] = [line.split()[0] for line in read_text(store, path).splitlines() if line.strip()]
    if "test" in lists and not any(f"{annotations}/{i}.xml" in store.files for i in lists["test"]):
        del lists["test"]  # that of 2012, whose objects are kept secret
    if not lists:
        files = (posixpath.split(path) for path in sorted(store.files))
        lists["train"] = [name[:-4] for folder, name in files if folder == annotations and name.endswith(".xml")]
    if "trainval" not in lists:
        lists["trainval"] = [*lists.get("train", ()), *lists.get("val", ())]
    if "train" not in lists:
        held = set(lists.get("val", ()))
        lists["train"] = [name for name in lists["trainval"] if name not in held]
    return lists


def _read_list(store: Store, year: _Year, name: str) -> list[tuple[Labels, list[str]]]:
    """The images of a list, and the class names of each one's objects."""
    prefix = f"{year.images}/"
    inside = [posixpath.splitext(path[len(prefix) :]) for path in store.files if path.startswith(prefix)]
    endings = {stem: ending for stem, ending in inside if ending.lower() in EXTENSIONS}
    images = []
    for identity in year.lists.get(name, ()):
        labels = Labels(store.key(f"{prefix}{identity}{endings.get(identity, '.jpg')}"), identity)
        path = f"{year.annotations}/{identity}.xml"
        try:
            images.append((labels, _read_xml(store, path, labels)))
        except BadLabels as bad:
            labels.fault = bad
            images.append((labels, []))
    return images


def _parsed(raw: bytes, where: str) -> ElementTree.Element:
    """The document, in whatever encoding it declares; UserError where Python does not know that encoding."""
    encoding = next((encoding for mark, encoding in MARKS.items() if raw.startswith(mark)), None)
    if encoding is None:
        declared = DECLARED.match(raw)
        encoding = "utf-8" if declared is None else declared[1].decode().lower()
        if encoding.startswith(("utf-16", "utf-32")):
            encoding = "utf-8"  # a declaration that can be read byte by byte is in neither
    try:
        text = raw.decode("gb18030" if encoding in SUBSETS_OF_GB18030 else encoding)
    except LookupError:
        raise UserError(
            f"{where}: declares the encoding {encoding!r}, which Python does not know; save it as UTF-8"
        ) from None
    return ElementTree.fromstring(text)


def _read_xml(store: Store, path: str, labels: Labels) -> list[str]:
    """Fill in the size and the boxes, and return the class names; BadLabels if that cannot be done."""
    where = store.where(path)
    try:
        root = _parsed(store.read(path), where)
    except BadImage as bad:
        raise BadLabels(where, bad.reason) from None
    except (ElementTree.ParseError, UnicodeError) as error:
        raise BadLabels(where, f"not XML ({error})") from None
    sides = [root.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
    if all(side.isdigit() and int(side) for side in sides):
        labels.size = int(sides[0]), int(sides[1])
    names, boxes = [], []
    for number, entry in enumerate(root.findall("object"), 1):
        name = entry.findtext("name", "").strip()
        if not name:
            raise BadLabels(where, f"object {number} has no name")
        try:
            left, top, right, bottom = corners = [float(entry.findtext(f"bndbox/{c}", "")) for c in CORNERS]
            difficult = bool(int(entry.findtext("difficult", "0")))
            if not all(map(math.isfinite, corners)):
                raise ValueError
        except ValueError:
            reason = f"object {number} ({name}) needs numbers {', '.join(CORNERS)} in its bndbox"
            raise BadLabels(where, reason) from None
        names.append(name)
        boxes.append(((max(left - 1, min(left, 0)), max(top - 1, min(top, 0)), right, bottom), difficult))
    for box, difficult in boxes:
        labels.add(box, -1, ignored=difficult)
    return names
