"""What the parts of reldistill hand to each other.

Axes, everywhere: B batch · C channels · H, W space · N patch tokens · M superpixel tokens · D embedding ·
K classes · L levels · n boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Boxes:
    """The labelled boxes of a batch's images.

    Args:
        corners: (n, 4) left, top, right, bottom in pixels of the batch's images.
        labels: (n,) class indices, int64, 0 … K − 1.
        images: (n,) which image of the batch each box is in, int64, ascending.
        sizes: (B, 2) height and width of each image inside the batch's padding, int64.
        ignored: (n,) bool: crowds and difficult objects, which count neither as found nor as missed; None = no box is.
            Training batches have none.
        areas: (n,) pixels of each object itself, where the annotations say it; None = of its box.
    """

    corners: Tensor
    labels: Tensor
    images: Tensor
    sizes: Tensor
    ignored: Tensor | None = None
    areas: Tensor | None = None

    def __len__(self) -> int:
        return len(self.corners)

    def in_frame(self, height: int, width: int) -> Tensor:
        """(B, n, 4): each image's corners as fractions of a frame's sides, filled up with boxes of 0 without an area.

        Args:
            height: of the padded images, pixels.
            width: likewise.
        """
        counts = self.images.bincount(minlength=len(self.sizes))
        first = counts.cumsum(0) - counts
        place = torch.arange(len(self), device=self.images.device) - first[self.images]
        framed = self.corners.new_zeros(len(self.sizes), int(counts.max()), 4)
        framed[self.images, place] = self.corners / self.corners.new_tensor([width, height] * 2)
        return framed

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Boxes:
        """The same boxes on another device."""
        parts = {name: part for name, part in vars(self).items() if part is not None}
        return Boxes(**{name: part.to(device, non_blocking=non_blocking) for name, part in parts.items()})


@dataclass(frozen=True)
class Batch:
    """Labelled images as every network of a step sees them, before any network's own normalisation.

    Args:
        images: (B, 3, H, W) floating point in [0, 1], RGB; smaller ones are padded with 0 on the right and below.
        labels: (B,) class indices, int64; None where boxes are labelled instead.
        indices: (B,) position of each image in its data set, int64, or None where it is not known.
        teacher: what the teacher said of these images, as `Distiller.ask_teacher` names it, or None to ask the teacher.
        boxes: the objects in the images, for detection.
    """

    images: Tensor
    labels: Tensor | None
    indices: Tensor | None = None
    teacher: Mapping[str, Tensor] | None = None
    boxes: Boxes | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> Tensor:
        """The labels (B,) of images that have one each."""
        if self.labels is None:
            raise ValueError("labels: these images have boxes, not a class each")
        return self.labels

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Batch:
        """The same batch on another device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return Batch(
            move(self.images),
            None if self.labels is None else move(self.labels),
            None if self.indices is None else move(self.indices),
            None if self.teacher is None else {name: move(tensor) for name, tensor in self.teacher.items()},
            None if self.boxes is None else self.boxes.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True)
class LevelInfo:
    """One place in a network that can be tapped, as a dry run found it.

    Args:
        name: module path inside the network, e.g. `layer3` or `blocks.11`.
        channels: C of its (B, C, H, W) map.
        height: H of the map at the dry run's input size.
        width: W of the map at the dry run's input size.
        stride: input pixels per map cell, along the height.
        kind: `map` for a convolutional map, `tokens` for patch tokens laid out on their grid.
        depth: position in the order of execution, as a fraction in (0, 1].
    """

    name: str
    channels: int
    height: int
    width: int
    stride: float
    kind: Literal["map", "tokens"]
    depth: float


OUTPUTS = ("logits", "pooled", "distilled", "dense", "scores")
"""The places of a network that are no levels: what comes out of it."""


@dataclass(frozen=True)
class Features:
    """What one network said of one Batch; parts that nobody asked for are absent.

    Args:
        logits: (B, K), or None.
        pooled: (B, D) input of the classifier, or None.
        distilled: (B, K) of a transformer's distillation token, or None.
        dense: (B, K, H, W), what the classifier says of each place of the map or of each patch token, or None.
        levels: level name → (B, C, H, W); patch tokens are laid out on their grid, class and register tokens removed.
        scores: a detector's class scores before sigmoid or softmax, (B, anchors, K) of all anchors, or
            (proposals, 1 + K) of a two-stage detector's, the background's first; None for other networks.
        proposals: a two-stage detector's (n, 4) boxes of each image that `scores` are of; empty for other networks.
        losses: name → scalar, a detector's own losses on labelled boxes.
    """

    logits: Tensor | None = None
    pooled: Tensor | None = None
    distilled: Tensor | None = None
    dense: Tensor | None = None
    levels: Mapping[str, Tensor] = field(default_factory=dict)
    scores: Tensor | None = None
    proposals: tuple[Tensor, ...] = ()
    losses: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class StepOutput:
    """What a Distiller returns for one Batch.

    Args:
        total: scalar, the weighted sum that is minimised.
        parts: every part by name, weighted, detached; they sum to `total`.
        student: the student's features, for metrics.
    """

    total: Tensor
    parts: Mapping[str, Tensor]
    student: Features


class Loss(Protocol):
    """(student tensor, teacher tensor) → scalar.

    A loss that compares several places at once takes a tuple of tensors for each network. One that needs more of a
    Batch names it as a keyword, `labels`, `indices` or `boxes`; `progress` is the fraction of training done. A method
    with several parts also has `parts(student, teacher, *, names=…)`: part name → unweighted scalar, for the names
    asked for.
    """

    def __call__(self, student: Any, teacher: Any, **of_the_batch: Tensor) -> Tensor:
        """The loss."""
        ...


class FeatureSource(Protocol):
    """A network that says Features of images: see `networks.extract.Extractor`."""

    def __call__(
        self,
        images: Tensor,
        *,
        levels: tuple[str, ...] = (),
        logits: bool = True,
        pooled: bool = False,
        distilled: bool = False,
    ) -> Features:
        """Features of (B, 3, H, W) images in [0, 1]."""
        ...


class Evaluator(Protocol):
    """How well a network does its task, over batches and over the processes of a distributed run.

    `score` names the one of its values that networks are compared by: percent, more is better. `found` holds what
    `values` said last.
    """

    score: str
    found: dict[str, float]

    def start(self, device: torch.device | str) -> None:
        """Forget everything."""
        ...

    def update(self, network: Any, batch: Batch) -> None:
        """Measure one batch."""
        ...

    def values(self) -> dict[str, float]:
        """What was found, by name; every process has to ask, and gets the same."""
        ...

    def write(self, folder: Path) -> str | None:
        """Keep what was found image by image; the file's name, if there was anything to keep."""
        ...


class Task(Protocol):
    """What the student is for: its own loss, without any teacher, and how it is measured."""

    def __call__(self, student: Features, batch: Batch) -> Tensor:
        """Scalar."""
        ...

    def evaluator(self) -> Evaluator:
        """Measures a network that does this."""
        ...
