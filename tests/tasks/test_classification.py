from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from reldistill.tasks.classification import Accuracy, Classification
from reldistill.types import Batch, Features


def batch(labels: list[int]) -> Batch:
    return Batch(torch.zeros(len(labels), 3, 1, 1), torch.tensor(labels))


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


class Says(torch.nn.Module):
    """The images' first two numbers are the logits."""

    def forward(self, images: torch.Tensor) -> Features:
        return Features(logits=images.flatten(1)[:, :2])


def measured(indices: list[int] | None) -> Accuracy:
    """Of three images of class 0, the second of which is taken for class 1."""
    images = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 0.0], [2.0, 0.0, 0.0]]).view(3, 3, 1, 1)
    found = Accuracy()
    found.update(
        Says(), Batch(images, torch.zeros(3, dtype=torch.int64), None if indices is None else torch.tensor(indices))
    )
    assert found.values()["accuracy"] == pytest.approx(200 / 3)
    return found


def test_which_images_were_right_is_in_their_order(tmp_path: Path) -> None:
    assert measured([2, 0, 1]).write(tmp_path) == "val_correct.npy"
    assert np.load(tmp_path / "val_correct.npy").tolist() == [False, True, True]


@pytest.mark.parametrize("indices", [None, [0, 1, 3], [7, 1, 0]])
def test_images_that_are_not_all_of_the_data_are_not_kept(indices: list[int] | None, tmp_path: Path) -> None:
    """Positions beyond the images that were measured: which ones they are is not known."""
    assert measured(indices).write(tmp_path) is None
    assert not [*tmp_path.iterdir()]
