"""Objects are drawn as rectangles: after any change of an image its boxes must still enclose the coloured pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN
from torch import Tensor

from drawn_boxes import CLASSES, COLOURS
from reldistill.core.checks import UserError
from reldistill.tasks.detection.data.box_augment import WORDS, BoxAugment, BoxTransform
from reldistill.tasks.detection.data.labels import Objects

BOXES = {"blue": (20, 30, 60, 50), "green": (70, 10, 110, 90), "red": (150, 60, 190, 110)}
WIDTH, HEIGHT = 200, 120
SEEDS = range(40)


def drawn(width: int = WIDTH, height: int = HEIGHT, scale: int = 1) -> tuple[Image.Image, Objects]:
    pixels = np.zeros((height * scale, width * scale, 3), dtype=np.uint8)
    for name, box in BOXES.items():
        left, top, right, bottom = (scale * side for side in box)
        pixels[top:bottom, left:right] = COLOURS[name]
    corners = scale * np.array([BOXES[name] for name in CLASSES], dtype=np.float32)
    objects = Objects(corners, np.arange(3), np.zeros(3, dtype=bool), np.ones(3, dtype=np.float32))
    return Image.fromarray(pixels), objects


def enclosing(pixels: Tensor, name: str) -> Tensor:
    """The box around the pixels that are more of a class's colour than of any other."""
    colour = torch.tensor(COLOURS[name]).float()
    like = ((pixels.float() - colour).abs().amax(dim=2) < 128).nonzero()
    top, left = like.amin(dim=0)
    bottom, right = like.amax(dim=0) + 1
    return torch.stack([left, top, right, bottom]).float()


