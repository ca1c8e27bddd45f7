"""Guards that name the axes, and the one kind of error that a user is meant to read."""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_CONTROLS = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, halves of characters and ends of lines."""

_DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Unicode's classes of characters that show what follows in another order."""

LARGEST_SIDE = 4096
"""Pixels; no network is given larger images."""


def printable(text: str) -> str:
    """A text in which no character of a file's name can move the cursor or colour the terminal.

    >>> printable("a\\x1b[31m.png")
    'a\\\\x1b[31m.png'
    >>> printable("a\\u202egnp.exe")
    'a\\\\u202egnp.exe'
    """
    return "".join(repr(c)[1:-1] if _moves(c) else c for c in text)


def _moves(character: str) -> bool:
    return unicodedata.category(character) in _CONTROLS or unicodedata.bidirectional(character) in _DIRECTIONS


def escaped(content: Any) -> Any:
    """The content of a JSON file, every text in it printable: anyone may have written the file."""
    if isinstance(content, dict):
        return {escaped(key): escaped(value) for key, value in content.items()}
    if isinstance(content, list):
        return [escaped(value) for value in content]
    return printable(content) if isinstance(content, str) else content


def check_printable(names: Iterable[str], where: str) -> None:
    """UserError for a class name with control characters, or one that is no Unicode text."""
    for name in names:
        if printable(name) != name:
            raise UserError(f"{where}: class name {name!r} has characters that cannot be printed; rename it")


_PYTHONS_WORDS = (
    (r"<class '(?:\w+\.)*(\w+)'>", r"\1"),
    (r"\bNoneType\b", "None"),
    (r" object at 0x[0-9a-f]+", ""),
    (r"not supported between instances of", "does not work between"),
)


class UserError(ValueError):
    """Bad input, in one line: what is wrong, where, and what to do. The command line prints it and exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def system_error(error: OSError, where: object = "") -> str:
    """What the system refused, and of which file: the one that the error names, else `where`."""
    file = error.filename if error.filename is not None else where
    return f"{file}: {error.strerror or error}" if file else str(error.strerror or error)


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an error's text, after its kind, without Python's own jargon."""
    text = (str(error).strip().splitlines() or [""])[0]
    for pattern, plain in _PYTHONS_WORDS:
        text = re.sub(pattern, plain, text)
    kind = type(error).__name__
    return textwrap.shorten(f"{kind}: {text}" if text else kind, limit, placeholder=" …")


def check_axes(tensor: Tensor, axes: str, *, name: str, **sizes: int) -> None:
    """Raise ValueError unless `tensor` has the named axes, e.g. `check_axes(x, "B C H W", name="student", C=64)`.

    Args:
        tensor: any tensor.
        axes: the names of its axes, separated by spaces.
        name: what to call the tensor in the message.
        **sizes: axis name → the size it must have.
    """
    names = axes.split()
    shape = tuple(tensor.shape)
    if len(shape) != len(names):
        raise ValueError(f"{name}: expected ({', '.join(names)}), got a tensor of shape {shape}")
    for axis, size in sizes.items():
        found = shape[names.index(axis)]
        if found != size:
            raise ValueError(f"{name}: expected {axis} = {size} in ({', '.join(names)}), got shape {shape}")


def check_same_batch(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless both tensors hold the same number of samples."""
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"student and teacher must hold the same samples: B is {student.shape[0]} in the student "
            f"and {teacher.shape[0]} in the teacher"
        )


def check_parts(names: Collection[str], parts: Collection[str]) -> None:
    """Raise ValueError unless all `names` are parts of the loss."""
    for name in names:
        if name not in parts:
            raise ValueError(f"part must be one of {', '.join(parts)}, got {name!r}")


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless a softmax can have this temperature."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")


def check_range(
    name: str,
    value: float | None,
    low: float,
    high: float = math.inf,
    *,
    open_start: bool = False,
    open_end: bool = False,
) -> None:
    """UserError unless the number is None or between the bounds, which belong to the range where it is not open."""
    if value is None:
        return
    above = value > low if open_start else value >= low
    below = value < high if open_end else value <= high
    if not (above and below and math.isfinite(value)):
        least = f"more than {low}" if open_start else f"at least {low}"
        most = "" if high == math.inf else f" and {'less than' if open_end else 'at most'} {high}"
        raise UserError(f"{name.replace('_', ' ')} {value}: give {least}{most}")
