from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reldistill.core.checks import UserError
from reldistill.data import files
from reldistill.data.class_folders import read_splits
from reldistill.data.decode import BadImage
from reldistill.data.files import Archive, Folder, Store
from reldistill.data.samples import Splits

Opened = Callable[..., Store]


def put(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        elif name.endswith((".png", ".jpg", ".JPG")):
            Image.new("RGB", (6, 6), (number, number, number)).save(path)
        else:
            path.write_text("text")
    return root


def pack(root: Path, archive: Path, top: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as z:
        for path in sorted(root.rglob("*")):
            z.write(path, top + str(path.relative_to(root)))
    return archive


def names(count: int, *folders: str) -> list[str]:
    return [f"{folder}/{i}.png" for folder in folders for i in range(count)]


@pytest.fixture(params=["folder", "zip", "zip with a top folder"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    def build(*content: str) -> Store:
        root = put(tmp_path / "data", *content)
        if request.param == "folder":
            return Folder(root)
        return Archive(pack(root, tmp_path / "data.zip", "pets/" if "top" in request.param else ""))

    return build


def read(store: Store) -> Splits:
    return read_splits(store, where="DATA", val_fraction=0.25)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test", "Val"])
def test_train_and_val_folders(opened: Opened, val: str) -> None:
    splits = read(opened(*names(3, "train/dog", "train/cat"), *names(2, f"{val}/cat", f"{val}/dog")))
    assert splits.classes == ("cat", "dog")
    assert [k.rpartition("train/")[2] for k in splits.train.keys] == names(3, "cat", "dog")
    assert splits.train.labels == [0, 0, 0, 1, 1, 1]
    assert splits.val.labels == [0, 0, 1, 1]
    assert all(f"{val}/" in name for name in splits.val.names())


def test_val_is_preferred_to_test(opened: Opened) -> None:
    splits = read(opened(*names(1, "train/a", "train/b", "test/a", "test/b", "val/a", "val/b")))
    assert all("val/" in name for name in splits.val.names())


def hold(store: Store) -> Splits:
    return read_splits(store, where="DATA", val_fraction=0.25, hold_out_test=True)


@pytest.mark.parametrize("held", ["val", "test"])
def test_a_held_out_test_part_is_what_validates_otherwise(opened: Opened, held: str) -> None:
    store = opened(*names(8, "train/a", "train/b"), *names(3, f"{held}/a", f"{held}/b"))
    plain, splits = read(store), hold(store)
    assert plain.test is None
    assert splits.test is not None
    assert splits.test.keys == plain.val.keys
    assert (len(splits.train), splits.val.labels) == (12, [0, 0, 1, 1])
    assert sorted([*splits.train.keys, *splits.val.keys]) == sorted(plain.train.keys)


def test_plain_class_folders_give_three_disjoint_parts(opened: Opened) -> None:
    store = opened(*names(16, "a", "b"))
    plain, splits = read(store), hold(store)
    assert splits.test is not None
    assert splits.test.keys == plain.val.keys, "a teacher trained by `train` has never learned from them"
    assert [len(part) for part in splits.parts.values()] == [18, 6, 8]
    assert len({key for part in splits.parts.values() for key in part.keys}) == 32


def test_val_and_test_folders_are_taken_as_they_are(opened: Opened) -> None:
    store = opened(*names(4, "train/a", "train/b"), *names(2, "test/a", "test/b"), *names(1, "val/a", "val/b"))
    splits = hold(store)
    assert splits.test is not None
    assert [len(part) for part in splits.parts.values()] == [8, 2, 4]
    assert all("test/" in name for name in splits.test.names())


def test_a_test_folder_of_other_classes_is_refused_where_it_is_used(opened: Opened) -> None:
    store = opened(*names(4, "train/a", "train/b"), *names(1, "val/a", "val/b", "test/a", "test/c"))
    assert len(read(store).val) == 2
    with pytest.raises(UserError, match=r"class 'b' is in .*train/ but not in .*test/"):
        hold(store)


def test_the_cut_of_the_validation_images_depends_on_names_alone(tmp_path: Path) -> None:
    root = put(tmp_path / "data", *names(12, "train/a", "train/b"), *names(1, "test/a", "test/b"))
    first = hold(Folder(root)).val.names()
    nested = hold(Archive(pack(root, tmp_path / "nested.zip", "pets/"))).val.names()
    assert [name.removeprefix("pets/") for name in nested] == first


def test_plain_class_folders_are_split_in_every_class(opened: Opened) -> None:
    splits = read(opened(*names(8, "a", "b"), *names(4, "c")))
    assert splits.classes == ("a", "b", "c")
    assert sorted(splits.val.labels) == [0, 0, 1, 1, 2]
    found = sorted(name.removeprefix("pets/") for name in splits.train.names() + splits.val.names())
    assert found == sorted([*names(8, "a", "b"), *names(4, "c")])


def test_only_a_train_folder_is_split(opened: Opened) -> None:
    splits = read(opened(*names(4, "train/a", "train/b")))
    assert splits.classes == ("a", "b")
    assert (len(splits.train), len(splits.val)) == (6, 2)


def test_train_may_be_the_name_of_a_class(opened: Opened) -> None:
    assert read(opened(*names(4, "bus", "car", "train"))).classes == ("bus", "car", "train")


def test_images_lie_at_any_depth_and_other_files_are_left_out(opened: Opened) -> None:
    store = opened("a/x/1.png", "a/2.JPG", "b/1.png", "b/2.png", "readme.txt", "a/notes.txt", ".git/1.png",
                   "a/.hidden.png", "__MACOSX/a/1.png", "b/.thumbs/1.png")  # fmt: skip
    splits = read(store)
    assert splits.classes == ("a", "b")
    found = sorted(splits.train.names() + splits.val.names())
    assert [name.removeprefix("pets/") for name in found] == ["a/2.JPG", "a/x/1.png", "b/1.png", "b/2.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["a.txt", "b.csv"], r"no class folders with images: found no images \(2 other files, e\.g\. .*a\.txt\)"),
        (["1.png", "2.png"], "found 2 images outside class folders|only one class, 'pets'"),
        (["a/1.txt", "b/2.txt"], "no class folders with images: found no images"),
        (["a/1.png", "a/2.png"], "only one class, 'a'"),
        (["train/a/1.png", "val/a/1.png"], "only one class, 'a'"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png"], "class 'b' is in .*train/ but not in .*val/"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png", "val/c/1.png"],
         "class 'c' is in .*val/ but not in .*train/"),
        (["a/1.png", "b/1.png", "b/2.png"], "class 'a' has a single image"),
        (["val/a/1.png", "val/b/1.png"], "has .*val/ but no train/ beside it"),
        (["val/a/1.png", "val/b/1.png", "extra/a/1.png"], "has .*val/ but no train/ beside it"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_layout_is_said_in_one_line(opened: Opened, content: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^DATA: .*({message})|^DATA: ({message})") as caught:
        read(opened(*content))
    assert "\n" not in str(caught.value)


def test_the_split_depends_on_nothing_but_names(tmp_path: Path) -> None:
    root = put(tmp_path / "data", *names(40, "a", "b"))
    first = read(Folder(root)).val.names()
    assert first == read(Archive(pack(root, tmp_path / "data.zip"))).val.names()
    nested = read(Archive(pack(root, tmp_path / "nested.zip", "pets/train/"))).val.names()
    assert first == [name.removeprefix("pets/train/") for name in nested]
    # written down: an experiment of last year must find its validation images again
    assert first[:5] == ["a/12.png", "a/13.png", "a/15.png", "a/20.png", "a/21.png"]
    put(root, "a/new.png")
    after = read(Folder(root)).val.names()
    assert len(set(first) ^ set(after)) <= 2


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "1.png", "2.png")
    root = put(tmp_path / "data", "b/1.png", "b/2.png")
    os.symlink(tmp_path / "elsewhere", root / "a")
    os.symlink(root, root / "b" / "circle")
    os.symlink(root / "nothing.png", root / "b" / "3.png")
    store = Folder(root)
    assert sorted(store.files) == ["a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/3.png"]
    with pytest.raises(BadImage, match=r"b/3\.png: No such file"):
        store.read("b/3.png")


def test_signatures_follow_the_content(tmp_path: Path) -> None:
    root = put(tmp_path / "data", "a/1.png")
    before = Folder(root).files["a/1.png"]
    (root / "a/1.png").write_bytes(b"another length")
    assert Folder(root).files["a/1.png"] != before
    old = Archive(pack(root, tmp_path / "1.zip")).files["a/1.png"]
    (root / "a/1.png").write_bytes(b"another l_ngth")
    assert Archive(pack(root, tmp_path / "2.zip")).files["a/1.png"] != old


def test_what_is_no_zip(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"nothing of the sort")
    with pytest.raises(UserError, match=r"data\.zip: not a readable zip archive .*class folders"):
        Archive(tmp_path / "data.zip")


def corrupt(archive: Path) -> None:
    raw = bytearray(archive.read_bytes())
    at = raw.index(b"IDAT")
    raw[at + 6] ^= 0xFF
    archive.write_bytes(bytes(raw))


def test_a_damaged_member_is_named_with_its_archive(tmp_path: Path) -> None:
    archive = pack(put(tmp_path / "data", "a/1.png"), tmp_path / "data.zip")
    corrupt(archive)
    with pytest.raises(BadImage, match=r"data\.zip:a/1\.png: Bad CRC-32"):
        Archive(archive).read("a/1.png")


def test_an_encrypted_member_is_bad(tmp_path: Path) -> None:
    archive = pack(put(tmp_path / "data", "a/1.png"), tmp_path / "data.zip")
    raw = bytearray(archive.read_bytes())
    raw[raw.index(b"PK\x01\x02", raw.index(b"IDAT")) + 8] |= 1
    archive.write_bytes(bytes(raw))
    store = Archive(archive)
    store._zip().getinfo("a/1.png").flag_bits |= 1
    with pytest.raises(BadImage, match="encrypted"):
        store.read("a/1.png")


def test_a_member_that_would_fill_the_memory_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Archive(pack(put(tmp_path / "data", "a/1.png"), tmp_path / "data.zip"))
    monkeypatch.setattr(files, "MEMBER_LIMIT", 10)
    with pytest.raises(BadImage, match="too large for an image"):
        store.read("a/1.png")


def test_an_archive_is_opened_anew_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Archive(pack(put(tmp_path / "data", "a/1.png"), tmp_path / "data.zip"))
    here = store._zip()
    assert store._zip() is here
    sent = pickle.loads(pickle.dumps(store))
    assert sent.read("a/1.png") == store.read("a/1.png")
    monkeypatch.setattr(files.os, "getpid", lambda: -1)
    assert store._zip() is not here


def test_nothing_is_unpacked(tmp_path: Path) -> None:
    archive = pack(put(tmp_path / "data", *names(4, "a", "b")), tmp_path / "zips.zip")
    before = sorted(tmp_path.rglob("*"))
    splits = read(Archive(archive))
    assert np.asarray(splits.train.reader.image(splits.train.keys[0])).shape == (6, 6, 3)
    assert sorted(tmp_path.rglob("*")) == before
