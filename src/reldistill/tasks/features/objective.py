"""Nothing to learn but from a teacher: a student of features has no loss of its own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from reldistill.core.types import Batch, Evaluator, Features
from reldistill.data.image_data import ImageData
from reldistill.tasks.features.methods import FeatureTerms
from reldistill.tasks.features.metrics import Relations


class FeatureTransfer(nn.Module):
    """No loss of the student's own; it is measured beside its teacher.

    Args:
        probe: labelled images to measure it by as well.
    """

    methods = FeatureTerms("images without labels")
    own_loss = False

    def __init__(self, probe: ImageData | None = None) -> None:
        super().__init__()
        self._probe = probe
        self._teacher: np.ndarray | None = None

    def forward(self, student: Features, batch: Batch) -> Tensor:
        """0."""
        return torch.zeros((), device=batch.images.device)

    def beside(self, teacher: Evaluator) -> None:
        """Measure students against what was found of this teacher from now on."""
        if not isinstance(teacher, Relations):
            raise TypeError(f"expected the teacher's Relations, got {type(teacher).__name__}")
        self._teacher = teacher.vectors

    def evaluator(self) -> Relations:
        """What measures a network that does this."""
        return Relations(self._teacher, probe=self._probe)
