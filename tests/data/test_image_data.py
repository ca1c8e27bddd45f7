from __future__ import annotations

import os
import pickle
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reldistill.core.checks import UserError
from reldistill.core.types import Batch
from reldistill.data import image_data
from reldistill.data.files import FileReader, Folder
from reldistill.data.image_data import ImageData, load_images
from reldistill.tasks.classification.task import ClassificationTask

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def real_zip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """20 training and 10 test images of each class of the real archive."""
    shared = os.environ.get("RELDISTILL_DATA")
    if not shared:
        pytest.skip("RELDISTILL_DATA is not set: no real images to test on")
    path = tmp_path_factory.mktemp("real") / "cifar.zip"
    with zipfile.ZipFile(Path(shared) / "cifar10-jpeg.zip") as whole, zipfile.ZipFile(path, "w") as part:
        for split, count in (("train", 20), ("test", 10)):
            for name in CLASSES:
                for i in range(count):
                    member = f"{split}/{name}/{i:04d}.jpg"
                    part.writestr(member, whole.read(member))
    return str(path)


def make_folder(root: Path, *, train: int = 12, val: int = 6, size: tuple[int, int] = (16, 16)) -> str:
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i:02d}.png")
    return str(root)


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.targets.labels, theirs.targets.labels)
        assert torch.equal(ours.indices, theirs.indices)


def test_the_real_archive(real_zip: str) -> None:
    data = load_images(real_zip, batch_size=64)
    assert data.classes == CLASSES
    assert (data.image_size, data.in_memory, data.augment) == (32, True, "crop-flip")
    assert (data.train.images, len(data.train), data.val.images, data.skipped) == (200, 3, 100, ())
    batch = next(iter(data.train))
    assert batch.images.shape == (64, 3, 32, 32)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    labels = torch.cat([b.targets.labels for b in data.val])
    assert torch.equal(labels, torch.arange(10).repeat_interleave(10))
    assert_same(list(load_images(real_zip, batch_size=64).train), list(load_images(real_zip, batch_size=64).train))


def test_real_images_are_the_same_in_memory_and_on_disk(real_zip: str) -> None:
    memory = load_images(real_zip, batch_size=50)
    disk = load_images(real_zip, batch_size=50, in_memory=False, workers=0)
    assert (memory.in_memory, disk.in_memory) == (True, False)
    assert_same(list(disk.val), list(memory.val))
    assert disk.fingerprint == memory.fingerprint


def test_real_images_at_another_size_with_workers(real_zip: str) -> None:
    expected = load_images(real_zip, batch_size=40, image_size=96, workers=0, augment="strong")
    found = load_images(real_zip, batch_size=40, image_size=96, workers=2, augment="strong")
    assert not found.in_memory
    assert next(iter(expected.val)).images.shape == (34, 3, 96, 96)
    expected.train.set_position(3, 3)
    found.train.set_position(3, 3)
    assert_same(list(found.train), list(expected.train))


