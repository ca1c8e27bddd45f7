"""Values of plain types, as options, files and settings of losses give them, and how the types are named."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from reldistill.core.checks import printable
from reldistill.core.safe_read import quoted

LONGEST_TEXT = 4096  # bytes: of a path, no file system takes more
LONGEST_NAME = 255  # bytes: of a file, no file system takes more
_BETWEEN_NAMES = re.compile(r"[/\\:+=,; ]")
_WIDEST = 2**63
_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping such as '{\"kd\": 2}'",
    str: "text",
    Path: "a path",
}


class Wrong(Exception):
    """A value that is not of its option's kind."""

    def __init__(self, found: str, more: str = "") -> None:
        super().__init__(found, more)
        self.found, self.more = found, more


def kinds_of(source: Callable[..., Any]) -> dict[str, Any]:
    """Parameter → its type, of a function or class; Any where its annotation names what only type checks import."""
    where = vars(sys.modules[getattr(source, "func", source).__module__])
    found = {}
    for name, parameter in inspect.signature(source).parameters.items():
        found[name] = parameter.annotation
        if isinstance(parameter.annotation, str):
            found[name] = Any
            with contextlib.suppress(NameError, SyntaxError):
                found[name] = eval(parameter.annotation, where)
    return found


def is_plain(kind: Any) -> bool:
    """Whether `checked` knows values of that type."""
    kind = without_none(kind)
    return kind is Any or typing.get_origin(kind) is Literal or outer(kind) in _KINDS


def without_none(kind: Any) -> Any:
    """`int | None` → `int`; `int | str` stays."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = [one for one in typing.get_args(kind) if one is not type(None)]
        return inner[0] if len(inner) == 1 else kind
    return kind


def outer(kind: Any) -> Any:
    """`list[str] | None` → `list`; of a union, its last."""
    kind = without_none(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = typing.get_args(kind)[-1]
    return typing.get_origin(kind) or kind


def in_words(kind: Any) -> str:
    """A type in words."""
    kind = without_none(kind)
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if outer(kind) is list and typing.get_args(kind)[0] in (int, float):
        return "numbers"
    if outer(kind) is dict and typing.get_origin(typing.get_args(kind)[1]) is dict:
        return 'a mapping of mappings such as \'{"serkd": {"iterations": 2}}\''
    return _KINDS.get(outer(kind), str(kind))


def checked(kind: Any, value: Any) -> Any:
    """A value as what is declared to be of that type takes it.

    Raises:
        Wrong: when it is of another.
    """
    if value is None and without_none(kind) is not kind:
        return None
    kind = without_none(kind)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if origin in (typing.Union, types.UnionType):  # only `int | str` occurs
        return checked(int if whole else str, value)
    if origin is Literal and value in inner:
        return value
    if origin is list and isinstance(value, list):
        return [checked(inner[0], item) for item in value]
    if origin is dict and isinstance(value, dict):
        return {_text(key): checked(inner[1], item) for key, item in value.items()}
    if kind in (str, Path):
        return kind(_text(value))
    if kind is Any or (kind is bool and isinstance(value, bool)) or (kind is int and whole):
        return _usable(value)
    if kind is float and (whole or isinstance(value, float)):
        return float(_usable(value))
    raise Wrong(quoted(value))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        raise Wrong(quoted(value), "; put it in quotes" if number else "")
    if printable(value) != value:
        raise Wrong(quoted(value), ", which has characters that cannot be printed")
    if len(value.encode()) > LONGEST_TEXT:
        raise Wrong(quoted(value), f" of {len(value):,} characters")
    if max(len(part.encode()) for part in _BETWEEN_NAMES.split(value)) > LONGEST_NAME:
        raise Wrong(quoted(value), ", a name that is too long")
    if not value.strip():
        raise Wrong(quoted(value))
    return value


def _usable(value: Any) -> Any:
    """A value of any kind, except numbers that can't be computed with and text that can't be printed."""
    if isinstance(value, dict):
        return {_text(key): _usable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_usable(item) for item in value]
    if isinstance(value, str) and value:
        return _text(value)
    number = isinstance(value, int | float)
    if (isinstance(value, int) and abs(value) >= _WIDEST) or (number and not math.isfinite(value)):
        raise Wrong(quoted(value))
    if not number and value not in (None, ""):
        raise Wrong(quoted(value))  # a date, bytes: what only a tag of YAML makes
    return value
