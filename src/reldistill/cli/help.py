"""How the options of a command are explained: help that fits in 80 columns, with dashes."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from jsonargparse import DefaultHelpFormatter

from reldistill.core.kinds import outer, without_none

PRINT_CONFIG = "--print_config"
_OPTION = re.compile(r"--[a-z][a-z_-]*")
_HARD_SPACE = "\N{NO-BREAK SPACE}"
_METAVARS = {int: "N", float: "X", list: "…", dict: "YAML", Path: "PATH"}


def dashed(text: str) -> str:
    """Options as they are typed: `--a_b` → `--a-b`."""
    return _OPTION.sub(lambda m: m[0] if m[0] == PRINT_CONFIG else m[0].replace("_", "-"), text)


class Help(DefaultHelpFormatter):
    """Help that fits in 80 columns: what must be given in the usage, one short name for each kind of value."""

    def __init__(self, prog: str, **keywords: Any) -> None:
        width = min(shutil.get_terminal_size().columns, 100) - 2
        super().__init__(prog, **{**keywords, "max_help_position": 26, "width": width})

    def _format_usage(self, usage: str | None, actions: Iterable[argparse.Action], *args: Any, **keywords: Any) -> str:
        needed = [_invocation(a) for a in actions if a.required and a.option_strings]
        places = [_place(a) for a in actions if not a.option_strings]
        words = [word.replace(" ", _HARD_SPACE) for word in (*places, *needed, "[options]")]
        start = f"usage: {self._prog} "
        text = textwrap.fill(" ".join(words), self._width, initial_indent=start, subsequent_indent=" " * len(start))
        return text.replace(_HARD_SPACE, " ") + "\n\n"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return _place(action).partition(" [")[0].strip("[]")
        return _invocation(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.option_strings == [PRINT_CONFIG]:
            return "print these settings as YAML and stop: what --config reads"
        text = (action.help or "").rstrip(".")
        if not action.option_strings or isinstance(action, argparse._HelpAction):
            return text[:1].lower() + text[1:]
        return text + _more(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [" ".join(p.split()) for p in text.split("\n\n")]
        return "\n\n".join(textwrap.fill(p, width, initial_indent=indent, subsequent_indent=indent) for p in paragraphs)


def _more(action: argparse.Action) -> str:
    """What must be known of an option beside its meaning: whether it is needed, the words it takes, its default."""
    kind = _kind_of(action)
    notes = []
    if action.required:
        notes.append("required")
    if typing.get_origin(kind) is Literal:
        notes.append(" | ".join(map(str, typing.get_args(kind))))
    if action.default not in (None, False, "", argparse.SUPPRESS) and action.default != [] and action.default != {}:
        default = action.default
        if isinstance(default, list):
            default = " ".join(map(str, default))
        notes.append(f"default: {'yes' if default is True else default}")
    return f" ({'; '.join(notes)})" if notes else ""


def _invocation(action: argparse.Action) -> str:
    name = (
        max(action.option_strings, key=len) if action.option_strings[-1].startswith("-h") else action.option_strings[0]
    )
    if isinstance(action, argparse._HelpAction):
        return ", ".join(action.option_strings)
    kind = _kind_of(action)
    if action.option_strings == [PRINT_CONFIG]:
        return name
    if kind is bool:
        return f"{name}, --no-{name[2:]}" if action.default is True else name
    if typing.get_origin(kind) is Literal:
        return f"{name} WORD"
    default = name.rpartition("_")[2].lstrip("-").upper()
    return f"{name} {_METAVARS.get(outer(kind), default)}"


def _place(action: argparse.Action) -> str:
    name = action.dest.rstrip("s").upper() if action.nargs == "+" else action.dest.upper()
    return {"+": f"{name} [{name} …]", "?": f"[{name}]"}.get(str(action.nargs), name)


def _kind_of(action: argparse.Action) -> Any:
    kind = getattr(action, "_typehint", None) or action.type
    return str if kind is None else without_none(kind)
