"""What a run of each task is made of: its images, its networks, and when a teacher can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from reldistill.core.types import Task
from reldistill.networks.saved import OpenedNetwork
from reldistill.networks.zoo import Role
from reldistill.tasks.classification.task import ClassificationSetup
from reldistill.tasks.detection.task import DetectionSetup
from reldistill.training.settings import DataSettings, TrainSettings


class TaskSetup(Protocol):
    """One task's way to images, networks and figures. `images` is what `read` returned."""

    def read(
        self, data: DataSettings, *, batch_size: int, seed: int, workers: int | None, models: Sequence[str]
    ) -> Any:
        """The images, looked at once; `models` are the networks that will see them."""
        ...

    def open(
        self,
        name: str,
        *,
        role: Role,
        images: Any,
        image_size: int | None = None,
        weights: str | None = None,
        pretrained: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> OpenedNetwork:
        """A network for the images' classes."""
        ...

    def task(self, training: TrainSettings, images: Any) -> Task:
        """The student's own loss, and how it is measured."""
        ...

    def summary(self, images: Any) -> str:
        """One line about the images."""
        ...

    def measures(self, found: Mapping[str, float], images: int) -> dict[str, Any]:
        """What an evaluation says: the evaluator's values on that many images, and how sure they are."""
        ...

    def in_brief(self, found: Mapping[str, float], images: int) -> str:
        """The score in a few words."""
        ...

    def in_words(self, found: Mapping[str, float], images: int) -> str:
        """What `measures` says, in one line."""
        ...

    def check_teacher(self, teacher: OpenedNetwork, found: Mapping[str, float], images: Any) -> None:
        """UserError where nothing could be learned from that teacher."""
        ...


SETUPS: dict[str, TaskSetup] = {"classification": ClassificationSetup(), "detection": DetectionSetup()}


def setup_of(data: DataSettings) -> TaskSetup:
    """The setup for the task that the images are labelled for."""
    return SETUPS[data.task]
