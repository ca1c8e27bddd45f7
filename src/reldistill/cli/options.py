"""How the command line reads and explains its options: dashes, switches, short help, errors of one line."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from reldistill.core.checks import UserError

_OPTION = re.compile(r"--[a-z][a-z_-]*")
_PRINT_CONFIG = "--print_config"
_HARD_SPACE = "\N{NO-BREAK SPACE}"
_METAVARS = {int: "N", float: "X", list: "…", dict: "YAML", Path: "PATH"}
_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping such as '{\"kd\": 2}'",
    str: "text",
    Path: "a path",
}


class Options:
    """The options of one command, gathered from signatures of functions and settings classes.

    Args:
        command: how it is called, e.g. `reldistill distill`.
        description: what it does.
    """

    def __init__(self, command: str, description: str) -> None:
        self.parser = _Parser(prog=command, description=description, formatter_class=_Help, allow_abbrev=False)
        self.parser.add_argument("--config", action="config", help="a YAML file with any of these settings")

    def add(self, source: Callable[..., Any], *, positional: Sequence[str] = (), skip: Sequence[str] = ()) -> None:
        """Every parameter of a function, or every field of a settings class as a group of its own, but for some."""
        if inspect.isclass(source):
            self.parser.add_class_arguments(source, None, skip=set(skip))
        else:
            self.parser.add_function_arguments(source, as_group=False, skip={*positional, *skip})
        parameters = {n: p for n, p in inspect.signature(source).parameters.items() if n not in skip}
        kinds = {name: _evaluated(parameter.annotation, source) for name, parameter in parameters.items()}
        self.parser.kinds.update(kinds)
        for name in positional:
            help = _documented(source, name)
            _add_positional(self.parser, name, kinds[name], help, default=parameters[name].default)

    def add_one(self, name: str, kind: Any, help: str, **more: Any) -> None:
        """One option that is no parameter of anything."""
        self.parser.add_argument(f"--{name}", type=kind, help=help, **more)
        self.parser.kinds[name] = kind

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Option name → value.

        Raises:
            UserError: when an option is not known, lacks its value or is lacking.
        """
        found = self.parser.parse_args(_normalised(arguments, self.parser.kinds))
        return {name: _plain(value) for name, value in vars(found).items()}


class _Parser(ArgumentParser):
    """A parser whose errors are UserErrors of one line."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.kinds: dict[str, Any] = {}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what argparse and jsonargparse say in their words, said in ours."""
        text = " ".join(str(message).split())
        see = f"(see: {self.prog} --help)"
        if found := re.match(r"unrecognized arguments: (.*)", text):
            raise UserError(f"{self._unknown(found[1])} {see}")
        if found := re.match(r"Option '([^']+)' is not accepted", text):
            raise UserError(f"--config: there is no setting '{found[1]}'{self._close(found[1], '')} {see}")
        if found := re.match(r"the following arguments are required: (.*)", text):
            needed = [n if n not in self.kinds or n in self.positionals() else f"--{n}" for n in found[1].split(", ")]
            raise UserError(_dashed(f"{', '.join(needed)} must be given {see}"))
        if found := re.match(r'Parser key "(\w+)[\w.]*": (.*)', text):
            name, why = found[1], found[2]
            value = re.search(r"(?:Got|Given) value: (.*)$", why)
            if value and name in self.kinds:
                why = f"expected {_words(self.kinds[name])}, got {value[1]!r}"
            raise UserError(_dashed(f"--{name}: {why} {see}"))
        text = re.sub(r"^(Problems parsing|Unexpected) config: ", "--config: ", text)
        text = re.sub(r"^argument (--\w+)[^:]*: ", r"\1: ", text)
        raise UserError(_dashed(f"{text} {see}"))

    def positionals(self) -> list[str]:
        """Names of the arguments without dashes."""
        return [action.dest for action in self._actions if not action.option_strings]

    def format_help(self, *args: Any, **keywords: Any) -> str:
        """The help with dashes."""
        return _dashed(super().format_help(*args, **keywords))

    def _unknown(self, arguments: str) -> str:
        first = arguments.split()[0]
        if not first.startswith("-"):
            return f"'{first}' is one word too many"
        name = first.lstrip("-").partition("=")[0]
        return f"there is no option {_dashed('--' + name) if len(first) > 2 else first}{self._close(name)}"

    def _close(self, name: str, dashes: str = "--") -> str:
        close = difflib.get_close_matches(name.replace("-", "_"), self.kinds, n=1)
        return f": did you mean {_dashed(dashes + close[0])}?" if close else ""


