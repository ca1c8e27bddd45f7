from __future__ import annotations

import multiprocessing
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reldistill.core.checks import UserError
from reldistill.core.types import Batch, ClassLabels
from reldistill.data.augment import Augment, ImageTransform
from reldistill.data.class_folders import read_splits
from reldistill.data.files import Folder
from reldistill.data.loader import DiskPixels, Loader, MemoryPixels
from reldistill.data.samples import Samples

IMAGES = 23
KINDS = ("memory", "disk")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for i in range(30):
        path = root / f"class{i % 3}" / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return read_splits(Folder(root), where="images", val_fraction=0.1).train.subset(range(IMAGES))


def make(
    kind: str, samples: Samples, *, word: str = "strong", workers: int = 0, training: bool = True, **settings: int
) -> Loader:
    augment = Augment.named(word, flips=True) if training else None
    pixels: MemoryPixels | DiskPixels
    if kind == "memory":
        images = torch.randint(
            0, 256, (IMAGES, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        pixels = MemoryPixels(images, torch.as_tensor(samples.labels), augment)
    else:
        pixels = DiskPixels(samples, ImageTransform(16, augment), workers=workers)
    return Loader(pixels, training=training, **{"batch_size": 6, "seed": 5, **settings})  # type: ignore[arg-type]


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.targets.labels, theirs.targets.labels)
        assert torch.equal(ours.indices, theirs.indices)


def join(parts: list[list[Batch]]) -> list[Batch]:
    return [
        Batch(
            torch.cat([b.images for b in batches]),
            ClassLabels(torch.cat([b.targets.labels for b in batches])),
            torch.cat([b.indices for b in batches]),
        )
        for batches in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_two_loaders_give_the_same_and_epochs_differ(kind: str, samples: Samples) -> None:
    first, second = make(kind, samples), make(kind, samples)
    one, two = list(first), list(first)
    assert_same(list(second), one)
    assert_same(list(second), two)
    assert not torch.equal(one[0].indices, two[0].indices)
    other = list(make(kind, samples, seed=6))
    assert not torch.equal(one[0].indices, other[0].indices)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_changed_anew_every_epoch(kind: str, samples: Samples) -> None:
    loader = make(kind, samples)
    images = [{int(i): x for b in loader for i, x in zip(b.indices, b.images, strict=True)} for _ in range(2)]
    both = images[0].keys() & images[1].keys()
    assert sum(torch.equal(images[0][i], images[1][i]) for i in both) <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", range(4))
def test_a_position_continues_the_epoch_exactly(kind: str, samples: Samples, batch: int) -> None:
    whole = make(kind, samples)
    whole.set_position(4)
    expected = list(whole)
    loader = make(kind, samples)
    next(iter(loader))  # a run that was cut off earlier leaves no trace
    loader.set_position(4, batch)
    found = list(loader)
    assert len(loader) == 3
    if batch == 3:
        assert found == []
    else:
        assert_same(found, expected[batch:])
    loader.set_position(5)
    following = list(loader)
    assert_same(list(whole), following)


def make_at(epoch: int, kind: str, samples: Samples, **settings: int) -> Loader:
    loader = make(kind, samples, **settings)
    loader.set_position(epoch)
    return loader


def by_index(loader: Loader) -> dict[int, torch.Tensor]:
    return {int(i): image for batch in loader for i, image in zip(batch.indices, batch.images, strict=True)}


@pytest.mark.parametrize("kind", KINDS)
def test_views_come_again_whatever_the_order(kind: str, samples: Samples) -> None:
    ours, theirs = make(kind, samples, seed=5), make(kind, samples, seed=6, batch_size=4)
    for loader in (ours, theirs):
        loader.cycle_views(2)
    first, second, again = (by_index(ours) for _ in range(3))
    others = by_index(theirs)
    both = first.keys() & again.keys()
    assert len(both) > 10
    assert all(torch.equal(first[i], again[i]) for i in both)
    assert not all(torch.equal(first[i], second[i]) for i in first.keys() & second.keys())
    assert all(torch.equal(first[i], others[i]) for i in first.keys() & others.keys())
    assert list(first) != list(again)
    ours.cycle_views(None)
    ours.set_position(2)
    assert_same(list(ours), list(make_at(2, kind, samples, seed=5)))
    with pytest.raises(ValueError, match="count: expected at least 1 view"):
        ours.cycle_views(0)


def grouped(images: int, groups: torch.Tensor, **settings: int) -> Loader:
    pixels = MemoryPixels(torch.zeros(images, 4, 4, 3, dtype=torch.uint8), torch.zeros(images).long(), None)
    return Loader(pixels, training=True, groups=groups, **{"batch_size": 4, "seed": 5, **settings})  # type: ignore[arg-type]


def test_a_training_batch_is_of_one_group() -> None:
    groups = (torch.arange(27) % 3 == 0).long()  # 9 and 18
    loader = grouped(27, groups)
    assert len(loader) == 9 // 4 + 18 // 4
    seen = set()
    kinds = []
    for _ in range(6):
        batches = [batch.indices for batch in loader]
        assert len(batches) == len(loader)
        for indices in batches:
            assert len(groups[indices].unique()) == 1
        flat = torch.cat(batches).tolist()
        assert len(set(flat)) == len(flat)
        seen |= set(flat)
        kinds.append(tuple(int(groups[indices[0]]) for indices in batches))
    assert seen == set(range(27))
    assert len(set(kinds)) > 1  # the groups' batches are shuffled among each other


def test_groups_keep_position_and_ranks() -> None:
    groups = (torch.arange(27) % 3 == 0).long()
    expected = [batch.indices for batch in grouped(27, groups)]
    loader = grouped(27, groups)
    loader.set_position(0, 3)
    assert [batch.indices.tolist() for batch in loader] == [indices.tolist() for indices in expected[3:]]
    parts = [[batch.indices for batch in grouped(27, groups, rank=rank, world_size=2)] for rank in range(2)]
    for whole, *mine in zip(expected, *parts, strict=True):
        assert torch.equal(torch.cat(mine), whole)


def test_a_group_smaller_than_a_batch_is_mixed_with_the_others() -> None:
    groups = torch.tensor([1, 1, 1, *[0] * 17])
    loader = grouped(20, groups)
    assert len(loader) == 5
    assert sorted(torch.cat([batch.indices for batch in loader]).tolist()) == list(range(20))


def test_positions_that_do_not_exist(samples: Samples) -> None:
    loader = make("memory", samples)
    for position in ((0, 4), (-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="no position"):
            loader.set_position(*position)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_joined_are_one_process(kind: str, training: bool, world_size: int, samples: Samples) -> None:
    alone = list(make(kind, samples, training=training))
    ranks = [make(kind, samples, training=training, rank=r, world_size=world_size) for r in range(world_size)]
    assert len({len(r) for r in ranks}) == 1
    parts = [list(r) for r in ranks]
    assert_same(join(parts), alone)
    if training:
        assert {len(b) for part in parts for b in part} == {6 // world_size}


@pytest.mark.parametrize("training", [True, False])
def test_workers_change_nothing(samples: Samples, training: bool) -> None:
    alone = make("disk", samples, training=training)
    shared = make("disk", samples, training=training, workers=2)
    for position in ((0, 0), (1, 0), (3, 2)):
        alone.set_position(*position)
        shared.set_position(*position)
        assert_same(list(shared), list(alone))
    shared.set_position(1)
    next(iter(shared))  # abandoned with batches on their way
    shared.set_position(2)
    alone.set_position(2)
    assert_same(list(shared), list(alone))


def test_workers_end_and_begin_again(samples: Samples) -> None:
    alone, shared = make("disk", samples), make("disk", samples, workers=2)
    others = set(multiprocessing.active_children())
    for _ in range(2):
        assert_same(list(shared), list(alone))
        assert len(set(multiprocessing.active_children()) - others) == 2
        shared.close()
        assert set(multiprocessing.active_children()) == others


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_a_rank_may_be_told_late(kind: str, training: bool, samples: Samples) -> None:
    told = make(kind, samples, training=training)
    told.shard(1, 3)
    assert_same(list(told), list(make(kind, samples, training=training, rank=1, world_size=3)))


def test_processes_that_cannot_share_a_batch(samples: Samples) -> None:
    with pytest.raises(UserError, match="batch size 6 cannot be shared equally by 4 processes; give a multiple"):
        make("memory", samples).shard(0, 4)
    with pytest.raises(UserError, match="23 validation images for 24 processes"):
        make("memory", samples, training=False).shard(0, 24)
    with pytest.raises(ValueError, match="rank 2 is not one of 2"):
        make("memory", samples).shard(2, 2)


def test_training_takes_complete_batches_of_different_images(samples: Samples) -> None:
    loader = make("memory", samples)
    seen = Counter(int(i) for b in loader for i in b.indices)
    assert loader.images == IMAGES
    assert len(seen) == 18
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (2, 2), (6, 3), (8, 4), (22, 2), (23, 1), (100, 4)])
def test_validation_takes_every_image_once_and_no_rank_goes_without(
    kind: str, batch_size: int, world_size: int, samples: Samples
) -> None:
    found = []
    for rank in range(world_size):
        loader = make(kind, samples, training=False, batch_size=batch_size, rank=rank, world_size=world_size)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert min(len(b) for b in batches) >= 1
        found += [int(i) for b in batches for i in b.indices]
    assert sorted(found) == list(range(IMAGES))


def test_validation_neither_shuffles_nor_changes(samples: Samples) -> None:
    loader = make("memory", samples, training=False)
    for _ in range(2):
        batches = list(loader)
        assert torch.equal(torch.cat([b.indices for b in batches]), torch.arange(IMAGES))
        pixels = torch.cat([b.images for b in batches])
        assert torch.equal(pixels, loader._pixels.pixels.permute(0, 3, 1, 2) / 255)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
def test_labels_belong_to_their_images(kind: str, samples: Samples) -> None:
    for batch in make(kind, samples):
        assert batch.targets.labels.tolist() == [samples.labels[i] for i in batch.indices.tolist()]
        assert batch.targets.labels.dtype == batch.indices.dtype == torch.int64


def test_disk_images_are_those_of_the_transform(samples: Samples) -> None:
    transform = ImageTransform(16, None)
    for batch in make("disk", samples, training=False):
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for index, image in zip(batch.indices.tolist(), batch.images, strict=True):
            expected = transform(samples.reader.image(samples.keys[index]), 0)
            assert torch.equal(image, expected.permute(2, 0, 1) / 255)


@pytest.mark.parametrize("kind", KINDS)
def test_no_global_generator_is_touched_or_listened_to(kind: str, samples: Samples) -> None:
    expected = list(make(kind, samples))
    torch.manual_seed(99)
    np.random.seed(99)
    ours, theirs = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert_same(list(make(kind, samples)), expected)
    assert torch.equal(torch.get_rng_state(), ours)
    assert np.array_equal(np.random.get_state()[1], theirs)


def test_a_second_iteration_over_the_same_workers_is_refused(samples: Samples) -> None:
    loader = make("disk", samples)
    first = iter(loader)
    next(first)
    next(iter(loader))
    with pytest.raises(RuntimeError, match="one iteration at a time"):
        next(first)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_during_training_is_named(workers: int, tmp_path: Path) -> None:
    for i in range(4):
        path = tmp_path / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    splits = read_splits(Folder(tmp_path), where="images", val_fraction=0.5)
    broken = tmp_path / splits.train.keys[0]
    broken.write_bytes(b"")
    loader = make("disk", splits.train, workers=workers, batch_size=2)
    with pytest.raises(UserError) as caught:
        list(loader)
    assert str(caught.value) == f"bad image {broken}: empty file; it was sound when it was checked before training"


@pytest.mark.parametrize("word", ["none", "strong"])
@pytest.mark.slow
def test_what_workers_need_can_be_sent_to_spawned_ones(word: str, samples: Samples) -> None:
    here = make("disk", samples, word=word)._pixels._workers._loader.dataset  # type: ignore[attr-defined]
    there = pickle.loads(pickle.dumps(here))
    keys = [(0, 1, 2), (0, 1, 3)]
    assert torch.equal(there.__getitems__(keys), here.__getitems__(keys))
