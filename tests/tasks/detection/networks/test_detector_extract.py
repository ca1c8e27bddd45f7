from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.io import ImageReadMode, read_image
from torchvision.models import detection

from drawn_objects import CLASSES, drawn_batch, overlaps
from reldistill.core.checks import UserError
from reldistill.core.types import Batch, ClassLabels, Wanted
from reldistill.tasks.detection.boxes import Boxes
from reldistill.tasks.detection.networks.detector_extract import DetectorExtractor
from reldistill.tasks.detection.networks.plain_detectors import make_detector

DATA = os.environ.get("RELDISTILL_DATA")
SSD = "ssdlite320_mobilenet_v3_large"
NAMES = ["retinanet_resnet18_fpn", "fcos_resnet18_fpn", "fasterrcnn_resnet18_fpn", SSD]
every_family = pytest.mark.parametrize("name", NAMES)


def extractor(name="retinanet_resnet18_fpn", *, num_outputs=4, outputs=None, **more):
    torch.manual_seed(0)
    settings = {} if name == SSD else {"min_size": 96, "max_size": 160, "fpn_channels": 32, "norm": "group"}
    if name.startswith("fasterrcnn"):
        settings |= {"box_batch_size_per_image": 16, "rpn_post_nms_top_n_train": 50, "rpn_pre_nms_top_n_train": 60}
    network = make_detector(name, num_outputs=num_outputs, **(settings | more))
    return DetectorExtractor(network, outputs=outputs, name=name)


@every_family
def test_levels_are_named_by_their_stride(name):
    one = extractor(name)
    levels = one.survey(128)
    expected = {
        "retinanet_resnet18_fpn": ["p3", "p4", "p5", "p6", "p7"],
        "fcos_resnet18_fpn": ["p3", "p4", "p5", "p6", "p7"],
        "fasterrcnn_resnet18_fpn": ["p2", "p3", "p4", "p5", "p6"],
        SSD: ["p4", "p5", "p6", "p7", "p8"],
    }[name]
    assert [level.name for level in levels] == expected
    batch = drawn_batch(2, side=128)
    maps = one.eval()(batch.images, levels=tuple(expected), targets=batch.targets).levels
    for level in levels:
        assert maps[level.name].shape == (2, level.channels, level.height, level.width)
        assert level.stride * level.height == pytest.approx(128)
    assert one.stages(128) == levels
    with pytest.raises(UserError, match=f"level 'p1' not in {name}: it has {expected[0]}, "):
        one.level("p1", 128)


@every_family
def test_losses_are_the_networks_own(name):
    """Of a batch whose images the network would leave at their size, they are what the network itself says."""
    one = extractor(name, **({} if name == SSD else {"_skip_resize": True}))
    batch = drawn_batch(2, side=320 if name == SSD else 128)
    own = one.network.transform
    torch.manual_seed(1)
    found = one(batch.images, targets=batch.targets)
    torch.manual_seed(1)
    targets = [
        {
            "boxes": batch.targets.corners[batch.targets.images == i],
            "labels": batch.targets.labels[batch.targets.images == i] + 1,
        }
        for i in range(2)
    ]
    expected = one.network(list(batch.images), targets)
    assert found.losses.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found.losses[key], value, rtol=1e-5, atol=1e-6)
    assert one.network.transform is own
    assert not any(module._forward_hooks for module in one.network.modules())


def test_padding_is_what_the_network_pads_with():
    """Images inside a padded batch and alone in the network's own transform give the same levels."""
    one = extractor().eval()
    batch = drawn_batch(2, side=128, inside=100)
    maps = one(batch.images, levels=("p3",), targets=batch.targets).levels["p3"]
    alone = [image[:, :100, :100] for image in batch.images]
    one.network.transform.min_size, one.network.transform.max_size = (100,), 100
    sized, _ = one.network.transform(alone)
    assert sized.tensors.shape == (2, 3, 128, 128)
    torch.testing.assert_close(maps, one.network.backbone(sized.tensors)["0"])
    black = torch.zeros_like(batch.images)
    black[:, :, :100, :100] = batch.images[:, :, :100, :100]
    black[:, :, 100:] = 1
    again = one(black, levels=("p3",), targets=batch.targets).levels["p3"]
    assert torch.equal(again, maps)


def test_images_of_any_size_are_padded_to_the_networks_multiple():
    one = extractor().eval()
    assert one(torch.rand(1, 3, 70, 100), levels=("p3",)).levels["p3"].shape[2:] == (12, 16)
    one.train()
    boxes = Boxes(torch.tensor([[5.0, 5, 40, 40]]), torch.tensor([0]), torch.tensor([0]), torch.tensor([[70, 100]]))
    assert all(value.isfinite() for value in one(torch.rand(1, 3, 70, 100), targets=boxes).losses.values())


