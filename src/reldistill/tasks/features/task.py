"""Images without labels as a task: networks without class scores, a teacher to imitate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reldistill.core.checks import UserError
from reldistill.data.left_out import in_words
from reldistill.data.unlabelled import UNLABELLED
from reldistill.tasks.base import Companions, FinishedRun, GraphForm, Judgement, Look, Measure, TakesHeadless, Task
from reldistill.tasks.features.reporting import REPORT
from reldistill.training.defaults import DEFAULTS

if TYPE_CHECKING:
    from reldistill.data.image_data import ImageData
    from reldistill.methods.build import TermSource
    from reldistill.networks.cards import NetworkCard
    from reldistill.networks.saved import OpenedNetwork
    from reldistill.networks.zoo import ListedNetwork, Role
    from reldistill.tasks.features.objective import FeatureTransfer
    from reldistill.training.settings import DataSettings, TrainSettings


FEWEST = 3
"""Held-out images: two are one pair, which nothing can be correlated over."""


class FeaturesTask:
    """Features and relations of images that need no labels: see `tasks.base.Task`."""

    name = "features"
    data_help = (
        "images without labels are given as unlabelled: and a folder, a .zip or a text file of paths; --task features "
        "takes any classification data set and leaves its labels out"
    )
    report = REPORT
    defaults = DEFAULTS
    drawn_level: Literal["deepest", "finest"] = "deepest"
    keeps_teacher = True

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

    def reads(self, data: str) -> bool:
        """Whatever no other task claims: labels are left out."""
        return True

    def read(
        self, data: DataSettings, *, batch_size: int, seed: int, workers: int | None, models: Sequence[str]
    ) -> ImageData:
        """The images of folders, archives, lists and data sets by name."""
        from reldistill.data.image_data import load_images

        images = load_images(
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
            labelled=False,
        )
        for held_out in (images.val, images.test):
            if held_out is not None and held_out.images < FEWEST:
                raise UserError(
                    f"{data.data}: {held_out.images} of the images held out, and a relation of at least {FEWEST} is "
                    f"measured: give more images, or a larger --val-fraction"
                )
        return images

    def summary(self, images: ImageData) -> str:
        """One line about the images."""
        skipped = f", {len(images.skipped)} bad images left out" if images.skipped else ""
        test = f", and {images.test.images:,} test images" if images.test else ""
        return (
            f"{images.name}: {images.train.images:,} training and {images.val.images:,} held-out images{test} without "
            f"labels at {images.image_size}x{images.image_size}{skipped}{in_words(images.left_out)}"
        )

    def names_network(self, name: str) -> bool:
        """None of its own."""
        return False

    def claims_network(self, name: str) -> bool:
        """None: its networks are those of the zoo, which any task may open."""
        return False

    def networks(self) -> Sequence[ListedNetwork]:
        """None of its own."""
        return ()

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
        """A network without class scores."""
        from reldistill.networks.saved import open_network

        return open_network(
            name,
            role=role,
            num_classes=None,
            image_size=image_size or images.image_size,
            weights=weights,
            pretrained=pretrained,
            arguments=arguments,
            head="none",
        )

    open_headless = open

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
        """Its features of the held-out images; where its weights come from is all that is known of it."""
        from reldistill.tasks.features.metrics import Relations

        relations = Relations()
        measure(teacher, images.val, relations)
        says_nothing = not relations.vectors.std(axis=0).max() > 0
        return Judgement(
            relations,
            f"teacher {teacher.card.name}: weights from {teacher.pretrained}; how good they are only labelled images "
            f"tell (reldistill evaluate --probe)",
            None,
            f"the teacher {teacher.card.name} says the same of every image" if says_nothing else None,
        )

    def objective(self, training: TrainSettings, images: ImageData) -> FeatureTransfer:
        """What the teacher says is all there is."""
        from reldistill.tasks.features.objective import FeatureTransfer

        if training.label_smoothing:
            raise UserError("--label-smoothing: there are no labels")
        return FeatureTransfer()

    def measures(self, found: Mapping[str, float], images: int) -> dict[str, Any]:
        """How alike student and teacher relate the images, percent."""
        return dict(found)

    def in_brief(self, found: Mapping[str, float], images: int) -> str:
        """The score in a few words."""
        return f"relations agree with the teacher's by {found['relations']:.1f} % on the {images:,} held-out images"

    def in_words(self, found: Mapping[str, float], images: int) -> str:
        """The same."""
        return self.in_brief(found, images)

    def draw(self, run: FinishedRun) -> None:
        """Nothing of its own: every run's relations are drawn."""

    def graph(self, run: Path, *, source: Path, raw: bool) -> GraphForm:
        """Images (B, 3, H, W) → pooled vectors (B, D)."""
        from reldistill.tasks.features.export import backbone_graph

        return backbone_graph(run, source=source, raw=raw)

    def companions(self, card: NetworkCard, target: Path) -> Companions:
        """Nothing: the network's own class loads its weights."""
        return Companions()


if TYPE_CHECKING:
    _: Task[ImageData] = FeaturesTask()
    __: TakesHeadless[ImageData] = FeaturesTask()
