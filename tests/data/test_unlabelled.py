"""Images without labels, from any tree, archive or list."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reldistill.core.checks import UserError
from reldistill.data.image_data import ImageData, load_images
from reldistill.tasks.features.task import FeaturesTask
from reldistill.training.settings import DataSettings


def draw(root: Path, names: Sequence[str]) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 3 * number, dtype=np.uint8)).save(root / name)
    return root


def read(data: str, **settings: object) -> ImageData:
    return load_images(data, batch_size=2, labelled=False, workers=0, **settings)  # type: ignore[arg-type]


TREE = [f"{folder}/{n}.png" for folder in ("a", "b/c", "b/d") for n in range(4)] + ["top.png"]


def test_any_tree_will_do(tmp_path: Path) -> None:
    images = read(f"unlabelled:{draw(tmp_path / 'tree', TREE)}", val_fraction=0.25)
    assert (images.train.images, images.val.images, images.classes) == (10, 3, ())
    assert next(iter(images.train)).targets is None
    assert read(f"unlabelled:{tmp_path / 'tree'}", val_fraction=0.25).fingerprint == images.fingerprint
    three = read(f"unlabelled:{tmp_path / 'tree'}", val_fraction=0.25, hold_out_test=True)
    assert three.test is not None
    assert [loader.images for loader in (three.train, three.val, three.test)] == [8, 2, 3]


def test_folders_called_like_splits_are_splits(tmp_path: Path) -> None:
    names = [f"set/{split}/{n}.png" for split, count in (("train", 6), ("val", 3), ("test", 2)) for n in range(count)]
    root = draw(tmp_path / "tree", [*names, "set/extra/0.png"])
    images = read(f"unlabelled:{root}")
    assert (images.train.images, images.val.images) == (6, 3)
    assert dict(images.left_out) == {"files in set/extra/": 1, "files in set/test/": 2}
    tested = read(f"unlabelled:{root}", hold_out_test=True)
    assert tested.test is not None
    assert tested.test.images == 2


def test_an_archive_is_read_as_the_folder_is(tmp_path: Path) -> None:
    root = draw(tmp_path / "tree", TREE)
    (root / "notes.txt").write_text("nothing")
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
        for name in [*TREE, "notes.txt"]:
            archive.write(root / name, name)
    whole, packed = read(f"unlabelled:{root}"), read(f"unlabelled:{tmp_path / 'tree.zip'}")
    assert (whole.train.images, whole.val.images) == (packed.train.images, packed.val.images)
    assert dict(whole.left_out) == dict(packed.left_out) == {".txt files": 1}


def test_a_list_of_paths(tmp_path: Path) -> None:
    root = draw(tmp_path / "tree", TREE)
    listed = tmp_path / "mine.txt"
    listed.write_text("  # the first\n" + "\n".join(f"tree/{name}" for name in TREE[:5]) + f"\n\n{root / TREE[6]}\n")
    assert sum(loader.images for loader in (read(f"unlabelled:{listed}").train, read(f"unlabelled:{listed}").val)) == 6
    listed.write_text("tree/a/0.png\ntree/none.png\n")
    with pytest.raises(UserError, match=r"mine.txt: no such image: .*none.png"):
        read(f"unlabelled:{listed}")
    listed.write_text("\n".join(f"tree/{name}" for name in TREE[:5]), encoding="utf-16")
    assert read(f"unlabelled:{listed}").train.images == 4
    listed.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a list of paths"):
        read(f"unlabelled:{listed}")


def test_labels_are_left_out_of_labelled_images(tmp_path: Path) -> None:
    images = read(str(draw(tmp_path / "tree", [f"{c}/{n}.png" for c in "ab" for n in range(5)])))
    assert images.classes == ()
    assert next(iter(images.val)).targets is None


@pytest.mark.parametrize("names", [[], ["one.png"]])
def test_too_few_images_are_refused(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "tree").mkdir()
    draw(tmp_path / "tree", names)
    with pytest.raises(UserError, match=r"images? found; give a folder, \.zip or list of at least 2"):
        read(f"unlabelled:{tmp_path / 'tree'}")


def test_bad_images_are_named_or_counted(tmp_path: Path) -> None:
    root = draw(tmp_path / "tree", TREE)
    for name in TREE[:4]:
        (root / name).write_bytes(b"no image")
    with pytest.raises(UserError, match="3 more bad images"):
        read(f"unlabelled:{root}")
    images = read(f"unlabelled:{root}", skip_bad_images=True)
    assert len(images.skipped) == 4
    assert images.train.images + images.val.images == len(TREE) - 4


def test_the_prefix_says_the_task_and_other_tasks_explain_it() -> None:
    assert DataSettings(data="unlabelled:photos").task == "features"
    assert DataSettings(data="photos", task="features").task == "features"
    with pytest.raises(UserError, match="images without labels"):
        DataSettings(data="unlabelled:photos", task="classification")
    with pytest.raises(UserError, match="coco:"):
        DataSettings(data="coco:street", task="features")


def test_an_empty_training_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tree/train").mkdir(parents=True)
    draw(tmp_path / "tree", [f"val/{n}.png" for n in range(4)])
    with pytest.raises(UserError, match="no images found in its training folder"):
        read(f"unlabelled:{tmp_path / 'tree'}")


def test_what_is_no_place_of_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(draw(tmp_path, TREE))
    with pytest.raises(UserError, match=r"^data unlabelled:: give unlabelled: and a folder of images"):
        read("unlabelled:")
    Path("paths.csv").write_text("a/0.png\na/1.png\n")
    with pytest.raises(UserError, match=r"paths\.csv: neither a \.zip nor a list of paths \(\.txt, \.lst, \.list\)"):
        read("unlabelled:paths.csv")
    os.mkfifo("pipe.png")
    Path("paths.txt").write_text("a/0.png\npipe.png\n")
    with pytest.raises(UserError, match=r"no such image: .*pipe\.png"):
        read("unlabelled:paths.txt")


@pytest.mark.parametrize(("held_out", "fraction"), [(1, 0.1), (2, 0.2)])
def test_relations_of_fewer_than_three_images_are_not_measured(tmp_path: Path, held_out: int, fraction: float) -> None:
    settings = DataSettings(data=f"unlabelled:{draw(tmp_path / 'tree', TREE[:8])}", val_fraction=fraction)
    with pytest.raises(UserError, match=f"{held_out} of the images held out, and relations need at least 3"):
        FeaturesTask().read(settings, batch_size=2, seed=0, workers=0, models=())
