"""Everything that can be given wrongly, at every command: generated from the options' own types, so that a new option
or command is tried without a line here. Whatever it is, there is one line, exit code 2, and nothing is left behind."""

from __future__ import annotations

import dataclasses
import functools
import os
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from reldistill.cli import main as command
from reldistill.cli.forms import Command, Group
from reldistill.cli.options import Options
from reldistill.cli.table import COMMANDS
from reldistill.cli.values import outer, without_none
from small_runs import TRAIN, with_options, write_world

JARGON = (
    "<class", "Traceback", "NoneType", "object at 0x", "not supported between", "given config", "Parser key",
    "ArgumentError", "jsonargparse", "Namespace", "typing.", "errno", "positional argument", "unexpected keyword",
)  # fmt: skip
NEVER = {
    "nothing": "",
    "blank": " ",
    "null byte": "a\0b",
    "escape": "\x1b[31mred",
    "two lines": "a\nb",
    "half a character": "\udcff",
    "very long": "x" * 5000,
}
"""What no option takes."""
NOT_WHOLE = {**NEVER, "word": "x", "fraction": "1.5", "infinite": "1e400", "huge": str(10**30), "negative": "-1"}
NOT_NUMBER = {**NEVER, "word": "x", "nan": "nan", "NaN": ".nan", "inf": "inf", "infinite": "1e400", "negative": "-1"}
BROKEN = {
    **NEVER,
    "open": "[",
    "deep": "[" * 3000,
    "bomb": "[&a [x,x,x,x,x,x,x,x,x], &b [" + "*a," * 99 + "], &c [" + "*b," * 99 + "], [" + "*c," * 99 + "]]",
    "code": "!!python/object/apply:os.mkdir [it-ran]",
}
OF_KIND: dict[Any, dict[str, str]] = {
    int: NOT_WHOLE,
    float: NOT_NUMBER,
    bool: {"nothing": "", "word": "perhaps", "number": "1", "null": "null"},
    str: NEVER,
    Path: NEVER,
    list: NEVER,
    dict: {**BROKEN, "number": "3", "word": "x", "no key": "{1: 2}", "nan": "{a: .nan}", "twice": "{a: 1, a: 2}"},
}
ZERO = {"seed", "workers", "patience", "checkpoint_every", "clip", "weight_decay", "label_smoothing", "ema", "balance",
        "lr_warm_up", "warm_up"}  # fmt: skip
"""Numbers that may be 0."""
GIVEN = {
    "data": "pics", "model": "nets.py:small", "teacher": "teacher", "student": "nets.py:small", "out": "new",
    "methods": "kd", "students": "nets.py:small", "over": "lr=0.1", "what": "models", "run": "teacher",
    "runs": "teacher", "teacher_weights": "teacher",
}  # fmt: skip
"""Where an option must be given: a value that is fine."""


def commands(
    members: dict[str, Command | Group] = COMMANDS, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Command]]:
    """Every command with its words."""
    for word, member in members.items():
        if isinstance(member, Group):
            yield from commands(dict(member.members()), (*words, word))
        else:
            yield (*words, word), member


@functools.cache
def options_of(words: tuple[str, ...]) -> Options:
    return dict(commands())[words].options(" ".join(("reldistill", *words)))


def wrong_values(name: str, kind: Any) -> dict[str, str]:
    """What an option of that kind must refuse, by what is wrong with it."""
    kind = without_none(kind)
    if typing.get_origin(kind) is Literal:
        return {**NEVER, "word": "frob", "case": typing.get_args(kind)[0].swapcase()}
    inner = typing.get_args(kind)
    values = dict(OF_KIND[outer(kind)])
    if outer(kind) is list:
        values |= {
            "open": "[",
            "null": "[null]",
            "mapping": "[{a: 1}]",
            "number": "[x]" if inner[0] is float else "[1]",
        }
        values |= {k: v for k, v in OF_KIND[inner[0]].items() if inner[0] in (int, float)}
    if outer(kind) is str and inner:
        values |= {"negative": "-1", "zero": "0", "huge": str(10**30), "word": "some"}
    if kind in (int, float) and name not in ZERO:
        values["zero"] = "0"
    return values


