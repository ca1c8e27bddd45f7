"""How networks are trained by default. Nothing heavy is imported, since every task imports this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

OptimizerName = Literal["sgd", "adamw"]


@dataclass(frozen=True)
class TrainDefaults:
    """How a task is trained by default.

    Args:
        batch_size: images per step.
        lr: optimiser → peak learning rate, and the batch size that it is for.
        weight_decay: optimiser → weight decay.
    """

    batch_size: int
    lr: Mapping[OptimizerName, tuple[float, int]]
    weight_decay: Mapping[OptimizerName, float]

    def lr_for(self, optimizer: OptimizerName, batch_size: int) -> float:
        """Peak learning rate for a batch size, scaled linearly."""
        rate, batch = self.lr[optimizer]
        return rate * batch_size / batch


DEFAULTS = TrainDefaults(
    batch_size=128, lr={"sgd": (0.1, 128), "adamw": (1e-3, 256)}, weight_decay={"sgd": 5e-4, "adamw": 0.05}
)
"""Of whole images: those of the literature on classification."""