def test_an_image_without_objects():
    for name in NAMES:
        one = extractor(name)
        batch = drawn_batch(2)
        first = batch.targets.images == 0
        boxes = Boxes(
            batch.targets.corners[first], batch.targets.labels[first], batch.targets.images[first], batch.targets.sizes
        )
        losses = one(batch.images, targets=boxes).losses
        assert losses
        assert all(value.isfinite() for value in losses.values())


@every_family
def test_scores_of_the_data_s_classes(name):
    """Those of the outputs that the classes stand for, in the classes' order."""
    one, mixed = extractor(name, num_outputs=6), extractor(name, num_outputs=6, outputs=(5, 2, 3))
    batch = drawn_batch(2)
    proposals = [torch.tensor([[0.0, 0, 30, 30], [10, 20, 50, 90]])] * 2 if one.two_stage else ()
    ask = {"scores": True, "logits": False, "targets": batch.targets, "proposals": proposals}
    whole = one.eval()(batch.images, **ask).scores
    found = mixed.eval()(batch.images, **ask).scores
    background = 1 if one.softmax else 0
    assert whole.shape[-1] == 5 + background
    assert found.shape == (*whole.shape[:-1], 3 + background)
    wanted = [0, 5, 2, 3] if one.softmax else [4, 1, 2]
    torch.testing.assert_close(found, whole[..., wanted])
    if one.two_stage:
        assert found.shape[0] == 4
    else:
        assert found.shape[0] == 2


@every_family
def test_scores_in_training_are_those_of_the_losses(name):
    one = extractor(name)
    batch = drawn_batch(2)
    found = one(batch.images, targets=batch.targets, scores=True, levels=("p4",))
    assert found.losses
    assert found.scores.requires_grad
    if not one.two_stage:
        expected = one.train()(batch.images, targets=batch.targets, scores=True, logits=False).scores
        if name != SSD:  # whose batch normalisation has moved
            torch.testing.assert_close(found.scores, expected)
        assert found.proposals == ()
        return
    assert len(found.proposals) == 2
    assert sum(map(len, found.proposals)) == len(found.scores) <= 32
    again = one(batch.images, targets=batch.targets, scores=True, logits=False, proposals=found.proposals)
    torch.testing.assert_close(again.scores, found.scores)
    with pytest.raises(ValueError, match="scores proposals: give it some"):
        one(batch.images, scores=True, logits=False)


def test_a_pass_for_levels_stops_behind_the_pyramid():
    one = extractor("fasterrcnn_resnet18_fpn").eval()
    called = []
    for part in (one.network.rpn, one.network.roi_heads):
        part.register_forward_hook(lambda *_: called.append(1))
    one(torch.rand(1, 3, 64, 64), levels=("p3",), logits=True)
    assert not called


def test_the_same_seed_gives_the_same_losses():
    one = extractor("fasterrcnn_resnet18_fpn")
    batch = drawn_batch(2)
    values = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        values.append(one(batch.images, targets=batch.targets).losses["loss_classifier"].item())
    assert values[0] == values[1]
    assert values[0] != values[2]


def test_what_is_refused(unchecked_types):
    with pytest.raises(UserError, match="thing is no RetinaNet"):
        DetectorExtractor(nn.Linear(2, 2), name="thing")
    with pytest.raises(ValueError, match="is a detector: it has levels and class scores, no vector of an image"):
        extractor().ask(torch.rand(1, 3, 64, 64), Wanted(pooled=True))
    with pytest.raises(ValueError, match="is a detector: its images are labelled by Boxes, not ClassLabels"):
        extractor().ask(torch.rand(1, 3, 64, 64), Wanted(), targets=ClassLabels(torch.tensor([0])))
    with pytest.raises(ValueError, match=r"images: expected \(B, C, H, W\)"):
        extractor()(torch.rand(3, 64, 64))


class Told(detection.RetinaNet):
    """Finds what it is told to, and remembers the sizes of the images it was asked about."""

    def forward(self, images, targets=None):
        self.asked = [tuple(image.shape) for image in images]
        assert not self.training
        return [{k: v.clone() for k, v in self.told.items()} for _ in images]


def test_detect_maps_outputs_to_classes_and_cuts_the_padding():
    one = extractor(num_outputs=6, outputs=(4, 2))
    one.network.__class__ = Told
    one.network.told = {
        "boxes": torch.arange(16.0).view(4, 4),
        "labels": torch.tensor([2, 3, 4, 2]),
        "scores": torch.tensor([0.3, 0.9, 0.5, 0.7]),
    }
    batch = drawn_batch(2, inside=100)
    one.train()
    found = one.detect(batch)
    assert one.training
    assert one.network.training
    assert one.network.asked == [(3, 100, 100)] * 2
    for result in found:
        assert result["labels"].tolist() == [1, 0, 1]
        assert result["scores"].tolist() == pytest.approx([0.7, 0.5, 0.3])
        assert result["boxes"].tolist() == [[12, 13, 14, 15], [8, 9, 10, 11], [0, 1, 2, 3]]
    assert len(one.detect(Batch(batch.images))) == 2
    assert one.network.asked == [(3, 128, 128)] * 2


