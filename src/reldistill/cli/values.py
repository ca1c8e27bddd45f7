"""What an option may be given: one rule for the command line and for the file of --config."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reldistill.core.checks import UserError
from reldistill.core.kinds import Wrong, checked, in_words, outer, without_none
from reldistill.core.safe_read import Unreadable, parse_yaml, quoted


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
    return _told(name, kind, lambda: checked(kind, value))


def _told(name: str, kind: Any, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Wrong as wrong:
        raise UserError(f"{name}: expected {in_words(kind)}, got {wrong.found}{wrong.more}") from None


def _of_words(kind: Any, words: Sequence[str]) -> Any:
    if outer(kind) is list:
        if len(words) == 1 and words[0].lstrip().startswith("["):
            return checked(kind, _document(words[0]))
        inner = typing.get_args(kind)[0]
        # commas separate too, except in NAME=1,2 and in a file's name
        split = [[word] if "=" in word or inner is Path else word.split(",") for word in words]
        return [_of_words(inner, [word]) for group in split for word in group if word or group == [""]]
    (word,) = words
    if outer(kind) is dict:
        return checked(kind, _document(word))
    if kind in (int, float, bool):
        try:
            return checked(kind, parse_yaml(word.lower() if kind is bool else word))
        except (Wrong, Unreadable):
            raise Wrong(quoted(word)) from None
    if outer(kind) is str and int in typing.get_args(kind) and word.isascii() and word.isdigit():
        return checked(int, parse_yaml(word))
    return checked(kind, word)


def _document(word: str) -> Any:
    try:
        return parse_yaml(word)
    except Unreadable as error:
        raise Wrong(quoted(word), f", which {error}") from None
