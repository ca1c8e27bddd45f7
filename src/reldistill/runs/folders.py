"""A run's folder: who may write into it, what the run in it was told, by which command and when."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from reldistill.core.checks import UserError
from reldistill.core.run_files import RECORD_FILE
from reldistill.report.record import RunRecord, read_record
from reldistill.training.settings import DEFAULTS

MAY_CHANGE_ON_RESUME = {"devices", "nodes", "accelerator", "workers", "wandb", "checkpoint_every", "download"}


def claim_folder(out: Path, settings: dict[str, Any], *, resume: bool) -> RunRecord | None:
    """The record that is in the folder; UserError where it belongs to another run and would be overwritten."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        # The first process has looked at the folder, and has begun to write into it.
        found = read_record(out) if (out / RECORD_FILE).is_file() else None
        return found if found and found.status == "finished" else None
    make_folder(out)
    if not (out / RECORD_FILE).is_file():
        return None
    if not resume:
        raise UserError(f"{out} already holds a run: continue it with --resume, or give another --out")
    for half_written in out.glob(".*.part"):
        half_written.unlink(missing_ok=True)
    record = read_record(out)
    refuse_changes(record.settings, settings, what=f"the run in {out}")
    return record


def refuse_changes(before: Mapping[str, Any], settings: Mapping[str, Any], *, what: str) -> None:
    """UserError for a setting that would change what comes out of work that has begun."""
    for name, value in settings.items():
        # an earlier version, which had no such setting, did what its default says
        was = before.get(name, DEFAULTS.get(name))
        if name not in MAY_CHANGE_ON_RESUME and was != value:
            raise UserError(
                f"{what} was started with {name} = {was}, not {value}: resume it as it was started, or give another "
                f"--out"
            )


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
    """What a run was told, where `model` is a run's folder."""
    return read_record(model).settings if (Path(model) / RECORD_FILE).is_file() else {}


def command_line() -> list[str]:
    """The argument vector that repeats what this process does."""
    name = Path(sys.argv[0]).name
    return ["reldistill" if name in ("reldistill", "__main__.py") else name, *sys.argv[1:]]


def now() -> str:
    """ISO 8601, with time zone."""
    return datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds")
