"""Classification: one class for each image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from reldistill.core.types import Batch, ClassLabels, Features
from reldistill.methods.build import LevelTerms
from reldistill.tasks.classification.metrics import Accuracy


class Classification(nn.Module):
    """Cross entropy of the student's logits with the labels.

    Args:
        label_smoothing: share of the target that is spread evenly over all classes.
    """

    methods = LevelTerms("classification", frozenset({"labels", "classes", "levels", "pooled"}))

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, student: Features, batch: Batch) -> Tensor:
        """Scalar mean over the batch, in float32 (float64 stays float64)."""
        if student.logits is None:
            raise ValueError("classification needs the student's logits: ask the network for them")
        logits = student.logits if student.logits.dtype == torch.float64 else student.logits.float()
        labels = batch.targets_as(ClassLabels).labels
        return functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def evaluator(self) -> Accuracy:
        """What measures a network that does this."""
        return Accuracy()
