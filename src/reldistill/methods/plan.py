"""What a method's terms are built from: a pair of networks, and what the user set."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import nn

from reldistill.core.checks import UserError
from reldistill.core.types import LevelInfo
from reldistill.networks.adapters import PyramidAdapter, map_adapter
from reldistill.networks.extract import Extractor
from reldistill.networks.levels import pick_levels
from reldistill.step.term import Place, Term
from reldistill.tasks.detection.networks.detector_extract import DetectorExtractor

Network = TypeVar("Network", Extractor, DetectorExtractor)


@dataclass
class PairPlan(Generic[Network]):
    """What any method builds its terms from: the two networks as a dry run found them, and what the user set.

    Args:
        student: the student.
        teacher: the teacher.
        image_size: side of the images in a Batch.
        levels: (student level, teacher level) names to use instead of the automatic choice.
        settings: loss name → keyword arguments that replace a method's own.
        weights: full part name (`kd`, `serkd.distance`, …) → weight that replaces a method's own.
        balanced: whether weights are found while training, and count as multiples of one share: all 1 by default.
        images: number of training images, for methods that remember something of each; None where it is not known.
        adapters: name → adapter, filled while the terms are built.
    """

    student: Network
    teacher: Network
    image_size: int
    levels: Sequence[tuple[str, str]] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    images: int | None = None
    balanced: bool = False
    adapters: dict[str, nn.Module] = field(default_factory=dict)

    def chosen_pairs(self) -> list[tuple[LevelInfo, LevelInfo]]:
        """The user's pairs of levels."""
        return [
            (self.student.level(student, self.image_size), self.teacher.level(teacher, self.image_size))
            for student, teacher in self.levels
        ]

    def loss(
        self,
        name: str,
        kind: Callable[..., nn.Module],
        settings: Mapping[str, Any] | None = None,
        *,
        sizes: Mapping[str, Any] | None = None,
    ) -> nn.Module:
        """The loss with these settings, or with the user's for that name.

        Args:
            name: what the user calls it.
            kind: makes it.
            settings: to use instead of the user's.
            sizes: arguments that follow from the networks or the data, and are nobody's to set.
        """
        settings = self.settings.get(name, {}) if settings is None else settings
        sizes = sizes or {}
        # Weights live in the terms: a loss's own are for those who use it alone.
        known = [s for s in inspect.signature(kind).parameters if not s.endswith("_weight") and s not in sizes]
        for setting in settings:
            if setting.endswith("_weight"):
                part = f"{name}.{setting.removesuffix('_weight')}"
                raise UserError(f"'{setting}' is not a setting of {name}: set the weight of '{part}' instead")
            if setting not in known:
                raise UserError(f"'{setting}' is not a setting of {name}: it has {', '.join(known) or 'none'}")
        try:
            return kind(**settings, **sizes)
        except (ValueError, TypeError) as error:
            raise UserError(f"settings of {name}: {error}") from error

    def term(
        self,
        name: str,
        loss: nn.Module,
        student: Place,
        teacher: Place,
        weights: float | Mapping[str, float],
        *,
        adapter: str | None = None,
    ) -> Term:
        """A term with the method's weights, or the user's where they were given."""

        def weight(part: str, default: float) -> float:
            return self.weights.get(part, 1.0 if self.balanced and default else default)

        chosen: Any = (
            {part: weight(f"{name}.{part}", default) for part, default in weights.items()}
            if isinstance(weights, Mapping)
            else weight(name, weights)
        )
        return Term(name, loss, student=student, teacher=teacher, weights=chosen, adapter=adapter)


