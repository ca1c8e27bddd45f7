"""What runs in a process of its own: one cell, from its images to its test, with all its output in a log."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from reldistill.comparison.cells import Cell
from reldistill.comparison.measure import measure_cell, measure_reference
from reldistill.core.checks import UserError, one_line, system_error
from reldistill.core.safe_files import check_folder, no_links, remove_parts
from reldistill.core.trust import trust
from reldistill.report.comparison.cell_records import REFERENCE
from reldistill.runs.distill import distill
from reldistill.runs.opening import read_images, with_batches
from reldistill.training.settings import DataSettings, PairSettings, TrainSettings

LOG_FILE = "log.txt"


def run_cell(cell: Cell, root: Path) -> None:
    """Train a cell's student, or continue where it stopped, and look at the test images."""
    folder = root / cell.plan.cell
    models = (cell.networks.student, cell.networks.teacher)
    images = read_images(cell.data, cell.training, models=models)
    distill(cell.data, cell.networks, cell.training, out=folder, resume=True, images=images)
    measure_cell(
        dataclasses.replace(cell, training=with_batches(cell.training, images)),
        folder,
        images,
        reference=root / REFERENCE,
    )


def run_reference(
    data: DataSettings, pairs: Sequence[PairSettings], training: TrainSettings, methods: Sequence[str], root: Path
) -> None:
    """Measure what all cells have in common."""
    models = [name for pair in pairs for name in (pair.student, pair.teacher)]
    images = read_images(data, training, models=models)
    measure_reference(pairs, data, images, with_batches(training, images), methods, root / REFERENCE)


def in_process(
    work: Callable[[], None],
    folder: Path,
    answer: Connection,
    *,
    device: int | None,
    threads: int | None,
    trusted: Sequence[str] = (),
) -> None:
    """Do the work, its output going to the folder's log; send None, or the one line that says why it failed."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(device)
    if threads is not None:  # set here too, since the process that forks may be older than the number
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_folder(folder)
        remove_parts(folder)
        with open(folder / LOG_FILE, "ab", opener=no_links) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        trust(trusted)
        work()
    except (UserError, OSError) as error:
        reason = " ".join(str(error if isinstance(error, UserError) else system_error(error)).split())
        answer.send((reason, True))
        with contextlib.suppress(OSError):  # the log has no space either
            print(f"reldistill: {reason}", file=sys.stderr)
    except Exception as error:
        answer.send((one_line(error), False))
        traceback.print_exc()
    else:
        answer.send(None)


def _die_with_parent() -> None:
    """A comparison that was killed must not continue in its cells: the next one would write beside them."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
