"""A run's network on disk: weights that name their network, so that a run folder can be used as a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reldistill.core.checks import UserError, one_line
from reldistill.core.run_files import LAST_WEIGHTS, RECORD_FILE
from reldistill.core.safe_files import sha256
from reldistill.core.tasks import known_task, task_naming
from reldistill.core.trust import as_named, note_named
from reldistill.core.types import FeatureSource
from reldistill.networks.cards import NetworkCard, card_in, read_card, told_by_card
from reldistill.networks.class_order import order_of, reorder
from reldistill.networks.extract import Extractor
from reldistill.networks.reused_head import ReusedHead
from reldistill.networks.sources import told_in_one_line
from reldistill.networks.weights import read_weights, weights_file
from reldistill.networks.zoo import TRAINED, Head, LoadedNetwork, Role, list_networks, load_network


@dataclass(frozen=True)
class OpenedNetwork:
    """A network ready to be asked for features, and where it came from.

    Args:
        extractor: the network with its normalisation and size.
        card: how to build it again.
        pretrained: where its weights came from, in words.
        weights_sha256: of the file that held them, where there was one.
    """

    extractor: FeatureSource
    card: NetworkCard
    pretrained: str
    weights_sha256: str | None = None


def run_folder(name: str) -> Path | None:
    """The run folder of that name, or None where it names a network; write `./NAME` for a folder with a network's name.

    Raises:
        UserError: when the run is not finished.
    """
    folder = Path(name)
    if not (folder / LAST_WEIGHTS).is_file() and not (folder / RECORD_FILE).is_file():
        return None
    if folder.name == name and (task_naming(name) or any(one.name == name for one in list_networks(name))):
        return None
    if not (folder / LAST_WEIGHTS).is_file():
        raise UserError(f"the run in {name} is not finished: there is no {LAST_WEIGHTS} (continue it with --resume)")
    return folder


def open_network(
    name: str,
    *,
    role: Role,
    num_classes: int | None,
    image_size: int | None,
    classes: Sequence[str] | None = None,
    weights: str | None = None,
    pretrained: bool = False,
    arguments: Mapping[str, Any] | None = None,
    head: Head = "own",
) -> OpenedNetwork:
    """A network by name or from a run folder, surveyed at the size it will see.

    Args:
        name: what the zoo takes, or a run folder.
        role: a teacher must bring weights.
        num_classes: K that the network must have; None to take what it has.
        image_size: side of the images; None for the network's own.
        classes: names of the data's classes. Where the weights' card names theirs, these must be the same, and the
            network outputs them in this order.
        weights: file to load.
        pretrained: take the weights that timm or torchvision publish.
        arguments: keyword arguments of the constructor.
        head: `none` takes it without its class scores, whatever their number; a student that was trained on other
            classes gets a `new` one.

    Raises:
        UserError: when name, weights and classes don't go together, or a run's card names a file to run or a hub that
            the user has not named (see `core.trust`).
    """
    run, what, given = run_folder(name), f"{role} {name}", dict(arguments or {})
    trained_on = names_on_card(run, weights, what=what)
    order = None
    if trained_on and classes and role in TRAINED and set(trained_on) != set(classes):
        head = "new"
    elif trained_on and classes:
        order = order_of(trained_on, classes, what=what)
    if run is not None:
        opened = _open_run(
            run,
            role=role,
            num_classes=num_classes,
            image_size=image_size,
            weights=weights,
            arguments=given,
            head=head,
        )
    else:
        note_named(name)
        loaded = load_network(
            name,
            num_classes=num_classes,
            weights=weights,
            pretrained=pretrained,
            image_size=image_size,
            arguments=given,
            role=role,
            head=head,
        )
        opened = _opened(
            loaded, role=role, num_classes=num_classes, image_size=image_size, weights=weights, arguments=given
        )
    if order is not None and isinstance(opened.extractor, Extractor):
        reorder(opened.extractor, order, image_size or opened.card.input_size, what=what)
    if not opened.card.num_classes:
        return replace(opened, card=replace(opened.card, classes=()))
    known = classes if trained_on and classes else opened.card.classes
    return replace(opened, card=replace(opened.card, classes=tuple(known)))


def names_on_card(run: Path | None, weights: str | None, *, what: str) -> tuple[str, ...]:
    """The classes of the weights to load, by their own card, else by the run's; empty where neither names them."""
    card = None if weights is None else card_in(weights_file(weights, what=what))
    if card is None and run is not None:
        card = read_card(run / LAST_WEIGHTS)
    return () if card is None else card.classes


