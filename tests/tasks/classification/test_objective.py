from __future__ import annotations

import math

import pytest
import torch

from reldistill.core.types import Batch, ClassLabels, Features
from reldistill.tasks.classification.objective import Classification


def batch(labels: list[int]) -> Batch:
    return Batch(torch.zeros(len(labels), 3, 1, 1), ClassLabels(torch.tensor(labels)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_written_out(smoothing: float) -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = [0, 3, 1, 1, 2, 0]
    expected = 0.0
    for row, label in zip(logits.tolist(), labels, strict=True):
        total = math.log(sum(math.exp(z) for z in row))
        targets = [smoothing / 4 + (1 - smoothing) * (k == label) for k in range(4)]
        expected -= sum(t * (z - total) for t, z in zip(targets, row, strict=True)) / len(labels)
    found = Classification(label_smoothing=smoothing)(Features(logits=logits), batch(labels))
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_compared_in_float32(dtype: torch.dtype) -> None:
    logits = torch.tensor([[60000.0, 0.0], [0.0, 0.01]], dtype=dtype)
    found = Classification()(Features(logits=logits), batch([0, 0]))
    assert found.dtype == torch.float32
    expected = Classification()(Features(logits=logits.double()), batch([0, 0]))
    torch.testing.assert_close(found, expected.float())
    wrong = Classification()(Features(logits=logits), batch([1, 1]))
    assert torch.isfinite(wrong)
