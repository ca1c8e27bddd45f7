"""What the parts of reldistill hand to each other.

Axes, everywhere: B batch (b a few of its images) · C channels · G groups of channels, or graphs · H, W space (h, w of a
coarser grid), HW both in one · S side of a square image · N patch tokens · M superpixel tokens · P positions, or tokens
in a cell · D embedding · K classes · L levels, or lines of a map · A anchors · n boxes, images or vectors, m others of
them · k kept eigenvectors · p vectors of the block that finds them · X any. Words are axes too: `each` channels of a
group, `draws`, `local` samples of one process.

A size of the teacher's that need not be the student's is C′ in prose and C_t in a type. `Float[Tensor, "B C"]` is a
floating-point tensor of these axes: equal names are equal sizes, `_C` is any size, `*_` any number of axes, "" a
scalar. The tests check the types in every call; a run checks none.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


@runtime_checkable
class Targets(Protocol):
    """What a batch's images are labelled with: one object of the task's."""

    def for_loss(self, name: str, images: Float[Tensor, "B 3 H W"]) -> Tensor | None:
        """What a loss takes by the keyword `name`, e.g. `labels` or `boxes`; None where these targets have no such.

        Args:
            name: the keyword.
            images: (B, 3, H, W), the batch's.
        """
        ...

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Targets:
        """The same targets on another device."""
        ...


@dataclass(frozen=True)
class ClassLabels:
    """One class for each image.

    Args:
        labels: (B,) class indices, int64, 0 … K − 1.

    Raises:
        ValueError: when they are something else, such as several labels or soft ones for each image.
    """

    labels: Int64[Tensor, "B"]

    def __post_init__(self) -> None:
        if self.labels.ndim != 1 or self.labels.is_floating_point():
            raise ValueError(
                f"labels: expected (B,) class indices, one for each image, got {self.labels.dtype} of shape "
                f"{tuple(self.labels.shape)}; several labels or soft ones need a task of your own"
            )

    def for_loss(self, name: str, images: Tensor) -> Tensor | None:
        """`labels` (B,); see `Targets`."""
        return self.labels if name == "labels" else None

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> ClassLabels:
        """The same labels on another device."""
        return ClassLabels(self.labels.to(device, non_blocking=non_blocking))


Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Batch:
    """Images as every network of a step sees them, before any network's own normalisation, and what they are of.

    Args:
        images: (B, 3, H, W) floating point in [0, 1], RGB; smaller ones are padded with 0 on the right and below.
        targets: what the images are labelled with, e.g. ClassLabels; None for images without labels.
        indices: (B,) position of each image in its data set, int64, or None where it is not known.
        teachers: teachers' outputs for these images: name of the teacher → place in it → tensor, as
            `Distiller.ask_teacher` has it. A teacher that is not here is run.
    """

    images: Float[Tensor, "B 3 H W"]
    targets: Targets | None = None
    indices: Int64[Tensor, "B"] | None = None
    teachers: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def of(cls, given: Batch | Sequence[Any]) -> Batch:
        """A Batch as it is, or one of (images, targets) as plain loaders give them; a tensor is class labels."""
        if isinstance(given, Batch):
            return given
        images, targets, *more = given
        return cls(images, ClassLabels(targets) if isinstance(targets, Tensor) else targets, *more)

    def targets_as(self, kind: type[Kind]) -> Kind:
        """The targets, which must be of one kind.

        Raises:
            ValueError: they are of another, or there are none.
        """
        if not isinstance(self.targets, kind):
            found = "no targets" if self.targets is None else type(self.targets).__name__
            raise ValueError(
                f"expected a batch with {kind.__name__}, got {found}: give Batch(images, {kind.__name__}(…))"
            )
        return self.targets

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Batch:
        """The same batch on another device."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return Batch(
            move(self.images),
            None if self.targets is None else self.targets.to(device, non_blocking=non_blocking),
            None if self.indices is None else move(self.indices),
            {teacher: {place: move(one) for place, one in places.items()} for teacher, places in self.teachers.items()},
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


TEACHER = "teacher"
"""The name of a teacher where there is only one without a name."""

OUTPUTS = ("logits", "pooled", "distilled", "dense", "scores")
"""The places of a network that are not levels: its outputs."""

THROUGH_NORM = "@norm"
"""At the end of a level's name: patch tokens as the network's final norm would give them, e.g. `blocks.3@norm`."""

CLASS_TOKEN = "@class"
"""At the end of a level's name, after `@norm` where both are: its class token, as a map of one cell."""

CLASS_SCORES = ("logits", "distilled", "dense", "scores")
"""Those of them that hold a score of each class."""


def holds_map(place: str) -> bool:
    """Whether a place of a network is a level with a map or patch tokens, no output and no class token."""
    return place not in OUTPUTS and not place.endswith(CLASS_TOKEN)


