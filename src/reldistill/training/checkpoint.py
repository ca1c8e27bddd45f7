"""Checkpoints that exist whole or not at all, and from which a run ends as if it had never been stopped.

No random state has to be saved: the order of the images, their augmentation and dropout are functions of the seed
and of the position in training. What is left are weights, optimiser, moving average, counts and the running means.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch

from reldistill.core.checks import UserError
from reldistill.training.module import DistillationModule, without_teacher

FORMAT = 1
LAST = "last.ckpt"
BEST = "best.ckpt"


def pack(module: DistillationModule, trainer: L.Trainer, position: dict[str, Any]) -> bytes:
    """Everything that the rest of a run depends on, as the bytes of a file.

    Args:
        module: the module in training.
        trainer: its Trainer.
        position: what the caller needs to find its place again: numbers, text, lists and dicts of those.
    """
    state = {
        "format": FORMAT,
        "module": without_teacher(module.state_dict()),
        "optimizer": trainer.optimizers[0].state_dict(),
        "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
        "precision": trainer.precision_plugin.state_dict(),
        "batches_done": module.batches_done,
        "part_sums": module.part_sums,
        "part_batches": module.part_batches,
        "warned": sorted(module.warned),
        "notes": module.notes,
        "position": position,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpack(path: Path) -> dict[str, Any]:
    """A checkpoint's content, loaded as data and never as code.

    Raises:
        UserError: when the file can't be read, or was written by another version's format.
    """
    try:
        _check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot read checkpoint {path} ({why}): start again with another --out") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this version of reldistill: start again with another --out")
    return state


def _check_sums(path: Path) -> None:
    """ValueError where a part of the archive does not match its checksum, which torch.load does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip() is not None
    except OSError:
        raise
    except Exception:  # whatever zipfile makes of a damaged header
        damaged = True
    if damaged:
        raise ValueError("it is damaged")


def restore_weights(state: dict[str, Any], module: DistillationModule) -> None:
    """The weights and states of a checkpoint alone: what is evaluated and drawn depends on nothing else."""
    teacher = {k: v for k, v in module.state_dict().items() if k not in state["module"]}
    module.load_state_dict({**state["module"], **teacher})


def restore(state: dict[str, Any], module: DistillationModule, trainer: L.Trainer) -> None:
    """Put a run back where a checkpoint left it; module and optimiser must have been made as they were then."""
    device = module.device
    restore_weights(state, module)
    trainer.optimizers[0].load_state_dict(state["optimizer"])
    trainer.lr_scheduler_configs[0].scheduler.load_state_dict(state["scheduler"])
    trainer.precision_plugin.load_state_dict(state["precision"])
    module.batches_done = state["batches_done"]
    module.part_sums = {name: value.to(device) for name, value in state["part_sums"].items()}
    module.part_batches = state["part_batches"]
    module.warned = set(state["warned"])
    module.notes = list(state["notes"])
