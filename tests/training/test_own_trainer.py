"""A Trainer of the user's own: its checkpoints, its resume, its logs, its schedule."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from reldistill.core.checks import UserError
from reldistill.methods.build import build_distiller
from reldistill.tasks.classification.objective import Classification
from reldistill.training.module import DistillationModule
from reldistill.training.optimisers import lr_factor

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|log_every_n_steps|eval mode|LeafSpec|but have no|ckpt_path)"
)


class Small(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).mean(dim=(2, 3)))


def make(**settings: Any) -> DistillationModule:
    torch.manual_seed(0)
    distiller = build_distiller("kd+rkd", student=Small(4), teacher=Small(8), image_size=8, task=Classification())
    return DistillationModule(distiller, **{"optimizer": "sgd", "lr": 0.05, **settings})


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(24, 3, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, images.mean(dim=(2, 3)).argmax(dim=1)), batch_size=8)


def trainer(**settings: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(accelerator="cpu", **{**quiet, "enable_model_summary": False, **settings})


class StopAfter(L.Callback):
    """Ends the training after an epoch, as a crash would, once its checkpoint is written."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw", "lr": 0.01, "ema_decay": 0.9}])
def test_resume_from_lightnings_own_checkpoint_ends_as_if_never_stopped(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    whole = make(**settings)
    trainer(max_epochs=4).fit(whole, loader(), loader())

    stopped = make(**settings)
    saver = ModelCheckpoint(tmp_path, save_last=True)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(max_epochs=4, enable_checkpointing=True, callbacks=[saver, StopAfter(2)]).fit(
            stopped, loader(), loader()
        )
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert not [name for name in state["state_dict"] if "teacher" in name]
    assert state["batches_done"] == 6

    resumed = make(**settings)
    with torch.no_grad():
        for parameter in resumed.distiller.student.parameters():
            parameter.zero_()
    teacher = {name: value.clone() for name, value in resumed.distiller.teachers["teacher"].state_dict().items()}
    trainer(max_epochs=4).fit(resumed, loader(), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert resumed.batches_done == whole.batches_done == 12
    for name, value in resumed.distiller.teachers["teacher"].state_dict().items():
        assert torch.equal(value, teacher[name])
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_logs_of_every_part_and_of_the_learning_rate(tmp_path: Path) -> None:
    module = make(schedule="cosine", lr_warm_up=0.25)
    logger = CSVLogger(tmp_path)
    fit = trainer(
        max_epochs=3, logger=logger, log_every_n_steps=1, callbacks=[LearningRateMonitor(logging_interval="step")]
    )
    fit.fit(module, loader(), loader())
    for name in ("task", "kd", "rkd.distance", "rkd.angle", "total"):
        assert float(fit.callback_metrics[f"train/{name}"]) > 0
    parts = [float(fit.callback_metrics[f"train/{n}"]) for n in ("task", "kd", "rkd.distance", "rkd.angle")]
    assert sum(parts) == pytest.approx(float(fit.callback_metrics["train/total"]), rel=1e-5)
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rates = [float(row["lr-SGD"]) for row in csv.DictReader(file) if row["lr-SGD"]]
    expected = [0.05 * lr_factor(done / 9, schedule="cosine", warm_up=0.25) for done in range(9)]
    assert rates == pytest.approx(expected)
    assert module.progress == 1.0


def test_a_trainers_own_monitor_may_watch_a_part(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, monitor="train/kd", filename="best")
    trainer(max_epochs=2, enable_checkpointing=True, callbacks=[saver]).fit(make(), loader())
    assert (tmp_path / "best.ckpt").is_file()
    assert saver.best_model_score is not None
    assert float(saver.best_model_score) > 0


def test_max_steps_and_accumulation_set_the_length_of_the_schedule() -> None:
    module = make()
    trainer(max_steps=4, accumulate_grad_batches=2).fit(module, loader())
    assert module.total_batches == 8
    other = make(total_batches=100)
    trainer(max_epochs=2).fit(other, loader())
    assert other.progress == pytest.approx(0.06)


def test_a_trainer_without_an_end_is_refused() -> None:
    with pytest.raises(UserError, match="give it max_epochs or max_steps"):
        trainer(max_epochs=-1).fit(make(), loader())


def test_a_second_fit_is_a_new_training() -> None:
    module = make()
    trainer(max_epochs=1).fit(module, loader())
    trainer(max_epochs=4).fit(module, loader())
    assert module.total_batches == module.batches_done == 12
    assert module.progress == 1.0
