from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from drawn_boxes import CLASSES, draw, write_coco
from reldistill.core.checks import UserError
from reldistill.core.types import Batch
from reldistill.data.loader import Loader
from reldistill.tasks.detection.data.box_loader import pad
from reldistill.tasks.detection.images import DetectionData, load_detection

TRAIN, VAL = draw(23, seed=0), draw(7, seed=1, first=100)
SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("boxes") / "data", train=TRAIN, val=VAL)


def load(root: Path, **settings: Any) -> DetectionData:
    defaults = {"batch_size": 4, "workers": 0, "image_size": 64, "seed": 5, "augment": "crop"}
    return load_detection(f"coco:{root}", **{**defaults, **settings})


def flat(batch: Batch) -> list[torch.Tensor]:
    parts = (getattr(batch.targets, name) for name in ("corners", "labels", "images", "sizes", "ignored", "areas"))
    return [batch.images, batch.indices, *(part for part in parts if part is not None)]


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        for part, other in zip(flat(ours), flat(theirs), strict=True):
            assert torch.equal(part, other)


def by_index(batches: list[Batch]) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Image → its pixels without the padding, and its boxes with their labels."""
    found = {}
    for batch in batches:
        for row, index in enumerate(batch.indices.tolist()):
            height, width = batch.targets.sizes[row].tolist()
            mine = batch.targets.images == row
            boxes = torch.cat([batch.targets.corners[mine], batch.targets.labels[mine, None]], dim=1)
            found[index] = batch.images[row, :, :height, :width], boxes
    return found


def equal(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", SPLITS)
def test_batches_are_as_promised(split: str, workers: int, root: Path) -> None:
    data = load(root, workers=workers)
    loader: Loader = getattr(data, split)
    for batch in loader:
        size, channels, height, width = batch.images.shape
        assert channels == 3
        assert height % 32 == width % 32 == 0
        assert batch.images.dtype == batch.targets.corners.dtype == torch.float32
        assert 0 <= batch.images.min() <= batch.images.max() <= 1
        assert batch.targets.images.tolist() == sorted(batch.targets.images.tolist())
        assert batch.targets.labels.dtype == batch.targets.images.dtype == batch.targets.sizes.dtype == torch.int64
        assert batch.targets.sizes.shape == (size, 2)
        assert height - batch.targets.sizes[:, 0].max() < 32
        assert (batch.targets.ignored is None) == (split == "train")
        for row, (high, wide) in enumerate(batch.targets.sizes.tolist()):
            assert batch.images[row, :, high:].abs().sum() == batch.images[row, :, :, wide:].abs().sum() == 0
        limits = batch.targets.sizes[batch.targets.images]
        assert (batch.targets.corners[:, 2] <= limits[:, 1]).all()
        assert (batch.targets.corners[:, 3] <= limits[:, 0]).all()


def test_validation_shows_every_image_as_it_is(root: Path) -> None:
    found = by_index(list(load(root).val))
    assert list(found) == list(range(7))
    for index, image in enumerate(VAL):
        pixels, boxes = found[index]
        assert torch.equal((pixels * 255).round().byte(), torch.from_numpy(image.pixels()).permute(2, 0, 1))
        assert boxes[:, :4].tolist() == [list(corners) for _, *corners in image.objects]


@pytest.mark.parametrize("split", SPLITS)
def test_workers_change_nothing(split: str, root: Path) -> None:
    alone, together = (getattr(load(root, workers=workers), split) for workers in (0, 2))
    for _ in range(2):
        assert_same(list(together), list(alone))


def test_an_image_depends_on_nothing_but_seed_epoch_and_index(root: Path) -> None:
    """Other batch sizes give other neighbours and another order, and the same view of every image."""
    few, many = load(root, batch_size=2), load(root, batch_size=3)
    ours, theirs = by_index(list(few.train)), by_index(list(many.train))
    both = ours.keys() & theirs.keys()
    assert len(both) > 15
    assert all(equal(ours[index], theirs[index]) for index in both)
    later = by_index(list(few.train))
    both = ours.keys() & later.keys()
    assert sum(equal(ours[index], later[index]) for index in both) < len(both) / 2


def test_every_image_is_changed_by_numbers_of_its_own(root: Path) -> None:
    found = by_index(list(load(root, augment="flip").train))
    mirrored = set()
    for index, (_, boxes) in found.items():
        if image_objects := TRAIN[index].objects:
            firsts = sorted(image_objects, key=lambda one: one[1])[0][0]
            mirrored.add(CLASSES[int(boxes[boxes[:, 0].argmin(), 4])] != firsts)
    assert mirrored == {True, False}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_position_continues_the_epoch_exactly(batch: int, workers: int, root: Path) -> None:
    whole = load(root).train
    whole.set_position(3)
    expected = list(whole)
    loader = load(root, workers=workers).train
    next(iter(loader))  # a run that was cut off earlier leaves no trace
    loader.set_position(3, batch)
    assert_same(list(loader), expected[batch:])
    assert_same(list(loader), list(whole))


def test_a_training_batch_is_landscape_or_portrait(root: Path) -> None:
    data = load(root, augment="multi-scale")
    portrait = torch.from_numpy(data.splits["train"].portrait())
    assert portrait.tolist() == [int(image.height > image.width) for image in TRAIN]
    seen = set()
    for _ in range(4):
        for batch in data.train:
            assert len(portrait[batch.indices].unique()) == 1
            height, width = batch.targets.sizes.unbind(dim=1)
            assert (height > width).all() if portrait[batch.indices[0]] else (height <= width).all()
            seen.add(int(portrait[batch.indices[0]]))
    assert seen == {0, 1}
    mixed = load(root, augment="flip", square=True)
    assert any(len(portrait[batch.indices].unique()) == 2 for batch in mixed.train)


def test_views_come_again(root: Path) -> None:
    loader = load(root).train
    loader.cycle_views(2)
    first, second, again = (by_index(list(loader)) for _ in range(3))
    both = first.keys() & again.keys()
    assert len(both) > 10
    assert all(equal(first[index], again[index]) for index in both)
    both = first.keys() & second.keys()
    assert not all(equal(first[index], second[index]) for index in both)


@pytest.mark.parametrize("split", SPLITS)
def test_ranks_joined_are_one_process(split: str, root: Path) -> None:
    alone: Loader = getattr(load(root), split)
    ranks: list[Loader] = [getattr(load(root), split) for _ in range(2)]
    for rank, loader in enumerate(ranks):
        loader.shard(rank, 2)
    assert len({len(loader) for loader in [alone, *ranks]}) == 1
    whole, parts = by_index(list(alone)), [by_index(list(loader)) for loader in ranks]
    assert not parts[0].keys() & parts[1].keys()
    joined = parts[0] | parts[1]
    assert joined.keys() == whole.keys()
    assert all(equal(joined[index], whole[index]) for index in whole)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.slow
def test_an_image_that_breaks_later_is_one_clear_line(workers: int, tmp_path: Path) -> None:
    root = write_coco(tmp_path / "data", train=TRAIN[:5], val=VAL)
    data = load(root, workers=workers)
    broken = root / "images" / "val" / VAL[0].name
    broken.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        list(data.val)
    assert str(caught.value) == f"bad image {broken}: empty file; it was sound when it was checked before training"


@pytest.mark.slow
def test_what_workers_need_can_be_sent_to_spawned_ones(root: Path) -> None:
    here = load(root).train._pixels._workers._loader.dataset  # type: ignore[attr-defined]
    there = pickle.loads(pickle.dumps(here))
    keys = [(0, 1, 2), (0, 1, 3)]
    assert torch.equal(there.__getitems__(keys).images, here.__getitems__(keys).images)


def test_pad() -> None:
    ones = [torch.ones(20, 50, 3), torch.ones(33, 32, 3)]
    padded, sizes = pad(ones)
    assert padded.shape == (2, 64, 64, 3)
    assert sizes.tolist() == [[20, 50], [33, 32]]
    assert padded.sum((1, 2, 3)).tolist() == [20 * 50 * 3, 33 * 32 * 3]
