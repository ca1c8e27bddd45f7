"""Detection: labelled boxes around the objects of an image."""

from __future__ import annotations

from torch import Tensor, nn

from reldistill.types import Batch, Features


class Detection(nn.Module):
    """The sum of the detector's own losses."""

    def forward(self, student: Features, batch: Batch) -> Tensor:
        """Scalar."""
        if not student.losses:
            raise ValueError(
                "the student says no losses: it must be a detector in training mode, and the batch have boxes"
            )
        return sum(student.losses.values(), batch.images.new_zeros((), dtype=next(iter(student.losses.values())).dtype))