def test_a_folder_and_its_archive_give_the_same_images(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
        for path in Path(folder).rglob("*.png"):
            z.write(path, f"data/{path.relative_to(folder)}")
    one, other = load_images(folder, batch_size=4), load_images(str(archive), batch_size=4)
    assert one.classes == other.classes == ("cat", "dog")
    assert_same(list(one.train), list(other.train))
    assert_same(list(one.val), list(other.val))


@pytest.mark.parametrize("in_memory", [True, False])
def test_ranks_joined_are_one_process(tmp_path: Path, in_memory: bool) -> None:
    settings: dict[str, Any] = {"batch_size": 8, "in_memory": in_memory, "workers": 0, "augment": "strong"}
    folder = make_folder(tmp_path / "data")
    alone = load_images(folder, **settings)
    ranks = [load_images(folder, **settings, rank=r, world_size=2) for r in range(2)]
    for whole, first, second in zip(alone.train, *(r.train for r in ranks), strict=True):
        assert len(first) == len(second) == 4
        assert torch.equal(torch.cat([first.images, second.images]), whole.images)
        assert torch.equal(torch.cat([first.indices, second.indices]), whole.indices)


def test_the_seed_moves_the_order_but_not_the_split(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / name / f"{i}.png")
    one, other = (load_images(str(tmp_path), batch_size=4, seed=s, val_fraction=0.2) for s in (0, 1))
    assert one.val.images == 8
    assert_same(list(one.val), list(other.val))
    assert one.fingerprint == other.fingerprint
    orders = [torch.cat([b.indices for b in data.train]) for data in (one, other)]
    assert not torch.equal(*orders)


def test_digits() -> None:
    data = load_images("digits", batch_size=64)
    assert (data.image_size, data.augment, data.in_memory) == (32, "crop", True)
    assert data.train.images + data.val.images == 1797
    assert data.classes == tuple("0123456789")
    batch = next(iter(data.val))
    assert torch.equal(batch.images[:, 0], batch.images[:, 1])
    assert load_images("digits", batch_size=64, image_size=16).image_size == 16
    assert load_images("digits", batch_size=64).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("size", "side", "memory"),
    [((16, 16), 16, True), ((64, 64), 64, True), ((65, 65), 224, False), ((16, 17), 224, False)],
)
def test_the_default_size(tmp_path: Path, size: tuple[int, int], side: int, memory: bool) -> None:
    data = load_images(make_folder(tmp_path / "data", size=size), batch_size=4, workers=0)
    assert (data.image_size, data.in_memory) == (side, memory)


def test_one_larger_image_among_many_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_data, "PROBED", 2)
    folder = make_folder(tmp_path / "data")
    Image.new("RGB", (20, 20)).save(tmp_path / "data" / "train" / "cat" / "01.png")
    data = load_images(folder, batch_size=4, workers=0)
    assert (data.image_size, data.in_memory) == (224, False)


def test_what_does_not_fit_stays_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "data")
    monkeypatch.setattr(image_data, "MEMORY_LIMIT", 36 * 3 * 16 * 16)
    assert load_images(folder, batch_size=4, workers=0).in_memory
    monkeypatch.setattr(image_data, "MEMORY_LIMIT", 36 * 3 * 16 * 16 - 1)
    assert not load_images(folder, batch_size=4, workers=0).in_memory
    assert load_images(folder, batch_size=4, in_memory=True).in_memory


def test_limit(tmp_path: Path) -> None:
    data = load_images(make_folder(tmp_path / "data"), batch_size=4, limit=6)
    assert (data.train.images, data.val.images) == (6, 6)
    assert sorted(torch.cat([b.targets.labels for b in data.val]).tolist()) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("in_memory", [True, False])