def changed(word: str, seed: int, *, side: int = 96, square: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    return BoxTransform(BoxAugment.named(word, side=side, square=square))(*drawn(), seed)


@pytest.mark.parametrize(
    ("word", "square"), [*((word, False) for word in WORDS[1:]), ("none", True), ("flip", True), ("crop", True)]
)
def test_boxes_stay_on_their_objects(word: str, square: bool) -> None:
    seen = 0
    for seed in SEEDS:
        pixels, corners, labels = changed(word, seed, square=square)
        height, width, _ = pixels.shape
        assert (corners >= 0).all()
        assert (corners <= torch.tensor([width, height, width, height])).all()
        for box, label in zip(corners, labels, strict=True):
            if min(box[2] - box[0], box[3] - box[1]) >= 4:  # less of an object is mixed with what is around it
                seen += 1
                assert (enclosing(pixels, CLASSES[label]) - box).abs().max() <= 1.5
    assert seen > 2 * len(SEEDS) * (0.5 if word in ("crop", "jitter") else 1)


@pytest.mark.parametrize("word", ["none", "flip", "multi-scale"])
def test_without_a_cut_every_object_stays(word: str) -> None:
    image, objects = drawn()
    objects.corners[0] = (5, 5, 5.02, 5.02)  # smaller than a pixel, but an object
    for seed in SEEDS:
        _, corners, labels = BoxTransform(BoxAugment.named(word, side=96))(image, objects, seed)
        assert labels.tolist() == [0, 1, 2]
        assert (corners[:, 2:] > corners[:, :2]).all()


def test_what_a_cut_leaves_nothing_of_is_gone() -> None:
    for word in ("crop", "jitter"):
        views = [changed(word, seed) for seed in range(100)]
        assert any(len(labels) < 3 for _, _, labels in views)
        assert all(((corners[:, 2:] - corners[:, :2]) > 1).all() for _, corners, _ in views)


def test_ignored_objects_are_not_learned_from() -> None:
    image, objects = drawn()
    objects.ignored[1] = True
    for word in WORDS[1:]:
        _, corners, labels = BoxTransform(BoxAugment.named(word, side=96))(image, objects, 0)
        assert 1 not in labels
        assert len(corners) == len(labels)


@pytest.mark.parametrize("word", WORDS[1:])
def test_an_image_without_objects(word: str) -> None:
    image, objects = drawn()
    none = objects.chosen(np.zeros(3, dtype=bool))
    for seed in range(10):
        pixels, corners, labels = BoxTransform(BoxAugment.named(word, side=96))(image, none, seed)
        assert pixels.shape[2] == 3
        assert corners.shape == (0, 4)
        assert len(labels) == 0


def test_sizes() -> None:
    """The shorter side as asked, unless the longer one would be too long: 200 x 120 at 96 is 160 x 96."""
    assert changed("none", 0)[0].shape == (96, 160, 3)
    long = BoxTransform(BoxAugment.named("none", side=96, longest=100))
    assert long(*drawn(), 0)[0].shape == (60, 100, 3)
    assert changed("none", 0, square=True)[0].shape == (96, 96, 3)
    assert changed("crop", 0, square=True)[0].shape == (96, 96, 3)
    assert changed("jitter", 0)[0].shape == (96, 96, 3)
    many = BoxAugment.named("multi-scale", side=800)
    assert many.sides == [640, 672, 704, 736, 768, 800]
    assert many.longest == 1333
    assert BoxAugment.named("multi-scale", side=320).sides == [256, 288, 320]
    heights = [changed("multi-scale", seed, side=160)[0].shape[0] for seed in SEEDS]
    assert set(heights) == {128, 160}


def test_the_rule_of_torchvision() -> None:
    """Detectors' own resizing gives the same size for the same limits."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    cases = ((200, 120, 96, 1000), (120, 200, 96, 130), (201, 77, 64, 150), (90, 90, 64, 64))
    none = drawn()[1].chosen(np.arange(0))
    for width, height, side, longest in cases:
        theirs = GeneralizedRCNNTransform(side, longest, [0.0] * 3, [1.0] * 3, size_divisible=1)
        image = Image.new("RGB", (width, height))
        ours = BoxTransform(BoxAugment.named("none", side=side, longest=longest))(image, none, 0)
        expected = theirs([torch.zeros(3, height, width)])[0].image_sizes[0]
        assert max(abs(a - b) for a, b in zip(ours[0].shape[:2], expected, strict=True)) <= 1


def test_half_of_the_images_are_mirrored() -> None:
    lefts = [float(changed("flip", seed, side=120)[1][0, 0]) for seed in range(200)]
    assert set(lefts) == {20.0, 140.0}
    assert 70 < lefts.count(20.0) < 130


def test_jitter_fills_with_the_mean_of_imagenet() -> None:
    grey = torch.tensor(IMAGENET_DEFAULT_MEAN).mul(255).round()
    pixels = torch.stack([changed("jitter", seed)[0] for seed in range(10)]).flatten(0, 2)
    assert (pixels == grey).all(dim=1).any()


@pytest.mark.parametrize("word", WORDS[1:])
def test_a_view_is_its_seed_and_touches_nothing_global(word: str) -> None:
    before = torch.random.get_rng_state()
    first, again = changed(word, 7), changed(word, 7)
    assert torch.equal(torch.random.get_rng_state(), before)
    for ours, theirs in zip(first, again, strict=True):
        assert torch.equal(ours, theirs)
    views = {tuple(changed(word, seed, side=160)[1].flatten().tolist()) for seed in range(20)}
    assert len(views) == {"none": 1, "flip": 2, "multi-scale": 4}.get(word, len(views))
    assert word == "none" or len(views) > 1


def test_words() -> None:
    assert BoxAugment.named("auto", side=96).word == "multi-scale"
    assert BoxAugment.named("auto", side=96, square=True).word == "crop"
    assert [BoxAugment.named(word, side=96).shape_stays for word in WORDS[1:]] == [True, True, True, True, False]
    with pytest.raises(UserError, match="augment 'crop-flip' is unknown for detection"):
        BoxAugment.named("crop-flip", side=96)