@dataclass(frozen=True)
class Features:
    """One network's outputs for one Batch; parts that were not asked for are absent.

    Args:
        logits: (B, K), or None.
        pooled: (B, D) input of the classifier, or None.
        distilled: (B, K) of a transformer's distillation token, or None.
        dense: (B, K, H, W), the classifier applied at each place of the map or to each patch token, or None.
        levels: level name → (B, C, H, W); patch tokens are laid out on their grid, class and register tokens removed.
        scores: a detector's class scores before sigmoid or softmax, (B, anchors, K) of all anchors, or
            (proposals, 1 + K) of a two-stage detector's, the background's first; None for other networks.
        proposals: a two-stage detector's (n, 4) boxes of each image that `scores` are of; empty for other networks.
        losses: name → scalar, a detector's own losses on labelled boxes.
    """

    logits: Float[Tensor, "B K"] | None = None
    pooled: Float[Tensor, "B D"] | None = None
    distilled: Float[Tensor, "B K"] | None = None
    dense: Float[Tensor, "B K H W"] | None = None
    levels: Mapping[str, Float[Tensor, "B _C _H _W"]] = field(default_factory=dict)
    scores: Float[Tensor, "*_ _"] | None = None
    proposals: tuple[Float[Tensor, "_n 4"], ...] = ()
    losses: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """What a network is asked for. What is not wanted is not computed where that can be avoided.

    Args:
        levels: names of levels, those that end in `@norm` or `@class` too.
        logits: the logits; of a detector in training mode, its own losses on labelled boxes.
        pooled: the classifier's input.
        distilled: the logits of a distillation token.
        dense: the classifier's logits of each place.
        scores: a detector's class scores.
        proposals: the (n, 4) boxes of each image, in its pixels, that a two-stage detector is to score; in training it
            scores those that it samples itself.
    """

    levels: tuple[str, ...] = ()
    logits: bool = True
    pooled: bool = False
    distilled: bool = False
    dense: bool = False
    scores: bool = False
    proposals: tuple[Float[Tensor, "_n 4"], ...] = ()

    @classmethod
    def at(cls, places: Iterable[str], *, logits: bool = False, proposals: tuple[Tensor, ...] = ()) -> Wanted:
        """What terms need that look at these places, names of outputs or of levels.

        Args:
            places: the same one may come several times.
            logits: whether the logits are wanted in any case.
            proposals: for `scores`, where there are such.
        """
        named = tuple(dict.fromkeys(places))
        return cls(
            levels=tuple(place for place in named if place not in OUTPUTS),
            logits=logits or "logits" in named,
            pooled="pooled" in named,
            distilled="distilled" in named,
            dense="dense" in named,
            scores="scores" in named,
            proposals=proposals,
        )


class FeatureSource(nn.Module, abc.ABC):
    """A network that gives Features of images, and tells which places inside it can be asked for.

    `networks.extract.Extractor` makes one of any network with one output.

    Args:
        name: what to call it in messages.
        network: the bare network, which is what is saved and exported.
        num_classes: K of its output; 0 where that is features, no class scores.
        input_size: side that images are resized to; None where the network takes them at any size.
    """

    name: str
    network: nn.Module
    num_classes: int
    input_size: int | None = None

    @abc.abstractmethod
    def ask(
        self, images: Float[Tensor, "B _channels H W"], wanted: Wanted, *, targets: Targets | None = None
    ) -> Features:
        """Features of (B, 3, H, W) images in [0, 1]; `targets` for a network that has its own losses on them."""

    @abc.abstractmethod
    def survey(self, image_size: int) -> list[LevelInfo]:
        """Every place that can be tapped for square images of that side, in order of execution, by a dry run."""

    @abc.abstractmethod
    def stages(self, image_size: int) -> list[LevelInfo]:
        """Those of them that methods choose from by themselves."""

    @abc.abstractmethod
    def level(self, name: str, image_size: int) -> LevelInfo:
        """One of them by name; UserError where there is none."""


@dataclass(frozen=True)
class StepOutput:
    """What a Distiller returns for one Batch.

    Args:
        total: scalar, the weighted sum that is minimised.
        parts: every part by name, weighted, detached; they sum to `total`.
        student: the student's features, for metrics.
    """

    total: Float[Tensor, ""]
    parts: Mapping[str, Float[Tensor, ""]]
    student: Features


@runtime_checkable
class Loss(Protocol):
    """(student tensor, teacher tensor) → scalar: any nn.Module or function that is called so.

    A loss that compares several places at once takes a tuple of tensors for each network. What else it can do is
    declared, and read once, when a Term is made of it; a loss that declares nothing is called with the two tensors:

    - `needs = ("labels",)`, a class attribute: what it takes by keyword beside the tensors: `indices` of a Batch,
      `progress`, the fraction of training done, or what the task's targets have (`labels`, `boxes`: see `Targets`).
    - `two_views = True`, a class attribute: for each network it takes a pair, of the images and of a second, strongly
      changed view of them.
    - methods of `LossInParts` or of `ChoosesPlace`.
    """

    def __call__(self, student: Any, teacher: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss."""
        ...


@runtime_checkable
class LossInParts(Protocol):
    """A loss with several parts, each of which has a weight of its own in a Term."""

    def parts(self, student: Any, teacher: Any, *args: Any, **kwargs: Any) -> Mapping[str, Tensor]:
        """Part name → unweighted scalar, for those of the keyword `names`."""
        ...


@runtime_checkable
class ChoosesPlace(Protocol):
    """A loss that looks at one of the teacher's places that a Term names, so that the teacher can stop there."""

    def chosen(self) -> int | None:
        """Its number, from 0, at the next call; None where that call takes all of them, as a tuple."""
        ...


@runtime_checkable
class Evaluator(Protocol):
    """How well a network does its task, over batches and over the processes of a distributed run.

    `score` names the one of its values that networks are compared by: percent, more is better. `found` holds the
    last result of `values`.
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
        """What was found, by name; every process has to call it, and gets the same."""
        ...

    def write(self, folder: Path) -> str | None:
        """Keep what was found image by image; the file's name, if there was anything to keep."""
        ...


@runtime_checkable
class BesideTeacher(Protocol):
    """An objective whose evaluators measure students beside their teacher."""

    def beside(self, teacher: Evaluator) -> None:
        """What was found of the teacher, before the first student is measured."""
        ...


@runtime_checkable
class Objective(Protocol):
    """What the student is for: its own loss, without any teacher, and how it is measured."""

    def __call__(self, student: Features, batch: Batch) -> Tensor:
        """Scalar."""
        ...

    def evaluator(self) -> Evaluator:
        """Measures a network that does this."""
        ...
