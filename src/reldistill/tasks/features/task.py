"""Images without labels as a task: networks without class scores, a teacher to imitate."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reldistill.core.checks import UserError
from reldistill.data.unlabelled import UNLABELLED
from reldistill.tasks.base import GraphForm, Judgement, Look, Measure, TakesHeadless, Task
from reldistill.tasks.features.reporting import REPORT
from reldistill.tasks.image_task import ImageTask

if TYPE_CHECKING:
    from reldistill.data.image_data import ImageData
    from reldistill.methods.build import TermSource
    from reldistill.networks.saved import OpenedNetwork
    from reldistill.tasks.features.objective import FeatureTransfer
    from reldistill.training.settings import DataSettings, TrainSettings


FEWEST = 3
"""Held-out images: two are one pair, which nothing can be correlated over."""


class FeaturesTask(ImageTask):
    """Features and relations of images that need no labels: see `tasks.base.Task`."""

    name = "features"
    data_help = (
        "images without labels are given as unlabelled: and a folder, a .zip or a text file of paths; --task features "
        "takes any classification data set and leaves its labels out"
    )
    report = REPORT
    labelled = False
    takes_probe = True

    def read(
        self, data: DataSettings, *, batch_size: int, seed: int, workers: int | None, models: Sequence[str]
    ) -> ImageData:
        """The images, and those to measure by where there are such."""
        more: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "workers": workers, "models": models}
        images = super().read(data, **more)
        for held_out in filter(None, (images.val, images.test)):
            if held_out.images < FEWEST:
                raise UserError(
                    f"{data.data}: {held_out.images} of the images held out, and relations need at least {FEWEST}: "
                    f"give more images, or a larger --val-fraction"
                )
        if data.probe_data is None:
            return images
        labelled = replace(data, data=data.probe_data, task="classification", probe_data=None, augment="none")
        # nothing is trained on them, so they may be fewer than a batch
        probe = ImageTask().read(replace(labelled, image_size=images.image_size), **more | {"batch_size": 1})
        for loader in filter(None, (probe.train, probe.val, probe.test)):
            loader.in_batches_of(batch_size)
        both = hashlib.sha256(f"{images.fingerprint} {probe.fingerprint}".encode()).hexdigest()[:16]
        return replace(images, probe=probe, fingerprint=both)

    @property
    def look(self) -> type[Look[ImageData]]:
        """Pooled vectors of some test images."""
        from reldistill.tasks.features.look import FeatureLook

        return FeatureLook

    @property
    def methods(self) -> TermSource:
        """Of networks with levels and a pooled vector."""
        from reldistill.tasks.features.objective import FeatureTransfer

        return FeatureTransfer.methods

    def claims(self, data: str) -> bool:
        """`unlabelled:…`."""
        return data.startswith(UNLABELLED)

    open = ImageTask.open_headless

    def open_alone(
        self, name: str, *, num_classes: int | None, image_size: int | None, arguments: Mapping[str, Any]
    ) -> OpenedNetwork:
        """The same without images."""
        from reldistill.networks.saved import open_network

        return open_network(
            name, role="model", num_classes=None, image_size=image_size, arguments=arguments, head="none"
        )

    def check_teacher(self, teacher: OpenedNetwork, found: Mapping[str, float], images: ImageData) -> None:
        """No teacher here has class scores: see `judged`."""

    def judged(self, teacher: OpenedNetwork, images: ImageData, measure: Measure) -> Judgement:
        """By the probe's labels; without such, where its weights come from is all that is known of it."""
        from reldistill.tasks.features.metrics import Relations
        from reldistill.tasks.neighbours import judge

        relations = Relations()
        measure(teacher, images.val, relations)
        if images.probe is not None:
            return judge(teacher, images.probe, measure)._replace(measured=relations)
        is_constant = not relations.vectors.std(axis=0).max() > 0
        return Judgement(
            relations,
            f"teacher {teacher.card.name}: weights from {teacher.pretrained}; only labelled images tell "
            f"how good they are (reldistill evaluate --probe)",
            None,
            f"the teacher {teacher.card.name} gives every image the same vector" if is_constant else None,
        )

    def objective(self, training: TrainSettings, images: ImageData) -> FeatureTransfer:
        """The teacher's outputs are all there is to learn from."""
        from reldistill.tasks.features.objective import FeatureTransfer

        if training.label_smoothing:
            raise UserError("--label-smoothing: there are no labels")
        return FeatureTransfer(images.probe)

    def measures(self, found: Mapping[str, float], images: int) -> dict[str, Any]:
        """How alike student and teacher relate the images, percent."""
        return dict(found)

    def in_brief(self, found: Mapping[str, float], images: int) -> str:
        """The score in a few words."""
        said = f"relations agree with the teacher's by {found['relations']:.1f} % on the {images:,} held-out images"
        if "knn" not in found:
            return said
        return f"{found['knn']:.1f} % of the probe's images right by nearest neighbours; {said}"

    def in_words(self, found: Mapping[str, float], images: int) -> str:
        """The same."""
        return self.in_brief(found, images)

    def graph(self, run: Path, *, source: Path, raw: bool) -> GraphForm:
        """Images (B, 3, H, W) → pooled vectors (B, D)."""
        from reldistill.tasks.features.export import backbone_graph

        return backbone_graph(run, source=source, raw=raw)


if TYPE_CHECKING:
    _: Task[ImageData] = FeaturesTask()
    __: TakesHeadless[ImageData] = FeaturesTask()
