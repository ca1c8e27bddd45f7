"""A drawn object is where its box is, however the camera was held, in every format and layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from drawn_boxes import COLOURS, Drawn, as_held, write_coco, write_voc, write_yolo
from reldistill.data.decode import EXTENSIONS
from reldistill.tasks.detection.images import load_detection

FORMATS: dict[str, dict[str, Any]] = {
    "jpg": {"quality": 95, "subsampling": 0},
    "png": {},
    "tif": {},
    "webp": {"lossless": True},
    "avif": {"quality": 95, "subsampling": "4:4:4"},
    "heic": {"quality": 95},
}
WRITERS: dict[str, Callable[..., Path]] = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}


def held(first: int, ending: str, *, width: int, height: int) -> list[Drawn]:
    """An image for each orientation, with one object that no turn and no mirror maps onto itself."""
    box = (4, 2, width // 2, height // 3)
    return [Drawn(f"{first + way:03d}.{ending}", width, height, (("red", *box),)) for way in range(1, 9)]


def turn(images: list[Drawn], root: Path, **options: Any) -> None:
    """Store the images under a folder as cameras would that were held in every way."""
    for way, image in enumerate(images, 1):
        exif = Image.Exif()
        exif[0x0112] = way
        (path,) = root.rglob(image.name)
        Image.fromarray(as_held(image.pixels(), way)).save(path, exif=exif.tobytes(), **options)


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("ending", FORMATS)
def test_boxes_lie_on_their_objects(layout: str, ending: str, tmp_path: Path) -> None:
    if (ending == "avif" and not features.check("avif")) or f".{ending}" not in EXTENSIONS:
        pytest.skip(f"nothing installed here reads {ending}")
    parts = {
        "train": held(0, ending, width=48, height=30),
        "val": [*held(100, ending, width=48, height=30), *held(200, ending, width=30, height=48)],
    }
    WRITERS[layout](tmp_path / "data", **parts)
    for start in (0, 8):
        turn(parts["val"][start : start + 8], tmp_path / "data", **FORMATS[ending])
    turn(parts["train"], tmp_path / "data", **FORMATS[ending])
    data = load_detection(f"{layout}:{tmp_path / 'data'}", batch_size=1, workers=0, augment="none", image_size=32)
    assert len(data.val) == 16
    for batch, drawn in zip(data.val, parts["val"], strict=True):
        ((height, width),) = batch.targets.sizes.tolist()
        assert (width, height) == (drawn.width, drawn.height)
        left, top, right, bottom = batch.targets.corners[0].round().int().tolist()
        assert (left, top, right, bottom) == drawn.objects[0][1:]
        expected = np.zeros((height, width, 3))
        expected[top:bottom, left:right] = COLOURS["red"]
        found = batch.images[0, :, :height, :width].permute(1, 2, 0).numpy() * 255
        assert np.abs(found - expected).mean() < 4, f"{drawn.name} is not where its box is"
