"""Which tasks there are: the table that a new task adds one line to, and where a user's own task is registered."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from reldistill.core.checks import UserError
from reldistill.core.user_code import importable_beside, run_file

FALLBACK = "classification"
"""The task of data that no task claims by their name."""

# Task → where it is. Imported when it is first asked for, so that a command's help costs nothing.
_TASKS = {
    "classification": "reldistill.tasks.classification.task:ClassificationTask",
    "detection": "reldistill.tasks.detection.task:DetectionTask",
    "features": "reldistill.tasks.features.task:FeaturesTask",
}
_opened: dict[str, Any] = {}
_of_files: dict[str, tuple[ModuleType, str]] = {}


def task_names() -> list[str]:
    """Every task that can be asked for by name."""
    return list(dict.fromkeys([*_TASKS, *_opened]))


def register_task(task: Any) -> None:
    """Register your own task by its `name` in this process; see `tasks.base.Task` for what it must have.

    Raises:
        UserError: when a task of the library has that name.
    """
    if task.name in _TASKS:
        raise UserError(f"task '{task.name}' is one of reldistill's own: give yours another name")
    _opened[task.name] = task


def open_task(given: str) -> Any:
    """The task of a name, or the one that `FILE.py:NAME` makes; that runs the file.

    Args:
        given: what `--task` was given.

    Raises:
        UserError: when there is no such task.
    """
    if ".py:" not in given:
        return known_task(given)
    file, _, kind = given.rpartition(":")
    path = Path(file).expanduser()
    with importable_beside(path):
        module = run_file(path, what=f"task {given}")
    if not callable(getattr(module, kind, None)):
        raise UserError(f"task {given}: {path.name} defines no class {kind!r}")
    if _of_files.get(_key(given), (module, ""))[0] is not module:
        raise UserError(f"task {given}: another file of that name has given a task already: rename one of them")
    if _key(given) not in _of_files:
        task = getattr(module, kind)()
        register_task(task)
        _of_files[_key(given)] = (module, task.name)
    return known_task(given)


def _key(given: str) -> str:
    """A file's task wherever the file lies, as a record may name it from another folder."""
    return Path(given).name


def known_task(name: str) -> Any:
    """The task of a name, from the library or registered in this process. Never runs a file.

    Raises:
        UserError: when there is none.
    """
    name = _of_files[_key(name)][1] if _key(name) in _of_files else name
    if name not in _opened:
        if name not in _TASKS:
            own = " Is it one of your own? Name its file: --task FILE.py:NAME"
            raise UserError(f"task '{name}' is unknown: choose one of {', '.join(task_names())}.{own}")
        module, _, kind = _TASKS[name].partition(":")
        _opened[name] = getattr(importlib.import_module(module), kind)()
    return _opened[name]


def claimants(data: str) -> list[str]:
    """The tasks that know a data set by the look of its name, e.g. `coco:DIR`."""
    return [name for name in task_names() if known_task(name).claims(data)]


def task_naming(network: str) -> Any | None:
    """The task that alone knows a network by that name; None where any task may open it, or none knows it."""
    return next((task for task in map(known_task, task_names()) if task.names_network(network)), None)


def task_of_data(data: str, *, task: str = "auto") -> str:
    """Which task a data set is for: the one that was asked for, else the one that claims it, else the fallback.

    Args:
        data: the data set's name.
        task: what the user asked for; `auto` leaves it to the name.

    Raises:
        UserError: when the task that was asked for and the data do not go together.
    """
    claiming = claimants(data)
    if task == "auto":
        return claiming[0] if claiming else FALLBACK
    asked = open_task(task)
    others = [name for name in claiming if name != asked.name]
    if others or not asked.reads(data):
        expected = known_task(others[0]) if others else asked
        raise UserError(f"--task {task} --data {data}: {expected.data_help}")
    return task
