"""The labelled boxes of a batch of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Boxes:
    """The labelled boxes of a batch's images.

    Args:
        corners: (n, 4) left, top, right, bottom in pixels of the batch's images.
        labels: (n,) class indices, int64, 0 … K − 1.
        images: (n,) which image of the batch each box is in, int64, ascending.
        sizes: (B, 2) height and width of each image inside the batch's padding, int64.
        ignored: (n,) bool: crowds and difficult objects, which count neither as found nor as missed; None = no box is.
            Training batches have none.
        areas: (n,) pixels of each object itself, where the annotations give it; None = of its box.
    """

    corners: Float[Tensor, "n 4"]
    labels: Int64[Tensor, "n"]
    images: Int64[Tensor, "n"]
    sizes: Int64[Tensor, "B 2"]
    ignored: Bool[Tensor, "n"] | None = None
    areas: Float[Tensor, "n"] | None = None

    def __len__(self) -> int:
        return len(self.corners)

    def in_frame(self, height: int, width: int) -> Float[Tensor, "B n 4"]:
        """(B, n, 4): each image's corners as fractions of a frame's sides, filled up with boxes of 0 without an area.

        Args:
            height: of the padded images, pixels.
            width: likewise.
        """
        counts = self.images.bincount(minlength=len(self.sizes))
        first = counts.cumsum(0) - counts
        place = torch.arange(len(self), device=self.images.device) - first[self.images]
        framed = self.corners.new_zeros(len(self.sizes), int(counts.max()), 4)
        framed[self.images, place] = self.corners / self.corners.new_tensor([width, height] * 2)
        return framed

    def for_loss(self, name: str, images: Tensor) -> Tensor | None:
        """`boxes` (B, n, 4), as `in_frame` has them; see `core.types.Targets`."""
        return self.in_frame(*images.shape[-2:]) if name == "boxes" else None

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Boxes:
        """The same boxes on another device."""
        parts = {name: part for name, part in vars(self).items() if part is not None}
        return Boxes(**{name: part.to(device, non_blocking=non_blocking) for name, part in parts.items()})
