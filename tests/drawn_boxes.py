"""Images on which objects are drawn as rectangles, in every layout of annotations that is read."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("blue", "green", "red")  # alphabetical, as a layout without a list of classes orders them
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@dataclass(frozen=True)
class Drawn:
    """One image: its name, width and height, and objects as (class name, left, top, right, bottom)."""

    name: str
    width: int
    height: int
    objects: tuple[tuple[str, int, int, int, int], ...]

    def pixels(self) -> np.ndarray:
        """(height, width, 3) uint8, black but for the objects."""
        pixels = np.zeros((self.height, self.width, 3), dtype=np.uint8)
        for name, left, top, right, bottom in self.objects:
            pixels[top:bottom, left:right] = COLOURS[name]
        return pixels

    def save(self, folder: Path) -> None:
        """Write the image into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.pixels()).save(folder / self.name)


def as_held(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera held as the EXIF orientation says would store of upright pixels (H, W, 3)."""
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }[orientation]
    return np.ascontiguousarray(turned)


def draw(count: int, *, seed: int = 0, first: int = 0) -> list[Drawn]:
    """Images of several sizes, landscape and portrait, each with one object of every class, the last with none.

    They are named by numbers from `first` on.
    """
    random = np.random.default_rng(seed)
    images = []
    for number in range(count):
        width, height = [(120, 90), (90, 120), (100, 100), (150, 80)][number % 4]
        third = width // 3
        objects = []
        for place, name in enumerate(random.permutation(CLASSES)):
            wide, high = int(random.integers(12, third - 4)), int(random.integers(12, height - 20))
            left = place * third + int(random.integers(0, third - wide))
            top = int(random.integers(0, height - high))
            objects.append((str(name), left, top, left + wide, top + high))
        images.append(Drawn(f"{first + number:06d}.png", width, height, tuple(objects)))
    return [*images[:-1], replace(images[-1], objects=())]


def draw_large(count: int, *, seed: int = 0, first: int = 0) -> list[Drawn]:
    """Images, landscape and portrait by turns, each with two objects so large that a detector learns them at once."""
    random = np.random.default_rng(seed)
    images = []
    for number in range(count):
        width, height = [(96, 80), (80, 96)][number % 2]
        objects = []
        for place, name in enumerate(random.permutation(CLASSES)[:2]):
            wide, high = random.integers(30, 39, size=2).tolist()
            left, top = 48 * place * (width > height), 48 * place * (height > width)
            left += int(random.integers(0, min(48, width) - wide + 1)) if width > height else int(random.integers(40))
            top += int(random.integers(0, min(48, height) - high + 1)) if height > width else int(random.integers(40))
            objects.append((str(name), left, top, left + wide, top + high))
        images.append(Drawn(f"{first + number:06d}.png", width, height, tuple(objects)))
    return images


def coco_json(images: list[Drawn]) -> dict:
    """COCO's annotations of some images; ids that are no positions."""
    annotations = []
    for image in images:
        for name, left, top, right, bottom in image.objects:
            wide, high = right - left, bottom - top
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": int(Path(image.name).stem) + 100,
                    "category_id": 10 * (CLASSES.index(name) + 1),
                    "bbox": [left, top, wide, high],
                    "area": wide * high / 2,
                    "iscrowd": 0,
                }
            )
    return {
        "images": [
            {"id": int(Path(i.name).stem) + 100, "file_name": i.name, "width": i.width, "height": i.height}
            for i in images
        ],
        "annotations": annotations,
        "categories": [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(CLASSES)],
    }


def write_coco(root: Path, **splits: list[Drawn]) -> Path:
    """annotations/instances_SPLIT.json and images/SPLIT/."""
    (root / "annotations").mkdir(parents=True)
    for split, images in splits.items():
        for image in images:
            image.save(root / "images" / split)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco_json(images)))
    return root


def voc_xml(image: Drawn, *, difficult: tuple[int, ...] = ()) -> str:
    """VOC's annotation of an image; `difficult` objects by position."""
    objects = "".join(
        f"<object><name>{name}</name><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
        f"<difficult>{int(number in difficult)}</difficult>"
        f"<bndbox><xmax>{right}</xmax><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><ymax>{bottom}</ymax></bndbox>"
        f"</object>"
        for number, (name, left, top, right, bottom) in enumerate(image.objects)
    )
    size = f"<size><width>{image.width}</width><height>{image.height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{image.name}</filename>{size}{objects}</annotation>"


def write_voc(year: Path, *, difficult: tuple[int, ...] = (), **lists: list[Drawn]) -> Path:
    """Annotations/, JPEGImages/ and ImageSets/Main/LIST.txt of one year."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (year / folder).mkdir(parents=True, exist_ok=True)
    for name, images in lists.items():
        stems = [Path(image.name).stem for image in images]
        (year / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        for stem, image in zip(stems, images, strict=True):
            image.save(year / "JPEGImages")
            (year / "Annotations" / f"{stem}.xml").write_text(voc_xml(image, difficult=difficult))
    return year


def write_yolo(root: Path, **splits: list[Drawn]) -> Path:
    """data.yaml, images/SPLIT/ and labels/SPLIT/; an image without objects has no label file."""
    for split, images in splits.items():
        (root / "labels" / split).mkdir(parents=True)
        for image in images:
            image.save(root / "images" / split)
            lines = [
                f"{CLASSES.index(name)} {(left + right) / 2 / image.width:.9f} {(top + bottom) / 2 / image.height:.9f} "
                f"{(right - left) / image.width:.9f} {(bottom - top) / image.height:.9f}\n"
                for name, left, top, right, bottom in image.objects
            ]
            if lines:
                (root / "labels" / split / f"{Path(image.name).stem}.txt").write_text("".join(lines))
    entries = "".join(f"{split}: images/{split}\n" for split in splits)
    (root / "data.yaml").write_text(f"path: ../somewhere/else\n{entries}names: [{', '.join(CLASSES)}]\n")
    return root
