"""What a run of detection is made of: images with boxes, torchvision's detectors, a teacher that finds something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reldistill.core.checks import UserError
from reldistill.networks.saved import OpenedNetwork, run_folder
from reldistill.networks.zoo import Role
from reldistill.tasks.detection.images import DetectionData, load_detection
from reldistill.tasks.detection.networks.saved_detectors import open_detector, sees_squares
from reldistill.tasks.detection.objective import Detection
from reldistill.training.settings import DataSettings, TrainSettings

LEAST_AP50 = 1.0
"""Percent. Random weights find nothing; a teacher below this knows nothing of the data."""


class DetectionSetup:
    """See `tasks.base`."""

    def read(
        self, data: DataSettings, *, batch_size: int, seed: int, workers: int | None, models: Sequence[str]
    ) -> DetectionData:
        """The images of `coco:DIR`, `voc:DIR` or `yolo:DIR`."""
        if data.download:
            raise UserError(f"--download: {data.data} names a folder, so nothing can be fetched")
        images = load_detection(
            data.data,
            image_size=data.image_size,
            square=any(sees_squares(model) for model in models),
            batch_size=batch_size,
            seed=seed,
            augment=data.augment,
            val_fraction=data.val_fraction,
            hold_out_test=data.hold_out_test,
            skip_bad_images=data.skip_bad_images,
            workers=workers,
        )
        for part in set(images.splits) - {"train"}:
            if images.splits[part].boxes == images.splits[part].ignored:
                raise UserError(f"{data.data}: no objects to be found in the {part} images, so nothing can be measured")
        return images

    def open(
        self,
        name: str,
        *,
        role: Role,
        images: DetectionData,
        image_size: int | None = None,
        weights: str | None = None,
        pretrained: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> OpenedNetwork:
        """A detector of the images' classes at their size while training; another run's at its own."""
        own = image_size is None and role != "student" and run_folder(name) is not None
        size = None if own else image_size or images.image_size
        return open_detector(
            name,
            role=role,
            classes=images.classes,
            min_size=size,
            max_size=size and round(size * images.longest_size / images.image_size),
            weights=weights,
            pretrained=pretrained,
            arguments=arguments,
        )

    def task(self, training: TrainSettings, images: DetectionData) -> Detection:
        """The detector's own losses."""
        if training.label_smoothing:
            raise UserError("--label-smoothing: a detector's own losses have none")
        return Detection(images.classes)

    def summary(self, images: DetectionData) -> str:
        """One line about the images."""
        return (
            f"{images.train.images:,} training and {images.val.images:,} validation images of {len(images.classes)} "
            f"classes, {images.image_size} to {images.longest_size} pixels while training"
        )

    def measures(self, found: Mapping[str, float], images: int) -> dict[str, Any]:
        """Average precision and recall in percent."""
        return dict(found)

    def in_brief(self, found: Mapping[str, float], images: int) -> str:
        """The two most asked for of them."""
        return f"AP {found['AP']:.1f} %, AP50 {found['AP50']:.1f} % on the {images:,} validation images"

    def in_words(self, found: Mapping[str, float], images: int) -> str:
        """And a third."""
        return f"{self.in_brief(found, images)}, AP75 {found['AP75']:.1f} %"

    def check_teacher(self, teacher: OpenedNetwork, found: Mapping[str, float], images: DetectionData) -> None:
        """UserError where it finds next to nothing."""
        if found["AP50"] < LEAST_AP50:
            raise UserError(
                f"the teacher {teacher.card.name} has AP50 {found['AP50']:.2f} % on the validation images: it finds "
                f"next to nothing, so its weights are not for these classes or this size of image (it was not used)"
            )
