"""What a person sees while a run goes on: one bar an epoch on a terminal, one line an epoch anywhere else.

Everything goes to standard error, so that standard output holds results alone.
"""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from reldistill.report.words import duration
from reldistill.train.keeper import RunKeeper
from reldistill.train.module import DistillationModule

_REFRESH = 0.2


def console() -> Console:
    """Standard error, as rich sees it now."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


@rank_zero_only
def say(text: str) -> None:
    """One line to the user."""
    console().print(text, markup=False)


class Progress(L.Callback):
    """Shows epoch, batch, mean losses since the epoch began, last accuracy, and the time left of the whole run.

    Args:
        keeper: knows where the run is.
        label: what the run is called.
    """

    def __init__(self, keeper: RunKeeper, *, label: str) -> None:
        self.keeper = keeper
        self.label = label
        self._bars: Bars | None = None
        self._shown = 0.0
        self._began = 0.0
        self._done_before = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to measure."""
        assert isinstance(pl_module, DistillationModule)
        self._began = time.perf_counter()
        self._done_before = pl_module.batches_done

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A new bar, on a terminal."""
        if not trainer.is_global_zero or not console().is_terminal:
            return
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            console=console(),
            transient=True,
            auto_refresh=False,
        )
        self._bars.start()
        description = f"{self.label} epoch {self.keeper.epoch + 1}/{self.keeper.epochs}"
        self._bars.add_task(description, total=len(self.keeper.loader), completed=self.keeper.batch, values="")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar, a few times a second."""
        now = time.perf_counter()
        if self._bars is None or now - self._shown < _REFRESH:
            return
        self._shown = now
        assert isinstance(pl_module, DistillationModule)
        count = max(pl_module.part_batches, 1)
        values = [
            f"{name} {float(total) / count:.3g}" for name, total in pl_module.part_sums.items() if name != "total"
        ]
        text = "  ".join([*values[:4], f"{duration(self._time_left(pl_module))} left"])
        self._bars.update(self._bars.task_ids[0], completed=self.keeper.batch, values=text)
        self._bars.refresh()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The bar becomes a line that stays."""
        self._close()
        if not trainer.is_global_zero or not self.keeper.record.history:
            return
        assert isinstance(pl_module, DistillationModule)
        epoch, result = self.keeper.record.history[-1], self.keeper.record.result
        losses = "  ".join(f"{name} {value:.3g}" for name, value in epoch.train.items() if name != "total")
        say(
            f"{self.label}  epoch {epoch.epoch}/{self.keeper.epochs}  accuracy {epoch.val['accuracy']:.2f} %  "
            f"(best {result.accuracy_best:.2f})  {losses}  {duration(epoch.seconds)}, "
            f"{duration(self._time_left(pl_module))} left"
        )

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._close()

    def _time_left(self, module: DistillationModule) -> float:
        done = module.batches_done - self._done_before
        total = module.total_batches or module.batches_done
        return (time.perf_counter() - self._began) / max(done, 1) * (total - module.batches_done)

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
