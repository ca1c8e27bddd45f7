"""What happens around the steps of a run: its place in training, checkpoints, record, logs, early stop."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import numpy as np
import torch
from torch import Tensor

from reldistill.core.checks import UserError
from reldistill.core.csv_text import csv_text
from reldistill.core.safe_files import write_bytes, write_text
from reldistill.core.types import Batch
from reldistill.report.record import Epoch, Result, RunRecord, result_of, write_record
from reldistill.training.checkpoint import BEST, LAST, pack, restore
from reldistill.training.module import DistillationModule, own_module, without_teacher

_LOG_EVERY = 50
METRICS_FILE = "metrics.csv"
_OF_AN_EPOCH = ("epoch", "step", "seconds", "learning_rate")


@runtime_checkable
class BatchLoader(Protocol):
    """Batches whose every random choice follows from the position: see `data.loader`."""

    def __len__(self) -> int:
        """Batches in an epoch."""
        ...

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Where the next iteration begins."""
        ...

    def __iter__(self) -> Iterator[Batch]: ...


class _Epoch:
    """The batches of one epoch from a given one on, with the number that are left as its length."""

    def __init__(self, loader: BatchLoader, *, epoch: int, batch: int) -> None:
        self.loader, self.epoch, self.batch = loader, epoch, batch

    def __len__(self) -> int:
        return len(self.loader) - self.batch

    def __iter__(self) -> Iterator[Batch]:
        self.loader.set_position(self.epoch, self.batch)
        return iter(self.loader)


