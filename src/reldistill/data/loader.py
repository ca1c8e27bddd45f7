"""Batches in an order that depends on (seed, epoch), and with random changes that depend on (seed, epoch, image)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reldistill.core.checks import UserError
from reldistill.core.types import Batch, ClassLabels
from reldistill.data.augment import DRAWS, Augment, ImageTransform, augment_batch, generator_of, seed_of, to_float
from reldistill.data.decode import BadImage
from reldistill.data.samples import Samples, evenly, processes

Part = TypeVar("Part", bound=Sized)
Key = tuple[int, int, int]  # seed, epoch, index
_VIEWS_SEED = 0  # the same for all runs, so that what is compared, or kept of a teacher, is of the same images


@dataclass(frozen=True)
class BatchPlan:
    """One batch to make.

    Args:
        indices: (B,) the images of the whole batch, over all ranks.
        mine: the part of them that this rank makes.
    """

    indices: Tensor
    mine: slice


@runtime_checkable
class Pixels(Protocol):
    """Where the images of a split are kept, and how they become batches."""

    def __len__(self) -> int: ...

    def batches(self, seed: int, epoch: int, plans: Sequence[BatchPlan]) -> Iterator[Batch]:
        """The planned batches, in order."""

    def close(self) -> None:
        """End what makes the batches, such as processes, until batches are asked for again."""


@runtime_checkable
class PlainPixels(Pixels, Protocol):
    """Those that can also be had without random changes."""

    def plain(self, limit: int) -> Pixels:
        """At most `limit` images, evenly over the classes, as validation shows them."""


class MemoryPixels:
    """Images held in memory; a batch is made by index, all its images at once.

    Args:
        pixels: (n, S, S, 3) uint8.
        labels: (n,) int64; None for images without labels.
        augment: what to do to the images; None for validation.
    """

    def __init__(self, pixels: Tensor, labels: Tensor | None, augment: Augment | None) -> None:
        self.pixels, self.labels, self.augment = pixels.contiguous(), labels, augment

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, seed: int, epoch: int, plans: Sequence[BatchPlan]) -> Iterator[Batch]:
        """The planned batches, in order."""
        draws = self._draws(seed, epoch)
        for plan in plans:
            mine = plan.indices[plan.mine].to(self.pixels.device)
            # index_select on flat rows copies whole images; plain indexing takes thirty times as long
            pixels = self.pixels.flatten(1).index_select(0, mine).view(-1, *self.pixels.shape[1:])
            if self.augment is None or draws is None:
                images = to_float(pixels)
            else:
                chosen = draws.index_select(0, plan.indices[plan.mine]).to(pixels.device)
                images = augment_batch(pixels, chosen, self.augment)
            targets = None if self.labels is None else ClassLabels(self.labels.index_select(0, mine))
            yield Batch(images, targets, mine)

    def plain(self, limit: int) -> MemoryPixels:
        """At most `limit` images, evenly over the classes, without random changes."""
        labels = torch.zeros(len(self), dtype=torch.int64) if self.labels is None else self.labels
        chosen = evenly(labels.tolist(), limit)
        return MemoryPixels(self.pixels[chosen], None if self.labels is None else self.labels[chosen], None)

    def close(self) -> None:
        """Nothing runs."""

    def _draws(self, seed: int, epoch: int) -> Tensor | None:
        """One row per image, so that its changes depend on nothing but seed, epoch and its index."""
        if self.augment is None:
            return None
        return torch.rand(len(self), DRAWS, generator=generator_of("augment", seed, epoch))


def bad_by_now(bad: BadImage) -> str:
    """The message for an image that cannot be read any more."""
    return f"bad image {bad.where}: {bad.reason}; it was sound when it was checked before training"


class _ImageFiles(Dataset[Any]):
    """(seed, epoch, index) → image; runs in the workers."""

    def __init__(self, samples: Samples, transform: ImageTransform) -> None:
        self.samples, self.transform = samples, transform

    def __getitems__(self, keys: Sequence[Key]) -> Tensor | str:
        """(B, S, S, 3) uint8; the message of an error, since one raised in a worker arrives wrapped in a traceback."""
        side = self.transform.side
        pixels = torch.empty(len(keys), side, side, 3, dtype=torch.uint8)
        for row, (seed, epoch, index) in enumerate(keys):
            try:
                image = self.samples.reader.image(self.samples.keys[index])
            except BadImage as bad:
                return bad_by_now(bad)
            pixels[row] = self.transform(image, seed_of("augment", seed, epoch, index))
        return pixels

    def __getitem__(self, key: Key) -> Tensor | str:
        return self.__getitems__([key])


def _as_it_is(batch: Any) -> Any:
    return batch


class _KeyBatches:
    """What torch's DataLoader asks for the keys of its batches; told of every epoch before it begins."""

    def __init__(self) -> None:
        self.seed, self.epoch = 0, 0
        self.plans: Sequence[BatchPlan] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        seed, epoch = self.seed, self.epoch
        return ([(seed, epoch, i) for i in plan.indices[plan.mine].tolist()] for plan in self.plans)

    def __len__(self) -> int:
        return len(self.plans)


