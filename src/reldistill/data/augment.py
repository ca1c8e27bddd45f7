"""Random changes of training images, each a pure function of the image and of given random numbers.

For images in memory a whole batch is changed at once, every image by its own numbers, without a loop over images. For
images read from disk torchvision's transforms work on one image at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from reldistill.core.checks import UserError
from reldistill.data.decode import fit

WORDS = ("auto", "none", "crop", "crop-flip", "strong")
PADDING = 0.125  # of the side, on every edge, before a random crop in memory
DRAWS = 11  # random numbers an image in memory uses up, whatever the augmentation
JITTER = 0.4  # brightness, contrast and saturation are scaled by 1 ± this
ERASE_PROBABILITY = 0.25
ERASE_AREA = (0.02, 0.33)
ERASE_RATIO = (0.3, 3.3)
RESIZED_CROP_AREA = (0.25, 1.0)
VAL_CROP = 0.875  # of the shorter side, at validation
GREY = (0.299, 0.587, 0.114)


def seed_of(*parts: str | int) -> int:
    """A 32-bit seed from words and numbers, the same on every machine.

    >>> seed_of("order", 0, 1) == seed_of("order", 0, 1) != seed_of("order", 0, 2)
    True
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "big")


def generator_of(*parts: str | int) -> torch.Generator:
    """A fresh generator seeded by words and numbers."""
    return torch.Generator().manual_seed(seed_of(*parts))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch's global generator, which torchvision's transforms draw from, begin at `seed`; then put it back."""
    state = torch.default_generator.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.default_generator.set_state(state)


@dataclass(frozen=True)
class Augment:
    """What is done to training images.

    Args:
        word: its name.
        crop: random crops.
        flip: random horizontal flips.
        strong: colours and random erasing as well.
    """

    word: str
    crop: bool
    flip: bool
    strong: bool

    @staticmethod
    def named(word: str, *, flips: bool) -> Augment:
        """From one of WORDS; `flips` tells whether mirrored images still belong to their class."""
        if word not in WORDS:
            raise UserError(f"augment {word!r} is unknown; choose one of {', '.join(WORDS)}")
        if word == "auto":
            word = "crop-flip" if flips else "crop"
        return Augment(word, word != "none", word == "crop-flip" or (word == "strong" and flips), word == "strong")


def crop_and_flip(
    pixels: UInt8[Tensor, "B S S 3"], draws: Float[Tensor, "B _draws"], *, padding: int, flip: bool
) -> UInt8[Tensor, "B S S 3"]:
    """Shift every image of a batch within a border of zeros, and mirror half of them.

    One gather of whole pixels does both: the source column of a mirrored image simply runs backwards.

    Args:
        pixels: (B, S, S, 3) uint8.
        draws: (B, ≥ 3) in [0, 1): row shift, column shift, mirrored if below a half.
        padding: width of the border.
        flip: whether to mirror at all.

    Returns:
        (B, S, S, 3) uint8.
    """
    size, side, _, channels = pixels.shape
    wide = side + 2 * padding
    padded = functional.pad(pixels, (0, 0, padding, padding, padding, padding))
    shift = (draws[:, :2] * (2 * padding + 1)).long()
    steps = torch.arange(side, device=pixels.device)
    rows = steps + shift[:, :1]
    mirrored = (draws[:, 2:3] < 0.5) if flip else torch.zeros_like(shift[:, :1], dtype=torch.bool)
    columns = torch.where(mirrored, side - 1 - steps, steps) + shift[:, 1:2]
    first = torch.arange(size, device=pixels.device) * wide
    flat = ((first[:, None] + rows) * wide)[:, :, None] + columns[:, None, :]
    return padded.view(-1, channels).index_select(0, flat.view(-1)).view(size, side, side, channels)


def jitter_colours(images: Float[Tensor, "B 3 H W"], draws: Float[Tensor, "B _draws"]) -> Float[Tensor, "B 3 H W"]:
    """Scale brightness, then contrast, then saturation of every image by a factor in 1 ± JITTER.

    Args:
        images: (B, 3, H, W) in [0, 1].
        draws: (B, ≥ 3) in [0, 1): brightness, contrast, saturation.
    """
    factors = 1 + JITTER * (2 * draws[:, :3, None, None, None] - 1)
    images = (images * factors[:, 0]).clamp_(0, 1)
    mean = _grey(images).mean((2, 3), keepdim=True)
    images = images.sub_(mean).mul_(factors[:, 1]).add_(mean).clamp_(0, 1)
    grey = _grey(images)
    return images.sub_(grey).mul_(factors[:, 2]).add_(grey).clamp_(0, 1)


def _grey(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
    red, green, blue = images.split(1, dim=1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


def erase_rectangles(images: Float[Tensor, "B 3 H W"], draws: Float[Tensor, "B _draws"]) -> Float[Tensor, "B 3 H W"]:
    """Set a rectangle of a quarter of the images to zero.

    Args:
        images: (B, 3, H, W).
        draws: (B, ≥ 5) in [0, 1): erased if below ERASE_PROBABILITY, area, ratio of height to width, row, column.
    """
    height, width = images.shape[-2:]
    area = (ERASE_AREA[0] + (ERASE_AREA[1] - ERASE_AREA[0]) * draws[:, 1]) * height * width
    low, high = np.log(ERASE_RATIO)
    ratio = torch.exp(low + (high - low) * draws[:, 2])
    tall = (area * ratio).sqrt().round().clamp(1, height)[:, None]
    wide = (area / ratio).sqrt().round().clamp(1, width)[:, None]
    top = (draws[:, 3:4] * (height - tall + 1)).floor()
    left = (draws[:, 4:5] * (width - wide + 1)).floor()
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_rows = (rows >= top) & (rows < top + tall) & (draws[:, :1] < ERASE_PROBABILITY)
    in_columns = (columns >= left) & (columns < left + wide)
    kept = ~(in_rows[:, :, None] & in_columns[:, None, :])
    return images * kept[:, None].to(images.dtype)


def to_float(pixels: UInt8[Tensor, "B H W 3"]) -> Float[Tensor, "B 3 H W"]:
    """(B, H, W, 3) uint8 → (B, 3, H, W) in [0, 1], in memory as it lies: channels_last."""
    return pixels.permute(0, 3, 1, 2).float().div_(255)


def augment_batch(
    pixels: UInt8[Tensor, "B S S 3"], draws: Float[Tensor, "B draws"], augment: Augment
) -> Float[Tensor, "B 3 S S"]:
    """(B, S, S, 3) uint8 and (B, DRAWS) random numbers in [0, 1) → (B, 3, S, S) in [0, 1], channels_last."""
    if augment.crop:
        padding = round(PADDING * pixels.shape[1])
        pixels = crop_and_flip(pixels, draws[:, :3], padding=padding, flip=augment.flip)
    images = to_float(pixels)
    if augment.strong:  # which is twice as fast plane by plane
        images = erase_rectangles(jitter_colours(images.contiguous(), draws[:, 3:6]), draws[:, 6:11])
        images = images.contiguous(memory_format=torch.channels_last)
    return images


class ImageTransform:
    """One RGB image from disk → (S, S, 3) uint8.

    For training a random part of it (a quarter to all of its area) scaled to S × S, then as `augment` says. For
    validation, and without random crops, the central square scaled to S × S: 0.875 of the shorter side, as if that had
    been resized to S / 0.875 and the centre cut out; an image that is S × S already stays whole.
    """

    def __init__(self, side: int, augment: Augment | None) -> None:
        self.side = side
        self.steps: v2.Compose | None = None
        if augment is not None and augment.crop:
            steps: list[torch.nn.Module] = [v2.RandomResizedCrop(side, scale=RESIZED_CROP_AREA)]
            steps += [v2.RandomHorizontalFlip()] if augment.flip else []
            steps += [v2.TrivialAugmentWide()] if augment.strong else []
            steps += [v2.PILToTensor()]
            steps += [v2.RandomErasing(ERASE_PROBABILITY)] if augment.strong else []
            self.steps = v2.Compose(steps)

    def __call__(self, image: Image.Image, seed: int) -> UInt8[Tensor, "S S 3"]:
        """The image, changed as `seed` says."""
        if self.steps is None:
            return torch.from_numpy(np.array(fit(image, self.side, part=VAL_CROP)))
        with seeded(seed):
            return self.steps(image).permute(1, 2, 0)
