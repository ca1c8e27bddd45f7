"""Which folders are classes and which are splits, and that everything else is named or counted."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from reldistill.core.checks import UserError
from reldistill.data.class_folders import read_splits, split_name
from reldistill.data.decode import EXTENSIONS
from reldistill.data.files import Archive, Folder
from reldistill.data.left_out import in_words
from reldistill.data.samples import Splits


def put(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        elif name.endswith(".png"):
            Image.new("RGB", (6, 6), (number % 256, number // 256, 0)).save(path)
        else:
            path.write_text("text")
    return root


def images(count: int, *folders: str) -> list[str]:
    return [f"{folder}/{i}.png" for folder in folders for i in range(count)]


def read(root: Path, *, hold_out_test: bool = False) -> Splits:
    return read_splits(Folder(root), where="DATA", val_fraction=0.25, hold_out_test=hold_out_test)


@pytest.mark.parametrize(
    ("train", "held", "role"),
    [
        ("training_set", "test_set", "test"),
        ("seg_train", "seg_test", "test"),
        ("train", "validate", "val"),
        ("Training", "Testing", "test"),
        ("TRAIN", "VAL", "val"),
        ("train", "dev", "val"),
        ("train_data", "eval_data", "val"),
        ("trainset", "valset", "val"),
        ("trainval", "test", "test"),
        ("TrainingImages", "ValidationImages", "val"),
        ("train2017", "val2017", "val"),
        ("training-set", "validation-set", "val"),
        ("train images", "test images", "test"),
        ("asl_alphabet_train", "asl_alphabet_test", "test"),
        ("Pets-Training", "Pets-Validation", "val"),
    ],
)
@pytest.mark.parametrize("form", ["{0}", "{0}/{0}", "{0}/images", "top/{0}", "top/{0}/{0}"])
def test_split_folders_by_their_usual_names(train: str, held: str, role: str, form: str, tmp_path: Path) -> None:
    inner, outer = form.format(train), form.format(held)
    names = [*images(4, f"{inner}/cat", f"{inner}/dog"), *images(2, f"{outer}/cat", f"{outer}/dog")]
    splits = read(put(tmp_path, *names))
    assert splits.classes == ("cat", "dog")
    assert splits.train.keys == names[:8]
    assert splits.val.keys == names[8:], "what is held out validates"
    assert splits.left_out == {}
    three = read(tmp_path, hold_out_test=True)
    assert three.test is not None
    assert three.test.keys == names[8:]
    found = split_name(held)
    assert found is not None
    assert found.role == role


def test_a_third_split_is_named_where_it_is_not_used(tmp_path: Path) -> None:
    names = [*images(3, "seg_train/seg_train/a", "seg_train/seg_train/b"), *images(2, "seg_test/seg_test/a"),
             *images(2, "seg_test/seg_test/b"), *images(5, "seg_pred/seg_pred")]  # fmt: skip
    splits = read(put(tmp_path, *names))
    assert (len(splits.train), len(splits.val)) == (6, 4)
    assert splits.left_out == {"files in seg_pred/": 5}
    put(tmp_path, *images(4, "seg_val/a", "seg_val/b"))
    splits = read(tmp_path)
    assert len(splits.val) == 8
    assert splits.left_out == {"files in seg_pred/": 5, "files in seg_test/": 4}
    assert read(tmp_path, hold_out_test=True).left_out == {"files in seg_pred/": 5}


@pytest.mark.parametrize(
    "name", ["terrain", "validity", "contest", "latest", "evaluate_me_later", "development_of_train", "device"]
)
def test_other_names_are_no_splits(name: str) -> None:
    found = split_name(name)
    assert found is None or found.rest


def test_class_names_that_could_be_splits(tmp_path: Path) -> None:
    put(tmp_path, *images(4, "bus", "car", "train", "train station"))
    assert read(tmp_path).classes == ("bus", "car", "train", "train station")
    put(tmp_path / "more", *images(4, "running", "training", "test drive"))
    assert read(tmp_path / "more").classes == ("running", "test drive", "training")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (images(3, "animals/cat", "animals/dog", "plants/rose", "plants/oak"),
         r"its 2 folders \(animals, plants\) hold no images themselves, only folders \(cat, dog, oak, …\)"),
        (images(3, "set1/a", "set1/b", "set2/a", "set2/b"), "call splits train and val"),
        (images(3, "train/animals/cat", "train/animals/dog", "train/plants/oak", "val/animals/cat", "val/plants/ivy"),
         r"train/: its 2 folders \(animals, plants\) hold no images"),
        (images(3, "cat/train", "cat/test", "dog/train", "dog/test"), r"only folders \(test, train\)"),
        (["cat/0.png", *images(3, "cat/train", "cat/test", "dog")], r"class folder cat/ holds splits \(test, train\)"),
        (images(3, "cat", "dog", "backup/cat", "backup/dog"), "backup/ holds no images itself but folders called like"),
        (images(3, "train", "test"), "train/ and test/ are splits without class folders"),
        (images(3, "training_set", "val_set"), "training_set/ and val_set/ are splits without class folders"),
        (images(3, "cat_train", "cat_test", "dog_train", "dog_test"), "cat_train/ and cat_test/ are splits without"),
        (images(3, "asl_train", "asl_test"), "asl_train/ and asl_test/ are splits without class folders"),
        (images(3, "train", "test/a", "test/b"), "train/ has no class folders, as test/ beside it has"),
        (images(3, "training_set/a", "training_set/b", "other"), "training_set/ could be the training images or, like"),
        (images(3, "train_1/a", "train_1/b", "train_2/a", "train_2/b", "val/a", "val/b"),
         "train_1/ and train_2/ could both be its train images"),
        (images(3, "x/train_a/a", "x/train_a/b", "x/test_b/a", "x/test_b/b"), "hold no images themselves"),
    ],
)  # fmt: skip
def test_folders_that_are_no_classes_are_refused(names: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as said:
        read(put(tmp_path, *names))
    assert str(said.value).startswith("DATA: ")
    assert "\n" not in str(said.value)


def test_a_class_may_hold_folders(tmp_path: Path) -> None:
    put(tmp_path / "some", *images(3, "cat/2019", "cat/2020", "dog"))
    assert read(tmp_path / "some").classes == ("cat", "dog")
    put(tmp_path / "tiny", *images(3, "train/n01/images", "train/n02/images"), "train/n01/boxes.txt")
    splits = read(tmp_path / "tiny")
    assert splits.classes == ("n01", "n02")
    assert splits.left_out == {".txt files": 1}


def test_what_is_left_out_is_counted_by_kind(tmp_path: Path) -> None:
    names = [*images(4, "train/a", "train/b"), *images(2, "val/a", "val/b")]
    extra = ["train/a/1.heic2", "train/a/2.CR2", "train/b/3.cr2", "val/a/notes", "train/loose.png", "readme.md",
             "old/deep/1.png", "old/deep/2.txt", "empty/", ".git/config", ".git/x/1.png",
             "train/a/.DS_Store"]  # fmt: skip
    root = put(tmp_path / "data", *names, *extra)
    expected = {
        "hidden files": 2,
        "files in empty/": 0,
        "files in old/": 2,
        "images outside class folders": 1,
        ".heic2 files": 1,
        ".cr2 files": 2,
        ".md files": 1,
        "files without an ending": 1,
    }
    splits = read(root)
    assert splits.left_out == expected
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root))
    packed = read_splits(Archive(tmp_path / "data.zip"), where="DATA", val_fraction=0.25)
    assert packed.left_out == expected
    used = sum(map(len, splits.parts.values()))
    files = sum(path.is_file() for path in root.rglob("*"))
    assert used + sum(expected.values()) == files - 2 + 1, "of .git one is counted for its two files"
    assert "; not used: 2 hidden files, 0 files in empty/, 2 files in old/" in in_words(splits.left_out)
    assert "1 .md file," in in_words(splits.left_out)


def test_a_photograph_that_cannot_be_read_says_how() -> None:
    assert in_words({".heic files": 3}) == "; not used: 3 .heic files (pip install 'reldistill[heic]' reads them)"
    assert in_words({}) == ""


def test_photographs_of_telephones_are_read_where_they_can_be(tmp_path: Path) -> None:
    root = put(tmp_path, *images(4, "a", "b"))
    if ".heic" not in EXTENSIONS:
        (root / "a" / "photo.HEIC").write_bytes(b"x")
        assert read(root).left_out == {".heic files": 1}
        return
    Image.new("RGB", (8, 8), (200, 30, 40)).save(root / "a" / "photo.HEIC", quality=95)
    splits = read(root)
    (photo,) = [key for part in splits.parts.values() for key in part.keys if key.endswith("HEIC")]
    red, green, blue = splits.train.reader.image(photo).getpixel((4, 4))
    assert (red > 180, green < 50, blue < 60) == (True, True, True)
    assert splits.left_out == {}


def test_pipes_and_circles_are_left_alone(tmp_path: Path) -> None:
    root = put(tmp_path, *images(4, "a", "b"))
    os.mkfifo(root / "a" / "pipe.png")
    (root / "b" / "circle").symlink_to(root)
    splits = read(root)
    assert len(splits.train) + len(splits.val) == 8
    assert splits.left_out == {"special files such as pipes": 1, "links in a circle": 1}


@pytest.mark.parametrize("form", ["{}", "./{}", "data\\{}", "data/{}", ".\\{}"])
def test_an_archive_made_elsewhere(form: str, tmp_path: Path) -> None:
    names = [*images(3, "train/a", "train/b"), *images(2, "val/a", "val/b")]
    root = put(tmp_path / "data", *names)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr(form.format("train").replace("/", "\\") + "\\", "")
        for name in names:
            member = form.format(name)
            archive.writestr(member.replace("/", "\\") if "\\" in form else member, (root / name).read_bytes())
    packed = read_splits(Archive(tmp_path / "data.zip"), where="DATA", val_fraction=0.25)
    plain = read(root)
    assert packed.classes == plain.classes == ("a", "b")
    top = "data/" if "data" in form else ""
    for part in ("train", "val"):
        found, expected = getattr(packed, part), getattr(plain, part)
        assert [key.removeprefix(top) for key in found.keys] == expected.keys
        first, same = (samples.reader.image(samples.keys[0]) for samples in (found, expected))
        assert first.getpixel((0, 0)) == same.getpixel((0, 0))
    assert packed.left_out == {}
