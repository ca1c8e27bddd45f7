"""Images on which coloured rectangles are drawn, with their boxes, for tests of detection."""

from __future__ import annotations

import torch
from torch import Tensor

from reldistill.core.types import Batch
from reldistill.tasks.detection.boxes import Boxes

COLOURS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.2, 0.3, 0.9]])
CLASSES = ("red", "green", "blue")


def drawn_batch(count: int = 2, *, side: int = 128, inside: int | None = None, seed: int = 0) -> Batch:
    """`count` square images of `inside` pixels in a frame of `side`, each with a rectangle of every colour."""
    generator = torch.Generator().manual_seed(seed)
    inside = inside or side
    images = torch.zeros(count, 3, side, side)
    corners, labels, of_image = [], [], []
    for image in range(count):
        images[image, :, :inside, :inside] = 0.4 + 0.1 * torch.rand(3, inside, inside, generator=generator)
        rows = torch.randperm(3, generator=generator).tolist()
        for label, row in enumerate(rows):
            height = inside // 3 - 4
            width = int(torch.randint(inside // 3, inside // 2, (), generator=generator))
            top = row * (inside // 3) + 2
            left = int(torch.randint(2, inside - width - 2, (), generator=generator))
            images[image, :, top : top + height, left : left + width] = COLOURS[label][:, None, None]
            corners.append([left, top, left + width, top + height])
            labels.append(label)
            of_image.append(image)
    boxes = Boxes(
        torch.tensor(corners, dtype=torch.float32),
        torch.tensor(labels),
        torch.tensor(of_image),
        torch.full((count, 2), inside),
    )
    return Batch(images, boxes, torch.arange(count))


def overlaps(found: Tensor, wanted: Tensor) -> Tensor:
    """Intersection over union of each wanted box (n, 4) with the best of the found ones, (n,)."""
    from torchvision.ops import box_iou

    return box_iou(wanted, found).amax(dim=1) if len(found) else torch.zeros(len(wanted))
