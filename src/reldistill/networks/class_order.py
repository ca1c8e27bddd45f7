"""Classes are matched by name: a network trained on them in another order outputs them in the data's order."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from reldistill.core.checks import UserError
from reldistill.networks.classifier import is_linear
from reldistill.networks.extract import Extractor
from reldistill.networks.hooks import evaluating, first_float

_SHOWN = 5


def order_of(trained_on: Sequence[str], classes: Sequence[str], *, what: str) -> list[int] | None:
    """For each of the data's classes the place of the network's; None where they are in the same order.

    Args:
        trained_on: names of the network's classes.
        classes: names of the data's.
        what: the network, for the message.

    Raises:
        UserError: when the names are not the same, or one stands for two classes.

    >>> order_of(["cat", "dog", "emu"], ["emu", "cat", "dog"], what="teacher")
    [2, 0, 1]
    """
    if list(trained_on) == list(classes):
        return None
    place = {name: number for number, name in enumerate(trained_on)}
    lacking = [name for name in classes if name not in place]
    unknown = [name for name in trained_on if name not in set(classes)]
    if lacking or unknown:
        raise UserError(f"{what} was trained on other classes than the data's: {differences(lacking, unknown)}")
    if len(place) < len(trained_on) or len(trained_on) != len(classes):
        twice = next(name for name in trained_on if [*trained_on, *classes].count(name) != 2)
        raise UserError(f"{what}: its classes can't be told apart by name: {twice!r} stands for several")
    return [place[name] for name in classes]


def differences(lacking: Sequence[str], unknown: Sequence[str] = ()) -> str:
    """What weights don't know of the data's classes, and which they know that the data lack.

    >>> differences(["emu"], ["cat", "dog"])
    "its weights don't know the class emu of the data; the data lack its classes cat, dog"
    """
    alike = {_seen(name) for name in lacking} & {_seen(name) for name in unknown}
    parts = [f"its weights don't know the {_named(lacking, alike)} of the data"] if lacking else []
    parts += [f"the data lack its {_named(unknown, alike)}"] if unknown else []
    return "; ".join(parts)


def _named(names: Sequence[str], alike: Collection[str]) -> str:
    more = f" … and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    shown = [ascii(name) if _seen(name) in alike else name for name in names[:_SHOWN]]
    return f"class{'es' * (len(names) > 1)} {', '.join(shown)}{more}"


def _seen(name: str) -> str:
    """What the eye tells apart: neither spaces at the ends nor accents that are characters of their own."""
    return " ".join(unicodedata.normalize("NFKC", name).split())


@torch.no_grad()
def reorder(extractor: Extractor, order: Sequence[int], image_size: int, *, what: str) -> None:
    """Let a network output its classes in another order, by the rows of the layers that make its logits.

    Its weights are changed, so that whatever reads them (a cache, a reused head, the saved student) has that order too.
    That the logits are the same numbers in the new order is checked on images of noise.

    Args:
        extractor: the network, surveyed.
        order: for each new place the old one.
        image_size: side of its images.
        what: the network, for the message.

    Raises:
        UserError: when no layers were found whose rows do it.
    """
    side = extractor.input_size or image_size
    network, like = extractor.network, first_float(extractor.network)
    noise = torch.rand((4, len(extractor.mean), side, side), generator=torch.Generator().manual_seed(0))
    images = noise.to(like.device)
    index = torch.tensor(order, device=like.device)
    with evaluating(network):
        wanted = _logits(extractor, images)[:, index]
        for layers in _candidates(extractor, len(order)):
            before = _permute(layers, index)
            if torch.allclose(_logits(extractor, images), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max())):
                return
            for tensor, old in before:
                tensor.copy_(old)
    raise UserError(
        f"{what} was trained on these classes in another order, and no layer was found by which its class scores could "
        f"be put into the data's: train it on these data"
    )


def _candidates(extractor: Extractor, count: int) -> Iterator[list[nn.Linear | nn.Conv2d]]:
    """Layers that may make the logits together: the classifier's own, all that have as many outputs, the last one."""
    path = extractor.classifier_path
    own = [] if path is None else _rows(extractor.network.get_submodule(path), count)
    every = _rows(extractor.network, count)
    for layers in (own, every[-1:], every[-2:], every):
        if layers:
            yield layers


def _rows(module: nn.Module, count: int) -> list[nn.Linear | nn.Conv2d]:
    return [one for one in module.modules() if is_linear(one) and len(one.weight) == count]


def _permute(layers: Sequence[nn.Linear | nn.Conv2d], index: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Put the layers' outputs into another order; (tensor, what it was) of each that was changed."""
    tensors = list({id(t): t for layer in layers for t in (layer.weight, layer.bias) if t is not None}.values())
    before = [(tensor, tensor.clone()) for tensor in tensors]
    for tensor, old in before:
        tensor.copy_(old[index])
    return before


def _logits(extractor: Extractor, images: Tensor) -> Tensor:
    logits = extractor(images).logits
    if logits is None:
        raise ValueError(f"{extractor.name} returns no logits")
    return logits