class Workers:
    """A data set's answers to planned keys, made by worker processes (0 = here).

    Args:
        dataset: its `__getitems__(keys)` makes what a batch needs, or returns the message of an error.
        workers: the number of processes.
    """

    def __init__(self, dataset: Dataset[Any], *, workers: int) -> None:
        self._keys = _KeyBatches()
        self._runs = 0
        self._make_loader = functools.partial(
            DataLoader,
            dataset,
            batch_sampler=self._keys,
            collate_fn=_as_it_is,
            num_workers=workers,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # or every epoch would draw from the global generator
        )
        self._loader = self._make_loader()

    def close(self) -> None:
        """End the processes, which are the loader's; the next answers start others."""
        self._loader = self._make_loader()

    def answers(self, seed: int, epoch: int, plans: Sequence[BatchPlan]) -> Iterator[tuple[Tensor, Any]]:
        """The indices of each planned batch that are this rank's, and what the data set made of them."""
        self._runs += 1
        run = self._runs
        self._keys.seed, self._keys.epoch, self._keys.plans = seed, epoch, plans
        made = iter(self._loader)
        for plan in plans:
            if run != self._runs:  # the workers now answer to the newer iteration
                raise RuntimeError("a loader of images on disk serves one iteration at a time, and a newer one began")
            answer = next(made)
            if isinstance(answer, str):
                raise UserError(answer)
            yield plan.indices[plan.mine], answer


class DiskPixels:
    """Images decoded whenever they are needed, by worker processes (0 = here).

    Args:
        samples: the images.
        transform: what is done to each.
        workers: the number of processes.
        labelled: whether their labels mean something.
    """

    def __init__(self, samples: Samples, transform: ImageTransform, *, workers: int, labelled: bool = True) -> None:
        self.samples = samples
        self.labels = torch.as_tensor(samples.labels, dtype=torch.int64) if labelled else None
        self._side, self._processes = transform.side, workers
        self._workers = Workers(_ImageFiles(samples, transform), workers=workers)

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, seed: int, epoch: int, plans: Sequence[BatchPlan]) -> Iterator[Batch]:
        """The planned batches, in order."""
        for mine, pixels in self._workers.answers(seed, epoch, plans):
            yield Batch(to_float(pixels), None if self.labels is None else ClassLabels(self.labels[mine]), mine)

    def plain(self, limit: int) -> DiskPixels:
        """At most `limit` images, evenly over the classes, without random changes."""
        transform, labelled = ImageTransform(self._side, None), self.labels is not None
        return DiskPixels(self.samples.limited(limit), transform, workers=self._processes, labelled=labelled)

    def close(self) -> None:
        """End the worker processes."""
        self._workers.close()


