"""Detection: labelled boxes around the objects of an image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from reldistill.core.types import Batch, Features
from reldistill.tasks.detection.methods import DetectorTerms
from reldistill.tasks.detection.metrics.average_precision import AveragePrecision


class Detection(nn.Module):
    """The sum of the detector's own losses.

    Args:
        classes: names of the data's classes, by which a detector is measured.
    """

    methods = DetectorTerms()

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)

    def forward(self, student: Features, batch: Batch) -> Tensor:
        """Scalar."""
        if not student.losses:
            raise ValueError(
                "the student returned no losses: it must be a detector in training mode, and the batch must have boxes"
            )
        return sum(student.losses.values(), batch.images.new_zeros((), dtype=next(iter(student.losses.values())).dtype))

    def evaluator(self) -> AveragePrecision:
        """What measures a network that does this."""
        return AveragePrecision(self.classes)
