from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from drawn_boxes import CLASSES, Drawn, coco_json, draw, voc_xml, write_coco, write_voc, write_yolo
from reldistill.core.checks import UserError
from reldistill.tasks.detection.images import DetectionData, is_detection, load_detection

TRAIN, VAL, TEST = draw(9, seed=0), draw(4, seed=1, first=100), draw(3, seed=2, first=200)


def load(data: str, **settings: Any) -> DetectionData:
    return load_detection(data, **{"batch_size": 2, "workers": 0, "image_size": 64, **settings})


def objects_of(data: DetectionData, split: str) -> dict[str, list[tuple]]:
    """Image stem → its objects, sorted: (class name, left, top, right, bottom)."""
    images = data.splits[split]
    found = {}
    for index, key in enumerate(images.keys):
        objects = images.objects(index)
        rows = zip(objects.labels.tolist(), objects.corners.round(3).tolist(), strict=True)
        found[Path(key).stem] = sorted((data.classes[label], *corners) for label, corners in rows)
    return found


def expected(images: list[Drawn]) -> dict[str, list[tuple]]:
    return {Path(image.name).stem: sorted(image.objects) for image in images}


def write_voc_devkit(root: Path, **lists: list[Drawn]) -> Path:
    write_voc(root / "VOCdevkit" / "VOC2012", train=lists["train"], val=lists["val"])
    return root


WRITERS: dict[str, Callable[..., Path]] = {"coco": write_coco, "voc": write_voc_devkit, "yolo": write_yolo}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_gives_the_same_objects(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path / "data", train=TRAIN, val=VAL)
    data = load(f"{layout}:{tmp_path / 'data'}")
    assert data.classes == CLASSES
    assert objects_of(data, "train") == expected(TRAIN)
    assert objects_of(data, "val") == expected(VAL)
    assert data.test is None
    assert data.counts["images"] == 13
    assert data.counts["boxes"] == 3 * (8 + 3)
    assert data.counts["images without objects"] == 2
    assert data.layout == layout
    areas = data.splits["val"].objects(0).areas
    sides = np.diff(data.splits["val"].objects(0).corners.reshape(-1, 2, 2), axis=1).prod(axis=-1)[:, 0]
    np.testing.assert_allclose(areas, sides / 2 if layout == "coco" else sides, rtol=1e-5)


@pytest.mark.parametrize("layout", WRITERS)
def test_a_zip_archive_is_read_in_place(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path / "data", train=TRAIN, val=VAL)
    archive = shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path / "data")
    assert objects_of(load(f"{layout}:{archive}"), "train") == expected(TRAIN)


def test_the_line_of_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_yolo(tmp_path / "data", train=TRAIN, val=VAL)
    name = f"yolo:{tmp_path / 'data'}"
    data = load(name)
    line = (
        f"{name}: 13 images, 33 boxes, 2 images without objects, "
        f"2 images without a label file, taken as without objects"
    )
    assert capsys.readouterr().err == f"{line}\n"
    assert data.summary == line
    load(name, rank=1, world_size=2)
    assert capsys.readouterr().err == ""


def test_what_is_a_name_of_boxes() -> None:
    assert is_detection("coco:DIR")
    assert not is_detection("cifar10")
    assert not is_detection("coco")
    for data in ("coco", "coco:", "folder", "kitti:folder"):
        with pytest.raises(UserError, match="coco:DIR, voc:DIR, yolo:DIR"):
            load(data)
    with pytest.raises(UserError, match="no such file or folder as nowhere"):
        load("coco:nowhere")


@pytest.mark.parametrize("layout", WRITERS)
def test_one_split_is_cut_by_the_images_names(layout: str, tmp_path: Path) -> None:
    write = WRITERS[layout]
    if layout == "voc":
        write_voc(tmp_path / "one", trainval=TRAIN)
    else:
        write(tmp_path / "one", train=TRAIN)
    one, again = (load(f"{layout}:{tmp_path / 'one'}", val_fraction=0.3, seed=seed) for seed in (0, 1))
    found = {split: set(objects_of(one, split)) for split in ("train", "val")}
    assert len(found["val"]) == 3
    assert found["train"] | found["val"] == set(expected(TRAIN))
    assert not found["train"] & found["val"]
    assert {split: set(objects_of(again, split)) for split in found} == found


