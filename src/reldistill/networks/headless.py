"""Networks without class scores: the output is the pooled vector that a classifier would have been given."""

from __future__ import annotations

import copy

from torch import nn

from reldistill.core.checks import UserError
from reldistill.networks.classifier import is_linear
from reldistill.networks.extract import Extractor
from reldistill.networks.user_file import ANY_CLASSES


class NoSingleHead(UserError):
    """No one linear layer makes a network's class scores."""


def without_head(network: nn.Module, *, image_size: int, what: str, own: bool = False) -> nn.Module:
    """The network without the layer that makes its class scores: images → pooled vectors (B, D).

    timm's networks and ours know their own head; in any other network the one linear layer that makes the
    logits is replaced by the identity.

    Args:
        network: changed in place.
        image_size: side of images that it takes.
        what: whose it is, for the message.
        own: it is a user's own, whose output may be features already: where no linear layer makes it, it is, unless it
            is as wide as the number of classes that a factory is given for want of one.

    Raises:
        NoSingleHead: when no one linear layer makes the logits.
    """
    network.has_lost_head = True  # type: ignore[assignment] # what it learned, it learned by the head
    reset = getattr(network, "reset_classifier", None)
    if callable(reset):
        reset(0)
        return network
    whole = Extractor(network, name=what)
    if _head_path(whole, image_size=image_size, own=own):
        take_out_classifier(whole)
    network.num_classes = 0  # type: ignore[assignment]
    return network


def _head_path(whole: Extractor, *, image_size: int, own: bool) -> str | None:
    """Path of the linear layer that makes the class scores; None where a user's own network says features."""
    if is_linear(whole.classifier(image_size)):
        return whole.classifier_path
    if own and whole.num_classes != ANY_CLASSES:
        return None
    raise NoSingleHead(
        f"{whole.name}: no one linear layer makes its class scores, so they can't be left out: let a FILE.py:factory "
        f"return a network that says (B, D) features"
    )


def take_out_classifier(network: Extractor) -> None:
    """Replace the layer that makes the logits by the identity, in place."""
    path = network.classifier_path
    if path is not None:
        parent, _, name = path.rpartition(".")
        setattr(network.network.get_submodule(parent), name, nn.Identity())


def head_weights(network: nn.Module, *, image_size: int, what: str, own: bool = False) -> set[str]:
    """The names of the head's weights in the network's state dict; see `without_head`."""
    if callable(getattr(network, "reset_classifier", None)):
        body = without_head(copy.deepcopy(network), image_size=image_size, what=what)
        return set(network.state_dict()) - set(body.state_dict())
    path = _head_path(Extractor(network, name=what), image_size=image_size, own=own)
    return {name for name in network.state_dict() if path and name.startswith(f"{path}.")}


def freeze_backbone(network: nn.Module, *, image_size: int, what: str) -> None:
    """Let nothing but the head be trained: the rest keeps its weights and, in eval mode, its norms' statistics.

    Raises:
        UserError: when no one linear layer makes the logits.
    """
    try:
        head = head_weights(network, image_size=image_size, what=what)
    except NoSingleHead:
        raise UserError(
            f"--freeze backbone: no one linear layer of {what} makes its class scores, so that its head can't be told "
            f"from its backbone: train all of it"
        ) from None
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in head)
    for module in network.modules():
        module.is_frozen = not any(p.requires_grad for p in module.parameters())  # type: ignore[assignment]
