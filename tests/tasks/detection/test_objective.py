from __future__ import annotations

import pytest
import torch

from drawn_objects import drawn_batch
from reldistill.core.types import Features
from reldistill.tasks.detection.objective import Detection


def test_the_sum_of_the_detector_s_losses():
    losses = {"classification": torch.tensor(1.5, requires_grad=True), "bbox_regression": torch.tensor(0.25)}
    value = Detection(("one", "two"))(Features(losses=losses), drawn_batch(1))
    assert value.item() == 1.75
    value.backward()
    assert losses["classification"].grad == 1


def test_no_losses_are_no_zero():
    with pytest.raises(ValueError, match="must be a detector in training mode, and the batch must have boxes"):
        Detection(("one", "two"))(Features(), drawn_batch(1))