class _Help(DefaultHelpFormatter):
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
        if action.option_strings == [_PRINT_CONFIG]:
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
    if action.option_strings == [_PRINT_CONFIG]:
        return name
    if kind is bool:
        return f"{name}, --no-{name[2:]}" if action.default is True else name
    if typing.get_origin(kind) is Literal:
        return f"{name} WORD"
    default = name.rpartition("_")[2].lstrip("-").upper()
    return f"{name} {_METAVARS.get(_bare(kind), default)}"


def _place(action: argparse.Action) -> str:
    name = action.dest.rstrip("s").upper() if action.nargs == "+" else action.dest.upper()
    return {"+": f"{name} [{name} …]", "?": f"[{name}]"}.get(str(action.nargs), name)


def _kind_of(action: argparse.Action) -> Any:
    kind = getattr(action, "_typehint", None) or action.type
    return str if kind is None else _without_none(kind)


def _without_none(kind: Any) -> Any:
    """`int | None` → `int`, `int | str` → `str`."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(inner for inner in reversed(typing.get_args(kind)) if inner is not type(None))
    return kind


def _bare(kind: Any) -> Any:
    """`list[str]` → `list`."""
    kind = _without_none(kind)
    return typing.get_origin(kind) or kind


def _words(kind: Any) -> str:
    """A type as one would say it."""
    kind = _without_none(kind)
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(kind)))
    if _bare(kind) is list and typing.get_args(kind)[0] in (int, float):
        return "numbers"
    if typing.get_origin(kind) is dict and typing.get_origin(typing.get_args(kind)[1]) is dict:
        return 'a mapping of mappings such as \'{"serkd": {"iterations": 2}}\''
    return _KINDS.get(_bare(kind), str(kind))


def _evaluated(annotation: Any, source: Callable[..., Any]) -> Any:
    """A parameter's type; the result's may name what is only imported for type checks."""
    return eval(annotation, vars(sys.modules[source.__module__])) if isinstance(annotation, str) else annotation


def _add_positional(parser: _Parser, name: str, kind: Any, help: str, *, default: Any) -> None:
    more: dict[str, Any] = {}
    if _bare(kind) is list:
        kind, more = typing.get_args(kind)[0], {"nargs": "+"}
    elif default is not inspect.Parameter.empty:
        more = {"nargs": "?", "default": default}
    parser.add_argument(name, type=kind, help=help, **more)


def _documented(function: Callable[..., Any], name: str) -> str:
    found = re.search(rf"^ +{name}: (.*)$", inspect.getdoc(function) or "", flags=re.MULTILINE)
    return found[1] if found else ""


def _normalised(arguments: Sequence[str], kinds: dict[str, Any]) -> list[str]:
    """As jsonargparse wants it: `--a-b` → `--a_b`, `--switch` → `--switch=true`, `--list a b` → `--list=["a", "b"]`."""
    result: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if not argument.startswith("--") or argument == "--":
            result.append(argument)
            continue
        option, equals, value = argument.partition("=")
        name = option[2:].replace("-", "_")
        kind = _bare(kinds.get(name))
        if name.startswith("no_") and _bare(kinds.get(name[3:])) is bool and not equals:
            result.append(f"--{name[3:]}=false")
        elif kind is bool and not equals:
            has_value = bool(left) and left[0].lower() in ("true", "false")
            result.append(f"--{name}={left.pop(0) if has_value else 'true'}")
        elif kind is list:
            values = [value] if equals else []
            while left and not equals and not left[0].startswith("--"):
                values.append(left.pop(0))
            result += [f"--{name}={_as_list(values)}"] if values else [f"--{name}"]
        else:
            result.append(f"--{name}{equals}{value}")
    return result


def _as_list(values: Sequence[str]) -> str:
    """Words, comma-separated or not, as YAML; what is YAML already stays, and so does NAME=1,2."""
    if len(values) == 1 and values[0].startswith("["):
        return values[0]
    words = [word for value in values for word in ([value] if "=" in value else value.split(",")) if word]
    return json.dumps([float(word) if _is_number(word) else word for word in words])


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return {name: _plain(item) for name, item in vars(value).items()}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _dashed(text: str) -> str:
    return _OPTION.sub(lambda m: m[0] if m[0] == _PRINT_CONFIG else m[0].replace("_", "-"), text)