class RunKeeper(L.Callback):
    """Keeps one run: seeds every step by its position, saves `last` and `best`, writes the record after every epoch.

    Args:
        folder: the run's folder.
        record: the run's record, complete but for its history.
        loader: the training batches.
        seed: the run's seed.
        epochs: passes over the training images.
        validate_every: epochs from one look at the validation images to the next; the last epoch always has one.
        patience: epochs without a better validation accuracy after which the run ends; 0 for never.
        checkpoint_every: steps between checkpoints within an epoch; 0 for none.
        resume: content of a checkpoint to continue from.
    """

    def __init__(
        self,
        folder: Path,
        record: RunRecord,
        *,
        loader: BatchLoader,
        seed: int,
        epochs: int,
        validate_every: int = 1,
        patience: int = 0,
        checkpoint_every: int = 0,
        resume: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.record = record
        self.loader = loader
        self.seed = seed
        self.epochs = epochs
        self.validate_every = validate_every
        self.patience = patience
        self.checkpoint_every = checkpoint_every
        self.resume = resume
        self.epoch = 0
        self.batch = 0
        self.steps = 0
        self._seconds = 0.0
        self._durations: list[float] = []
        self._clock = 0.0
        if resume is not None:
            position = resume["position"]
            self.epoch, self.batch, self.steps = position["epoch"], position["batch"], position["steps"]
            self._seconds = position["seconds"]
            self.record.history = [Epoch(**epoch) for epoch in position["history"]]
            self.record.result, self.record.notes = Result(**position["result"]), list(position["notes"])

    def remaining(self) -> _Epoch:
        """The batches that are left of the current epoch: what the Trainer is to run through."""
        return _Epoch(self.loader, epoch=self.epoch, batch=self.batch)

    @property
    def epochs_left(self) -> int:
        """Epochs still to run, the current one included."""
        best = self.record.result.best_epoch or 0
        impatient = self.patience and self.epoch - best >= self.patience
        # never after an epoch that was not validated: the last epoch's score is on record
        return 0 if impatient and self.record.history[-1].val else self.epochs - self.epoch

    @property
    def validates(self) -> bool:
        """Whether the current epoch ends with a look at the validation images."""
        done = self.epoch + 1
        return done % self.validate_every == 0 or done == self.epochs

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go back to where a checkpoint left the run."""
        pl_module = own_module(pl_module)
        if self.resume is not None:
            restore(self.resume, pl_module, trainer)
            self.resume = None
        self._clock = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the Trainer validate this epoch, or not."""
        trainer.limit_val_batches = 1.0 if self.validates else 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Make dropout and the like a function of seed, position and rank; set which view of the images this is."""
        torch.manual_seed(_mix(self.seed, self.epoch, self.batch, trainer.global_rank))
        pl_module = own_module(pl_module)
        if pl_module.teacher_cache is not None:
            pl_module.teacher_cache.view = self.epoch % pl_module.teacher_cache.views

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, log now and then, and save within the epoch where asked."""
        pl_module = own_module(pl_module)
        self.batch += 1
        last = self.batch == len(self.loader)
        stepped = self.batch % trainer.accumulate_grad_batches == 0 or last
        self.steps += stepped
        now = time.perf_counter()
        self._durations.append(now - self._clock)
        self._seconds += now - self._clock
        self._clock = now
        if stepped and self.steps % _LOG_EVERY == 0:
            values = {
                f"train/{name}": float(total) / pl_module.part_batches for name, total in pl_module.part_sums.items()
            }
            self._log(trainer, {**values, "lr": trainer.optimizers[0].param_groups[0]["lr"]})
        due = bool(self.checkpoint_every) and self.steps % self.checkpoint_every == 0
        if stepped and not last and (due or trainer.received_sigterm):
            self._save(trainer, pl_module, best=False)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the epoch to the record and save `last`, and `best` where it is."""
        pl_module = own_module(pl_module)
        now = time.perf_counter()
        self._seconds += now - self._clock
        self._clock = now
        epoch = Epoch(
            epoch=self.epoch + 1,
            step=self.steps,
            seconds=round(self._seconds, 3),
            learning_rate=trainer.optimizers[0].param_groups[0]["lr"],
            train=pl_module.part_means(),
            val=dict(pl_module.evaluator.found) if self.validates else {},
        )
        self._check_finite(pl_module, epoch)
        self.record.history.append(epoch)
        self._update_record(pl_module, trainer)
        self.epoch, self.batch, self._seconds, self._durations = self.epoch + 1, 0, 0.0, []
        self._log(trainer, {f"val/{name}": value for name, value in epoch.val.items()})
        self._save(trainer, pl_module, best=self.record.result.best_epoch == epoch.epoch)
        trainer.should_stop = self.epochs_left == 0
        self._clock = time.perf_counter()

    def _check_finite(self, module: DistillationModule, epoch: Epoch) -> None:
        """UserError before anything is written of an epoch that left no usable network."""
        bad = [name for name, value in epoch.val.items() if not math.isfinite(value)]
        bad += [name for name, tensor in without_teacher(module.state_dict()).items() if not _is_finite(tensor)]
        if bad:
            raise UserError(
                f"epoch {epoch.epoch} ended with values that are not finite ({', '.join(bad[:3])}): lower the learning "
                f"rate, clip the gradient (--clip 1), or train with --precision 32-true"
            )

    def _update_record(self, module: DistillationModule, trainer: L.Trainer) -> None:
        durations = self._durations[1:] or self._durations
        seconds = statistics.median(durations) if durations else None
        batch_size = self.record.settings["batch_size"]
        by_image = self.record.result.by_image
        if self.validates:
            by_image = module.evaluator.write(self.folder) if trainer.is_global_zero else None
        self.record.result = result_of(
            self.record.history,
            score=self.record.score,
            val_images=self.record.data.val_images,
            seconds_per_step=seconds,
            images_per_second=batch_size / seconds if seconds else None,
            by_image=by_image,
        )
        self.record.notes = [*dict.fromkeys([*self.record.notes, *module.notes])]

    def _save(self, trainer: L.Trainer, module: DistillationModule, *, best: bool) -> None:
        if trainer.world_size > 1:  # one file serves all ranks, so what it holds must be true of all
            module.part_sums = {n: trainer.strategy.reduce(module.part_sums[n]) for n in sorted(module.part_sums)}
        if module.teacher_cache is not None:  # before the checkpoint: what lies behind it must be found again
            module.teacher_cache.flush()
        if not trainer.is_global_zero:
            return
        position = {
            "epoch": self.epoch,
            "batch": self.batch,
            "steps": self.steps,
            "seconds": self._seconds,
            "history": [dataclasses.asdict(epoch) for epoch in self.record.history],
            "result": dataclasses.asdict(self.record.result),
            "notes": self.record.notes,
        }
        data = pack(module, trainer, position)
        # `best` first: a run killed in between repeats the epoch from the old `last`, and writes the same `best`.
        if best:
            write_bytes(self.folder / BEST, data)
        write_bytes(self.folder / LAST, data)
        write_record(self.folder, self.record)
        write_text(self.folder / METRICS_FILE, metrics_csv(self.record.history))

    def _log(self, trainer: L.Trainer, values: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(values, step=self.steps)


def metrics_csv(history: list[Epoch]) -> str:
    """The history as a table, one line per epoch."""
    parts = sorted({name for epoch in history for name in epoch.train})
    measures = list(dict.fromkeys(name for epoch in history for name in epoch.val))
    rows = [
        {
            **{name: getattr(epoch, name) for name in _OF_AN_EPOCH},
            **{f"train/{part}": value for part, value in epoch.train.items()},
            **{f"val/{measure}": value for measure, value in epoch.val.items()},
        }
        for epoch in history
    ]
    columns = [*(f"train/{part}" for part in parts), *(f"val/{measure}" for measure in measures)]
    return csv_text(rows, [*_OF_AN_EPOCH, *columns])


def _is_finite(state: Any) -> bool:
    return not isinstance(state, Tensor) or not state.is_floating_point() or bool(torch.isfinite(state).all())


def _mix(*numbers: int) -> int:
    """A seed that differs for every combination of its numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1
