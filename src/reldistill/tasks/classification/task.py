"""What a run of classification is made of: images of one class each, networks with class scores, a trusted teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reldistill.core.checks import UserError
from reldistill.networks.saved import OpenedNetwork, open_network
from reldistill.networks.zoo import Role
from reldistill.report.intervals import wilson_interval
from reldistill.tasks.classification.images import ImageData, load_images
from reldistill.tasks.classification.objective import Classification
from reldistill.training.settings import DataSettings, TrainSettings


class ClassificationSetup:
    """See `tasks.base`."""

    def read(
        self, data: DataSettings, *, batch_size: int, seed: int, workers: int | None, models: Sequence[str]
    ) -> ImageData:
        """The images of folders, archives and data sets by name."""
        return load_images(
            data.data,
            image_size=data.image_size,
            batch_size=batch_size,
            seed=seed,
            augment=data.augment,
            val_fraction=data.val_fraction,
            hold_out_test=data.hold_out_test,
            skip_bad_images=data.skip_bad_images,
            workers=workers,
            download=data.download,
        )

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
        return open_network(
            name,
            role=role,
            num_classes=len(images.classes),
            image_size=image_size or images.image_size,
            weights=weights,
            pretrained=pretrained,
            arguments=arguments,
        )

    def task(self, training: TrainSettings, images: ImageData) -> Classification:
        """Cross entropy."""
        return Classification(label_smoothing=training.label_smoothing)

    def summary(self, images: ImageData) -> str:
        """One line about the images."""
        skipped = f", {len(images.skipped)} bad images left out" if images.skipped else ""
        test = f", and {images.test.images:,} test images" if images.test else ""
        return (
            f"{images.name}: {images.train.images:,} training and {images.val.images:,} validation images{test} of "
            f"{len(images.classes)} classes at {images.image_size}x{images.image_size}{skipped}"
        )

    def measures(self, found: Mapping[str, float], images: int) -> dict[str, Any]:
        """What an evaluation says: the evaluator's values, and how sure they are."""
        return {"accuracy": found["accuracy"], "accuracy_interval": _interval(found, images), "loss": found["loss"]}

    def in_brief(self, found: Mapping[str, float], images: int) -> str:
        """The score in a few words."""
        return f"{found['accuracy']:.2f} % of the {images:,} validation images right"

    def in_words(self, found: Mapping[str, float], images: int) -> str:
        """What `measures` says, in one line."""
        low, high = _interval(found, images)
        sure = f"(95 % interval {low:.2f} to {high:.2f}), cross entropy {found['loss']:.4f}"
        return f"{self.in_brief(found, images)} {sure}"

    def check_teacher(self, teacher: OpenedNetwork, found: Mapping[str, float], images: ImageData) -> None:
        """UserError where it is no better than guessing."""
        chance = 100 / len(images.classes)
        if _interval(found, images.val.images)[0] <= chance:
            raise UserError(
                f"the teacher {teacher.card.name} gets {found['accuracy']:.1f} % of the validation images right, "
                f"guessing gets {chance:.1f} %: its weights are not for these classes or not in this order (it was not "
                f"used)"
            )


def _interval(found: Mapping[str, float], images: int) -> list[float]:
    return list(wilson_interval(round(found["accuracy"] / 100 * images), images))