def test_three_parts(tmp_path: Path) -> None:
    write_coco(tmp_path / "two", train2017=TRAIN, val2017=VAL)
    data = load(f"coco:{tmp_path / 'two'}", hold_out_test=True, val_fraction=0.3)
    assert objects_of(data, "test") == expected(VAL)
    assert len(objects_of(data, "val")) == 3
    assert objects_of(data, "train").keys() | objects_of(data, "val").keys() == expected(TRAIN).keys()
    assert data.test is not None
    assert sum(len(batch) for batch in data.test) == 4
    write_coco(tmp_path / "three", train=TRAIN, val=VAL, test=TEST)
    assert "test" not in load(f"coco:{tmp_path / 'three'}").splits
    data = load(f"coco:{tmp_path / 'three'}", hold_out_test=True)
    assert [len(data.splits[part]) for part in ("train", "val", "test")] == [9, 4, 3]
    write_coco(tmp_path / "no-val", train=TRAIN, test=TEST)
    assert objects_of(load(f"coco:{tmp_path / 'no-val'}"), "val") == expected(TEST)


def test_the_fingerprint_changes_with_the_data_only(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data", train=TRAIN, val=VAL)
    first = load(f"coco:{root}").fingerprint
    assert load(f"coco:{root}", seed=3, image_size=96, augment="none", batch_size=1).fingerprint == first
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    assert load(f"coco:{moved}").fingerprint == first
    content = coco_json(TRAIN)
    content["annotations"][0]["bbox"][0] += 1
    (moved / "annotations" / "instances_train.json").write_text(json.dumps(content))
    assert load(f"coco:{moved}").fingerprint != first
    assert load(f"coco:{moved}", limit=3).fingerprint != first


def test_limit_takes_some_of_each_split(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data", train=TRAIN, val=VAL)
    data = load(f"coco:{root}", limit=3)
    assert [len(data.splits[part]) for part in ("train", "val")] == [3, 3]
    assert data.splits["train"].keys == sorted(data.splits["train"].keys)


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data", train=TRAIN, val=VAL)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"image_size": 16}, "image size 16: give"),
        ({"longest_size": 10000}, "longest size 10000: give"),
        ({"batch_size": 0}, "batch size 0"),
        ({"batch_size": 10}, "larger than the 9 training images"),
        ({"val_fraction": 1.0}, "val fraction"),
        ({"augment": "strong"}, "augment 'strong' is unknown for detection; choose one of auto, none, flip"),
        ({"augment": "multi-scale", "square": True}, "images of one size"),
    ]
    for settings, message in wrong:
        with pytest.raises(UserError, match=message):
            load(f"coco:{root}", **settings)


# ---------------------------------------------------------------- cleaning


def box_cases(root: Path) -> str:
    """One training image whose objects are all in some way wrong but the first, in COCO's layout."""
    write_coco(root, train=TRAIN, val=VAL)
    content = coco_json(TRAIN)
    image = content["images"][0]  # 120 x 90
    content["annotations"] = [
        {"id": i, "image_id": image["id"], "category_id": 10, "bbox": box, "iscrowd": crowd}
        for i, (box, crowd) in enumerate(
            [
                ([10, 10, 20, 20], 0),
                ([-5, 80, 30, 40], 0),  # sticks out on the left and below
                ([100, 0, 20.001, 20], 0),  # within rounding: nothing to report
                ([5, 5, 0, 10], 0),
                ([5, 5, 10, -3], 0),
                ([130, 10, 20, 20], 0),  # outside
                ([0, 0, 120, 90], 1),
            ]
        )
    ]
    for unknown in (999999, None, [image["id"]]):
        content["annotations"].append({"id": 99, "image_id": unknown, "category_id": 10, "bbox": [0, 0, 5, 5]})
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return f"coco:{root}"


def test_boxes_are_clipped_dropped_and_ignored_and_all_is_counted(tmp_path: Path) -> None:
    data = load(box_cases(tmp_path / "data"), augment="none", image_size=90)
    objects = data.splits["train"].objects(0)
    np.testing.assert_allclose(
        objects.corners, [[10, 10, 30, 30], [0, 80, 25, 90], [100, 0, 120, 20], [0, 0, 120, 90]], atol=1e-5
    )
    assert objects.ignored.tolist() == [False, False, False, True]
    np.testing.assert_allclose(objects.areas, [400, 250, 400, 120 * 90], rtol=1e-5)
    assert dict(data.counts) == {
        "images": 13,
        "boxes": 4 + 3 * 3,
        "images without objects": 8 + 1,
        "crowd boxes, not learned from and ignored in the metrics": 1,
        "boxes dropped: their image is not listed": 3,
        "boxes clipped to their image": 1,
        "boxes dropped: without area inside their image": 3,
    }
    learned = [len(batch.targets) for _ in range(8) for batch in data.train if 0 in batch.indices]
    assert learned
    assert set(learned) == {3}  # the other image of each batch has none


def test_images_without_objects_are_learned_from_and_measured(tmp_path: Path) -> None:
    empty = [replace(image, objects=()) for image in TRAIN[1:]]
    root = write_coco(tmp_path / "data", train=[TRAIN[0], *empty], val=VAL)
    data = load(f"coco:{root}", batch_size=1)
    counts = {int(batch.indices[0]): len(batch.targets) for batch in data.train}
    assert counts == {0: 3} | dict.fromkeys(range(1, 9), 0)
    batch = list(data.val)[-1]
    assert batch.targets.corners.shape == (0, 4)


# ---------------------------------------------------------------- wrong data, every one a clear line


def spoil_coco(root: Path, change: Callable[[dict], None]) -> None:
    content = coco_json(TRAIN)
    change(content)
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))