def test_detect_finds_in_every_image_what_it_would_find_alone():
    """Group norm and the frame's right and lower edges would see another image's padding.

    In double precision: of two boxes that overlap and score alike, rounding decides which one suppresses the other.
    """
    one = extractor(score_thresh=0.0).eval().double()
    batch = drawn_batch(5, side=128)
    sizes = torch.tensor([[128, 90], [90, 128], [128, 93], [128, 90], [60, 128]])
    boxes = replace(batch.targets, sizes=sizes)
    found = one.detect(replace(batch, targets=boxes))
    for image, (height, width) in enumerate(sizes.tolist()):
        alone = one.detect(Batch(batch.images[image : image + 1, :, :height, :width]))[0]
        assert len(alone["boxes"]) > 10
        for name in alone:
            torch.testing.assert_close(found[image][name], alone[name], rtol=1e-4, atol=1e-3)


def test_fixed_size_networks_see_the_whole_frame_squeezed():
    one = extractor(SSD).eval()
    batch = drawn_batch(1, side=160, inside=120)
    sized, boxes = one._sized(batch.images, batch.targets)
    assert sized.tensors.shape == (1, 3, 320, 320)
    assert sized.image_sizes == [(240, 240)]
    torch.testing.assert_close(boxes.corners, batch.targets.corners * 2)
    assert sized.tensors[:, :, 250:].abs().max() == 0


@pytest.mark.slow
def test_a_detector_learns_drawn_objects():
    one = extractor("fcos_resnet18_fpn")
    batch = drawn_batch(2, side=96)
    optimiser = torch.optim.AdamW(one.parameters(), lr=1e-3)
    totals = []
    for step in range(45):
        torch.manual_seed(step)
        total = sum(one(batch.images, targets=batch.targets).losses.values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(total.item())
    assert totals[-1] < 0.6 * totals[0]
    found = one.detect(batch)
    for image, result in enumerate(found):
        for label in range(len(CLASSES)):
            wanted = batch.targets.corners[(batch.targets.images == image) & (batch.targets.labels == label)]
            of_class = result["boxes"][(result["labels"] == label) & (result["scores"] > 0.3)]
            assert overlaps(of_class, wanted).min() > 0.5


def real_batch(folder: Path, *, side: int = 128) -> tuple[Batch, tuple[str, ...]]:
    """Two photographs of COCO, as wide as `side`, and their two largest objects each.

    The frame is the one that a detector pads either of them to: group norm sees the padding.
    """
    found = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    names = {one["id"]: one["name"] for one in found["categories"]}
    images, corners, labels, of_image, sizes = torch.zeros(2, 3, side * 3 // 4, side), [], [], [], []
    classes: list[str] = []
    for place, image in enumerate(found["images"][:2]):
        pixels = read_image(str(folder / "images" / "train2017" / image["file_name"]), ImageReadMode.RGB).float() / 255
        scale = side / max(pixels.shape[1:])
        small = nn.functional.interpolate(pixels[None], scale_factor=scale, mode="bilinear", antialias=True)[0]
        height, width = small.shape[1:]
        images[place, :, :height, :width] = small
        sizes.append([height, width])
        objects = [one for one in found["annotations"] if one["image_id"] == image["id"] and not one["iscrowd"]]
        for one in sorted(objects, key=lambda o: -o["area"])[:2]:
            left, top, across, down = (scale * value for value in one["bbox"])
            corners.append([left, top, left + across, top + down])
            of_image.append(place)
            name = names[one["category_id"]]
            classes += [name] * (name not in classes)
            labels.append(classes.index(name))
    boxes = Boxes(torch.tensor(corners), torch.tensor(labels), torch.tensor(of_image), torch.tensor(sizes))
    return Batch(images, boxes), tuple(classes)


@pytest.mark.skipif(DATA is None, reason="RELDISTILL_DATA is unset: no real photographs")
@pytest.mark.slow
def test_a_detector_learns_real_objects():
    batch, classes = real_batch(Path(str(DATA)) / "coco256")
    side = batch.images.shape[-1]
    # the size at which it detects is the one at which it learned
    one = extractor("fcos_resnet18_fpn", num_outputs=len(classes) + 1, max_size=side)
    optimiser = torch.optim.AdamW(one.parameters(), lr=1e-3)
    for step in range(40):
        torch.manual_seed(step)
        total = sum(one(batch.images, targets=batch.targets).losses.values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    for image, found in enumerate(one.detect(batch)):
        height, width = batch.targets.sizes[image].tolist()
        assert (found["boxes"] <= torch.tensor([width, height] * 2)).all()
        mine = batch.targets.images == image
        label, wanted = batch.targets.labels[mine][0], batch.targets.corners[mine][:1]
        assert overlaps(found["boxes"][found["labels"] == label], wanted).item() > 0.7