class Loader:
    """An iterable of Batch whose epochs can be entered anywhere.

    Iterating yields one epoch and moves on to the next; `set_position` chooses the epoch and the first batch. Training
    order is a permutation seeded by (seed, epoch), and its last, incomplete batch is left out. Validation keeps the
    images' order, takes each exactly once, and makes its batches as even as possible, so that no rank goes without.
    `cycle_views` lets the random changes of a few epochs come again and again.

    With `groups` every training batch holds images of one group only; the last, incomplete batch of each group is left
    out. A group of fewer images than a batch would never be seen: then the groups are mixed after all.

    Args:
        pixels: the images.
        batch_size: images in a batch over all ranks.
        training: shuffled and complete batches only; otherwise every image in order.
        seed: of the order and of the augmentation.
        rank: this process.
        world_size: the number of processes; each makes its contiguous part of every batch.
        groups: (n,) each image's group, a small number; None = all alike.
    """

    def __init__(
        self,
        pixels: Pixels,
        *,
        batch_size: int,
        training: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        groups: Tensor | None = None,
    ) -> None:
        self.images = len(pixels)
        self.batch_size = batch_size
        self._pixels, self._training, self._seed = pixels, training, seed
        if groups is None or not training or bool((groups.unique(return_counts=True)[1] < batch_size).any()):
            groups = torch.zeros(self.images, dtype=torch.int64)
        self._groups = groups
        self._epoch, self._first = 0, 0
        self._views: int | None = None
        self.shard(rank, world_size)

    def cycle_views(self, count: int | None) -> None:
        """Let epoch e show view e mod `count` of every image, the same whatever the loader's seed; None: new ones."""
        if count is not None and count < 1:
            raise ValueError(f"count: expected at least 1 view, got {count}")
        self._views = count

    def plain(self, limit: int) -> Loader:
        """At most `limit` of the images, evenly over the classes, in order and without random changes, of every rank.

        Raises:
            ValueError: when these images can't be had so.
        """
        if not isinstance(self._pixels, PlainPixels):
            raise ValueError(f"{type(self._pixels).__name__} has no images without random changes")
        return Loader(self._pixels.plain(limit), batch_size=self.batch_size, training=False)

    def in_batches_of(self, batch_size: int) -> None:
        """Make batches of that size from now on, all of them in this process, to measure by."""
        self.batch_size = batch_size
        self.shard(0, 1)

    def shard(self, rank: int, world_size: int) -> None:
        """Make only this process's part of every batch from now on: which process it is may be known late."""
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size}")
        if self._training and self.batch_size % world_size:
            raise UserError(
                f"batch size {self.batch_size} cannot be shared equally by {world_size} processes; give a multiple"
            )
        if not self._training and self.images < world_size:
            raise UserError(
                f"{self.images} validation images for {world_size} processes; add images or use fewer processes"
            )
        self._rank, self._world_size = rank, world_size
        if self._training:
            self._count = int((self._groups.unique(return_counts=True)[1] // self.batch_size).sum())
        else:
            # never fewer images in a batch than ranks
            self._count = max(1, min(-(-self.images // self.batch_size), self.images // world_size))

    def __len__(self) -> int:
        """Number of batches in an epoch, the same on every rank."""
        return self._count

    def close(self) -> None:
        """End the worker processes, if there are any. Iterating again starts others."""
        self._pixels.close()

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration be `epoch`, from `batch` on; `batch == len(self)` yields nothing."""
        if epoch < 0 or not 0 <= batch <= len(self):
            raise ValueError(f"no position (epoch {epoch}, batch {batch}) in a loader of {len(self)} batches per epoch")
        self._epoch, self._first = epoch, batch

    def _shuffled(self, epoch: int) -> Sequence[Tensor]:
        generator = generator_of("order", self._seed, epoch)
        order = torch.randperm(self.images, generator=generator)
        groups = self._groups[order]
        alike = [order[groups == group] for group in groups.unique()]
        parts = [part for one in alike for part in one.split(self.batch_size) if len(part) == self.batch_size]
        if len(alike) == 1:
            return parts
        return [parts[i] for i in torch.randperm(len(parts), generator=generator)]

    def _plans(self, epoch: int, first: int) -> list[BatchPlan]:
        if self._training:
            parts = self._shuffled(epoch)
        else:
            parts = torch.arange(self.images).tensor_split(self._count)
        return [
            BatchPlan(
                part,
                slice(
                    len(part) * self._rank // self._world_size,
                    len(part) * (self._rank + 1) // self._world_size,
                ),
            )
            for part in parts
        ][first:]

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self._epoch, self._first
        self._epoch, self._first = epoch + 1, 0
        plans = self._plans(epoch, first)
        if self._views is None:
            return self._pixels.batches(self._seed, epoch, plans)
        return self._pixels.batches(_VIEWS_SEED, epoch % self._views, plans)


def loaders_of(
    splits: Mapping[str, Part],
    pixels: Callable[[str, Part, int], Pixels],
    *,
    batch_size: int,
    seed: int,
    workers: int | None,
    rank: int,
    world_size: int,
    groups: Tensor | None = None,
) -> dict[str, Loader]:
    """A loader for each split, by its name; only `train` is shuffled.

    Args:
        splits: name → images.
        pixels: (name, images, number of processes that decode) → what the loader reads.
        batch_size: images in a batch over all ranks.
        seed: of the order and of the augmentation.
        workers: processes that decode images; None: one per core, at most eight.
        rank: this process.
        world_size: the number of processes.
        groups: the training images' groups, as in `Loader`.
    """
    loaders = {}
    for name, images in splits.items():
        count = processes(workers, batches=-(-len(images) // batch_size), world_size=world_size)
        loaders[name] = Loader(
            pixels(name, images, count),
            training=name == "train",
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            groups=groups if name == "train" else None,
        )
    return loaders
