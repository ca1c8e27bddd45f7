from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import same_images
from drawn_boxes import draw
from reldistill.tasks.detection.images import load_detection


def test_every_split_holds_the_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tmp_path / "coco" / "images" / "train2017"
    drawn = draw(5)
    for one in drawn:
        one.save(images)
    content = {
        "images": [
            {"id": i, "file_name": one.name, "width": one.width, "height": one.height} for i, one in enumerate(drawn)
        ],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [
            {"id": 10 * i + k, "image_id": i, "category_id": 1, "bbox": [x, y, r - x, b - y], "area": 1, "iscrowd": 0}
            for i, one in enumerate(drawn)
            for k, (_, x, y, r, b) in enumerate(one.objects)
        ],
    }
    (tmp_path / "coco" / "annotations").mkdir()
    (tmp_path / "coco" / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["same_images", "coco", "same"])
    assert same_images.main() == 0
    data = load_detection("coco:same", batch_size=2, workers=0, hold_out_test=True)
    assert data.test is not None
    assert [part.images for part in (data.train, data.val, data.test)] == [5, 5, 5]
    assert same_images.main() == 2
    monkeypatch.setattr("sys.argv", ["same_images", "nowhere", "other"])
    assert same_images.main() == 2
    assert not (tmp_path / "other").exists()
