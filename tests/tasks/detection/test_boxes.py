from __future__ import annotations

import torch

from drawn_objects import drawn_batch
from reldistill.tasks.detection.boxes import Boxes


def test_boxes_in_a_frame_are_fractions_and_filled_up():
    boxes = Boxes(
        torch.tensor([[10.0, 20, 30, 40], [0, 0, 100, 50], [50, 25, 100, 50]]),
        torch.tensor([2, 0, 1]),
        torch.tensor([0, 2, 2]),
        torch.tensor([[50, 100]] * 4),
    )
    framed = boxes.in_frame(50, 100)
    assert framed.shape == (4, 2, 4)
    torch.testing.assert_close(framed[0], torch.tensor([[0.1, 0.4, 0.3, 0.8], [0, 0, 0, 0]]))
    torch.testing.assert_close(framed[2], torch.tensor([[0.0, 0, 1, 1], [0.5, 0.5, 1, 1]]))
    assert not framed[1].any()
    assert not framed[3].any()


def test_a_batch_without_any_box():
    boxes = Boxes(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0).long(), torch.tensor([[8, 8], [8, 8]]))
    assert boxes.in_frame(8, 8).shape == (2, 0, 4)


def test_drawn_boxes_lie_on_their_colours():
    """What the tests of detectors rely on."""
    batch = drawn_batch(2, side=96, inside=90)
    for corners, label, image in zip(batch.targets.corners, batch.targets.labels, batch.targets.images, strict=True):
        left, top, right, bottom = corners.int().tolist()
        patch = batch.images[image, :, top:bottom, left:right]
        assert patch.amax(dim=(1, 2)).equal(patch.amin(dim=(1, 2)))
        assert int(patch[:, 0, 0].argmax()) == int(label)
