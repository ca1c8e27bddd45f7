"""The Lightning module of a distillation: usable in any Trainer, and in `reldistill distill`."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from reldistill.core.checks import UserError
from reldistill.core.types import Batch, FeatureSource
from reldistill.step.distiller import TASK, Distiller
from reldistill.step.term import Term
from reldistill.training.defaults import DEFAULTS, OptimizerName
from reldistill.training.optimisers import Schedule, lr_factor, make_optimizer
from reldistill.training.teacher_cache import TeacherCache

_WATCH_EVERY = 50
_TEACHERS = "distiller.teacher"


class DistillationModule(L.LightningModule):
    """Trains a Distiller's student, and measures it (or its moving average) by its task.

    The teachers are never part of a checkpoint.

    Args:
        distiller: teachers, student, terms and task.
        optimizer: `sgd` or `adamw`.
        lr: peak learning rate.
        weight_decay: by default 5e-4 (sgd), 0.05 (adamw).
        nesterov: whether the momentum of sgd is Nesterov's.
        schedule: course of the learning rate, see `optimisers.lr_factor`.
        lr_warm_up: fraction of training over which the learning rate rises.
        milestones: fractions of training at which the step schedule goes down.
        ema_decay: decay of the moving average of the student's weights; 0 for none.
        total_batches: batches of the whole training; by default what the Trainer expects.

    Raises:
        UserError: when a loss stops being finite, naming step and part.
    """

    def __init__(
        self,
        distiller: Distiller,
        *,
        optimizer: OptimizerName = "sgd",
        lr: float = 0.1,
        weight_decay: float | None = None,
        nesterov: bool = True,
        schedule: Schedule = "one-cycle",
        lr_warm_up: float | None = None,
        milestones: Sequence[float] = (0.625, 0.75, 0.875),
        ema_decay: float = 0.0,
        total_batches: int | None = None,
    ) -> None:
        super().__init__()
        self.distiller = distiller
        self.optimizer_name: OptimizerName = optimizer
        self.lr = lr
        self.weight_decay = DEFAULTS.weight_decay[optimizer] if weight_decay is None else weight_decay
        self.nesterov = nesterov
        self.schedule: Schedule = schedule
        self.lr_warm_up = lr_warm_up
        self.milestones = milestones
        self.total_batches = total_batches
        self.batches_done = 0
        self._asks_trainer = total_batches is None
        self._resumed = False
        self.part_sums: dict[str, Tensor] = {}
        self.part_batches = 0
        self.ema: AveragedModel | None = None
        if ema_decay:
            average = get_ema_multi_avg_fn(ema_decay)
            self.ema = AveragedModel(distiller.student, multi_avg_fn=average, use_buffers=True)
            self.ema.requires_grad_(False)
        self.evaluator = distiller.task.evaluator()
        self.teacher_cache: TeacherCache | None = None
        self.warned: set[str] = set()
        self.notes: list[str] = []

    @property
    def student(self) -> FeatureSource:
        """The student that is evaluated and saved: the moving average where there is one."""
        return cast(FeatureSource, self.ema.module) if self.ema is not None else self.distiller.student

    @property
    def progress(self) -> float:
        """Fraction of training done, in [0, 1]."""
        return min(self.batches_done / self.total_batches, 1.0) if self.total_batches else 0.0

    def configure_optimizers(self) -> Any:
        """Optimiser of student, adapters and losses, with a learning rate that follows the progress."""
        if not self._resumed:  # a second fit is a new training with a new schedule
            self.batches_done = 0
        self._resumed = False
        if self._asks_trainer:
            steps = self.trainer.estimated_stepping_batches
            if not math.isfinite(steps):
                raise UserError("the Trainer has no end of training: give it max_epochs or max_steps")
            self.total_batches = int(steps) * self.trainer.accumulate_grad_batches
        optimizer = make_optimizer(
            [self.distiller],
            optimizer=self.optimizer_name,
            lr=self.lr,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _step: self._lr_factor())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Batch:
        """A Batch, or a pair (images, labels), on the device."""
        return Batch.of(batch).to(device)

    def on_train_epoch_start(self) -> None:
        """Start new epoch means, unless the epoch continues after a resume."""
        if self.part_batches == 0:
            self.part_sums = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step's total loss."""
        if self.teacher_cache is not None:
            batch = self.teacher_cache.complete(batch, self.distiller.ask_teacher)
        with _one_value_a_channel():
            output = self.distiller(batch, progress=self.progress)
        if not torch.isfinite(output.total):
            self._stop_not_finite({**output.parts, "total": output.total})
        for name, value in {**output.parts, "total": output.total.detach()}.items():
            value = value.float()
            self.part_sums[name] = self.part_sums[name] + value if name in self.part_sums else value
        self.part_batches += 1
        if self.batches_done % _WATCH_EVERY == 0:
            self._watch(output.parts)
        self.batches_done += 1
        return output.total

    def on_train_epoch_end(self) -> None:
        """Log every part's mean as `train/…`, unless a callback has taken the means already."""
        if self.part_batches:
            self.log_dict({f"train/{name}": value for name, value in self.part_means().items()})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Let the moving average follow every step."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update_parameters(self.distiller.student)

    def on_validation_epoch_start(self) -> None:
        """Start measuring."""
        self.evaluator.start(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure the student on one batch."""
        self.evaluator.update(self.student, batch)

    def on_validation_epoch_end(self) -> None:
        """Log what the task's evaluator found, over all images of all ranks, as `val/…`."""
        for name, value in self.evaluator.values().items():
            self.log(f"val/{name}", value, prog_bar=name == self.evaluator.score)

    def part_means(self) -> dict[str, float]:
        """Mean of every weighted part since the epoch began, over all ranks; starts the next epoch's count."""
        names = sorted(self.part_sums)
        means = torch.stack([self.part_sums[n] for n in names]) / max(self.part_batches, 1)
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(means)
            means /= self.trainer.world_size
        self.part_sums, self.part_batches = {}, 0
        found = dict(zip(names, means.tolist(), strict=True))
        self._watch_idle(found)
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the teachers out."""
        checkpoint["state_dict"] = without_teacher(checkpoint["state_dict"])
        checkpoint["batches_done"] = self.batches_done

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the teachers from the module, which has them from elsewhere."""
        mine = {k: v for k, v in self.state_dict().items() if k.startswith(_TEACHERS)}
        checkpoint["state_dict"] = {**mine, **checkpoint["state_dict"]}
        self.batches_done, self._resumed = checkpoint["batches_done"], True

    def exported(self) -> nn.Module:
        """The bare student network on the CPU, of the moving average where there is one."""
        return copy.deepcopy(self.student.network).cpu().eval()

    def _lr_factor(self) -> float:
        return lr_factor(self.progress, schedule=self.schedule, warm_up=self.lr_warm_up, milestones=self.milestones)

    def _watch(self, parts: Any) -> None:
        """Warn once when a part outweighs the task's loss a hundredfold: the student would learn nothing else."""
        if TASK not in parts:
            return
        task = float(parts[TASK])
        for name, value in parts.items():
            if name != TASK and name not in self.warned and abs(float(value)) > 100 * abs(task):
                self.warned.add(name)
                self.note(
                    f"{name} is {float(value):.3g}, more than a hundred times the task's loss ({task:.3g}) at batch "
                    f"{self.batches_done + 1}: lower its weight (--weights '{{\"{name}\": …}}')"
                )

    def _watch_idle(self, means: dict[str, float]) -> None:
        """Warn once when a part was 0 in every batch of an epoch although it counted in the last."""
        progress = (self.batches_done - 1) / self.total_batches if self.total_batches else 0.0
        scales = {
            name: scale
            for term in self.distiller.terms
            if isinstance(term, Term)
            for name, scale in term.scales(progress).items()
        }
        for name, mean in means.items():
            if mean == 0 and scales.get(name) and name not in self.warned:
                self.warned.add(name)
                self.note(
                    f"{name} was 0 in every batch of an epoch, so it teaches nothing: relations between "
                    f"images need at least two of them on each device, other losses a network that differs"
                )

    def note(self, text: str) -> None:
        """Warn the user once, and keep the warning for the record."""
        self.notes.append(text)
        if self.trainer.is_global_zero:
            warnings.warn(text, stacklevel=1)

    def _stop_not_finite(self, parts: dict[str, Tensor]) -> None:
        bad = [name for name, value in parts.items() if not torch.isfinite(value)]
        raise UserError(
            f"the loss is not finite at batch {self.batches_done + 1}, in {bad[0]}: lower the learning rate or that "
            f"part's weight, or train with --precision 32-true"
        )


@contextlib.contextmanager
def _one_value_a_channel() -> Iterator[None]:
    """Replace torch's message about a shape by one that tells what to do."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel"):
            raise
        raise UserError(
            "a batch norm meets a map of one cell in a batch of one image, so there is nothing to normalise by: give a "
            "larger --batch-size (at least 2 on each device) or a larger --image-size"
        ) from error


def own_module(module: L.LightningModule) -> DistillationModule:
    """What a callback of ours is handed by the Trainer.

    Raises:
        TypeError: it trains another module.
    """
    if not isinstance(module, DistillationModule):
        raise TypeError(f"this callback is for a DistillationModule, not {type(module).__name__}")
    return module


def without_teacher(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A module's state without its teachers'."""
    return {k: v for k, v in state.items() if not k.startswith(_TEACHERS)}
