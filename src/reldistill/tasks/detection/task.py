"""Detection as a task: images with boxes, torchvision's detectors, a teacher that finds something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reldistill.core.checks import UserError
from reldistill.tasks.base import Companions, FinishedRun, GraphForm, Look, Task
from reldistill.tasks.detection.layouts import LAYOUTS, is_detection
from reldistill.tasks.detection.reporting import REPORT
from reldistill.training.defaults import TrainDefaults

if TYPE_CHECKING:
    from reldistill.methods.build import TermSource
    from reldistill.networks.cards import NetworkCard
    from reldistill.networks.saved import OpenedNetwork
    from reldistill.networks.zoo import ListedNetwork, Role
    from reldistill.tasks.detection.images import DetectionData
    from reldistill.tasks.detection.objective import Detection
    from reldistill.training.settings import DataSettings, TrainSettings

LEAST_AP50 = 1.0
"""Percent. Random weights find nothing; a teacher below this knows nothing of the data."""


class DetectionTask:
    """Labelled boxes around the objects of an image: see `tasks.base.Task`."""

    name = "detection"
    data_help = f"labelled boxes are given as {', '.join(f'{layout}:DIR' for layout in LAYOUTS)}"
    report = REPORT
    defaults = TrainDefaults(
        batch_size=8, lr={"sgd": (0.01, 16), "adamw": (2e-4, 16)}, weight_decay={"sgd": 1e-4, "adamw": 0.05}
    )
    drawn_level: Literal["deepest", "finest"] = "finest"
    keeps_teacher = False

    @property
    def look(self) -> type[Look[DetectionData]]:
        """What is found in every test image."""
        from reldistill.tasks.detection.look import BoxLook

        return BoxLook

    @property
    def methods(self) -> TermSource:
        """Of detectors."""
        from reldistill.tasks.detection.objective import Detection

        return Detection.methods

    def claims(self, data: str) -> bool:
        """`coco:DIR`, `voc:DIR` and `yolo:DIR`."""
        return is_detection(data)

    def reads(self, data: str) -> bool:
        """Only what it claims."""
        return self.claims(data)

    def read(
        self, data: DataSettings, *, batch_size: int, seed: int, workers: int | None, models: Sequence[str]
    ) -> DetectionData:
        """The images of `coco:DIR`, `voc:DIR` or `yolo:DIR`."""
        from reldistill.tasks.detection.images import load_detection
        from reldistill.tasks.detection.networks.saved_detectors import sees_squares

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

    def names_network(self, name: str) -> bool:
        """Detectors of torchvision's and those on any backbone."""
        from reldistill.tasks.detection.networks.plain_detectors import names_detector

        return names_detector(name)

    def claims_network(self, name: str) -> bool:
        """Detectors by name, and runs of them."""
        from reldistill.tasks.detection.networks.saved_detectors import finds_boxes

        return finds_boxes(name)

    def networks(self) -> Sequence[ListedNetwork]:
        """Detectors."""
        from reldistill.tasks.detection.networks.detectors import list_detectors

        return list_detectors()

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
        from reldistill.networks.saved import run_folder
        from reldistill.networks.zoo import TRAINED
        from reldistill.tasks.detection.networks.saved_detectors import open_detector

        own = image_size is None and role not in TRAINED and run_folder(name) is not None
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

    def open_alone(
        self, name: str, *, num_classes: int | None, image_size: int | None, arguments: Mapping[str, Any]
    ) -> OpenedNetwork:
        """A detector of that many classes, at its own size."""
        from reldistill.tasks.detection.networks.saved_detectors import open_detector

        classes = None if num_classes is None else [f"class {number}" for number in range(num_classes)]
        return open_detector(name, role="model", classes=classes, arguments=arguments)

    def objective(self, training: TrainSettings, images: DetectionData) -> Detection:
        """The detector's own losses."""
        from reldistill.tasks.detection.objective import Detection

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
                f"next to nothing, so its weights are not for these classes or this size of image"
            )

    def draw(self, run: FinishedRun) -> None:
        """Boxes over validation images, and kinds of errors."""
        from reldistill.tasks.detection.pictures import write_detection_pictures

        write_detection_pictures(run)

    def graph(self, run: Path, *, source: Path, raw: bool) -> GraphForm:
        """One image (1, 3, H, W) of any size → boxes, labels and scores."""
        from reldistill.tasks.detection.export import detector_graph

        if raw:
            raise UserError("--raw: a detector's normalisation is part of it")
        return detector_graph(run, source=source)

    def companions(self, card: NetworkCard, target: Path) -> Companions:
        """The code that loads the weights by torchvision, and what it needs to know."""
        from reldistill.tasks.detection.export import loader_files

        return loader_files(card, target)


if TYPE_CHECKING:
    _: Task[DetectionData] = DetectionTask()
