from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from drawn_boxes import draw_large, write_coco
from reldistill.core.checks import UserError
from reldistill.tasks.detection.task import DetectionTask
from reldistill.training.settings import DataSettings


def read(folder: Path, **changes: object) -> object:
    data = DataSettings(data=f"coco:{folder}", image_size=64, **changes)  # type: ignore[arg-type]
    return DetectionTask().read(data, batch_size=2, seed=0, workers=0, models=())


def test_images_without_objects_can_measure_nothing(tmp_path: Path) -> None:
    bare = [dataclasses.replace(image, objects=()) for image in draw_large(2, first=4)]
    write_coco(tmp_path / "bare", train=draw_large(4), val=bare)
    with pytest.raises(UserError, match="no objects to be found in the val images, so nothing can be measured") as said:
        read(tmp_path / "bare")
    assert "\n" not in str(said.value)


def test_images_to_learn_from_may_have_none(tmp_path: Path) -> None:
    train = [*draw_large(3), dataclasses.replace(draw_large(1, first=3)[0], objects=())]
    write_coco(tmp_path / "some", train=train, val=draw_large(2, first=4))
    assert read(tmp_path / "some").train.images == 4  # type: ignore[attr-defined]