def _open_run(
    run: Path,
    *,
    role: Role,
    num_classes: int | None,
    image_size: int | None,
    weights: str | None,
    arguments: Mapping[str, Any],
    head: Head,
) -> OpenedNetwork:
    """The network of a finished run, by the card in its weights."""
    file = run / LAST_WEIGHTS
    card = read_card(file)
    if card.detector is not None:
        raise UserError(f"{run} is a run of detection: {known_task('detection').data_help}")
    name, reused = as_named(card.name, card_of=file), card.reused_head
    weights, image_size = weights or str(file), image_size or card.input_size
    num_classes = card.num_classes or None if num_classes is None else num_classes
    given = {**card.arguments, **arguments}
    if reused is not None and head != "own":
        raise UserError(f"{run}: its classifier is another network's (simkd), so it can't be taken without it")
    if not card.num_classes and role not in TRAINED:
        head = "none"  # it never had one
    with told_by_card(file):
        loaded = load_network(
            name,
            num_classes=num_classes,
            weights=weights if reused is None else None,
            image_size=image_size,
            arguments=given,
            role=role if reused is None else "student",
            head=head,
        )
        if reused is not None:
            with told_in_one_line(f"{role} {name} with a reused classifier", {}, downloads=False):
                made = ReusedHead(
                    loaded.module, image_size=loaded.input_size or image_size, num_classes=card.num_classes, **reused
                )
            module = _loaded_with(made, weights, name=name)
            loaded = replace(loaded, module=module, pretrained=weights)
        # The run's own preprocessing: the defaults of the name may have changed since.
        loaded = replace(loaded, mean=card.mean, std=card.std)
        opened = _opened(
            loaded, role=role, num_classes=num_classes, image_size=image_size, weights=weights, arguments=given
        )
    return replace(opened, card=replace(opened.card, classes=card.classes, reused_head=reused))


def _opened(
    loaded: LoadedNetwork,
    *,
    role: Role,
    num_classes: int | None,
    image_size: int | None,
    weights: str | None,
    arguments: Mapping[str, Any],
) -> OpenedNetwork:
    """A network with its weights, surveyed, with the card of how it was made."""
    name, size = loaded.name, loaded.input_size or image_size or 224
    extractor = Extractor(
        loaded.module, mean=loaded.mean, std=loaded.std, input_size=loaded.input_size, name=loaded.name
    )
    extractor.survey(image_size or size)
    if num_classes is not None and extractor.num_classes not in (0, num_classes):
        raise UserError(
            f"the {role} {name} expects {extractor.num_classes} classes, the data have {num_classes}: give weights "
            f"that were trained on these classes (reldistill train makes them)"
        )
    card = NetworkCard(name, extractor.num_classes, size, loaded.mean, loaded.std, arguments=arguments)
    digest = sha256(weights_file(weights, what=name)) if weights else None
    return OpenedNetwork(extractor, card, loaded.pretrained, digest)


def _loaded_with(network: ReusedHead, weights: str, *, name: str) -> ReusedHead:
    """The network with a file's weights."""
    try:
        network.load_state_dict(read_weights(weights, what=name))
    except RuntimeError as error:
        raise UserError(f"{weights} does not fit {name} with a reused classifier: {one_line(error)}") from error
    return network


class Normalised(nn.Module):
    """A network with its normalisation inside: images (B, 3, H, W) in [0, 1] → logits (B, K)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → (B, K)."""
        return self.network((images - self.mean) / self.std)
