"""What a command is, and how its options are derived from typed signatures and settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from reldistill.cli.options import Options
from reldistill.core.tasks import open_task
from reldistill.training.settings import DataSettings, PairSettings, TrainSettings

JSON_HELP = "print one JSON document on standard output, all else on standard error"
_OVER_HELP = (
    "one or two settings with their values: a part's weight (serkd.angle=1,10,50), a loss's setting (serkd:cell=1,2) "
    "or a number of training (lr=0.1,0.2)"
)
_TRUST_HELP = (
    "FILE.py:factory that made the network of a run, where the run is opened and the file is not named elsewhere; that "
    "file is run, as FILE.py:factory always does"
)
Given = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a command found: as JSON, as it is shown to a person, and the exit code."""

    json: Any
    show: Callable[[], None]
    code: int = 0


@dataclass(frozen=True)
class Command:
    """One word after `reldistill`.

    Args:
        summary: what it does.
        options: its options.
        run: does it.
    """

    summary: str
    options: Callable[[str], Options]
    run: Callable[[Given], Answer | None]


@dataclass(frozen=True)
class Group:
    """A word that is followed by one of several.

    Args:
        summary: what they are.
        members: word → command; only called when it is needed.
    """

    summary: str
    members: Callable[[], Mapping[str, Command | Group]]


def of_function(
    function: Callable[..., Answer | None], *, positional: Sequence[str] = (), opens_runs: bool = False
) -> Command:
    """A command whose options are a function's arguments, and whose networks it may trust where it opens runs."""

    def options(prog: str) -> Options:
        found = Options(prog, before_arguments(function))
        found.add(function, positional=positional)
        if opens_runs:
            add_trust(found)
        return found

    def run(given: Given) -> Answer | None:
        return function(**{name: given[name] for name in inspect.signature(function).parameters})

    return Command(first_sentence(function), options, run)


def of_settings(summary: str, run: Callable[[Given], Answer | None], *groups: type) -> Command:
    """A command of one run, whose options are those of groups of settings."""

    def options(prog: str) -> Options:
        found = Options(prog, summary)
        found.add_one("out", Path, "folder for everything that the run writes", required=True)
        found.add_one("resume", bool, "continue the run in --out from its last checkpoint", default=False)
        found.add_one("json", bool, JSON_HELP, default=False)
        add_trust(found)
        for group in groups:
            found.add(group)
        return found

    return Command(summary, options, run)


def of_cells(summary: str, run: Callable[[Given], Answer | None], *, sweep: bool) -> Command:
    """A command of many runs under the same conditions."""

    def options(prog: str) -> Options:
        found = Options(prog, summary)
        if sweep:
            found.add_one("students", list[str], "one or more, each as --student of distill takes it", required=True)
            found.add_one("over", list[str], _OVER_HELP, required=True)
        else:
            found.add_one("methods", list[str], "what to compare; several at once are joined by +", required=True)
        found.add_one("seeds", int, "runs of each, with seeds from --seed on", default=1 if sweep else 3)
        found.add_one("out", Path, "folder for all runs, tables and the page", required=True)
        found.add_one("jobs", int, "runs at a time, each in a process of its own", default=1)
        found.add_one("dry_run", bool, "list the runs and which of them are finished, and stop", default=False)
        found.add_one(
            "resume", bool, "accepted as elsewhere; a comparison always continues what is in --out", default=False
        )
        found.add_one("json", bool, JSON_HELP, default=False)
        add_trust(found)
        found.add(DataSettings, skip=["hold_out_test"])
        found.add(PairSettings, skip=["student"] if sweep else ["method"])
        found.add(TrainSettings)
        return found

    return Command(summary, options, run)


def before_arguments(function: Callable[..., Any]) -> str:
    """A function's docstring up to its arguments."""
    return (inspect.getdoc(function) or "").split("\n\nArgs:")[0]


def first_sentence(function: Callable[..., Any]) -> str:
    """The first paragraph of that, on one line."""
    return " ".join(before_arguments(function).split("\n\n")[0].split())


def add_trust(options: Options) -> None:
    """The option by which runs of networks from files are opened."""
    options.add_one("trust", list[str], _TRUST_HELP, default=[])


def part_of(given: Given, kind: type) -> Any:
    """One group of settings out of what was given."""
    return kind(**{field.name: given[field.name] for field in fields(kind)})


def know_task(given: str | None) -> None:
    """Register a user's own task from the file that was named, if any."""
    if given is not None:
        open_task(given)
