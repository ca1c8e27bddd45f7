"""Detectors by name or from a run folder, as `saved` opens networks of classification."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from reldistill.core.checks import UserError
from reldistill.core.run_files import LAST_WEIGHTS
from reldistill.core.safe_files import sha256
from reldistill.networks.cards import NetworkCard, card_in, read_card, told_by_card
from reldistill.networks.saved import OpenedNetwork, run_folder
from reldistill.networks.weights import weights_file
from reldistill.networks.zoo import Role
from reldistill.tasks.detection.networks.detector_extract import DetectorExtractor
from reldistill.tasks.detection.networks.detectors import LoadedDetector, load_detector
from reldistill.tasks.detection.networks.plain_detectors import FIXED_SIZE, names_detector


def open_detector(
    name: str,
    *,
    role: Role,
    classes: Sequence[str] | None,
    min_size: int | None = None,
    max_size: int | None = None,
    weights: str | None = None,
    pretrained: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> OpenedNetwork:
    """A detector by name or from a run folder.

    Args:
        name: what `tasks.detection.networks.detectors.load_detector` takes, or a run folder.
        role: a teacher must bring weights.
        classes: names of the data's classes; None for those that the network knows.
        min_size: shorter side that it gives an image; None for its own.
        max_size: the longer side's limit.
        weights: file to load.
        pretrained: take the detector's weights that torchvision publishes.
        arguments: of its constructor; `pretrained_backbone` starts it from the backbone's published weights.

    Raises:
        UserError: when name, weights and classes don't go together.
    """
    given = dict(arguments or {})
    backbone = bool(given.pop("pretrained_backbone", False))
    folder = run_folder(name)
    weights = weights if weights or folder is None else str(folder / LAST_WEIGHTS)
    card = card_in(weights_file(weights, what=f"{role} {name}")) if weights else None
    if folder is not None:
        own = read_card(folder / LAST_WEIGHTS)
        if own.detector is None:
            raise UserError(f"{name} is a run of classification: its network finds no boxes")
        name, given, card = own.name, {**own.arguments, **given}, card or own
        classes = classes or own.classes
    sizes = {"min_size": min_size, "max_size": max_size}
    with told_by_card(folder / LAST_WEIGHTS) if folder else contextlib.nullcontext():
        loaded = load_detector(
            name,
            classes=classes,
            weights=weights,
            pretrained=pretrained,
            pretrained_backbone=backbone,
            trained_on=_names_of_outputs(card.detector, card.classes) if card and card.detector else None,
            arguments={**given, **{key: value for key, value in sizes.items() if value and name not in FIXED_SIZE}},
            role=role,
        )
    extractor = DetectorExtractor(loaded.module, outputs=loaded.outputs, name=loaded.name)
    return OpenedNetwork(
        extractor,
        _card_of(loaded),
        loaded.pretrained,
        sha256(weights_file(weights, what=name)) if weights else None,
    )


def sees_squares(name: str) -> bool:
    """Whether that network, or the network of that run, squeezes every image to one size."""
    folder = run_folder(name)
    return (name if folder is None else read_card(folder / LAST_WEIGHTS).name) in FIXED_SIZE


def finds_boxes(name: str) -> bool:
    """Whether that network, or the network of that run, is a detector."""
    folder = run_folder(name)
    return names_detector(name) if folder is None else read_card(folder / LAST_WEIGHTS).detector is not None


def _card_of(loaded: LoadedDetector) -> NetworkCard:
    return NetworkCard(
        name=loaded.name,
        num_classes=len(loaded.classes),
        input_size=loaded.sizes[0],
        mean=loaded.mean,
        std=loaded.std,
        classes=loaded.classes,
        arguments=dict(loaded.arguments),
        detector={"outputs": list(loaded.outputs), "num_outputs": loaded.num_outputs},
    )


def _names_of_outputs(detector: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """What the outputs behind the background's stand for; an empty name where none of the run's classes does."""
    names = [""] * int(detector["num_outputs"])
    for output, name in zip(detector["outputs"], classes, strict=True):
        names[output] = name
    return names[1:]
