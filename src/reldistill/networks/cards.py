"""What saved weights tell about their network. A card is data: it cannot make a file run or a hub be contacted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from reldistill.core.checks import UserError, check_printable
from reldistill.core.safe_files import write_bytes

_KEY = "reldistill"
_LARGEST_SIDE = 8192
_MOST_CLASSES = 1 << 20
_SHOWN = 60  # characters of a value in a message

WEIGHT_ARGUMENTS = (
    "cache_dir",
    "checkpoint_path",
    "num_classes",
    "pretrained",
    "pretrained_backbone",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "weights",
    "weights_backbone",
)
"""Arguments by which timm and torchvision look for weights elsewhere, and those that have a field of their own."""


@dataclass(frozen=True)
class NetworkCard:
    """What is needed to build a network again and to feed it.

    Args:
        name: as the zoo takes it.
        arguments: keyword arguments of its constructor.
        num_classes: K of its logits; 0 where it returns features only.
        classes: their names.
        mean: per-channel mean to subtract from images in [0, 1].
        std: per-channel standard deviation to divide by.
        input_size: side of its images, pixels.
        reused_head: how to give it another network's classifier, as `ReusedHead.described` says; None for its own.
        detector: `outputs`, the number of the class output for each of `classes`, and `num_outputs`, where it is one.
    """

    name: str
    num_classes: int
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    reused_head: Mapping[str, Any] | None = None
    detector: Mapping[str, Any] | None = None


def write_weights(path: Path, state: Mapping[str, Tensor], card: NetworkCard) -> str:
    """Write a network's state as safetensors with its card inside; the result is the file's sha256."""
    # Tied weights share memory, which the format refuses; each name gets its own copy.
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    content = asdict(card)
    content["arguments"] = {name: value for name, value in card.arguments.items() if name not in WEIGHT_ARGUMENTS}
    data = save(tensors, metadata={_KEY: json.dumps(content, sort_keys=True)})
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def read_card(path: Path) -> NetworkCard:
    """The card inside a run's weights.

    Raises:
        UserError: when the file is not a run's weights, or a field of its card is not what it must be.
    """
    card = card_in(path)
    if card is None:
        raise UserError(f"{path} does not say which network it is for: it was not written by a run")
    return card


def card_in(path: Path) -> NetworkCard | None:
    """The card inside a weights file; None where it has none.

    Raises:
        UserError: when the file is damaged, or a field of its card is not what it must be.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - it is not a mapping
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file") from error
    if text is None:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its card is damaged: it is not JSON") from error
    card = _checked(content, path)
    largest = max((side for shape in shapes for side in shape), default=0)
    _refuse(path, "num_classes", card.num_classes, card.num_classes <= largest, f"at most {largest}, as its tensors")
    return card


@contextlib.contextmanager
def told_by_card(path: Path) -> Iterator[None]:
    """Errors of a network that a card describes name the card's file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: the network that its card describes: {error}") from error


def _checked(content: Any, path: Path) -> NetworkCard:
    """A card of its fields, each of which is what it must be."""
    if not isinstance(content, dict):
        raise UserError(f"{path}: its card is damaged: it is not a mapping of fields")
    known = {one.name: one for one in fields(NetworkCard)}
    for name in content:
        if name not in known:
            raise UserError(f"{path}: its card has an unknown field {name[:_SHOWN]!r}: it is of another version")
    for name, one in known.items():
        if name not in content and one.default is MISSING and one.default_factory is MISSING:
            raise UserError(f"{path}: its card lacks the field {name}")
    for name, value in content.items():
        is_sound, expected = _FIELDS[name]
        _refuse(path, name, value, is_sound(value), expected)
    triples = {name: tuple(content[name]) for name in ("mean", "std")}
    card = NetworkCard(**{**content, **triples, "classes": tuple(content.get("classes", ()))})
    count = len(card.classes)
    _refuse(path, "classes", content.get("classes"), count in (0, card.num_classes), f"{card.num_classes} names")
    check_printable(card.classes, str(path))
    outputs = [] if card.detector is None else card.detector["outputs"]
    counted = card.detector is None or len(outputs) == card.num_classes == count
    _refuse(path, "detector", card.detector, counted, "an output for each of the classes")
    return card


def _refuse(path: Path, name: str, value: Any, is_sound: bool, expected: str) -> None:
    if not is_sound:
        shown = repr(value)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        raise UserError(f"{path}: {name} of its card must be {expected}; it is {shown}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: Any, most: float = math.inf, *, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it: numbers are finite, names are text."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(inside) for name, inside in value.items())
    if isinstance(value, list):
        return all(_is_plain(inside) for inside in value)
    return value is None or isinstance(value, str | bool) or _is_number(value)


def _are_three(value: Any, *, least: float) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_number(one) and one >= least for one in value)


def _are_arguments(value: Any) -> bool:
    return isinstance(value, dict) and _is_plain(value) and not set(value) & set(WEIGHT_ARGUMENTS)


def _is_reused_head(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or value.keys() != {"level", "channels", "size", "bias", "rectified"}:
        return False
    size = value["size"]
    return (
        (value["level"] is None or _is_text(value["level"]))
        and _is_count(value["channels"], 1 << 20)
        and (size is None or (isinstance(size, list) and len(size) == 2 and all(_is_count(s, 1 << 14) for s in size)))
        and isinstance(value["bias"], bool)
        and isinstance(value["rectified"], bool)
    )


def _is_detector(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or value.keys() != {"outputs", "num_outputs"}:
        return False
    outputs, count = value["outputs"], value["num_outputs"]
    if not _is_count(count, 1 << 16) or not isinstance(outputs, list) or not outputs:
        return False
    return all(_is_count(one, count - 1) for one in outputs) and len(set(outputs)) == len(outputs)


# Field → whether a value is sound, and what it must be.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_is_text, "a network's name"),
    "num_classes": (
        lambda value: _is_count(value, _MOST_CLASSES, least=0),
        f"a whole number from 0, for features alone, to {_MOST_CLASSES}",
    ),
    "input_size": (lambda value: _is_count(value, _LARGEST_SIDE), f"a number of pixels from 1 to {_LARGEST_SIDE}"),
    "mean": (lambda value: _are_three(value, least=-1e30), "three finite numbers"),
    "std": (lambda value: _are_three(value, least=1e-6), "three finite numbers above 0"),
    "classes": (lambda value: isinstance(value, list) and all(isinstance(c, str) for c in value), "a list of names"),
    "arguments": (
        _are_arguments,
        f"a mapping of plain values, without {', '.join(WEIGHT_ARGUMENTS[:-1])} and {WEIGHT_ARGUMENTS[-1]}",
    ),
    "reused_head": (_is_reused_head, "null, or a mapping of level, channels, size, bias and rectified"),
    "detector": (
        _is_detector,
        "null, or a mapping of num_outputs and of outputs: different numbers from 1 on below it",
    ),
}
