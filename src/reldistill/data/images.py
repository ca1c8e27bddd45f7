"""What the images of any task are to a run: loaders, and what is reported about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from reldistill.data.loader import Loader


@runtime_checkable
class Images(Protocol):
    """Training and validation images of one data set, looked at once."""

    @property
    def name(self) -> str:
        """What the user asked for."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is a position in them. Empty where there are no classes."""
        ...

    @property
    def train(self) -> Loader:
        """Shuffled, augmented, complete batches only."""
        ...

    @property
    def val(self) -> Loader:
        """Every image once, in order."""
        ...

    @property
    def test(self) -> Loader | None:
        """Every held-out image once, in order; None where none were asked for."""
        ...

    @property
    def image_size(self) -> int:
        """Side, or shorter side, of the training images in pixels."""
        ...

    @property
    def skipped(self) -> Sequence[str]:
        """Names of bad images that were left out."""
        ...

    @property
    def left_out(self) -> Mapping[str, int]:
        """What else lies with the data and is not used, in words → how often."""
        ...

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with the images, their labels, the split or the size."""
        ...

    @property
    def augment(self) -> str:
        """What is done to training images, `auto` resolved."""
        ...


@runtime_checkable
class Noted(Protocol):
    """Images with warnings, which a run shows and keeps on record."""

    @property
    def notes(self) -> Sequence[str]:
        """One line each."""
        ...


def notes_of(images: Images) -> list[str]:
    """The images' warnings, if any."""
    return list(images.notes) if isinstance(images, Noted) else []


def test_loader(images: Images) -> Loader:
    """The held-out images.

    Raises:
        ValueError: when none were held out.
    """
    if images.test is None:
        raise ValueError(f"{images.name} has no test images: read it with hold_out_test")
    return images.test