ROWS = [(words, name) for words, _ in commands() for name in options_of(words).kinds]


class Begun(Exception):
    """Images, networks or other processes were touched before what was wrong was said."""


def _begin(*_: Any, **__: Any) -> typing.NoReturn:
    raise Begun


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Images, networks and a finished run, with the working directory among them."""
    folder = write_world(tmp_path_factory.mktemp("world"))
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert command.main(with_options(TRAIN, epochs=2, out="teacher")) == 0
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture
def nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read, built or started: whatever can be known to be wrong without it must be refused without it."""
    from reldistill.comparison import compare
    from reldistill.export import student_files
    from reldistill.networks import saved
    from reldistill.tasks.classification.task import ClassificationTask
    from reldistill.tasks.detection.task import DetectionTask

    for task in (ClassificationTask, DetectionTask):
        for work in ("read", "open", "open_alone", "graph"):
            monkeypatch.setattr(task, work, _begin)
    monkeypatch.setattr(compare, "run_all", _begin)
    for where, what in ((student_files, "open_network"), (saved, "open_network")):
        monkeypatch.setattr(where, what, _begin, raising=False)
    for words, one in commands():
        if len(words) == 1:
            patched = dataclasses.replace(one, options=lambda prog, words=words: options_of(words))
            monkeypatch.setitem(COMMANDS, words[0], patched)


def content(folder: Path) -> dict[str, int]:
    """Every file and folder, with its size."""
    return {str(path.relative_to(folder)): path.lstat().st_size for path in sorted(folder.rglob("*"))}


class Refused:
    """Runs commands that must be refused, and says what is wrong with how they are."""

    def __init__(self, world: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd, self.world = capfd, world
        self.before = content(world)

    def faults(self, arguments: list[str], *names: str) -> list[str]:
        self.capfd.readouterr()
        try:
            code: object = command.main(arguments)
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"[:200]
        out, err = self.capfd.readouterr()
        lines = [line for line in err.splitlines() if not line.startswith(("looking at", "pics: ", "warning: "))]
        said = err.replace("-", " ").replace("_", " ")
        found = {
            f"exit code {code}": code != 2,
            f"standard output: {out[:200]}": bool(out),
            f"{len(lines)} lines": len(lines) != 1,
            "does not begin with reldistill": not (lines and lines[-1].startswith("reldistill: ")),
            "is not named": not any(name.replace("-", " ").replace("_", " ") in said for name in names),
            "longer than 500 characters": len(err) > 500,
            "unprintable": any(not (c.isprintable() or c == "\n") for c in err),
            f"left {content(self.world).keys() - self.before.keys()}": content(self.world) != self.before,
            **{f"jargon: {word}": word in err for word in JARGON},
        }
        return [f"{fault} | {err[:300]!r}" for fault, is_so in found.items() if is_so]


@pytest.fixture
def refused(world: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    return Refused(world, capfd)


def command_with(words: tuple[str, ...], name: str, value: str) -> list[str]:
    """The command with everything that it needs, and one option as given."""
    options = options_of(words)
    given = {needed: GIVEN[needed] for needed in options.required()}
    given[name] = value
    places = [given.pop(place) for place in options.positional if place in given]
    return [*words, *(f"--{option.replace('_', '-')}={said}" for option, said in given.items()), "--", *places]


@pytest.mark.parametrize(("words", "name"), ROWS, ids=[" ".join((*words, name)) for words, name in ROWS])
def test_every_option_refuses_what_is_not_of_its_kind(
    words: tuple[str, ...], name: str, refused: Refused, nothing_begins: None
) -> None:
    kind = options_of(words).kinds[name]
    faults = {
        f"{what}: {fault}"
        for what, value in wrong_values(name, kind).items()
        for fault in refused.faults(command_with(words, name, value), name)
    }
    assert not faults, "\n".join(sorted(faults))


def test_the_table_is_as_large_as_it_should_be() -> None:
    assert sum(len(wrong_values(name, options_of(words).kinds[name])) for words, name in ROWS) > 2000