COCO_FAULTS: dict[str, tuple[Callable[[dict], None], str]] = {
    "category": (
        lambda c: c["annotations"][4].update(category_id=7),
        "instances_train.json: annotation 5: category 7 is not in the file's categories",
    ),
    "no category": (lambda c: c["annotations"][4].update(category_id=[10]), "annotation 5: category [10] is not in"),
    "box": (
        lambda c: c["annotations"][4].update(bbox=[1, 2, 3]),
        "annotation 5: expected 'bbox' to be [left, top, width, height], found [1, 2, 3]",
    ),
    "number": (lambda c: c["annotations"][4].update(bbox=[1, 2, 3, float("nan")]), "annotation 5: expected 'bbox'"),
    "area": (lambda c: c["annotations"][4].update(area="large"), "annotation 5: expected 'area' to be a number"),
    "size": (
        lambda c: c["images"][1].update(width=91, height=121),
        "000001.png: 90x120 pixels upright, but 91x121 in the annotations",
    ),
    "missing": (lambda c: c["images"][1].update(file_name="gone.png"), "gone.png: No such file or directory"),
}


@pytest.mark.parametrize("fault", COCO_FAULTS)
def test_a_faulty_coco_image_is_an_error_or_left_out(fault: str, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data", train=TRAIN, val=VAL)
    change, message = COCO_FAULTS[fault]
    spoil_coco(root, change)
    with pytest.raises(UserError) as caught:
        load(f"coco:{root}")
    assert message in str(caught.value)
    assert "--skip-bad-images" in str(caught.value)
    assert "\n" not in str(caught.value)
    data = load(f"coco:{root}", skip_bad_images=True)
    assert len(data.skipped) == 1
    assert data.counts["images left out"] == 1
    assert len(data.splits["train"]) == 8
    assert objects_of(data, "train").items() <= expected(TRAIN).items()


COCO_REFUSED: dict[str, tuple[Callable[[dict], None], str]] = {
    "no list": (lambda c: c.pop("annotations"), "has no list 'annotations' of objects"),
    "no file name": (lambda c: c["images"][0].pop("file_name"), "'file_name' is missing or wrong in {'id': 100"),
    "same id": (lambda c: c["images"][0].update(id=101), "two images have the id 101"),
    "same name": (lambda c: c["categories"][0].update(name="red"), "2 classes are called 'red'"),
    "other classes": (lambda c: c["categories"][0].update(name="pink"), "its categories (id, name) are not those of"),
    "no classes": (lambda c: c.update(categories=[]), "names no classes"),
    "no images": (
        lambda c: [i.update(file_name=f"no/{i['file_name']}") for i in c["images"]],
        "none of its 9 images (the first is no/000000.png) is under images/train/",
    ),
}


@pytest.mark.parametrize("fault", COCO_REFUSED)
def test_coco_files_that_cannot_be_used(fault: str, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data", train=TRAIN, val=VAL)
    change, message = COCO_REFUSED[fault]
    spoil_coco(root, change)
    for skip in (False, True):
        with pytest.raises(UserError) as caught:
            load(f"coco:{root}", skip_bad_images=skip)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_coco_layouts(tmp_path: Path) -> None:
    """COCO's own, a single file, and exporters' one folder a split with the annotations beside the images."""
    official = tmp_path / "official"
    write_coco(official, train2017=TRAIN, val2017=VAL)
    for split in ("train2017", "val2017"):
        (official / "images" / split).rename(official / split)
    for other in ("captions_train2017", "person_keypoints_val2017", "image_info_test2017"):
        (official / "annotations" / f"{other}.json").write_text("{}")
    exported = tmp_path / "exported"
    for split, images in (("train", TRAIN), ("valid", VAL)):
        for image in images:
            image.save(exported / split)
        (exported / split / "_annotations.coco.json").write_text(json.dumps(coco_json(images)))
    for root in (official, exported):
        data = load(f"coco:{root}")
        assert objects_of(data, "train") == expected(TRAIN)
        assert objects_of(data, "val") == expected(VAL)
    single = write_coco(tmp_path / "single", train=TRAIN)
    (single / "annotations" / "instances_train.json").rename(single / "annotations" / "labels.json")
    (single / "images" / "train").rename(single / "images-of-it")
    with pytest.raises(UserError, match="none of its 9 images"):
        load(f"coco:{single}")
    (single / "images-of-it").rename(single / "images" / "flat")
    for image in (single / "images" / "flat").iterdir():
        image.rename(single / "images" / image.name)
    assert len(load(f"coco:{single}").splits["train"]) == 8


def test_unclear_coco_folders(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data", train2014=TRAIN, train2017=TRAIN, val2017=VAL)
    with pytest.raises(UserError, match=r"train2014.json and .*train2017.json could both be .* for train; keep"):
        load(f"coco:{root}")
    for name in ("train2014", "train2017"):
        (root / "annotations" / f"instances_{name}.json").unlink()
    with pytest.raises(UserError, match=r"found annotations/instances_val2017.json, but no annotations for training"):
        load(f"coco:{root}")
    (root / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(UserError, match="no annotation file; expected annotations/instances_train"):
        load(f"coco:{root}")
    (root / "annotations" / "instances_train.json").write_text("{")
    with pytest.raises(UserError, match=r"instances_train\.json: is not JSON"):
        load(f"coco:{root}")


# ---------------------------------------------------------------- VOC


def test_voc_trains_on_both_years_and_validates_on_the_test_of_2007(tmp_path: Path) -> None:
    more = [replace(image, name=f"2008_{image.name}") for image in draw(5, seed=3)]
    root = tmp_path / "VOCdevkit"
    write_voc(root / "VOC2007", trainval=TRAIN, train=TRAIN[:4], val=TRAIN[4:])
    (root / "VOC2007" / "ImageSets" / "Main" / "aeroplane_train.txt").write_text("000000 -1\n")
    write_voc(root / "VOC2007", test=TEST)
    write_voc(root / "VOC2012", trainval=more, train=more[:2], val=more[2:])
    (root / "VOC2012" / "ImageSets" / "Main" / "test.txt").write_text("2008_999\n")  # without annotations
    for given in (root, tmp_path):
        data = load(f"voc:{given}")
        assert objects_of(data, "train") == expected(TRAIN) | expected(more)
        assert objects_of(data, "val") == expected(TEST)
    assert objects_of(load(f"voc:{root / 'VOC2007'}"), "train") == expected(TRAIN)
    data = load(f"voc:{root / 'VOC2012'}")
    assert objects_of(data, "train") == expected(more[:2])
    assert objects_of(data, "val") == expected(more[2:])


def test_difficult_objects_are_ignored(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOC2007", difficult=(1,), trainval=TRAIN, test=VAL)
    data = load(f"voc:{tmp_path}")
    assert data.splits["train"].objects(0).ignored.tolist() == [False, True, False]
    batch = next(iter(data.val))
    assert batch.targets.ignored.tolist() == [False, True, False] * 2
    assert all(len(batch.targets) == 2 * len(batch) for batch in data.train if 8 not in batch.indices)


def test_voc_pixels_count_from_one_and_those_of_others_from_zero(tmp_path: Path) -> None:
    image = Drawn("000000.png", 40, 30, (("red", 0, 0, 40, 30), ("red", -1, -1, 10, 10)))  # written as 1 and as 0
    write_voc(tmp_path, trainval=[image, *TRAIN[1:]])
    data = load(f"voc:{tmp_path}", val_fraction=0.01)
    at = [Path(key).stem for key in data.splits["train"].keys].index("000000")
    assert data.splits["train"].objects(at).corners.tolist() == [[0, 0, 40, 30], [0, 0, 10, 10]]
    assert "boxes clipped to their image" not in data.counts


VOC_FAULTS = {
    "missing": (None, "000001.xml: No such file or directory"),
    "not XML": ("<annotation>", "000001.xml: not XML"),
    "no name": (voc_xml(TRAIN[1]).replace(f"<name>{TRAIN[1].objects[0][0]}</name>", "", 1), "object 1 has no name"),
    "no number": (
        voc_xml(TRAIN[1]).replace("<xmax>", "<xmax>a", 1),
        f"object 1 ({TRAIN[1].objects[0][0]}) needs numbers xmin, ymin, xmax, ymax",
    ),
    "size": (voc_xml(replace(TRAIN[1], width=91)), "90x120 pixels upright, but 91x120 in the annotations"),
}


@pytest.mark.parametrize("fault", VOC_FAULTS)
def test_a_faulty_voc_image_is_an_error_or_left_out(fault: str, tmp_path: Path) -> None:
    write_voc(tmp_path, train=TRAIN, val=VAL)
    text, message = VOC_FAULTS[fault]
    path = tmp_path / "Annotations" / "000001.xml"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(f"voc:{tmp_path}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    data = load(f"voc:{tmp_path}", skip_bad_images=True)
    assert data.skipped == ("JPEGImages/000001.png",)
    assert objects_of(data, "train") == {k: v for k, v in expected(TRAIN).items() if k != "000001"}


def test_a_voc_size_of_zero_is_none(tmp_path: Path) -> None:
    write_voc(tmp_path, train=TRAIN)
    path = tmp_path / "Annotations" / "000001.xml"
    path.write_text(voc_xml(replace(TRAIN[1], width=0)))
    assert load(f"voc:{tmp_path}").counts["images"] == 9


def test_no_voc_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no annotations with images beside them; expected VOC2007/"):
        load(f"voc:{tmp_path}")


# ---------------------------------------------------------------- YOLO


YOLO_FAULTS = {
    "0 0.5 0.5 0.1": "line 2: expected a class and 4 fractions, found 3 numbers after the class",
    "0 0.5 0.5 0.1 0.1 0.9": "line 2: expected a class and 4 fractions, found 5 numbers after the class",
    "red 0.5 0.5 0.1 0.1": "line 2: expected a class and 4 fractions, found 'red 0.5 0.5 0.1 0.1'",
    "0.5 0.5 0.5 0.1 0.1": "line 2: expected a class number first",
    "-1 0.5 0.5 0.1 0.1": "line 2: expected a class number first",
    "0 50 40 10 10": "line 2: expected fractions of the image's width and height",
    "0 0.5 0.5 -0.1 0.1": "line 2: expected fractions",
    "0 0.5 nan 0.1 0.1": "line 2: expected fractions",
    "3 0.5 0.5 0.1 0.1": "000001.txt: class 3 of 3 (counted from 0)",
}


@pytest.mark.parametrize("line", YOLO_FAULTS)
def test_a_faulty_line_is_an_error_or_its_image_is_left_out(line: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "data", train=TRAIN, val=VAL)
    path = root / "labels" / "train" / "000001.txt"
    path.write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(UserError) as caught:
        load(f"yolo:{root}")
    assert f"bad labels {path}" in str(caught.value)
    assert YOLO_FAULTS[line] in str(caught.value)
    assert "\n" not in str(caught.value)
    data = load(f"yolo:{root}", skip_bad_images=True)
    assert data.skipped == ("images/train/000001.png",)


def test_yolo_polygons_and_boxes_over_the_edge(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "data", train=TRAIN, val=VAL)
    (root / "labels" / "train" / "000000.txt").write_text("\n1 0.1 0.2 0.5 0.1 0.3 0.6\n0 0.9 0.5 0.4 0.2\n")
    data = load(f"yolo:{root}")
    objects = data.splits["train"].objects(0)
    np.testing.assert_allclose(objects.corners, [[12, 9, 60, 54], [84, 36, 120, 54]], rtol=1e-5)
    assert data.counts["polygons taken as boxes"] == 1
    assert data.counts["boxes clipped to their image"] == 1


def test_yolo_layouts(tmp_path: Path) -> None:
    """Folders without a YAML file, one folder a split, ../ in front of what lies beside, and lists of images."""
    root = write_yolo(tmp_path / "data", train=TRAIN, val=VAL)
    (root / "data.yaml").unlink()
    data = load(f"yolo:{root}")
    assert data.classes == ("0", "1", "2")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    data = load(f"yolo:{root}")
    assert data.classes == CLASSES
    assert objects_of(data, "val") == expected(VAL)

    for part in ("train", "val"):
        (root / part).mkdir()
        for kind in ("images", "labels"):
            (root / kind / part).rename(root / part / kind)
    yaml = "train: ../train/images\nval: ../val/images\ntest: ../test/images\nnames: {0: blue, 1: green, 2: red}\n"
    for text in (None, yaml):
        if text:
            (root / "classes.txt").unlink()
            (root / "data.yaml").write_text(text)
        data = load(f"yolo:{root}")
        assert data.classes == CLASSES
        assert objects_of(data, "train") == expected(TRAIN)

    (root / "list.txt").write_text("./train/images/000003.png\ntrain/images/000001.png\n")
    (root / "data.yaml").write_text(yaml.replace("../train/images", "list.txt"))
    data = load(f"yolo:{root}")
    assert data.splits["train"].keys == ["train/images/000003.png", "train/images/000001.png"]
    (root / "list.txt").write_text("./train/images/000003.png\ntrain/images/gone.png\n")
    with pytest.raises(UserError, match=r"gone\.png: No such file"):
        load(f"yolo:{root}")


YAML_FAULTS = {
    "train: nowhere\nnames: [a]\n": "'nowhere' is neither a folder nor a list of images inside",
    "train: images/train\nnames: {1: a}\n": "'names' must number the classes 0, 1, 2",
    "train: images/train\nnames: 3\n": "'names' must be a list of class names",
    "train: images/train\nnames: []\n": "names no classes",
    "train: [\n": "not YAML",
}


@pytest.mark.parametrize("text", YAML_FAULTS)
def test_wrong_yaml(text: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "data", train=TRAIN, val=VAL)
    (root / "data.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load(f"yolo:{root}")
    assert YAML_FAULTS[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_that_nobody_labelled(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "data", train=TRAIN, val=VAL)
    shutil.rmtree(root / "labels")
    with pytest.raises(UserError, match="none of its 13 images has a label file"):
        load(f"yolo:{root}")
    shutil.rmtree(root / "images")
    (root / "data.yaml").unlink()
    with pytest.raises(UserError, match=r"no images to train on; expected data\.yaml"):
        load(f"yolo:{root}")


# ---------------------------------------------------------------- real images


@pytest.fixture(scope="module")
def coco256() -> str:
    shared = os.environ.get("RELDISTILL_DATA")
    if not shared:
        pytest.skip("RELDISTILL_DATA is not set: no real images to test on")
    return f"coco:{Path(shared) / 'coco256'}"


def test_real_images(coco256: str) -> None:
    data = load(coco256, batch_size=8)
    assert len(data.classes) == 80
    assert data.classes[:2] == ("person", "bicycle")
    assert dict(data.counts) == {"images": 256, "boxes": 929 + 898, "images without objects": 2}
    assert [len(data.splits[part]) for part in ("train", "val")] == [128, 128]
    batch = next(iter(data.val))
    height, width = batch.targets.sizes[0].tolist()
    assert data.splits["val"].sizes[0].tolist() == [width, height]
    assert batch.images.shape[2] % 32 == batch.images.shape[3] % 32 == 0
    path = Path(coco256.partition(":")[2]) / data.splits["val"].keys[0]
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
    assert torch.equal(batch.images[0, :, :height, :width], pixels)
