"""What a method's terms are built from: a pair of networks, and what the user set."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import nn

from reldistill.core.checks import UserError
from reldistill.core.kinds import Wrong, checked, in_words, is_plain, kinds_of
from reldistill.core.types import TEACHER, FeatureSource, LevelInfo
from reldistill.networks.adapters import map_adapter
from reldistill.networks.extract import Extractor
from reldistill.networks.levels import pick_levels
from reldistill.step.curriculum import Curriculum
from reldistill.step.term import Place, Places, Term

Network = TypeVar("Network", bound=FeatureSource)
LossModule = TypeVar("LossModule", bound=nn.Module)


@dataclass(frozen=True)
class Choices:
    """What a user sets for a method, in place of its defaults.

    Args:
        levels: (student level, teacher level) names, instead of the automatic choice.
        settings: loss name → keyword arguments, e.g. `{"serkd": {"iterations": 2}}`.
        weights: part name → weight, e.g. `{"kd": 2.0, "serkd.angle": 4.0, "task": 0.5}`; what has 0 is not computed.
        curriculum: factor on the weights of all but the logit terms, in place of the warm-up that some methods have.
        balance: share of the task's gradient that every part's is scaled to while training; 0 for fixed weights. With
            it, `weights` are multiples of that share, 1 where none is given.
        class_scores: whether the teacher has scores of the student's classes. Without them, the parts of a method that
            compare such scores are left out; so they are where either network has 0 classes.
        labels: whether the images are labelled. Without labels, the parts that take them are left out.
    """

    levels: Sequence[tuple[str, str]] = ()
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    curriculum: Curriculum | None = None
    balance: float = 0.0
    class_scores: bool = True
    labels: bool = True


LABELS = frozenset({"labels", "boxes"})
"""What images may be labelled with, as `table.Method.needs` names it."""

DEFAULT_CHOICES = Choices()
"""Everything as the method has it."""


@dataclass
class PairPlan(Generic[Network]):
    """What any method builds its terms from: the two networks as a dry run found them, and what the user set.

    Args:
        student: the student.
        teacher: the teacher.
        image_size: side of the images in a Batch.
        choices: what the user set.
        images: number of training images, for methods that remember something of each; None where it is not known.
        provides: what the task has for a method, as `table.Method.needs` names it.
        teacher_name: what the terms call the teacher.
        adapters: name → adapter, filled while the terms are built.
        left_out: names of the method's parts that need what is not `available`, filled while the terms are built.
    """

    student: Network
    teacher: Network
    image_size: int
    choices: Choices = DEFAULT_CHOICES
    images: int | None = None
    provides: frozenset[str] = frozenset()
    teacher_name: str = TEACHER
    adapters: dict[str, nn.Module] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def available(self) -> frozenset[str]:
        """What these networks and images have of what the task provides."""
        has_classes = self.choices.class_scores and min(self.student.num_classes, self.teacher.num_classes) > 0
        absent = (frozenset() if has_classes else {"classes"}) | (frozenset() if self.choices.labels else LABELS)
        return self.provides - absent

    def can_have(self, term: Term) -> bool:
        """Whether what the term looks at and takes is available."""
        wanted = LABELS.intersection(term.needs) | ({"classes"} if term.compares_class_scores else set())
        return wanted <= self.available

    @property
    def levels(self) -> Sequence[tuple[str, str]]:
        """The user's (student level, teacher level) names; empty for the automatic choice."""
        return self.choices.levels

    @property
    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        """The user's settings: loss name → keyword arguments."""
        return self.choices.settings

    def chosen_pairs(self) -> list[tuple[LevelInfo, LevelInfo]]:
        """The user's pairs of levels."""
        return [
            (self.student.level(student, self.image_size), self.teacher.level(teacher, self.image_size))
            for student, teacher in self.levels
        ]

    def loss(
        self,
        name: str,
        kind: Callable[..., LossModule],
        settings: Mapping[str, Any] | None = None,
        *,
        sizes: Mapping[str, Any] | None = None,
    ) -> LossModule:
        """The loss with these settings, or with the user's for that name.

        Args:
            name: what the user calls it.
            kind: makes it.
            settings: to use instead of the user's.
            sizes: arguments that follow from the networks or the data, and are not the user's to set.
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
        declared = kinds_of(kind)
        for setting, value in settings.items():
            try:
                if is_plain(declared[setting]):
                    checked(declared[setting], value)
            except Wrong as wrong:
                expected = in_words(declared[setting])
                raise UserError(f"settings of {name}: {setting} must be {expected}, got {wrong.found}") from None
        try:
            return kind(**settings, **sizes)
        except (ValueError, TypeError) as error:
            raise UserError(f"settings of {name}: {error}") from error

    def term(
        self,
        name: str,
        loss: nn.Module,
        student: Place,
        teacher: Places,
        weights: float | Mapping[str, float],
        *,
        adapter: str | None = None,
    ) -> Term:
        """A term with the method's weights, or the user's where they were given."""

        def weight(part: str, default: float) -> float:
            return self.choices.weights.get(part, 1.0 if self.choices.balance and default else default)

        chosen: Any = (
            {part: weight(f"{name}.{part}", default) for part, default in weights.items()}
            if isinstance(weights, Mapping)
            else weight(name, weights)
        )
        return Term(
            name,
            loss,
            student=student,
            teacher=teacher,
            weights=chosen,
            adapter=adapter,
            teacher_name=self.teacher_name,
        )


class Plan(PairPlan[Extractor]):
    """What a method builds its terms from between two networks with levels and one output."""

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
            found = self.stages_of(network)
            large = [level for level in found if min(level.height, level.width) >= smallest]
            stages.append([level for level in large if min(level.height, level.width) >= preferred] or large)
            if not large:
                raise UserError(
                    f"{network.name} has no level of {smallest}x{smallest} cells or more at {self.image_size}x"
                    f"{self.image_size}: give larger images"
                )
        count = min(count, len(stages[0]), len(stages[1]))
        return list(zip(pick_levels(stages[0], count), pick_levels(stages[1], count), strict=True))

    def stages_of(self, network: Extractor) -> list[LevelInfo]:
        """The levels to choose from, from shallow to deep; UserError where there are none."""
        found = network.stages(self.image_size)
        if not found:
            raise UserError(
                f"{network.name} has no place that holds a map or patch tokens at {self.image_size}x"
                f"{self.image_size}: only methods on what comes out fit it (kd, rkd, …)"
            )
        return found

    def adapter(self, student: LevelInfo, teacher: LevelInfo) -> str | None:
        """Name of the adapter between two levels, shared by all terms that ask for it; None where none is needed."""
        name = f"{student.name}->{teacher.name}"
        if name not in self.adapters:
            adapter = map_adapter(student, teacher)
            if adapter is None:
                return None
            self.adapters[name] = adapter
        return name
