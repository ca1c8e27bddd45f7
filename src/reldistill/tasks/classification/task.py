"""Classification as a task: images of one class each, networks with class scores, a trusted teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reldistill.core.checks import UserError
from reldistill.report.intervals import wilson_interval
from reldistill.tasks.base import GraphForm, Judgement, Look, Measure, TakesHeadless, Task
from reldistill.tasks.classification.reporting import REPORT
from reldistill.tasks.image_task import ImageTask

if TYPE_CHECKING:
    from reldistill.data.image_data import ImageData
    from reldistill.methods.build import TermSource
    from reldistill.networks.saved import OpenedNetwork
    from reldistill.networks.zoo import Role
    from reldistill.tasks.classification.objective import Classification
    from reldistill.training.settings import TrainSettings


class ClassificationTask(ImageTask):
    """One class for each image: see `tasks.base.Task`."""

    name = "classification"
    data_help = "images of one class each are given as a folder of class folders, a .zip of it or a data set's name"
    report = REPORT

    @property
    def look(self) -> type[Look[ImageData]]:
        """Logits and features of every test image."""
        from reldistill.tasks.classification.look import ClassLook

        return ClassLook

    @property
    def methods(self) -> TermSource:
        """Of networks with levels and class scores."""
        from reldistill.tasks.classification.objective import Classification

        return Classification.methods

    def claims(self, data: str) -> bool:
        """Never by name: any folder may hold class folders."""
        return False

    def open(
        self,
        name: str,
        *,
        role: Role,
        images: ImageData,
        image_size: int | None = None,
        weights: str | None = None,
        pretrained: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> OpenedNetwork:
        """A network with a score for each of the images' classes."""
        from reldistill.networks.saved import open_network

        return open_network(
            name,
            role=role,
            num_classes=len(images.classes),
            classes=images.classes,
            image_size=image_size or images.image_size,
            weights=weights,
            pretrained=pretrained,
            arguments=arguments,
        )

    def open_alone(
        self, name: str, *, num_classes: int | None, image_size: int | None, arguments: Mapping[str, Any]
    ) -> OpenedNetwork:
        """A network with as many class scores as asked for."""
        from reldistill.networks.saved import open_network

        return open_network(name, role="model", num_classes=num_classes, image_size=image_size, arguments=arguments)

    def check_teacher(self, teacher: OpenedNetwork, found: Mapping[str, float], images: ImageData) -> None:
        """UserError where it is no better than guessing."""
        chance = 100 / len(images.classes)
        low, high = _interval(found, images.val.images)
        if low <= chance:
            raise UserError(
                f"the teacher {teacher.card.name} gets {found['accuracy']:.1f} % of the {images.val.images:,} "
                f"validation images right (95 % interval {low:.1f} to {high:.1f}), guessing gets {chance:.1f} %: its "
                f"weights are not for these classes or not in this order, or the images are too few to tell"
            )

    def judged(self, teacher: OpenedNetwork, images: ImageData, measure: Measure) -> Judgement:
        """By the nearest training images' classes, beside guessing and the same network untrained."""
        from reldistill.tasks.neighbours import judge

        return judge(teacher, images, measure)

    def objective(self, training: TrainSettings, images: ImageData) -> Classification:
        """Cross entropy."""
        from reldistill.tasks.classification.objective import Classification

        return Classification(label_smoothing=training.label_smoothing)

    def measures(self, found: Mapping[str, float], images: int) -> dict[str, Any]:
        """What an evaluation reports: the evaluator's values, and how certain they are."""
        return {"accuracy": found["accuracy"], "accuracy_interval": _interval(found, images), "loss": found["loss"]}

    def in_brief(self, found: Mapping[str, float], images: int) -> str:
        """The score in a few words."""
        return f"{found['accuracy']:.2f} % of the {images:,} validation images right"

    def in_words(self, found: Mapping[str, float], images: int) -> str:
        """`measures` in one line."""
        low, high = _interval(found, images)
        sure = f"(95 % interval {low:.2f} to {high:.2f}), cross entropy {found['loss']:.4f}"
        return f"{self.in_brief(found, images)} {sure}"

    def graph(self, run: Path, *, source: Path, raw: bool) -> GraphForm:
        """Images (B, 3, H, W) → logits (B, K)."""
        from reldistill.tasks.classification.export import classifier_graph

        return classifier_graph(run, source=source, raw=raw)


def _interval(found: Mapping[str, float], images: int) -> list[float]:
    return list(wilson_interval(round(found["accuracy"] / 100 * images), images))


if TYPE_CHECKING:
    _: Task[ImageData] = ClassificationTask()
    __: TakesHeadless[ImageData] = ClassificationTask()
