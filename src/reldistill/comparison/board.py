"""What a person sees while cells run: on a terminal one display over all of them, elsewhere a line when one ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from reldistill.comparison.cells import Cell
from reldistill.comparison.pool import Failure, Job
from reldistill.core.checks import UserError
from reldistill.core.run_files import RECORD_FILE
from reldistill.report.record import read_record
from reldistill.training.progress import clock, console, say

_BAR = 20


class Board:
    """Says how many cells are done, which epoch the running ones are in, and how long the rest takes.

    Args:
        cells: all cells.
        finished: how many were finished before.
        root: the comparison's folder.
        at_once: cells that run at a time.
    """

    def __init__(self, cells: Sequence[Cell], *, finished: int, root: Path, at_once: int) -> None:
        self.cells = {cell.plan.cell: cell for cell in cells}
        self.root, self.at_once = root, at_once
        self.ended = finished
        self._waiting = {*self.cells}
        self._seconds: dict[str, list[float]] = {}
        self._epochs: dict[str, int] = {}
        self._began_at: dict[str, int] = {}
        self._bars: Bars | None = None

    def __enter__(self) -> Board:
        if console().is_terminal:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=_BAR),
                TextColumn("{task.fields[values]}", markup=False),
                console=console(),
                transient=True,
                auto_refresh=False,
            )
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def end(self, job: Job, failure: Failure | None, accuracy: float | None) -> None:
        """A cell is over: a line that stays."""
        cell = self.cells[job.name]
        self._waiting.discard(job.name)
        self.ended += 1
        seconds = time.monotonic() - job.began
        first = not self._seconds
        if failure is None:
            self._seconds.setdefault(cell.plan.variant, []).append(seconds)
        result = f"failed: {failure.reason}" if failure else f"test {accuracy:.2f} %  {clock(seconds)}"
        self._say(f"{self.ended}/{len(self.cells)}  {name_of(cell)}  {result}")
        if first and self._waiting and (left := self._time_left([])) is not None:
            self._say(f"about {clock(left)} for the rest, if it takes as long")

    def look(self, running: Sequence[Job]) -> None:
        """Move the bars."""
        for job in running:
            self._waiting.discard(job.name)
            self._epochs[job.name] = epochs_done(self.root / job.name)
            self._began_at.setdefault(job.name, self._epochs[job.name])
        if self._bars is None:
            return
        for task in self._bars.task_ids:
            self._bars.remove_task(task)
        for job in running:
            cell, done = self.cells[job.name], self._epochs[job.name]
            epochs = cell.training.epochs
            values = f"epoch {min(done + 1, epochs)}/{epochs}"
            self._bars.add_task(name_of(cell), total=epochs, completed=done, values=values)
        left = self._time_left(running)
        values = f"{self.ended}/{len(self.cells)} cells" + (f"  {clock(left)} left" if left is not None else "")
        self._bars.add_task("all", total=len(self.cells), completed=self.ended, values=values)
        self._bars.refresh()

    def _time_left(self, running: Sequence[Job]) -> float | None:
        """Seconds until the last cell ends, judged by those that have ended and by the epochs of the running ones."""
        now, shares = time.monotonic(), dict[str, float]()
        for job in running:
            epochs = self.cells[job.name].training.epochs
            gone = self._epochs[job.name] - self._began_at[job.name]
            if gone:
                shares[job.name] = (now - job.began) / gone * (epochs - self._began_at[job.name])
        known = [second for seconds in self._seconds.values() for second in seconds] or list(shares.values())
        if not known:
            return None
        usual = sum(known) / len(known)

        def whole(name: str) -> float:
            own = self._seconds.get(self.cells[name].plan.variant)
            return shares.get(name) or (sum(own) / len(own) if own else usual)

        rest = [whole(name) for name in self._waiting]
        rest += [max(whole(job.name) - (now - job.began), 0.0) for job in running]
        return max(sum(rest) / self.at_once, *rest, 0.0) if rest else 0.0

    def _say(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(text, markup=False)
        else:
            say(text)


def name_of(cell: Cell) -> str:
    """As it is called on the display."""
    return f"{cell.plan.variant}, seed {cell.plan.seed}"


def epochs_done(folder: Path) -> int:
    """Epochs in a run's record so far."""
    try:
        return len(read_record(folder).history) if (folder / RECORD_FILE).is_file() else 0
    except UserError:  # replaced while it was read
        return 0
