from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from reldistill.core.types import Batch, Features
from reldistill.tasks.classification.metrics import Accuracy


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


def test_every_image_weighs_alike_whatever_its_batch() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, -1.0]])
    found = Accuracy()
    for rows in (slice(0, 1), slice(1, 3)):
        images = torch.nn.functional.pad(logits[rows], (0, 1)).view(-1, 3, 1, 1)
        found.update(Says(), Batch(images, torch.zeros(len(images), dtype=torch.int64)))
    losses = [math.log(1 + math.exp(other - own)) for own, other in logits.tolist()]
    assert found.values() == pytest.approx({"accuracy": 200 / 3, "loss": sum(losses) / 3})
