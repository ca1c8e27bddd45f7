from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from reldistill.core.checks import UserError
from reldistill.data.augment import (
    DRAWS,
    ERASE_AREA,
    ERASE_PROBABILITY,
    ERASE_RATIO,
    JITTER,
    Augment,
    ImageTransform,
    augment_batch,
    crop_and_flip,
    erase_rectangles,
    generator_of,
    jitter_colours,
    seed_of,
    to_float,
)


def random_batch(size: int = 32, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, generator=generator)
    return pixels, torch.rand(size, DRAWS, generator=generator)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 5), st.booleans(), st.integers(0, 1000))
def test_crop_and_flip_equals_a_loop_over_images(size: int, side: int, padding: int, flip: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8, generator=generator)
    draws = torch.rand(size, 3, generator=generator)
    found = crop_and_flip(pixels, draws, padding=padding, flip=flip).numpy()
    for image, (down, right, mirror), result in zip(pixels.numpy(), draws.tolist(), found, strict=True):
        padded = np.zeros((side + 2 * padding, side + 2 * padding, 3), dtype=np.uint8)
        padded[padding : padding + side, padding : padding + side] = image
        top, left = int(down * (2 * padding + 1)), int(right * (2 * padding + 1))
        expected = padded[top : top + side, left : left + side]
        assert np.array_equal(result, expected[:, ::-1] if flip and mirror < 0.5 else expected)


def test_every_shift_and_both_sides_occur() -> None:
    pixels = torch.full((4000, 8, 8, 3), 255, dtype=torch.uint8)
    pixels[:, :, 0] = 100
    draws = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
    found = crop_and_flip(pixels, draws, padding=1, flip=True)
    rows = (found.float().sum((2, 3)) == 0).float()  # black rows tell the shift
    assert {(int(r[0]), int(r[-1])) for r in rows} == {(0, 0), (0, 1), (1, 0)}
    mirrored = crop_and_flip(pixels, draws, padding=0, flip=True)[:, 0, -1, 0] == 100
    assert 0.45 < mirrored.float().mean() < 0.55


def test_jitter_equals_a_loop_over_images() -> None:
    pixels, draws = random_batch()
    images = to_float(pixels)
    found = jitter_colours(images, draws[:, 3:6]).double()
    for image, numbers, result in zip(images.double(), draws[:, 3:6].double(), found, strict=True):
        bright, contrast, saturation = (1 + JITTER * (2 * numbers - 1)).tolist()

        def grey(x: torch.Tensor) -> torch.Tensor:
            red, green, blue = x
            return 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601's luma

        x = (image * bright).clamp(0, 1)
        x = (contrast * x + (1 - contrast) * grey(x).mean()).clamp(0, 1)
        x = (saturation * x + (1 - saturation) * grey(x)).clamp(0, 1)
        torch.testing.assert_close(result, x, atol=1e-6, rtol=1e-5)


def test_jitter_leaves_its_input_alone_and_half_draws_change_nothing() -> None:
    pixels, _ = random_batch(4)
    images = to_float(pixels)
    before = images.clone()
    torch.testing.assert_close(jitter_colours(images, torch.full((4, 3), 0.5)), before, atol=1e-6, rtol=0)
    jitter_colours(images, torch.rand(4, 3))
    assert torch.equal(images, before)


def test_erasing_equals_a_loop_over_images() -> None:
    pixels, _ = random_batch(200, side=20)
    images = to_float(pixels)
    draws = torch.rand(200, 5, generator=torch.Generator().manual_seed(1))
    found = erase_rectangles(images, draws)
    erased = 0
    for image, (chance, size, shape, down, right), result in zip(images, draws.tolist(), found, strict=True):
        expected = image.clone()
        if chance < ERASE_PROBABILITY:
            erased += 1
            area = (ERASE_AREA[0] + (ERASE_AREA[1] - ERASE_AREA[0]) * size) * 400
            low, high = math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])
            ratio = math.exp(low + (high - low) * shape)
            tall, wide = min(20, round(math.sqrt(area * ratio))), min(20, round(math.sqrt(area / ratio)))
            top, left = int(down * (20 - tall + 1)), int(right * (20 - wide + 1))
            expected[:, top : top + tall, left : left + wide] = 0
        assert torch.equal(result, expected)
    assert 30 < erased < 70


