"""Random changes of an image together with its boxes, each a pure function of the image and of a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from reldistill.core.checks import UserError
from reldistill.data.augment import seeded
from reldistill.tasks.detection.data.labels import Objects

WORDS = ("auto", "none", "flip", "multi-scale", "crop", "jitter")
SMALLEST_SCALE = 0.8  # of the shorter side, in steps of STEP pixels, where the scale is drawn
STEP = 32
LONGEST = 1333 / 800  # the longest side over the shorter one, as detectors of COCO are trained
JITTER = (0.5, 2.0)  # scales drawn by `jitter`
SMALLEST_BOX = 1.0  # pixels; what a crop leaves less than this of is gone
GREY = (124, 116, 104)  # around an image that is smaller than its crop: the mean of ImageNet


@dataclass(frozen=True)
class BoxAugment:
    """What is done to training images and their boxes.

    Args:
        word: its name.
        side: pixels of the shorter side, or of both where `square`.
        longest: pixels that the longer side is kept within.
        square: whether images are stretched to side × side.
    """

    word: str
    side: int
    longest: int
    square: bool

    @staticmethod
    def named(word: str, *, side: int, longest: int | None = None, square: bool = False) -> BoxAugment:
        """From one of WORDS."""
        if word not in WORDS:
            raise UserError(f"augment {word!r} is unknown for detection; choose one of {', '.join(WORDS)}")
        if word == "auto":
            word = "crop" if square else "multi-scale"
        if square and word == "multi-scale":
            raise UserError("augment 'multi-scale': this detector sees images of one size; choose crop, flip or none")
        return BoxAugment(word, side, round(side * LONGEST) if longest is None else longest, square)

    @property
    def sides(self) -> list[int]:
        """The shorter sides to draw from, by which only `multi-scale` has several."""
        if self.word != "multi-scale":
            return [self.side]
        return list(range(self.side, int(self.side * SMALLEST_SCALE) - 1, -STEP))[::-1]

    @property
    def shape_stays(self) -> bool:
        """Whether a landscape image stays one."""
        return not self.square and self.word != "jitter"


class BoxTransform:
    """One image and its boxes → an image of the size that a detector is trained at, with boxes to learn from.

    `none` resizes: the shorter side to `side`, but the longer one to `longest` at most. `flip` also mirrors every
    other image. `multi-scale` draws the shorter side too. `crop` cuts out a random part that one of its boxes has a
    random minimal overlap with, and keeps the boxes whose centres lie inside. `jitter` scales by a half to twice and
    cuts (or fills up) to side × side. A box that a cut leaves less than a pixel of is gone.
    """

    def __init__(self, augment: BoxAugment) -> None:
        self.augment = augment
        cuts = augment.word in ("crop", "jitter")
        steps: list[torch.nn.Module] = []
        if augment.word == "crop":
            steps.append(v2.RandomIoUCrop())
        if augment.word == "jitter":
            size = (augment.side, augment.side)
            steps.append(v2.ScaleJitter(size, scale_range=JITTER, antialias=True))
            steps.append(v2.RandomCrop(size, pad_if_needed=True, fill=list(GREY)))
        elif augment.square:
            steps.append(v2.Resize((augment.side, augment.side), antialias=True))
        else:
            steps.append(v2.RandomShortestSize(augment.sides, augment.longest, antialias=True))
        if augment.word != "none":
            steps.append(v2.RandomHorizontalFlip())
        steps.append(v2.ClampBoundingBoxes())  # a cut may leave them over its edge, and resizing by a rounding error
        self.smallest = SMALLEST_BOX if cuts else 0.0
        self.steps = v2.Compose(steps)

    def __call__(
        self, image: Image.Image, objects: Objects, seed: int
    ) -> tuple[UInt8[Tensor, "H W 3"], Float[Tensor, "n 4"], Int64[Tensor, "n"]]:
        """(H, W, 3) uint8, corners (n, 4) and labels (n,), changed as `seed` says. Ignored objects are left out."""
        learned = objects.chosen(~objects.ignored)
        pixels = tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(learned.corners), format="XYXY", canvas_size=(image.height, image.width)
        )
        with seeded(seed):
            pixels, boxes, labels = self.steps(pixels, boxes, torch.from_numpy(learned.labels))
        corners = boxes.as_subclass(torch.Tensor)
        kept = (corners[:, 2:] - corners[:, :2] > self.smallest).all(dim=1)
        return pixels.as_subclass(torch.Tensor).permute(1, 2, 0), corners[kept], labels[kept]
