"""A user's own Python files, named as `FILE.py:name`: run only where the user names them."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from reldistill.core.checks import UserError, one_line
from reldistill.core.safe_read import Unreadable, read_file


@contextlib.contextmanager
def importable_beside(path: Path) -> Iterator[None]:
    """Let a user's file import its neighbours, as it can when run as a script."""
    folder = os.path.dirname(os.path.realpath(path))
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def run_file(path: Path, *, what: str) -> ModuleType:
    """The module that a Python file makes, run once for each content of the file.

    Args:
        path: the file.
        what: how to call it in an error.

    Raises:
        UserError: when there is no such file, or it does not run.
    """
    try:
        content = read_file(path)
    except Unreadable as error:
        missing = "no such Python file: " if not os.path.lexists(path) else ""
        raise UserError(f"{what}: {missing}{path}{'' if missing else f' {error}'}") from None
    digest = hashlib.sha256(os.path.realpath(path).encode() + content).hexdigest()[:16]
    name = f"reldistill_file_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise UserError(f"{what}: {path} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        # Not the loader's own way: it may take stale bytecode of a file that was changed within the second.
        exec(compile(content, str(path), "exec"), module.__dict__)
    except KeyboardInterrupt:
        del sys.modules[name]
        raise
    except BaseException as error:  # SystemExit too, and whatever else
        del sys.modules[name]
        raise UserError(f"{what}: {path} could not be run: {one_line(error)}{_line_in(path, error)}") from error
    return module


def _line_in(path: Path, error: BaseException) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f" (line {lines[-1]})" if lines else ""
