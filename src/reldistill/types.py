"""What the parts of reldistill hand to each other.

Axes, everywhere: B batch · C channels · H, W space · N patch tokens · M superpixel tokens · D embedding ·
K classes · L levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Labelled images as every network of a step sees them, before any network's own normalisation.

    Args:
        images: (B, 3, H, W) floating point in [0, 1], RGB.
        labels: (B,) class indices, int64.
        indices: (B,) position of each image in its data set, int64, or None where it is not known.
        teacher: what the teacher said of these images, as `Distiller.ask_teacher` names it, or None to ask the teacher.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor | None = None
    teacher: Mapping[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Batch:
        """The same batch on another device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return Batch(
            move(self.images),
            move(self.labels),
            None if self.indices is None else move(self.indices),
            None if self.teacher is None else {name: move(tensor) for name, tensor in self.teacher.items()},
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


OUTPUTS = ("logits", "pooled", "distilled")
"""The places of a network that are no levels: what comes out of it."""


@dataclass(frozen=True)
class Features:
    """What one network said of one Batch; parts that nobody asked for are absent.

    Args:
        logits: (B, K), or None.
        pooled: (B, D) input of the classifier, or None.
        distilled: (B, K) of a transformer's distillation token, or None.
        levels: level name → (B, C, H, W); patch tokens are laid out on their grid, class and register tokens removed.
    """

    logits: Tensor | None = None
    pooled: Tensor | None = None
    distilled: Tensor | None = None
    levels: Mapping[str, Tensor] = field(default_factory=dict)


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
    Batch names it as a keyword, `labels` or `indices`; `progress` is the fraction of training done. A method with
    several parts also has `parts(student, teacher, *, names=…)`: part name → unweighted scalar, for the names asked
    for.
    """

    def __call__(self, student: Any, teacher: Any, **of_the_batch: Tensor) -> Tensor:
        """The loss."""
        ...


class FeatureSource(Protocol):
    """A network that says Features of images: see `features.extract.Extractor`."""

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


class Task(Protocol):
    """What the student is for: its own loss, without any teacher."""

    def __call__(self, student: Features, batch: Batch) -> Tensor:
        """Scalar."""
        ...
