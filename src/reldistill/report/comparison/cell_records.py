"""The cells of a comparison as their folders tell them: which runs there are to be, and what came of each."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reldistill.core.checks import UserError, escaped, printable
from reldistill.core.run_files import RECORD_FILE
from reldistill.core.safe_read import Unreadable, parse_json, read_file
from reldistill.report.record import RunRecord, encode, read_record

TEST_FILE = "test.json"
ARRAYS_FILE = "test.npz"
FAILED_FILE = "failed.txt"
REFERENCE = "reference"

CellStatus = Literal["finished", "failed", "unfinished", "waiting"]


@dataclass(frozen=True)
class CellPlan:
    """One run of a comparison, before it is made.

    Args:
        cell: its folder below the comparison's.
        variant: what is compared: a method, or a point of a grid (with its student, where there are several).
        method: as `--method` takes it.
        student: as `--student` takes it.
        seed: of the run.
        point: setting name → value, in a sweep.
    """

    cell: str
    variant: str
    method: str
    student: str
    seed: int
    point: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TestRecord:
    """`test.json`: the one look at the test images after a run has ended. Shares in percent, memory in bytes.

    Args:
        test_last: score (accuracy, AP) with the last epoch's weights.
        test_best: score with the weights of the epoch that was best on the validation images.
        agreement: test images on which the last epoch's student and the teacher say the same class.
        calibration_error: expected calibration error over 15 bins, last epoch.
        correlation_gap: mean difference of teacher's and student's correlations between two classes' logits.
        peak_memory: of the run's process; on a GPU, of the tensors there.
        test_images: how many.
    """

    test_last: float
    test_best: float
    agreement: float | None
    calibration_error: float | None
    correlation_gap: float | None
    peak_memory: int
    test_images: int


@dataclass(frozen=True)
class CellResult:
    """A cell and what its folder holds."""

    plan: CellPlan
    folder: Path
    status: CellStatus
    reason: str | None = None
    record: RunRecord | None = None
    test: TestRecord | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """`test.npz`: what the test images' figures follow from."""
        return read_arrays(self.folder / ARRAYS_FILE)


def read_cell(root: Path, plan: CellPlan) -> CellResult:
    """What has come of a cell so far."""
    folder = root / plan.cell
    record = read_record(folder) if (folder / RECORD_FILE).is_file() else None
    if (folder / TEST_FILE).is_file():
        return CellResult(plan, folder, "finished", None, record, read_fields(TestRecord, folder / TEST_FILE))
    if (folder / FAILED_FILE).is_file():
        reason = printable((folder / FAILED_FILE).read_text(encoding="utf-8", errors="replace").strip())
        return CellResult(plan, folder, "failed", reason, record)
    return CellResult(plan, folder, "waiting" if record is None else "unfinished", None, record)


def read_fields(kind: Any, path: Path) -> Any:
    """A dataclass of plain fields from a JSON file.

    Raises:
        UserError: when the file is not what this version writes.
    """
    content = read_json(path)
    try:
        return kind(**{item.name: content[item.name] for item in fields(kind)})
    except KeyError as error:
        raise UserError(f"{path} lacks {error}: it was edited or comes from another version; remove it") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: when it cannot be read.
    """
    try:
        content = escaped(parse_json(read_file(path)))
    except Unreadable as error:
        raise UserError(f"{path} {error}: it was edited or cut short") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: it was edited")
    return content


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file.

    Raises:
        UserError: when it cannot be read.
    """
    try:
        with np.load(io.BytesIO(read_file(path)), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"cannot read {path} ({reason}): remove its folder, and its run is made again") from None


def dump_json(content: Any) -> str:
    """JSON as all files of a comparison are written: readable, without nan and inf."""
    return json.dumps(encode(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
