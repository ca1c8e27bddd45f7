"""How a command's options are derived from signatures and settings, and read from its words and from --config."""

from __future__ import annotations

import difflib
import inspect
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from reldistill.cli.help import PRINT_CONFIG, Help, dashed
from reldistill.cli.values import value_of_words, value_of_yaml
from reldistill.core.checks import UserError
from reldistill.core.kinds import kinds_of, outer
from reldistill.core.safe_read import CONFIG_LIMIT, Unreadable, dump_yaml, parse_yaml, quoted, read_file, shortened

_CONFIG = "config"


class Options:
    """The options of one command, gathered from signatures of functions and settings classes.

    Args:
        command: how it is called, e.g. `reldistill distill`.
        description: what it does.
    """

    def __init__(self, command: str, description: str) -> None:
        self.parser = _Parser(prog=command, description=description, formatter_class=Help)
        self.parser.add_argument(f"--{_CONFIG}", action="config", help="a YAML file with any of these settings")
        self.kinds: dict[str, Any] = {}
        self.positional: list[str] = []

    def add(self, source: Callable[..., Any], *, positional: Sequence[str] = (), skip: Sequence[str] = ()) -> None:
        """Every parameter of a function, or every field of a settings class as a group of its own, except for some."""
        if inspect.isclass(source):
            self.parser.add_class_arguments(source, None, skip=set(skip))
        else:
            self.parser.add_function_arguments(source, as_group=False, skip={*positional, *skip})
        parameters = inspect.signature(source).parameters
        self.kinds.update({name: kind for name, kind in kinds_of(source).items() if name not in skip})
        self.positional += positional
        for name in positional:
            help = _documented(source, name)
            _add_positional(self.parser, name, self.kinds[name], help, default=parameters[name].default)

    def add_one(self, name: str, kind: Any, help: str, **more: Any) -> None:
        """One option that no parameter stands for."""
        self.parser.add_argument(f"--{name}", type=kind, help=help, **more)
        self.kinds[name] = kind

    def defaults(self) -> dict[str, Any]:
        """Option name → its default; None for those that must be given."""
        found = {name: _plain(value) for name, value in vars(self.parser.get_defaults()).items()}
        return {name: found.get(name) for name in self.kinds}

    def required(self) -> list[str]:
        """The options that must be given."""
        return [action.dest for action in self.parser._actions if action.required]

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Option name → value: from the words, else the files of --config, the last one first, else the default.

        Raises:
            UserError: when an option is not known, lacks its value, has one that is not of its kind, or is lacking.
            SystemExit: after --help and --print_config.
        """
        if "--help" in arguments or "-h" in arguments:
            self.parser.print_help()
            raise SystemExit(0)
        words, files, prints = self._words(arguments)
        given: dict[str, Any] = {}
        for file in files:
            given |= self._from_file(file)
        given |= {name: value_of_words(self._shown(name), self.kinds[name], texts) for name, texts in words.items()}
        if prints:
            print(dump_yaml(self._printed(given)), end="")
            raise SystemExit(0)
        if missing := [self._shown(name) for name in self.required() if name not in given]:
            self._fail(f"{', '.join(missing)} must be given")
        return {**self.defaults(), **given}

    def _words(self, arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str], bool]:
        """Option → its words, the files of --config, and whether the settings are to be printed."""
        named: dict[str, list[str]] = {}
        files: list[str] = []
        loose: list[str] = []
        prints = False
        left = list(arguments)
        while left:
            word = left.pop(0)
            if word == "--":
                loose += left
                break
            if not word.startswith("-") or word == "-":
                loose.append(word)
                continue
            option, equals, value = word.partition("=")
            name = option[2:].replace("-", "_") if word.startswith("--") else ""
            if name.startswith("no_") and self.kinds.get(name[3:]) is bool and not equals:
                named[name[3:]] = ["false"]
            elif name == PRINT_CONFIG[2:]:
                prints = True
            elif name == _CONFIG:
                files += self._behind(name, left) if not equals else [value]
            elif name in self.kinds and name not in self.positional:
                named[name] = self._behind(name, left) if not equals else [value]
            else:
                self._fail(f"there is no option {shortened(option)}{self._close(name, '--')}")
        return {**named, **self._places(loose)}, files, prints

    def _behind(self, name: str, left: list[str]) -> list[str]:
        """The words that belong to an option, taken off what is left."""
        kind = outer(self.kinds.get(name))
        if kind is bool:
            return [left.pop(0)] if left and left[0].lower() in ("true", "false") else ["true"]
        count = next((i for i, word in enumerate(left) if word.startswith("--")), len(left))
        if not count:
            self._fail(f"{dashed('--' + name)}: expected one argument{' or more' * (kind is list)}")
        taken = left[: count if kind is list else 1]
        del left[: len(taken)]
        return taken

    def _places(self, loose: Sequence[str]) -> dict[str, list[str]]:
        """The arguments without dashes, by their place; the last takes all that follow where it is a list."""
        found = {name: [word] for name, word in zip(self.positional, loose, strict=False)}
        more = loose[len(self.positional) :]
        if more and self.positional and outer(self.kinds[self.positional[-1]]) is list:
            found[self.positional[-1]] += more
        elif more:
            self._fail(f"{quoted(more[0])} is one argument too many")
        return found

    def _from_file(self, word: str) -> dict[str, Any]:
        path = value_of_words(f"--{_CONFIG}", Path, [word])
        try:
            content = parse_yaml(read_file(path, limit=CONFIG_LIMIT))
        except Unreadable as error:
            self._fail(f"--{_CONFIG} {path}: {error}")
        if not isinstance(content, dict):
            self._fail(f"--{_CONFIG} {path}: expected settings as NAME: VALUE, one per line")
        for name in content:
            if name not in self.kinds:
                self._fail(f"--{_CONFIG} {path}: there is no setting {quoted(name)}{self._close(str(name), '')}")
        return {
            name: value_of_yaml(f"--{_CONFIG} {path}: {self._shown(name)}", self.kinds[name], value)
            for name, value in content.items()
        }

    def _printed(self, given: dict[str, Any]) -> dict[str, Any]:
        """The settings as --config reads them; what must be given and is not is left out."""
        unknown = {name for name in self.required() if name not in given}
        values = {**self.defaults(), **given}
        order = [action.dest for action in self.parser._actions if action.dest in values]
        return {name: _written(values[name]) for name in order if name not in unknown}

    def _shown(self, name: str) -> str:
        return name if name in self.positional else dashed(f"--{name}")

    def _close(self, name: str, dashes: str) -> str:
        close = difflib.get_close_matches(name.replace("-", "_"), self.kinds, n=1)
        return f": did you mean {dashed(dashes + close[0])}?" if close else ""

    def _fail(self, text: str) -> NoReturn:
        raise UserError(f"{text} (see: {self.parser.prog} --help)")


class _Parser(ArgumentParser):
    """A parser whose help has dashes."""

    def format_help(self, *args: Any, **keywords: Any) -> str:
        """The help with dashes."""
        return dashed(super().format_help(*args, **keywords))


def _add_positional(parser: _Parser, name: str, kind: Any, help: str, *, default: Any) -> None:
    more: dict[str, Any] = {}
    if outer(kind) is list:
        kind, more = typing.get_args(kind)[0], {"nargs": "+"}
    elif default is not inspect.Parameter.empty:
        more = {"nargs": "?", "default": default}
    parser.add_argument(name, type=kind, help=help, **more)


def _documented(function: Callable[..., Any], name: str) -> str:
    found = re.search(rf"^ +{name}: (.*)$", inspect.getdoc(function) or "", flags=re.MULTILINE)
    return found[1] if found else ""


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return {name: _plain(item) for name, item in vars(value).items()}
    return value


def _written(value: Any) -> Any:
    """A value as YAML has it."""
    if isinstance(value, list):
        return [_written(item) for item in value]
    return str(value) if isinstance(value, Path) else value
