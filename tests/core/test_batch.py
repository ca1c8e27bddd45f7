from __future__ import annotations

import pytest
import torch

from reldistill.core.types import Batch, ClassLabels, Wanted
from reldistill.tasks.detection.boxes import Boxes

IMAGES = torch.rand(2, 3, 10, 20)


def test_plain_pairs_become_a_batch_of_class_labels() -> None:
    labels, indices = torch.tensor([3, 1]), torch.tensor([7, 9])
    for given in ((IMAGES, labels), [IMAGES, labels], Batch(IMAGES, ClassLabels(labels))):
        batch = Batch.of(given)
        assert batch.images is IMAGES
        assert batch.targets_as(ClassLabels).labels is labels
        assert batch.indices is None
    assert Batch.of((IMAGES, labels, indices)).indices is indices
    assert Batch.of((IMAGES, None)).targets is None
    targets = ClassLabels(labels)
    assert Batch.of((IMAGES, targets)).targets is targets


def test_targets_of_another_kind() -> None:
    boxes = Boxes(torch.zeros(1, 4), torch.tensor([0]), torch.tensor([0]), torch.tensor([[10, 20], [10, 20]]))
    with pytest.raises(
        ValueError, match=r"^expected a batch with ClassLabels, got Boxes: give Batch\(images, ClassLabels"
    ):
        Batch(IMAGES, boxes).targets_as(ClassLabels)
    with pytest.raises(ValueError, match="expected a batch with Boxes, got no targets"):
        Batch(IMAGES).targets_as(Boxes)


def test_what_targets_have_for_a_loss() -> None:
    labels = torch.tensor([3, 1])
    assert ClassLabels(labels).for_loss("labels", IMAGES) is labels
    assert ClassLabels(labels).for_loss("boxes", IMAGES) is None
    boxes = Boxes(
        torch.tensor([[5.0, 1, 10, 8]]), torch.tensor([2]), torch.tensor([1]), torch.tensor([[10, 20], [10, 20]])
    )
    framed = boxes.for_loss("boxes", IMAGES)
    assert torch.equal(framed, torch.tensor([[[0.0, 0, 0, 0]], [[0.25, 0.1, 0.5, 0.8]]]))
    assert boxes.for_loss("labels", IMAGES) is None


def test_everything_moves_to_a_device() -> None:
    said = {"large": {"logits": torch.rand(2, 4)}}
    batch = Batch(IMAGES, ClassLabels(torch.tensor([3, 1])), torch.tensor([0, 1]), said).to("meta")
    moved = (batch.images, batch.targets_as(ClassLabels).labels, batch.indices, batch.teachers["large"]["logits"])
    assert {tensor.device.type for tensor in moved} == {"meta"}
    assert Batch(IMAGES).to("meta").targets is None
    assert len(batch) == 2


def test_what_places_a_network_is_asked_for() -> None:
    assert Wanted.at(["b", "logits", "a", "b"]) == Wanted(("b", "a"), logits=True)
    assert Wanted.at([], logits=True) == Wanted()
    proposals = (torch.rand(3, 4),)
    found = Wanted.at(["scores", "dense", "distilled", "pooled"], proposals=proposals)
    assert found == Wanted((), False, True, True, True, True, proposals)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "labels", [torch.rand(4, 3), torch.randint(0, 2, (4, 3)), torch.rand(4), torch.zeros(4, 8, 8, dtype=torch.int64)]
)
def test_several_or_soft_labels_an_image_are_refused(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"labels: expected \(B,\) class indices, one for each image, got torch\."):
        ClassLabels(labels)
