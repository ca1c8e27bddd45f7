"""What an option may be given: one rule for the command line and for the file of --config."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from reldistill.core.checks import UserError, printable
from reldistill.core.safe_read import Unreadable, parse_yaml, quoted

LONGEST_TEXT = 4096  # bytes: of a path, no file system takes more
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


class _Wrong(Exception):
    """A value that is not of its option's kind."""

    def __init__(self, found: str, more: str = "") -> None:
        super().__init__(found, more)
        self.found, self.more = found, more


def value_of_words(name: str, kind: Any, words: Sequence[str]) -> Any:
    """What the words behind an option mean.

    Args:
        name: how the option is called in an error, e.g. `--epochs`.
        kind: its annotation.
        words: one, or for a list several.

    Raises:
        UserError: when they are not of the option's kind.
    """
    bare = without_none(kind)
    return _told(name, kind, lambda: None if list(words) == ["null"] and bare is not kind else _of_words(bare, words))


def value_of_yaml(name: str, kind: Any, value: Any) -> Any:
    """What a value in a file means; UserError when it is not of the option's kind."""
    bare = without_none(kind)
    return _told(name, kind, lambda: None if value is None and bare is not kind else _checked(bare, value))


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
    """A type as one would say it."""
    kind = without_none(kind)
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if outer(kind) is list and typing.get_args(kind)[0] in (int, float):
        return "numbers"
    if outer(kind) is dict and typing.get_origin(typing.get_args(kind)[1]) is dict:
        return 'a mapping of mappings such as \'{"serkd": {"iterations": 2}}\''
    return _KINDS.get(outer(kind), str(kind))


def _told(name: str, kind: Any, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except _Wrong as wrong:
        raise UserError(f"{name}: expected {in_words(kind)}, got {wrong.found}{wrong.more}") from None


def _of_words(kind: Any, words: Sequence[str]) -> Any:
    if outer(kind) is list:
        if len(words) == 1 and words[0].lstrip().startswith("["):
            return _checked(kind, _document(words[0]))
        inner = typing.get_args(kind)[0]
        # commas separate too, but for those of NAME=1,2 and of a file's name
        split = [[word] if "=" in word or inner is Path else word.split(",") for word in words]
        return [_of_words(inner, [word]) for group in split for word in group if word or group == [""]]
    (word,) = words
    if outer(kind) is dict:
        return _checked(kind, _document(word))
    if kind in (int, float, bool):
        try:
            return _checked(kind, parse_yaml(word.lower() if kind is bool else word))
        except (_Wrong, Unreadable):
            raise _Wrong(quoted(word)) from None
    if outer(kind) is str and int in typing.get_args(kind) and word.isascii() and word.isdigit():
        return _checked(int, parse_yaml(word))
    return _checked(kind, word)


def _document(word: str) -> Any:
    try:
        return parse_yaml(word)
    except Unreadable as error:
        raise _Wrong(quoted(word), f", which {error}") from None


def _checked(kind: Any, value: Any) -> Any:
    """A value as an option of that kind takes it."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if origin in (typing.Union, types.UnionType):  # only `int | str` occurs
        return _checked(int if whole else str, value)
    if origin is Literal and value in inner:
        return value
    if origin is list and isinstance(value, list):
        return [_checked(inner[0], item) for item in value]
    if origin is dict and isinstance(value, dict):
        return {_text(key): _checked(inner[1], item) for key, item in value.items()}
    if kind in (str, Path):
        return kind(_text(value))
    if kind is Any or (kind is bool and isinstance(value, bool)) or (kind is int and whole):
        return _usable(value)
    if kind is float and (whole or isinstance(value, float)):
        return float(_usable(value))
    raise _Wrong(quoted(value))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        raise _Wrong(quoted(value), "; put it in quotes" if number else "")
    if printable(value) != value:
        raise _Wrong(quoted(value), ", which has characters that cannot be printed")
    if len(value.encode()) > LONGEST_TEXT:
        raise _Wrong(quoted(value), f" of {len(value):,} characters")
    if not value.strip():
        raise _Wrong(quoted(value))
    return value


def _usable(value: Any) -> Any:
    """A value of any kind, but for numbers that nothing calculates with and text that nothing prints."""
    if isinstance(value, dict):
        return {_text(key): _usable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_usable(item) for item in value]
    if isinstance(value, str) and value:
        return _text(value)
    number = isinstance(value, int | float)
    if (isinstance(value, int) and abs(value) >= _WIDEST) or (number and not math.isfinite(value)):
        raise _Wrong(quoted(value))
    if not number and value not in (None, ""):
        raise _Wrong(quoted(value))  # a date, bytes: what only a tag of YAML makes
    return value
