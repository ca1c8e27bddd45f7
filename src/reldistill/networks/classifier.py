"""Which module of a network makes the logits, and where its input comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.types import LevelInfo
from reldistill.networks.levels import Seen, Tap


class Feed(NamedTuple):
    """The level that a classifier's input comes from.

    Args:
        level: with as many channels as the classifier takes.
        by_mean: whether the input is the mean over the level's places; otherwise it is a token beside them.
        linear: whether the classifier is one linear layer, so that it can classify the places one by one.
    """

    level: LevelInfo
    by_mean: bool
    linear: bool


def find_classifier(
    seen: list[Seen], logits: Float[Tensor, "B K"], inputs_of: Mapping[str, Tensor]
) -> tuple[str | None, bool]:
    """The innermost module with parameters that makes the logits; where they are mixed from several heads, the last.

    The second result tells whether that module's output is the logits.
    """
    with_parameters = [s for s in seen if s.name in inputs_of and next(s.module.parameters(), None) is not None]
    heads = [s for s in with_parameters if s.output.ndim > 1 and s.output.flatten(1).shape == logits.shape]
    # A container's hook runs after that of the layer inside it, whose output it passes on.
    exact = [s.name for s in heads if torch.equal(s.output.flatten(1), logits)]
    inner = [s.name for s in heads if next(s.module.children(), None) is None]
    return (exact[0] if exact else inner[-1] if inner else None), bool(exact)


def is_linear(layer: nn.Module | None) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether it is one linear layer, perhaps written as a convolution of 1 × 1."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.weight.shape[2:].numel() == 1)


def feed_of(
    vector: Float[Tensor, "B D"], seen: Sequence[Seen], taps: Mapping[str, Tap], *, linear: bool
) -> Feed | None:
    """The last level whose mean, or one of whose tokens, is the classifier's input; None where there is none.

    Args:
        vector: (B, D), the classifier's input.
        seen: the modules' outputs for the same images.
        taps: level name → how to read it.
        linear: whether the classifier is one linear layer.
    """
    for one in reversed(seen):
        tap = taps.get(one.name)
        if tap is None or tap.overwritten or tap.info.channels != vector.shape[1]:
            continue
        by_mean = _agree(tap.read(one.output, aspect=1.0).mean(dim=(2, 3)), vector)
        if by_mean or any(_agree(one.output[:, i], vector) for i in range(tap.prefix_tokens)):
            return Feed(tap.info, by_mean, linear)
    return None


def _agree(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def as_vector(classifier_input: Float[Tensor, "B *_"]) -> Float[Tensor, "B D"]:
    """(B, D), or the mean over the positions of a map (B, D, H, W) or of tokens (B, N, D)."""
    if classifier_input.ndim == 3:
        return classifier_input.mean(dim=1)
    return classifier_input if classifier_input.ndim == 2 else classifier_input.flatten(2).mean(dim=2)
