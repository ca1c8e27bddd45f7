"""Lightning's Trainer as a run wants it: devices, precision, loggers; its own place-keeping switched off."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from reldistill.core.checks import UserError
from reldistill.data.images import Images
from reldistill.report.record import RunRecord
from reldistill.training.keeper import RunKeeper
from reldistill.training.progress import Progress
from reldistill.training.settings import TrainSettings


def has_gpu(accelerator: str = "auto") -> bool:
    """Whether a run with that accelerator computes on a GPU that CUDA reaches."""
    return torch.cuda.is_available() and accelerator in ("auto", "gpu")


def resolve_precision(precision: str, accelerator: str = "auto") -> str:
    """`auto` → bf16-mixed where the device computes in it, else 32-true."""
    if precision == "16-mixed" and not has_gpu(accelerator) and accelerator != "mps":
        raise UserError("--precision 16-mixed needs a GPU: take bf16-mixed or 32-true")
    if precision != "auto":
        return precision
    if has_gpu(accelerator):
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    has_bf16 = accelerator in ("auto", "cpu") and torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if has_bf16 else "32-true"


def device_count(training: TrainSettings) -> int:
    """How many devices a run uses: `auto` is all GPUs, or one CPU process."""
    if training.devices == "auto":
        return torch.cuda.device_count() if has_gpu(training.accelerator) else 1
    try:
        return int(training.devices)
    except ValueError:
        raise UserError(f"devices: expected a number or auto, got '{training.devices}'") from None


def make_trainer(training: TrainSettings, *, precision: str, out: Path, keeper: RunKeeper, label: str) -> L.Trainer:
    """A Trainer for the epochs that are left.

    Raises:
        UserError: when the machine lacks the accelerator or devices asked for.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in ("eval mode", "does not have many workers", "log_every_n_steps", "LeafSpec", "overridden `trans"):
        warnings.filterwarnings("ignore", f".*{message}")
    loggers: list[Logger] = [TensorBoardLogger(str(out), name="tensorboard", version="")]
    if training.wandb:
        loggers.append(_wandb(out, keeper.record))
    devices = device_count(training)
    many = devices != 1 or training.nodes > 1
    if many and training.sync_batch_norm and not has_gpu(training.accelerator):
        raise UserError("--sync-batch-norm needs GPUs: between processes on a CPU torch has no such batch norm")
    try:
        return L.Trainer(
            accelerator=training.accelerator,
            devices=devices,
            num_nodes=training.nodes,
            strategy="ddp" if many else "auto",
            sync_batchnorm=training.sync_batch_norm,
            precision=precision,  # type: ignore[arg-type]
            max_epochs=max(keeper.epochs_left, 1),
            accumulate_grad_batches=training.accumulate,
            gradient_clip_val=training.clip or None,
            callbacks=[keeper, Progress(keeper, label=label)],
            logger=loggers,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            deterministic="warn" if torch.cuda.is_available() else False,
            benchmark=False,
        )
    except MisconfigurationException as error:
        raise UserError(f"--accelerator {training.accelerator} --devices {training.devices}: {error}") from error


@contextlib.contextmanager
def quiet_writers() -> Iterator[None]:
    """Leave what the system refuses to a logger's own thread to the thread that trains, which is told of it too."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not issubclass(failed.exc_type, OSError):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


class Loaders(L.LightningDataModule):
    """Hands the Trainer the batches that are left of each epoch."""

    def __init__(self, keeper: RunKeeper, images: Images) -> None:
        super().__init__()
        self.keeper, self.images = keeper, images

    def setup(self, stage: str) -> None:
        """Give this process its part of every batch."""
        if self.trainer is None:
            raise RuntimeError("these loaders are for a Trainer: hand them to fit or validate as the datamodule")
        for loader in (self.images.train, self.images.val):
            loader.shard(self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> Any:
        """The batches left of the current epoch."""
        return self.keeper.remaining()

    def val_dataloader(self) -> Any:
        """The validation batches."""
        return self.images.val


def _wandb(out: Path, record: RunRecord) -> Logger:
    try:
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(project="reldistill", name=out.name, save_dir=str(out), config=record.settings)
    except (ImportError, ModuleNotFoundError) as error:
        raise UserError("--wandb needs the package wandb: pip install 'reldistill[wandb]'") from error
