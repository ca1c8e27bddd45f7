"""What a person sees during a run: a bar on a terminal, and everywhere one line per epoch that stays.

Everything goes to standard error, so that standard output holds results alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from reldistill.core.checks import printable
from reldistill.step.distiller import TASK
from reldistill.training.keeper import RunKeeper
from reldistill.training.module import DistillationModule, own_module

_TOTAL = "total"
_REFRESH = 0.2
_BAR = 20
_LONGEST_LABEL = 20


def console() -> Console:
    """Standard error, as rich sees it now."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


@rank_zero_only
def say(text: str) -> None:
    """One line to the user."""
    console().print(printable(text), markup=False)


class Progress(L.Callback):
    """Shows epoch, batch, mean losses since the epoch began, accuracy, and the time left of the whole run.

    Args:
        keeper: knows where the run is.
        label: what the run is called.
    """

    def __init__(self, keeper: RunKeeper, *, label: str) -> None:
        self.keeper = keeper
        self.label = label if len(label) <= _LONGEST_LABEL else f"…{label[1 - _LONGEST_LABEL :]}"
        self._bars: Bars | None = None
        self._shown = 0.0
        self._began = 0.0
        self._done_before = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to measure."""
        pl_module = own_module(pl_module)
        self._began = time.perf_counter()
        self._done_before = pl_module.batches_done

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A new bar, on a terminal."""
        terminal = console()
        if not trainer.is_global_zero or not terminal.is_terminal:
            return
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=_BAR),
            TextColumn("{task.fields[values]}", markup=False),
            console=terminal,
            transient=True,
            auto_refresh=False,
        )
        self._bars.start()
        self._bars.add_task(
            self._place(self.keeper.epoch + 1), total=len(self.keeper.loader), completed=self.keeper.batch, values=""
        )
        self._bars.refresh()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, a few times a second."""
        now = time.perf_counter()
        if self._bars is None or now - self._shown < _REFRESH:
            return
        self._shown = now
        pl_module = own_module(pl_module)
        count = max(pl_module.part_batches, 1)
        loss = float(pl_module.part_sums[_TOTAL]) / count
        done = f"{self.keeper.batch}/{len(self.keeper.loader)}"
        text = f"{done}  loss {loss:.3g}  {clock(self._time_left(pl_module))} left"
        self._bars.update(self._bars.task_ids[0], completed=self.keeper.batch, values=text)
        self._bars.refresh()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The bar becomes a line that stays."""
        self._close()
        if not trainer.is_global_zero or not self.keeper.record.history:
            return
        pl_module = own_module(pl_module)
        record = self.keeper.record
        epoch, score = record.history[-1], record.score
        start = self._place(epoch.epoch)
        if score.name in epoch.val:
            reached = f"{'' if score.counted else f'{score.name} '}{epoch.val[score.name]:5.2f} %"
            start += f"  {reached} {'best' if record.result.best_epoch == epoch.epoch else '    '}"
        end = clock(epoch.seconds)
        if self.keeper.epochs_left:
            end += f", {clock(self._time_left(pl_module))} left"
        terminal = console()
        room = terminal.width - len(start) - len(end) - 4 if terminal.is_terminal else None
        say(f"{start}  {losses(epoch.train, room=room)}  {end}")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Release the terminal."""
        self._close()

    def _place(self, epoch: int) -> str:
        total = str(self.keeper.epochs)
        return f"{self.label} {epoch:>{len(total)}}/{total}"

    def _time_left(self, module: DistillationModule) -> float:
        done = module.batches_done - self._done_before
        total = module.total_batches or module.batches_done
        return (time.perf_counter() - self._began) / max(done, 1) * (total - module.batches_done)

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def losses(parts: Mapping[str, float], *, room: int | None = None) -> str:
    """The total and its parts by their short names, as many as there is room for.

    >>> losses({"task": 0.5, "kd": 0.25, "serkd.angle": 0.125, "total": 0.875})
    'loss 0.875: task 0.5, kd 0.25, angle 0.125'
    >>> losses({"task": 0.5, "kd": 0.25, "serkd.angle": 0.125, "total": 0.875}, room=30)
    'loss 0.875: task 0.5, …'
    >>> losses({"task": 0.5, "total": 0.5})
    'loss 0.5'
    """
    text = f"loss {parts[_TOTAL]:.3g}"
    names = sorted((name for name in parts if name != _TOTAL), key=lambda name: name != TASK)
    rest = {name: parts[name] for name in names}
    if len(rest) < 2:
        return text
    short = Counter(name.rpartition(".")[2] for name in rest)
    shown = []
    for name, value in rest.items():
        last = name.rpartition(".")[2]
        shown.append(f"{last if short[last] == 1 else name} {value:.3g}")
    for count in range(len(shown), 0, -1):
        words = shown[:count] + (["…"] if count < len(shown) else [])
        full = f"{text}: {', '.join(words)}"
        if room is None or len(full) <= room:
            return full
    return text


def clock(seconds: float) -> str:
    """A time in as few characters as possible.

    >>> [clock(s) for s in (0.04, 8.76, 42.1, 125, 3720)]
    ['0.0 s', '8.8 s', '42 s', '2:05 min', '1:02 h']
    """
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"