@pytest.mark.parametrize("word", ["none", "crop", "crop-flip", "strong"])
def test_a_part_of_a_batch_is_augmented_as_in_the_whole(word: str) -> None:
    pixels, draws = random_batch()
    augment = Augment.named(word, flips=True)
    whole = augment_batch(pixels, draws, augment)
    assert torch.equal(augment_batch(pixels[5:9], draws[5:9], augment), whole[5:9])
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert whole.dtype == torch.float32
    assert 0 <= whole.min() <= whole.max() <= 1
    assert torch.equal(whole, to_float(pixels)) == (word == "none")


def test_to_float_is_exact() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_float(pixels)[0, 0].flatten(), torch.arange(256) / 255)


@pytest.mark.parametrize(
    ("word", "flips", "expected"),
    [
        ("auto", True, ("crop-flip", True, True, False)),
        ("auto", False, ("crop", True, False, False)),
        ("none", True, ("none", False, False, False)),
        ("crop-flip", False, ("crop-flip", True, True, False)),
        ("strong", True, ("strong", True, True, True)),
        ("strong", False, ("strong", True, False, True)),
    ],
)
def test_words(word: str, flips: bool, expected: tuple[str, bool, bool, bool]) -> None:
    how = Augment.named(word, flips=flips)
    assert (how.word, how.crop, how.flip, how.strong) == expected


def test_an_unknown_word_lists_the_known() -> None:
    with pytest.raises(
        UserError, match="augment 'mixup' is unknown; choose one of auto, none, crop, crop-flip, strong"
    ):
        Augment.named("mixup", flips=True)


def test_seeds_depend_on_every_part_and_stay_what_they_are() -> None:
    assert len({seed_of("a", 0, 1), seed_of("a", 1, 0), seed_of("b", 0, 1), seed_of("a", 0, 11)}) == 4
    assert seed_of("order", 0, 0) == 1260945419  # a resumed run must find the same order in the next version
    assert torch.equal(torch.rand(3, generator=generator_of("x")), torch.rand(3, generator=generator_of("x")))


def picture(width: int = 50, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("word", ["crop", "crop-flip", "strong"])
def test_image_transform_depends_on_the_seed_and_touches_no_global_generator(word: str) -> None:
    transform = ImageTransform(24, Augment.named(word, flips=True))
    before = torch.get_rng_state()
    first, again, other = (transform(picture(), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == (24, 24, 3)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_global_generator_survives_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(Exception):  # noqa: B017
        ImageTransform(24, Augment.named("crop", flips=True))("no image", 1)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("augment", [None, Augment.named("none", flips=True)])
def test_validation_takes_the_centre_whatever_the_seed(augment: Augment | None) -> None:
    transform = ImageTransform(56, augment)
    image = picture(96, 96)
    expected = v2.Compose([v2.Resize(64), v2.CenterCrop(56), v2.PILToTensor()])(image).permute(1, 2, 0)
    assert torch.equal(transform(image, 1), expected)
    assert torch.equal(transform(picture(), 1), transform(picture(), 2))


def test_validation_keeps_an_image_of_the_right_size_whole() -> None:
    image = picture(24, 24)
    assert np.array_equal(ImageTransform(24, None)(image, 0).numpy(), np.asarray(image))


def test_only_flips_flip() -> None:
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[:, :] = np.linspace(0, 255, 40, dtype=np.uint8)[:, None]  # bright on the right
    image = Image.fromarray(pixels)
    for word, expected in (("crop", {True}), ("crop-flip", {True, False})):
        transform = ImageTransform(16, Augment.named(word, flips=True))
        found = {bool(r[:, -1].sum() > r[:, 0].sum()) for r in (transform(image, seed).int() for seed in range(20))}
        assert found == expected


def test_a_very_long_image_costs_no_memory() -> None:
    assert ImageTransform(224, None)(Image.new("RGB", (60_000, 1)), 0).shape == (224, 224, 3)
