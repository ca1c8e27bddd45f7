"""Annotations as other tools write them: read right, or refused in one line."""

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
from PIL import Image

from drawn_boxes import CLASSES, Drawn, coco_json, draw, voc_xml, write_coco, write_voc, write_yolo
from reldistill.core.checks import UserError
from reldistill.tasks.detection.images import DetectionData, load_detection

TRAIN, VAL = draw(5, seed=0), draw(3, seed=1, first=100)
WRITERS: dict[str, Callable[..., Path]] = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}


def load(data: str, **settings: Any) -> DetectionData:
    return load_detection(data, **{"batch_size": 1, "workers": 0, "image_size": 64, **settings})


def refused(data: str, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(data, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_drawn(data: DetectionData, part: str, drawn: list[Drawn]) -> None:
    """The objects of each image are those that were drawn on it."""
    images = data.splits[part]
    by_name = {Path(key).name: images.objects(index) for index, key in enumerate(images.keys)}
    assert by_name.keys() == {image.name for image in drawn}
    for image in drawn:
        objects = by_name[image.name]
        found = sorted(zip(objects.labels.tolist(), objects.corners.round(3).tolist(), strict=True))
        assert found == sorted((CLASSES.index(name), [float(side) for side in box]) for name, *box in image.objects)


# Keypoints -----------------------------------------------------------------------------------------------------------


def write_pose(root: Path, count: int, numbers: int, *, shape: str | None = None) -> Path:
    """YOLO labels of the drawn objects with keypoints far away from them after each box."""
    write_yolo(root, train=TRAIN, val=VAL)
    point = [0.01, 0.98, 2.0][:numbers]
    points = " ".join(str(number) for _ in range(count) for number in point)
    for path in root.rglob("labels/*/*.txt"):
        path.write_text("".join(f"{line} {points}\n" for line in path.read_text().splitlines()))
    shape = f"[{count}, {numbers}]" if shape is None else shape
    with (root / "data.yaml").open("a") as settings:
        settings.write(f"kpt_shape: {shape}\nflip_idx: [0]\n" if shape else "")
    return root


@pytest.mark.parametrize(("count", "numbers"), [(17, 3), (4, 3), (1, 2), (5, 2), (1, 3), (21, 2)])
def test_keypoints_are_no_polygons(count: int, numbers: int, tmp_path: Path) -> None:
    data = load(f"yolo:{write_pose(tmp_path / 'data', count, numbers)}")
    assert_drawn(data, "train", TRAIN)
    assert_drawn(data, "val", VAL)
    assert data.counts["objects with keypoints, which are not read"] == 3 * (4 + 2)
    assert "polygons taken as boxes" not in data.counts


@pytest.mark.parametrize("rest", ["", " 0.5 0.5 2", " 0.5 0.5 2 0.5 0.5", " 0.1 0.2 0.3 0.4"])
def test_labels_that_do_not_have_the_keypoints_are_refused(rest: str, tmp_path: Path) -> None:
    root = write_pose(tmp_path / "data", 2, 3)
    path = root / "labels" / "train" / "000001.txt"
    path.write_text(f"0 0.5 0.5 0.2 0.2 0.5 0.5 2 0.5 0.5 1\n1 0.5 0.5 0.2 0.2{rest}\n")
    said = refused(f"yolo:{root}")
    assert f"{path} line 2: expected a class, 4 fractions and 6 numbers of keypoints (kpt_shape), found" in said
    assert load(f"yolo:{root}", skip_bad_images=True).skipped == ("images/train/000001.png",)


@pytest.mark.parametrize("shape", ["17", "[17]", "[17, 4]", "[0, 3]", "[17.5, 3]", "[true, 3]", "[a, b]", "null", "{}"])
def test_a_kpt_shape_that_is_none_is_refused(shape: str, tmp_path: Path) -> None:
    root = write_pose(tmp_path / "data", 2, 3, shape=shape)
    assert "data.yaml: expected 'kpt_shape' to be [keypoints, 2 or 3], found" in refused(f"yolo:{root}")


def test_keypoints_that_nobody_announced(tmp_path: Path) -> None:
    root = write_pose(tmp_path / "data", 4, 3, shape="")
    assert "line 1: expected a polygon's corners as fractions (are they keypoints?" in refused(f"yolo:{root}")


# Nothing to learn from, and ids --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", WRITERS)
def test_a_training_part_without_objects_is_refused(layout: str, tmp_path: Path) -> None:
    bare = [replace(image, objects=()) for image in TRAIN]
    root = WRITERS[layout](tmp_path / "data", train=bare, val=VAL)
    if layout == "yolo":
        (root / "labels" / "train" / "000000.txt").write_text("")
    assert "none of the 5 training images has an object to learn from" in refused(f"{layout}:{root}")


@pytest.mark.parametrize("layout", ["voc", "yolo"])
def test_data_without_any_object_and_names_are_refused(layout: str, tmp_path: Path) -> None:
    bare = [[replace(image, objects=()) for image in images] for images in (TRAIN, VAL)]
    root = WRITERS[layout](tmp_path / "data", train=bare[0], val=bare[1])
    if layout == "yolo":
        (root / "data.yaml").unlink()
        (root / "labels" / "train" / "000000.txt").write_text("")
    assert "none of its 8 images has an object, so there is nothing to learn" in refused(f"{layout}:{root}")


def test_crowds_alone_teach_nothing(tmp_path: Path) -> None:
    root = coco(tmp_path / "data", lambda c: [a.update(iscrowd=1) for a in c["annotations"]])
    assert "none of the 5 training images has an object to learn from" in refused(f"coco:{root}")


def coco(root: Path, change: Callable[[dict], Any]) -> Path:
    write_coco(root, train=TRAIN, val=VAL)
    content = coco_json(TRAIN)
    change(content)
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return root


IDS: dict[str, tuple[Callable[[dict], Any], str]] = {
    "all text": (lambda c: [a.update(image_id=str(a["image_id"])) for a in c["annotations"]], "image '100', but that"),
    "one text": (lambda c: c["annotations"][4].update(image_id="101"), "is of image '101', but that image's id is 101"),
    "fraction": (lambda c: c["annotations"][4].update(image_id=101.0), "annotation 5 is of image 101.0, but"),
    "padded": (lambda c: c["annotations"][4].update(image_id="000101"), "image '000101', but that image's id is 101"),
    "images' text": (lambda c: [i.update(id=f"{i['id']:04d}") for i in c["images"]], "of image 100, but that"),
    "boolean": (
        lambda c: (c["images"][1].update(id=1), c["annotations"][4].update(image_id=True)),
        "image True, but that image's id is 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_another_type_are_refused(kind: str, tmp_path: Path) -> None:
    change, message = IDS[kind]
    root = coco(tmp_path / "data", change)
    for skip in (False, True):
        said = refused(f"coco:{root}", skip_bad_images=skip)
        assert message in said
        assert "instances_train.json" in said


def test_boxes_of_images_that_are_not_listed_are_named(tmp_path: Path) -> None:
    root = coco(tmp_path / "data", lambda c: [a.update(image_id=a["image_id"] + 500) for a in c["annotations"]])
    assert "object to learn from (12 boxes dropped: their image is not listed)" in refused(f"coco:{root}")


ANNOTATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "boolean in a box": ({"bbox": [True, 2, 30, 40]}, "expected 'bbox' to be"),
    "booleans alone": ({"bbox": [True, True, True, True]}, "expected 'bbox' to be"),
    "text in a box": ({"bbox": ["1", 2, 30, 40]}, "expected 'bbox' to be"),
    "huge": ({"bbox": [10**400, 2, 30, 40]}, "expected 'bbox' to be"),
    "null": ({"bbox": [None, 2, 30, 40]}, "expected 'bbox' to be"),
    "boolean area": ({"area": True}, "expected 'area' to be a number"),
    "text category": ({"category_id": "10"}, "category '10' is not in the file's categories, which has 10"),
    "boolean category": ({"category_id": True}, "category True is not in the file's categories"),
    "fraction category": ({"category_id": 10.0}, "category 10.0 is not in the file's categories, which has 10"),
    "text crowd": ({"iscrowd": "0"}, "expected 'iscrowd' to be 0 or 1, found '0'"),
}


@pytest.mark.parametrize("kind", ANNOTATIONS)
def test_wrong_types_in_an_annotation_are_refused(kind: str, tmp_path: Path) -> None:
    change, message = ANNOTATIONS[kind]
    root = coco(tmp_path / "data", lambda c: c["annotations"][4].update(change))
    assert f"annotation 5: {message}" in refused(f"coco:{root}")


FILES: dict[str, tuple[Callable[[dict], Any], str]] = {
    "boolean id": (lambda c: c["images"][0].update(id=True), "'id' is missing or wrong"),
    "boolean category": (lambda c: c["categories"][0].update(id=True), "'id' is missing or wrong"),
    "same categories": (lambda c: c["categories"][0].update(id=20), "two categories have one id"),
    "escape": (lambda c: c["categories"][0].update(name="\x1b[2Jblue"), r"class name '\x1b[2Jblue' has characters"),
    "half a character": (lambda c: c["categories"][0].update(name="\ud800"), "has characters that cannot be printed"),
}


@pytest.mark.parametrize("kind", FILES)
def test_coco_files_of_wrong_types_are_refused(kind: str, tmp_path: Path) -> None:
    change, message = FILES[kind]
    assert message in refused(f"coco:{coco(tmp_path / 'data', change)}")


def test_json_that_is_nested_without_end(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data", train=TRAIN, val=VAL)
    (root / "annotations" / "instances_train.json").write_text("[" * 200_000)
    assert "instances_train.json: is nested too deep" in refused(f"coco:{root}")


# Said, and kept ------------------------------------------------------------------------------------------------------


def test_copies_are_counted(tmp_path: Path) -> None:
    def twice(content: dict) -> None:
        content["annotations"] += [{**a, "id": 1000 + a["id"]} for a in content["annotations"][:2]]
        content["images"].append({**content["images"][0], "id": 7})

    root = coco(tmp_path / "data", twice)
    shutil.copy(root / "images" / "train" / "000002.png", root / "images" / "val" / "000100.png")
    content = coco_json(VAL)
    content["images"][0].update(width=TRAIN[2].width, height=TRAIN[2].height)
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    data = load(f"coco:{root}")
    assert data.counts["boxes that are another's copy"] == 2
    assert data.counts["images listed more than once"] == 1
    assert data.counts["val images that are training images too"] == 1
    assert data.splits["train"].boxes == 3 * 4 + 2, "they are kept"
    whole = load(f"coco:{write_coco(tmp_path / 'whole', train=TRAIN, val=VAL)}")
    assert not [word for word in whole.counts if "copy" in word or "too" in word or "once" in word]


def test_one_folder_for_both_parts_is_said(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "data", train=TRAIN)
    settings = root / "data.yaml"
    settings.write_text(settings.read_text() + "val: images/train\n")
    assert load(f"yolo:{root}").counts["val images that are training images too"] == 5


def test_what_is_not_used_is_counted(tmp_path: Path) -> None:
    root = coco(tmp_path / "data", lambda c: c["images"].pop())
    (root / "annotations" / "captions_train.json").write_text("{}")
    (root / "README").write_text("x")
    (root / ".cache").mkdir()
    os.mkfifo(root / "images" / "train" / "pipe.png")
    (root / "images" / "train" / "photo.raw").write_bytes(b"x")
    data = load(f"coco:{root}")
    assert data.left_out == {
        "hidden files": 1,
        "special files such as pipes": 1,
        "files without an ending": 1,
        ".json files": 1,
        "images in no part": 1,
        ".raw files": 1,
    }
    assert "; not used: 1 hidden file" in data.summary
    three = write_yolo(tmp_path / "three", train=TRAIN, val=VAL, test=draw(4, seed=2, first=200))
    (three / "labels" / "train" / "nobody.txt").write_text("0 0.5 0.5 0.1 0.1")
    assert load(f"yolo:{three}").left_out == {"images of the test part": 4, ".txt files": 1}
    assert load(f"yolo:{three}", hold_out_test=True).left_out == {".txt files": 1}


# Files that lie elsewhere --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["../../../elsewhere/{}", "{root}/elsewhere/{}"])
def test_an_annotation_may_name_an_image_elsewhere_and_that_is_counted(form: str, tmp_path: Path) -> None:
    path = form.replace("{root}", str(tmp_path))
    root = coco(tmp_path / "data", lambda c: c["images"][1].update(file_name=path.format(TRAIN[1].name)))
    (tmp_path / "elsewhere").mkdir()
    (root / "images" / "train" / TRAIN[1].name).rename(tmp_path / "elsewhere" / TRAIN[1].name)
    data = load(f"coco:{root}")
    assert_drawn(data, "train", TRAIN)
    assert data.counts["images from outside the data folder"] == 1
    assert sum(len(batch.images) for batch in data.train) == 5
    (tmp_path / "elsewhere" / TRAIN[1].name).unlink()
    assert f"elsewhere/{TRAIN[1].name}: No such file" in refused(f"coco:{root}")


@pytest.mark.parametrize("form", ["{root}/images/train/{name}", "./{name}", "../train/{name}", "..\\train\\{name}"])
def test_other_ways_to_write_a_path_lead_to_the_same_images(form: str, tmp_path: Path) -> None:
    plain = load(f"coco:{write_coco(tmp_path / 'plain', train=TRAIN, val=VAL)}")
    root = tmp_path / "data"
    coco(root, lambda c: [i.update(file_name=form.format(root=root, name=i["file_name"])) for i in c["images"]])
    data = load(f"coco:{root}")
    assert_drawn(data, "train", TRAIN)
    assert data.fingerprint == plain.fingerprint
    assert "images from outside the data folder" not in data.counts


def test_yolo_lists_with_whole_paths_find_their_labels(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "data", train=TRAIN, val=VAL)
    (root / "train.txt").write_text("".join(f"{root}/images/train/{image.name}\n" for image in TRAIN))
    settings = root / "data.yaml"
    settings.write_text(settings.read_text().replace("train: images/train", "train: train.txt"))
    data = load(f"yolo:{root}")
    assert_drawn(data, "train", TRAIN)
    assert data.counts["images without a label file, taken as without objects"] == 2
    (root / "images" / "train").rename(tmp_path / "images")
    (root / "labels" / "train").rename(tmp_path / "labels")
    (root / "train.txt").write_text("".join(f"{tmp_path}/images/{image.name}\n" for image in TRAIN))
    data = load(f"yolo:{root}")
    assert_drawn(data, "train", TRAIN)
    assert data.counts["images from outside the data folder"] == 5


def test_an_archive_has_no_outside(tmp_path: Path) -> None:
    root = coco(tmp_path / "data", lambda c: c["images"][1].update(file_name="../../../etc/000001.png"))
    archive = shutil.make_archive(str(tmp_path / "data"), "zip", root)
    assert "000001.png: no such file in the archive" in refused(f"coco:{archive}")


@pytest.mark.parametrize("target", ["pipe", "/dev/zero", "."])
def test_a_pipe_a_device_or_a_folder_is_no_image(target: str, tmp_path: Path) -> None:
    root = coco(tmp_path / "data", lambda c: c["images"][1].update(file_name="link.png"))
    if target == "pipe":
        os.mkfifo(root / "images" / "train" / "link.png")
    else:
        (root / "images" / "train" / "link.png").symlink_to(target)
    assert "link.png: a folder, pipe or device, not a file" in refused(f"coco:{root}")
    assert len(load(f"coco:{root}", skip_bad_images=True).skipped) == 1


def test_escapes_in_a_file_name_do_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "da\x1b[31mta"
    coco(root, lambda c: c["images"][1].update(file_name="\x1b[2J\u202d\x07.png"))
    assert "\\x1b[2J" in refused(f"coco:{root}")
    load(f"coco:{root}", skip_bad_images=True)
    assert "\x1b" not in capsys.readouterr().err
    coco(tmp_path / "null", lambda c: c["images"][1].update(file_name="a\0b.png"))
    assert "a\\x00b.png" in refused(f"coco:{tmp_path / 'null'}")


# VOC's encodings -----------------------------------------------------------------------------------------------------

ENCODINGS = {
    "gb2312": "红色", "GBK": "紅色", "gb18030": "红色", "big5": "紅色", "Shift_JIS": "赤い", "EUC-JP": "赤い",
    "euc-kr": "빨강", "cp949": "빨강", "windows-1251": "красный", "koi8-r": "красный", "iso-8859-1": "röt",
    "latin-1": "röt", "windows-1252": "röt", "utf-16": "红色", "utf-8": "红色", "us-ascii": "red",
    "iso-2022-jp": "赤い", "hz": "红色",
    "utf-8-sig": "红色", "utf-16-le": "红色", "utf-16-be": "红色", "utf-32": "红色",
}  # fmt: skip


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_voc_in_the_encoding_that_it_declares(encoding: str, tmp_path: Path) -> None:
    write_voc(tmp_path, train=TRAIN, val=VAL)
    name = ENCODINGS[encoding]
    for path in (tmp_path / "Annotations").iterdir():
        text = path.read_text().replace("<name>red</name>", f"<name>{name}</name>")
        path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>\n{text}'.encode(encoding))
    data = load(f"voc:{tmp_path}")
    assert set(data.classes) == {"blue", "green", name}
    boxes = [data.splits["train"].objects(0).corners[i].tolist() for i in range(3)]
    assert sorted(boxes) == sorted([float(side) for side in box] for _, *box in TRAIN[0].objects)


def test_utf_16_that_is_declared_but_not_so(tmp_path: Path) -> None:
    write_voc(tmp_path, train=TRAIN, val=VAL)
    for path in (tmp_path / "Annotations").iterdir():
        path.write_text(f'<?xml version="1.0" encoding="utf-16"?>\n{path.read_text()}')
    assert_drawn(load(f"voc:{tmp_path}"), "train", TRAIN)


@pytest.mark.parametrize("encoding", ["klingon", "x-user-defined", "base64", "hex", "utf-99"])
def test_an_encoding_that_nobody_knows_is_refused(encoding: str, tmp_path: Path) -> None:
    write_voc(tmp_path, train=TRAIN, val=VAL)
    path = tmp_path / "Annotations" / "000001.xml"
    path.write_text(f"<?xml version='1.0' encoding='{encoding}'?>\n{voc_xml(TRAIN[1])}")
    for skip in (False, True):
        said = refused(f"voc:{tmp_path}", skip_bad_images=skip)
        assert f"000001.xml: declares the encoding {encoding!r}, which Python does not know; save it as UTF-8" in said


def test_bytes_that_are_not_of_the_declared_encoding_are_a_fault_of_the_file(tmp_path: Path) -> None:
    write_voc(tmp_path, train=TRAIN, val=VAL)
    path = tmp_path / "Annotations" / "000001.xml"
    path.write_bytes(b'<?xml version="1.0" encoding="gb2312"?>\n<annotation><folder>\xff\xff</folder></annotation>')
    assert "000001.xml: not XML" in refused(f"voc:{tmp_path}")
    assert len(load(f"voc:{tmp_path}", skip_bad_images=True).skipped) == 1


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("skip", [False, True])
def test_where_all_labels_are_faulty_the_fault_is_said(layout: str, skip: bool, tmp_path: Path) -> None:
    root = WRITERS[layout](tmp_path / "data", train=TRAIN[:4], val=VAL[:2])
    if layout == "coco":
        content = coco_json(TRAIN[:4])
        for annotation in content["annotations"]:
            annotation["bbox"] = "none"
        (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
        reason = "expected 'bbox' to be"
    elif layout == "voc":
        for path in (root / "Annotations").iterdir():
            path.write_text("<annotation>")
        reason = "not XML"
    else:
        (root / "data.yaml").unlink()
        for path in (root / "labels").rglob("*.txt"):
            path.write_text("nothing of the sort")
        reason = "expected a class and 4 fractions"
    said = refused(f"{layout}:{root}", skip_bad_images=skip)
    assert reason in said
    assert "names no classes" not in said


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "true", ""])
def test_a_voc_corner_that_is_no_finite_number(number: str, tmp_path: Path) -> None:
    write_voc(tmp_path, train=TRAIN, val=VAL)
    path = tmp_path / "Annotations" / "000001.xml"
    text = path.read_text()
    at = text.index("<xmax>")
    path.write_text(f"{text[:at]}<xmax>{number}{text[text.index('</xmax>') :]}")
    assert "000001.xml: object 1" in refused(f"voc:{tmp_path}")


def test_yaml_that_grows_is_refused(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "data", train=TRAIN, val=VAL)
    bomb = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
    )
    (root / "data.yaml").write_text(f"{bomb}train: images/train\nval: images/val\nnames: *g\n")
    said = refused(f"yolo:{root}")
    assert "more than 100,000 values" in said
    assert len(said) < 500


def test_all_images_of_a_part_left_out(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data", train=TRAIN, val=VAL)
    for path in (root / "images" / "val").iterdir():
        path.write_bytes(b"")
    said = refused(f"coco:{root}", skip_bad_images=True)
    assert "all 3 val images would be left out, the first for" in said
    assert "empty file" in said


def test_pixels_of_a_float_tiff_are_seen(tmp_path: Path) -> None:
    """A grey object of 200 on 0 is no darker for being stored as floats."""
    drawn = [replace(image, name=image.name.replace("png", "tif")) for image in TRAIN]
    root = write_coco(tmp_path / "data", train=drawn, val=VAL)
    for image in drawn:
        grey = image.pixels().max(axis=2).astype(np.float32) * (200 / 255)
        Image.fromarray(grey).save(root / "images" / "train" / image.name)
    data = load(f"coco:{root}", augment="none")
    objects = [batch for batch in data.train if len(batch.targets)]
    assert len(objects) == 4
    for batch in objects:
        assert float(batch.images.max()) == pytest.approx(200 / 255, abs=0.03)
