from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from reldistill.core.types import Batch, ClassLabels
from reldistill.networks.extract import Extractor
from reldistill.tasks.classification.metrics import Accuracy

LOGITS = [[3.0, 1.0, 0.5], [0.0, 1.0, -1.0], [2.0, 0.0, 1.0]]
"""Of three images of class 0, the second of which is taken for class 1."""


def measured(*batches: list[int], indices: list[int] | None = None) -> Accuracy:
    """Batches of these images, each of which lies at `indices` in its data set."""
    found, network = Accuracy(), Extractor(torch.nn.Flatten())  # a network that returns what it is given
    for images in batches:
        shown = torch.tensor([LOGITS[i] for i in images]).view(-1, 3, 1, 1)
        labels = ClassLabels(torch.zeros(len(images), dtype=torch.int64))
        found.update(network, Batch(shown, labels, indices and torch.tensor([indices[i] for i in images])))
    return found


def test_every_image_weighs_alike_whatever_its_batch() -> None:
    losses = [math.log(sum(map(math.exp, row))) - row[0] for row in LOGITS]
    for batches in ([0, 1, 2],), ([0], [1, 2]):
        assert measured(*batches).values() == pytest.approx({"accuracy": 200 / 3, "loss": sum(losses) / 3})


def test_which_images_were_right_is_in_their_order(tmp_path: Path) -> None:
    found = measured([0, 1], [2], indices=[2, 0, 1])
    found.values()
    assert found.write(tmp_path) == "val_correct.npy"
    assert np.load(tmp_path / "val_correct.npy").tolist() == [False, True, True]


@pytest.mark.parametrize("indices", [None, [0, 1, 3], [7, 1, 0]])
def test_images_that_are_not_all_of_the_data_are_not_kept(indices: list[int] | None, tmp_path: Path) -> None:
    """Positions beyond the images that were measured: which ones they are is not known."""
    found = measured([0, 1, 2], indices=indices)
    found.values()
    assert found.write(tmp_path) is None
    assert not [*tmp_path.iterdir()]