def test_bad_images_stop_before_training_or_are_left_out(tmp_path: Path, in_memory: bool) -> None:
    folder = make_folder(tmp_path / "data")
    whole = (tmp_path / "data/train/dog/03.png").read_bytes()
    (tmp_path / "data/train/dog/03.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "data/val/cat/05.png").write_bytes(b"")
    settings: dict[str, Any] = {"batch_size": 4, "in_memory": in_memory, "workers": 0, "image_size": 16}
    with pytest.raises(UserError) as caught:
        load_images(folder, **settings)
    message = str(caught.value)
    assert message.startswith(f"bad image {folder}/train/dog/03.png: ")
    assert "(1 more bad image)" in message
    assert message.endswith("pass --skip-bad-images to continue without it")
    data = load_images(folder, skip_bad_images=True, **settings)
    assert data.skipped == ("train/dog/03.png", "val/cat/05.png")
    assert (data.train.images, data.val.images) == (23, 11)
    expected = [0] * 5 + [1] * 6
    assert torch.cat([b.targets.labels for b in data.val]).tolist() == expected
    sound = load_images(make_folder(tmp_path / "sound"), **settings)
    kept = torch.cat([b.images for b in sound.val])
    assert torch.equal(torch.cat([b.images for b in data.val]), torch.cat([kept[:5], kept[6:]]))


def test_a_bad_image_in_an_archive_is_named_with_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    (Path(folder) / "val/cat/05.png").write_bytes(b"no image")
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as z:
        for path in Path(folder).rglob("*.png"):
            z.write(path, path.relative_to(folder))
    with pytest.raises(UserError, match=rf"bad image {archive}:val/cat/05\.png: not in an image format"):
        load_images(str(archive), batch_size=4)


def test_what_is_not_used_is_said_in_the_line_about_the_data(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    task = ClassificationTask()
    assert "not used" not in task.summary(load_images(folder, batch_size=4))
    for name in ("train/cat/a.raw", "train/dog/b.raw", "notes.txt"):
        (tmp_path / "data" / name).write_text("x")
    shutil.copytree(tmp_path / "data" / "val", tmp_path / "data" / "test")
    data = load_images(folder, batch_size=4)
    assert data.left_out == {"files in test/": 12, ".raw files": 2, ".txt files": 1}
    said = task.summary(data)
    assert said.endswith(" at 16x16; not used: 12 files in test/, 1 .txt file, 2 .raw files")
    assert "test" not in " ".join(load_images(folder, batch_size=4, hold_out_test=True).left_out)


def test_a_class_whose_images_are_all_bad(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", val=1)
    (tmp_path / "data/val/cat/00.png").write_bytes(b"")
    with pytest.raises(UserError, match="class 'cat' has no images in val after leaving out 1 bad images"):
        load_images(folder, batch_size=4, skip_bad_images=True)


def test_images_of_every_mode_in_one_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    for i, mode in enumerate(("1", "L", "LA", "P", "RGBA", "I;16")):
        Image.new(mode, (16, 16)).save(tmp_path / "data/train/cat" / f"{i:02d}.png")
    Image.new("CMYK", (16, 16)).save(tmp_path / "data/train/dog/cmyk.jpg")
    assert load_images(folder, batch_size=4).train.images == 25


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image size 0: give a number of pixels from 4 to 4096"),
        ({"image_size": 100_000}, "image size 100000"),
        ({"batch_size": 0}, "batch size 0: give at least 1"),
        ({"batch_size": 25}, "batch size 25 is larger than the 24 training images; give at most 24"),
        ({"batch_size": 5, "world_size": 2}, "batch size 5 cannot be shared equally by 2 processes; give a multiple"),
        ({"batch_size": 13, "world_size": 13}, "12 validation images for 13 processes"),
        ({"val_fraction": 1.0}, "val fraction 1.0: give more than 0 and less than 1"),
        ({"workers": -1}, "workers -1"),
        ({"limit": 0}, "limit 0: give at least 1"),
        ({"limit": 1}, "limit 1: .* has 2 classes; give at least one image each"),
        ({"augment": "cutmix"}, "augment 'cutmix' is unknown; choose one of auto"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    folder = make_folder(tmp_path / "data")
    with pytest.raises(UserError, match=message) as caught:
        load_images(folder, **{"batch_size": 4, **settings})
    assert "\n" not in str(caught.value)


def test_counts_are_judged_before_any_image_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_data, "_look_at_all", lambda *_: pytest.fail("images were decoded"))
    with pytest.raises(UserError, match="larger than the 24 training images"):
        load_images(make_folder(tmp_path / "data"), batch_size=25)


def test_an_empty_class_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    for split in ("train", "val"):
        (tmp_path / "data" / split / "mouse").mkdir()
    with pytest.raises(UserError, match="class 'mouse' has no images in train; add some, or remove the class"):
        load_images(folder, batch_size=4)


def test_a_class_of_files_that_cannot_be_read_says_what_they_are(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    for split in ("train", "val"):
        (tmp_path / "data" / split / "mouse").mkdir()
        (tmp_path / "data" / split / "mouse" / "1.CR2").write_bytes(b"x")
    with pytest.raises(UserError, match=r"class 'mouse' has no images in train; .*; not used: 2 \.cr2 files$"):
        load_images(folder, batch_size=4)


def test_a_path_that_is_not_there_suggests_near_ones(tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    with pytest.raises(UserError, match=r"flovers': no such file or folder; did you mean .*/flowers\? give a folder"):
        load_images(str(tmp_path / "flovers"), batch_size=4)
    with pytest.raises(UserError, match=r"no such folder as .*/nowhere"):
        load_images(str(tmp_path / "nowhere" / "flowers"), batch_size=4)


def test_an_unknown_name_lists_what_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data 'cifr10': .*did you mean cifar10\? .*digits, cifar10, cifar100.*hfds/…"):
        load_images("cifr10", batch_size=4)


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match=r"cat\.jpg: not a readable zip archive"):
        load_images(str(tmp_path / "cat.jpg"), batch_size=4)


def test_the_fingerprint_follows_the_data_and_the_size(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    own = load_images(folder, batch_size=4).fingerprint
    assert load_images(folder, batch_size=6, seed=3, augment="none").fingerprint == own
    found = {own, load_images(folder, batch_size=4, image_size=20).fingerprint}
    (tmp_path / "data/train/cat/00.png").rename(tmp_path / "data/train/cat/zz.png")
    found.add(load_images(folder, batch_size=4).fingerprint)
    (tmp_path / "data/train/cat/zz.png").unlink()
    found.add(load_images(folder, batch_size=4).fingerprint)
    assert len(found) == 4


def tensors(side: int = 8) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "train_images": torch.randint(0, 256, (12, 3, side, side), dtype=torch.uint8, generator=generator),
        "train_labels": torch.arange(12) % 3,
        "val_images": torch.randint(0, 256, (5, 3, side, side), dtype=torch.uint8, generator=generator),
        "val_labels": torch.arange(5) % 3,
        "classes": ("a", "b", "c"),
        "batch_size": 4,
    }


def test_from_tensors() -> None:
    own = tensors()
    data = ImageData.from_tensors(**own, augment="none")
    assert (data.image_size, data.classes, data.name) == (8, ("a", "b", "c"), "tensors")
    assert torch.equal(torch.cat([b.images for b in data.val]), own["val_images"] / 255)
    for batch in data.train:
        assert torch.equal(batch.images, own["train_images"][batch.indices] / 255)
        assert torch.equal(batch.targets.labels, own["train_labels"][batch.indices])
    assert ImageData.from_tensors(**own).augment == "crop-flip"
    assert ImageData.from_tensors(**own, flips=False).augment == "crop"
    changed = tensors()
    changed["val_images"][0, 0, 0, 0] ^= 1
    assert len({data.fingerprint, ImageData.from_tensors(**changed).fingerprint}) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": torch.zeros(12, 1, 8, 8, dtype=torch.uint8)}, r"train_images: expected 3 = 3"),
        ({"train_images": torch.zeros(12, 3, 8, 9, dtype=torch.uint8)}, r"train_images: expected"),
        ({"val_images": torch.zeros(5, 3, 8, 8)}, "val_images: expected square uint8 images of side 8"),
        ({"val_images": torch.zeros(5, 3, 9, 9, dtype=torch.uint8)}, "val_images: expected"),
        ({"val_labels": torch.zeros(4, dtype=torch.long)}, "val_labels: expected n = 5"),
        ({"train_labels": torch.full((12,), 3)}, r"train_labels: expected values in 0 … 2"),
        ({"batch_size": 13}, "larger than the 12 training images"),
        ({"train_labels": torch.full((12, 3), 1 / 3)}, r"train_labels: expected \(n\)"),
        ({"train_labels": torch.full((12,), 0.9)}, "train_labels: expected whole numbers, one class per image, got"),
        ({"val_labels": torch.ones(5, dtype=torch.bool)}, "val_labels: expected whole numbers, one class per image"),
    ],
)
def test_tensors_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData.from_tensors(**{**tensors(), **change})


def test_a_held_out_test_part_is_loaded_once_in_order(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", train=20, val=6)
    plain = load_images(folder, batch_size=4)
    held = load_images(folder, batch_size=4, hold_out_test=True, val_fraction=0.25)
    assert plain.test is None
    assert held.test is not None
    assert (held.train.images, held.val.images, held.test.images) == (30, 10, 12)
    assert_same(list(held.test), list(plain.val))
    assert held.fingerprint != plain.fingerprint
    on_disk = load_images(folder, batch_size=4, hold_out_test=True, val_fraction=0.25, in_memory=False, workers=0)
    assert on_disk.test is not None
    assert_same(list(on_disk.test), list(held.test))


def test_digits_three_parts() -> None:
    held = load_images("digits", batch_size=64, hold_out_test=True)
    assert held.test is not None
    assert held.train.images + held.val.images + held.test.images == 1797
    assert held.test.images == load_images("digits", batch_size=64).val.images
    assert len(set(torch.cat([b.targets.labels for b in held.val]).tolist())) == 10


def test_bad_images_of_the_test_part_are_found_too(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data")
    (tmp_path / "data/val/cat/03.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"val/cat/03.png: empty file"):
        load_images(folder, batch_size=4, hold_out_test=True)
    held = load_images(folder, batch_size=4, hold_out_test=True, skip_bad_images=True)
    assert held.test is not None
    assert (held.test.images, held.skipped) == (11, ("val/cat/03.png",))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("in_memory", [False, True])
def test_images_that_are_in_two_parts_are_told(tmp_path: Path, zipped: bool, in_memory: bool) -> None:
    folder = make_folder(tmp_path / "data")
    assert load_images(folder, batch_size=4).notes == ()
    shutil.copy(tmp_path / "data/train/cat/03.png", tmp_path / "data/val/cat/99.png")
    shutil.copy(tmp_path / "data/train/dog/05.png", tmp_path / "data/val/cat/98.png")
    if zipped:
        folder = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    notes = load_images(folder, batch_size=4, in_memory=in_memory).notes
    assert len(notes) == 1
    assert notes[0].startswith(
        "val images that are training images too, byte by byte: 2 (the first: val/cat/98.png is "
    )
    three = load_images(folder, batch_size=4, hold_out_test=True).notes
    assert [note.partition(" images")[0] for note in three] == ["test"]


def test_images_of_equal_size_that_trade_places_are_other_data(tmp_path: Path) -> None:
    for number, name in enumerate(f"{c}/{n}.bmp" for c in "ab" for n in range(6)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / name)
    before = load_images(str(tmp_path), batch_size=2, workers=0)
    first, second = tmp_path / "a/0.bmp", tmp_path / "b/0.bmp"
    assert first.stat().st_size == second.stat().st_size
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    assert load_images(str(tmp_path), batch_size=2, workers=0).fingerprint != before.fingerprint
    assert load_images(str(tmp_path), batch_size=2, workers=0, in_memory=False, image_size=8).fingerprint == (
        load_images(str(tmp_path), batch_size=2, workers=0, image_size=8).fingerprint
    )
    first.write_bytes(one)
    second.write_bytes(other)
    assert load_images(str(tmp_path), batch_size=2, workers=0).fingerprint == before.fingerprint


def test_a_reader_s_copy_in_another_process_keeps_no_checksums(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    reader = FileReader(Folder(tmp_path))
    reader.check("0.png")
    copy = pickle.loads(pickle.dumps(reader))
    copy.image("0.png")
    assert reader.checksums == {"0.png": zlib.crc32((tmp_path / "0.png").read_bytes())}
    assert copy.checksums is None
    assert copy.signature("0.png") == str((tmp_path / "0.png").stat().st_size)
