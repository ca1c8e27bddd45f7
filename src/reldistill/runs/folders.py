"""A run's folder: who may write into it, the run's settings, by which command and when."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from reldistill.core.checks import UserError
from reldistill.core.run_files import RECORD_FILE
from reldistill.core.safe_files import check_folder, remove_parts
from reldistill.report.record import RunRecord, read_record
from reldistill.training.settings import DEFAULTS, TrainSettings

_LOCK = ".lock"
LEFT_OPEN = ("batch_size",)
"""What is settled when the images are known, and then stays as it was."""
MAY_CHANGE_ON_RESUME = {"devices", "nodes", "accelerator", "workers", "wandb", "checkpoint_every", "download"}


@contextlib.contextmanager
def claimed(out: Path, settings: dict[str, Any], *, resume: bool) -> Iterator[RunRecord | None]:
    """A run's folder for this run alone; the record that is in it, or None.

    A run that is continued computes with as many threads as it began with: sums are rounded by how they are shared out.

    Raises:
        UserError: another run is in it and would be overwritten, or another process is working in it.
    """
    if rank():
        # The first process has looked at the folder, and has begun to write into it.
        found = read_record(out) if (out / RECORD_FILE).is_file() else None
        with _threads_of(found):
            yield found if found and found.status == "finished" else None
        return
    refuse_among_data(out, settings["data"])
    with locked(out):
        previous = _previous(out, settings, resume=resume)
        with _threads_of(previous):
            yield previous


@contextlib.contextmanager
def _threads_of(record: RunRecord | None) -> Iterator[None]:
    """As many threads within an operation as the run on record had."""
    import torch  # here, as a command's help needs the folder's rules but no torch

    here = torch.get_num_threads()
    torch.set_num_threads(record.environment.get("threads", here) if record else here)
    try:
        yield
    finally:
        torch.set_num_threads(here)


def _previous(out: Path, settings: dict[str, Any], *, resume: bool) -> RunRecord | None:
    if not os.path.lexists(out / RECORD_FILE):
        return None
    if not resume:
        raise UserError(f"{out} already holds a run: continue it with --resume, or give another --out")
    record = read_record(out)
    refuse_changes(record.settings, settings, what=f"the run in {out}")
    return record


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """A folder that can be written to, made if need be, for this process alone; of files it holds only regular ones.

    Where nothing has been written when an error ends it, the folders that were made for it are gone again.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    make_folder(out)
    check_folder(out)
    lock = FileLock(out / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process is working in {out}: wait for it, or give another --out") from None
    remove_parts(out)
    try:
        yield
    finally:
        (out / _LOCK).unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):  # the first that holds something ends it
            for folder in made:
                folder.rmdir()


def refuse_among_data(out: Path, data: str) -> None:
    """UserError where what is written would be read as data the next time."""
    for text in (data, data.partition(":")[2]):
        folder = Path(text).expanduser()
        if text and folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--out {out} lies in the folder of the data, {folder}: give another --out")


def refuse_changes(before: Mapping[str, Any], settings: Mapping[str, Any], *, what: str) -> None:
    """UserError for a setting that would change what comes out of work that has begun."""
    for name, value in settings.items():
        if name in LEFT_OPEN and value is None:
            continue
        # an earlier version, which had no such setting, did what its default says
        was = before.get(name, DEFAULTS.get(name))
        if name not in MAY_CHANGE_ON_RESUME and was != value:
            raise UserError(
                f"{what} was started with {name} = {was}, not {value}: resume it as it was started, or give "
                f"another --out"
            )


def as_begun(training: TrainSettings, out: Path) -> TrainSettings:
    """The settings with what was settled when the run in a folder began, where one did."""
    before = recorded_settings(str(out))
    settled = [name for name in LEFT_OPEN if getattr(training, name) is None and name in before]
    return dataclasses.replace(training, **{name: before[name] for name in settled})


def rank() -> int:
    """This process's number among those of a run, as far as the environment tells."""
    return next((int(os.environ[n]) for n in ("RANK", "LOCAL_RANK", "NODE_RANK") if os.environ.get(n)), 0)


def make_folder(out: Path) -> None:
    """A folder that can be written to; UserError where there can be none."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--out {out}: that is a file, or lies in one: give a folder") from None
    except OSError as error:
        raise UserError(f"--out {out} can't be written to ({error.strerror}): give another folder") from None


def recorded_settings(model: str) -> dict[str, Any]:
    """A run's settings, where `model` is a run's folder."""
    return read_record(model).settings if (Path(model) / RECORD_FILE).is_file() else {}


def command_line() -> list[str]:
    """The argument vector that repeats what this process does."""
    name = Path(sys.argv[0]).name
    return ["reldistill" if name in ("reldistill", "__main__.py") else name, *sys.argv[1:]]


def now() -> str:
    """ISO 8601, with time zone."""
    return datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
