"""The command `reldistill`: every command's options come from a typed signature; heavy imports wait until they run."""

from __future__ import annotations

import contextlib
import difflib
import json as json_format
import logging
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reldistill.cli.forms import Command, Group
from reldistill.cli.table import COMMANDS
from reldistill.core.checks import UserError, printable, system_error
from reldistill.core.trust import forget, trust
from reldistill.runs.folders import rank


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the result is the exit code.

    0, or 1 where some of a comparison's runs failed, 2 after bad input, 130 after an interrupt.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _dispatch(given)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"reldistill: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "reldistill: stopped; the same command with --resume continues from the last checkpoint",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        _drop_output()
    except OSError as error:  # no space, no permission, a folder that has gone
        print(f"reldistill: {' '.join(printable(system_error(error)).split())}", file=sys.stderr)
        _drop_output()
        return 2
    return 0


def _drop_output() -> None:
    """Where standard output cannot be written to, the interpreter must not try again at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(given: list[str]) -> int:
    if given == ["--version"]:
        import reldistill

        print(f"reldistill {reldistill.__version__}")
        return 0
    name, rest = "reldistill", given
    chosen: Command | Group = Group(
        "Distil the relations inside a large vision model into a small one.", lambda: COMMANDS
    )
    while isinstance(chosen, Group):
        members = chosen.members()
        if not rest or rest[0] in ("-h", "--help"):
            print(_overview(name, chosen.summary, members))
            return 0
        chosen = _member(rest[0], members, prog=name)
        name, rest = f"{name} {rest[0]}", rest[1:]
    try:
        values = chosen.options(name).parse(rest)
    except SystemExit:  # after --help and --print_config
        return 0
    forget()
    trust(values.get("trust") or ())
    with _results_only(), _own_warnings():
        answer = chosen.run(values)
    if answer is not None and values["json"]:
        print(_json(answer.json))
    elif answer is not None:
        answer.show()
    return answer.code if answer is not None else 0


def _json(content: Any) -> str:
    """JSON in which no character of a file's name can move the cursor, and none is half a character."""
    text = json_format.dumps(content, indent=2, ensure_ascii=False)
    return "\n".join("".join(f"\\u{ord(c):04x}" if printable(c) != c else c for c in line) for line in text.split("\n"))


def _member(word: str, members: Mapping[str, Command | Group], *, prog: str) -> Command | Group:
    if word in members:
        return members[word]
    see = f"(see: {prog} --help)"
    if word.startswith("-"):
        raise UserError(f"{word} must come after one of {', '.join(members)} {see}")
    close = difflib.get_close_matches(word, members, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(members)}"
    raise UserError(f"{prog} has no '{word}': {hint} {see}")


def _overview(prog: str, summary: str, members: Mapping[str, Command | Group]) -> str:
    width = min(shutil.get_terminal_size().columns, 100) - 2
    indent = max(map(len, members)) + 4
    lines = [
        textwrap.fill(member.summary, width, initial_indent=f"  {name}".ljust(indent), subsequent_indent=" " * indent)
        for name, member in members.items()
    ]
    usage = f"{prog} {'COMMAND' if prog == 'reldistill' else 'NAME'}"
    return "\n".join([f"usage: {usage} [options]", "", summary, "", *lines, "", f"{usage} --help explains each."])


@contextlib.contextmanager
def _results_only() -> Iterator[None]:
    """Send what libraries and child processes print to standard error: standard output is for the command's result."""
    sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ValueError):  # closed, or not a file
            kept = os.dup(1)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 1)
            os.dup2(2, 1)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


@contextlib.contextmanager
def _own_warnings() -> Iterator[None]:
    """Show this package's warnings as one line each; those of libraries are for programmers, unless asked for by -W."""
    if sys.warnoptions:
        yield
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if rank():
        logging.getLogger("reldistill").setLevel(logging.ERROR)  # the first process logs it
    package = str(Path(__file__).parents[1])

    def show(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
        if filename.startswith(package) and not rank():
            print(f"warning: {printable(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield
