"""Images with boxes as batches: decoded and changed by worker processes, then padded to a common size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from reldistill.core.types import Batch
from reldistill.data.augment import seed_of, to_float
from reldistill.data.decode import BadImage
from reldistill.data.loader import BatchPlan, Key, Workers, bad_by_now
from reldistill.tasks.detection.boxes import Boxes
from reldistill.tasks.detection.data.box_augment import BoxTransform
from reldistill.tasks.detection.data.labels import LabelledImages

MULTIPLE = 32  # pixels that the padded height and width are multiples of


@dataclass(frozen=True)
class _Made:
    """What a worker makes of a batch: images (B, H, W, 3) uint8, padded, and the parts of Boxes."""

    images: Tensor
    boxes: Boxes


def pad(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Images (H, W, 3) as one tensor (B, H, W, 3), zeros to the right and below; and their sizes (B, 2)."""
    sizes = torch.tensor([image.shape[:2] for image in images])
    height, width = (-(-int(side) // MULTIPLE) * MULTIPLE for side in sizes.amax(dim=0))
    padded = torch.zeros(len(images), height, width, 3, dtype=images[0].dtype)
    for row, image in zip(padded, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return padded, sizes


class _BoxedFiles(Dataset[Any]):
    """(seed, epoch, index) of each image of a batch → the batch; runs in the workers."""

    def __init__(self, samples: LabelledImages, transform: BoxTransform | None) -> None:
        self.samples, self.transform = samples, transform

    def __getitems__(self, keys: Sequence[Key]) -> _Made | str:
        """The batch; the message of an error, since one raised in a worker arrives wrapped in a traceback."""
        try:
            return self._learned(keys, self.transform) if self.transform else self._measured(keys)
        except BadImage as bad:
            return bad_by_now(bad)

    def __getitem__(self, key: Key) -> _Made | str:
        return self.__getitems__([key])

    def _learned(self, keys: Sequence[Key], transform: BoxTransform) -> _Made:
        """Images changed at random, with the objects that are left in them."""
        changed = [
            transform(
                self.samples.reader.image(self.samples.keys[index]),
                self.samples.objects(index),
                seed_of("augment", seed, epoch, index),
            )
            for seed, epoch, index in keys
        ]
        images, sizes = pad([image for image, _, _ in changed])
        counts = torch.tensor([len(labels) for _, _, labels in changed])
        corners = torch.cat([corners for _, corners, _ in changed])
        labels = torch.cat([labels for _, _, labels in changed])
        return _Made(images, Boxes(corners, labels, torch.arange(len(keys)).repeat_interleave(counts), sizes))

    def _measured(self, keys: Sequence[Key]) -> _Made:
        """Images at their own size, with all their objects."""
        objects = [self.samples.objects(index) for _, _, index in keys]
        read = (self.samples.reader.image(self.samples.keys[index]) for _, _, index in keys)
        images, sizes = pad([torch.from_numpy(np.array(image)) for image in read])

        def joined(name: str) -> Tensor:
            return torch.from_numpy(np.concatenate([getattr(one, name) for one in objects]))

        counts = torch.tensor([len(one.labels) for one in objects])
        rows = torch.arange(len(keys)).repeat_interleave(counts)
        boxes = Boxes(joined("corners"), joined("labels"), rows, sizes, joined("ignored"), joined("areas"))
        return _Made(images, boxes)


class DetectionPixels:
    """Images with boxes, decoded whenever they are needed, by worker processes (0 = here).

    Args:
        samples: the images of a split.
        transform: what is done to them; None for validation, which sees them at their own size.
        workers: the number of processes.
    """

    def __init__(self, samples: LabelledImages, transform: BoxTransform | None, *, workers: int) -> None:
        self.samples = samples
        self._workers = Workers(_BoxedFiles(samples, transform), workers=workers)

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, seed: int, epoch: int, plans: Sequence[BatchPlan]) -> Iterator[Batch]:
        """The planned batches, in order."""
        for mine, made in self._workers.answers(seed, epoch, plans):
            yield Batch(to_float(made.images), made.boxes, mine)

    def close(self) -> None:
        """End the worker processes."""
        self._workers.close()
