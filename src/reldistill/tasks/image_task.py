"""What tasks on `ImageData` have in common: every network of the zoo, any data set of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reldistill.data.left_out import in_words
from reldistill.tasks.base import Companions, FinishedRun
from reldistill.training.defaults import DEFAULTS

if TYPE_CHECKING:
    from reldistill.data.image_data import ImageData
    from reldistill.networks.cards import NetworkCard
    from reldistill.networks.saved import OpenedNetwork
    from reldistill.networks.zoo import ListedNetwork, Role
    from reldistill.training.settings import DataSettings


class ImageTask:
    """The parts of `tasks.base.Task` that such tasks share."""

    defaults = DEFAULTS
    drawn_level: Literal["deepest", "finest"] = "deepest"
    keeps_teacher = True
    labelled = True
    """Whether the images' labels are read."""

    def reads(self, data: str) -> bool:
        """Whatever no other task claims."""
        return True

    def read(
        self, data: DataSettings, *, batch_size: int, seed: int, workers: int | None, models: Sequence[str]
    ) -> ImageData:
        """The images of folders, archives, lists and data sets by name."""
        from reldistill.data.image_data import load_images

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
            labelled=self.labelled,
        )

    def summary(self, images: ImageData) -> str:
        """One line about the images."""
        skipped = f", {len(images.skipped)} bad images left out" if images.skipped else ""
        test = f", and {images.test.images:,} test images" if images.test else ""
        held_out, classes = ("validation", f"of {len(images.classes)} classes")
        if not self.labelled:
            held_out, classes = ("held-out", "without labels")
        return (
            f"{images.name}: {images.train.images:,} training and {images.val.images:,} {held_out} images{test} "
            f"{classes} at {images.image_size}x{images.image_size}{skipped}{in_words(images.left_out)}"
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

    def open_headless(
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

    def draw(self, run: FinishedRun) -> None:
        """Nothing of its own: every run's relations are drawn."""

    def companions(self, card: NetworkCard, target: Path) -> Companions:
        """Nothing: the network's own class loads its weights."""
        return Companions()
