"""Text, JSON and YAML of files that anyone may have written: every way to be unreadable is one `Unreadable`."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from reldistill.core.checks import printable

CONFIG_LIMIT = 1 << 20
"""Bytes; settings are never as long."""
_MOST_NODES = 100_000
_DEEPEST = 50
_SHOWN = 80
_KINDS: dict[type, str] = {dict: "mapping", list: "list"}


class Unreadable(ValueError):
    """Why a file cannot be had, or is not what it should be: a few words that go behind its name."""


def why_not_file(path: Path) -> str:
    """What keeps a path from being read as a file, in a few words; nothing where it is one. Never opens it.

    >>> why_not_file(Path("/"))
    'is a folder, not a file'
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    if stat.S_ISDIR(mode):
        return "is a folder, not a file"
    return "" if stat.S_ISREG(mode) else "is a pipe, socket or device, not a file"


def read_file(path: Path, *, limit: int | None = None) -> bytes:
    """The content of a regular file.

    Args:
        path: the file; a pipe, which would never end, is not opened.
        limit: bytes; a longer file is not read.

    Raises:
        Unreadable: when it is none, is longer, or cannot be read.
    """
    if why := why_not_file(path):
        raise Unreadable(why)
    try:
        if limit is not None and (size := path.stat().st_size) > limit:
            raise Unreadable(f"has {size:,} bytes, more than the {limit:,} that such a file may have")
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror or error})") from None


def parse_json(text: str | bytes) -> Any:
    """The content of a JSON text.

    Raises:
        Unreadable: when it is none, is nested too deep, or holds what no JSON holds (a number too long, half a
            character).
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise Unreadable("is nested too deep") from None
    except UnicodeDecodeError:
        raise Unreadable("is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise Unreadable(f"is not JSON ({error})") from None
    except ValueError:
        raise Unreadable("is not JSON (a number of too many digits)") from None


def parse_yaml(text: str | bytes) -> Any:
    """The content of a YAML text, by the rules of YAML 1.2: `1:1` and `yes` are text, `1e-3` is a number.

    Args:
        text: bytes are UTF-8, or UTF-16 where they begin with its mark.

    Raises:
        Unreadable: when it is none, names a key twice, has too many values, or is nested too deep.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except RecursionError:
        raise Unreadable("is nested too deep") from None
    except yaml.reader.ReaderError:
        raise Unreadable("is not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise Unreadable(f"is not YAML ({error.problem or error.context}{line})") from None
    except ValueError:
        raise Unreadable("is not YAML (a number of too many digits, or a date that is none)") from None


def dump_yaml(value: Any) -> str:
    """YAML that `parse_yaml` reads as the same value."""
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


def quoted(value: Any) -> str:
    """A value in an error: as it was written, no longer than a line.

    >>> quoted("x" * 500)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'"
    """
    if isinstance(value, str):
        return f"'{shortened(printable(value))}'"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) >= 10**18:
        return "a number of many digits"
    return shortened(str(value)) if isinstance(value, int | float) else f"a {_KINDS.get(type(value), 'value')}"


def shortened(text: str) -> str:
    """A long name's beginning and end."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2 - 1]}…{text[1 - _SHOWN // 2 :]}"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's way

    def fetch_more_tokens(self) -> None:
        """Refuse what is nested too deep before it is: its cost would grow with the depth's square."""
        if self.flow_level + len(self.indents) > _DEEPEST:
            raise RecursionError
        super().fetch_more_tokens()

    def get_single_node(self) -> Any:
        """The document, unless its aliases make more of it than anyone means."""
        node = super().get_single_node()
        if node is not None:
            self._count(node, {})
        return node

    def _count(self, node: Any, known: dict[int, int]) -> int:
        """How many values there are under a node where every alias stands for its own copy."""
        if id(node) not in known:
            known[id(node)] = _MOST_NODES  # met again inside itself
            inner = node.value if isinstance(node.value, list) else []
            inner = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
            known[id(node)] = 1 + sum(self._count(part, known) for part in inner)
        if known[id(node)] > _MOST_NODES:
            raise yaml.composer.ComposerError(None, None, f"more than {_MOST_NODES:,} values", node.start_mark)
        return known[id(node)]

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are text or numbers, each named once."""
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, dict | list):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
            if key in result:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{quoted(key)} is named twice", key_node.start_mark
                )
            result[key] = self.construct_object(value_node, deep=deep)
        return result


class _Dumper(yaml.SafeDumper):
    """What `_Loader` would not read as text is quoted."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value as often as it occurs."""
        return True


def _construct_int(loader: _Loader, node: Any) -> int:
    text = loader.construct_scalar(node)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _construct_float(loader: _Loader, node: Any) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


for _kind in (_Loader, _Dumper):
    for _tag, _pattern, _first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
        (
            "float",
            r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
            list("-+.0123456789"),
        ),
    ):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Loader.add_constructor("tag:yaml.org,2002:bool", lambda loader, node: loader.construct_scalar(node).lower() == "true")
