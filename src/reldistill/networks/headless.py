"""Networks without class scores: the output is the pooled vector that a classifier would have been given."""

from __future__ import annotations

import copy

from torch import nn

from reldistill.core.checks import UserError
from reldistill.networks.classifier import is_linear
from reldistill.networks.extract import Extractor


def without_head(network: nn.Module, *, image_size: int, what: str, own: bool = False) -> nn.Module:
    """The network without the layer that makes its class scores: images → pooled vectors (B, D).

    timm's networks and ours know their own head; in any other network the one linear layer that makes the
    logits is replaced by the identity.

    Args:
        network: changed in place.
        image_size: side of images that it takes.
        what: whose it is, for the message.
        own: the network is a user's own: where no linear layer makes its output, that output is features already.

    Raises:
        UserError: when no one linear layer makes the logits.
    """
    network.has_lost_head = True  # type: ignore[assignment] # what it learned, it learned by the head
    reset = getattr(network, "reset_classifier", None)
    if callable(reset):
        reset(0)
        return network
    whole = Extractor(network, name=what)
    if is_linear(whole.classifier(image_size)):
        take_out_classifier(whole)
    elif not own:
        raise UserError(
            f"{what}: no one linear layer makes its class scores, so they can't be left out: let a FILE.py:factory "
            f"return a network that outputs (B, D) features"
        )
    network.num_classes = 0  # type: ignore[assignment]
    return network


def take_out_classifier(network: Extractor) -> None:
    """Replace the layer that makes the logits by the identity, in place."""
    path = network.classifier_path
    if path is not None:
        parent, _, name = path.rpartition(".")
        setattr(network.network.get_submodule(parent), name, nn.Identity())


def head_weights(network: nn.Module, *, image_size: int, what: str, own: bool = False) -> set[str]:
    """The names of the head's weights in the network's state dict; see `without_head`."""
    body = without_head(copy.deepcopy(network), image_size=image_size, what=what, own=own)
    return set(network.state_dict()) - set(body.state_dict())


def freeze_backbone(network: nn.Module, *, image_size: int, what: str) -> None:
    """Let nothing but the head be trained: the rest keeps its weights and, in eval mode, its norms' statistics.

    Raises:
        UserError: when no one linear layer makes the logits.
    """
    head = head_weights(network, image_size=image_size, what=what)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in head)
    for module in network.modules():
        module.is_frozen = not any(p.requires_grad for p in module.parameters())  # type: ignore[assignment]