class Plan(PairPlan[Extractor]):
    """What a method for classification builds its terms from."""

    def pairs(self, count: int, *, smallest: int = 1, preferred: int = 1) -> list[tuple[LevelInfo, LevelInfo]]:
        """The user's pairs of levels, else up to `count` that a dry run matched, from shallow to deep.

        Args:
            count: how many.
            smallest: the fewest cells along a side that a matched level may have.
            preferred: the fewest that it has where the network has such a level.
        """
        if self.levels:
            return self.chosen_pairs()
        stages = []
        for network in (self.student, self.teacher):
            found = network.stages(self.image_size)
            if not found:
                raise UserError(
                    f"{network.name} has no place that holds a map or patch tokens at {self.image_size}x"
                    f"{self.image_size}: only methods on what comes out fit it (kd, rkd, …)"
                )
            large = [level for level in found if min(level.height, level.width) >= smallest]
            stages.append([level for level in large if min(level.height, level.width) >= preferred] or large)
            if not large:
                raise UserError(
                    f"{network.name} has no level of {smallest}x{smallest} cells or more at {self.image_size}x"
                    f"{self.image_size}: give larger images"
                )
        count = min(count, len(stages[0]), len(stages[1]))
        return list(zip(pick_levels(stages[0], count), pick_levels(stages[1], count), strict=True))

    def adapter(self, student: LevelInfo, teacher: LevelInfo) -> str | None:
        """Name of the adapter between two levels, shared by all terms that ask for it; None where none is needed."""
        name = f"{student.name}->{teacher.name}"
        if name not in self.adapters:
            adapter = map_adapter(student, teacher)
            if adapter is None:
                return None
            self.adapters[name] = adapter
        return name


class DetectorPlan(PairPlan[DetectorExtractor]):
    """What a method for detectors builds its terms from."""

    def pairs(self, *, smallest: int = 1) -> list[tuple[LevelInfo, LevelInfo]]:
        """The user's pairs of levels, else all levels of equal stride, from fine to coarse.

        Args:
            smallest: the fewest cells along a side that a matched level may have.
        """
        if self.levels:
            return self.chosen_pairs()
        ours, theirs = (network.stages(self.image_size) for network in (self.student, self.teacher))
        at_stride = {_octave(level): level for level in theirs}
        pairs = [(level, at_stride[_octave(level)]) for level in ours if _octave(level) in at_stride]
        if not pairs:
            raise UserError(
                f"{self.student.name} ({', '.join(level.name for level in ours)}) and {self.teacher.name} "
                f"({', '.join(level.name for level in theirs)}) share no stride: say which levels to pair (--levels)"
            )
        large = [pair for pair in pairs if min(min(level.height, level.width) for level in pair) >= smallest]
        if not large:
            raise UserError(
                f"{self.student.name} and {self.teacher.name} share no level of {smallest}x{smallest} cells or more at "
                f"{self.image_size}x{self.image_size}: give larger images"
            )
        return large

    def adapter(self, student: LevelInfo, teacher: LevelInfo) -> str | None:
        """Name of the adapter between two levels, as in `Plan`; it fits maps of any size, as images have many."""
        fixed = self.student.fixed_size or self.teacher.fixed_size
        if student.channels == teacher.channels and student.stride == teacher.stride and not fixed:
            return None
        name = f"{student.name}->{teacher.name}"
        if name not in self.adapters:
            self.adapters[name] = PyramidAdapter(student.channels, teacher.channels)
        return name


def plan_for(
    student: Extractor | DetectorExtractor,
    teacher: Extractor | DetectorExtractor,
    image_size: int,
    *,
    levels: Sequence[tuple[str, str]] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    weights: Mapping[str, float] | None = None,
    images: int | None = None,
    balanced: bool = False,
) -> Plan | DetectorPlan:
    """The plan for a pair of networks of either kind.

    Raises:
        UserError: one is a detector, and the other is not.
    """
    choices = (image_size, levels, settings or {}, weights or {}, images, balanced)
    if isinstance(student, DetectorExtractor) and isinstance(teacher, DetectorExtractor):
        return DetectorPlan(student, teacher, *choices)
    if isinstance(student, Extractor) and isinstance(teacher, Extractor):
        return Plan(student, teacher, *choices)
    kinds = ["a detector" if isinstance(one, DetectorExtractor) else "none" for one in (teacher, student)]
    raise UserError(
        f"the teacher {teacher.name} is {kinds[0]} and the student {student.name} {kinds[1]}: both must be of a kind"
    )


def _octave(level: LevelInfo) -> int:
    return round(math.log2(level.stride))
