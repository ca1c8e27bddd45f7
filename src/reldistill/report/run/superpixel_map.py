"""Superpixels drawn over their image, as SVG: each image is in the page once, the regions are paths over it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import matplotlib.image
import numpy as np

SIDE = 192  # pixels kept of a larger image: what the page shows at twice its size


def image_data(image: np.ndarray, *, side: int = SIDE) -> str:
    """(H, W, 3) uint8 → a data: address; small images without loss, photographs as JPEG of at most `side` pixels."""
    small = _shrink(image, side)
    out = io.BytesIO()
    lossless = max(small.shape[:2]) <= 64
    matplotlib.image.imsave(
        out, small, format="png" if lossless else "jpg", pil_kwargs={} if lossless else {"quality": 82}
    )
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(out.getvalue()).decode()}"


def region_map(assignment: np.ndarray, *, image_id: str, aspect: float, label: str) -> str:
    """(h, w) superpixel of each token → the image with its regions tinted and outlined; `aspect` is its H / W."""
    rows, columns = assignment.shape
    height = round(100 * aspect, 3)
    tints = "".join(
        f'<path d="{_cells(assignment == index)}" fill="{_tint(int(index))}"/>' for index in np.unique(assignment)
    )
    edges = "".join(_edges(assignment))
    lines = f'<path class="casing" d="{edges}"/><path class="border" d="{edges}"/>' if edges else ""
    return (
        f"{open_frame(image_id, aspect, label)}"
        f'<g transform="scale({100 / columns:.6g} {height / rows:.6g})"><g class="tint">{tints}</g>{lines}</g></svg>'
    )


def plain_map(*, image_id: str, aspect: float, label: str) -> str:
    """The image without regions, in the same frame."""
    return f"{open_frame(image_id, aspect, label)}</svg>"


def colour_map(colours: np.ndarray, *, aspect: float, label: str) -> str:
    """(h, w, 3) uint8, a colour for each place, in the frame of an image of that aspect."""
    height = f"{round(100 * aspect, 3):g}"
    return (
        f'<svg class="map" viewBox="0 0 100 {height}" role="img" aria-label="{label}"><image class="small" width="100" '
        f'height="{height}" preserveAspectRatio="none" href="{image_data(colours)}"/></svg>'
    )


def stored_image(image: np.ndarray, name: str, aspect: float, *, side: int = SIDE) -> str:
    """The image as it stands in the page once, to be shown by `open_frame`."""
    small = ' class="small"' if max(image.shape[:2]) <= 64 else ""
    size = f'width="100" height="{100 * aspect:g}" preserveAspectRatio="none"'
    return f'<image id="{name}"{small} {size} href="{image_data(image, side=side)}"/>'


def open_frame(image_id: str, aspect: float, label: str) -> str:
    """The start of an SVG that shows that image, 100 units wide; what is drawn over it and `</svg>` follow."""
    box = f"0 0 100 {round(100 * aspect, 3):g}"
    return f'<svg class="map" viewBox="{box}" role="img" aria-label="{label}"><use href="#{image_id}"/>'


def _tint(index: int) -> str:
    """A hue of its own for each index: neighbours in number lie far apart on the circle (golden angle)."""
    return f"hsl({index * 137.508 % 360:.0f} 85% {(50, 62, 42)[index % 3]}%)"


def _cells(mask: np.ndarray) -> str:
    """Horizontal runs of a region's cells as rectangles."""
    parts = []
    for row, line in enumerate(mask):
        steps = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
        parts += [
            f"M{start} {row}H{stop}V{row + 1}H{start}Z" for start, stop in zip(steps[::2], steps[1::2], strict=True)
        ]
    return "".join(parts)


def _edges(assignment: np.ndarray) -> Iterator[str]:
    """Line segments between cells of different superpixels, joined along rows and columns."""
    rows, columns = assignment.shape
    for row in range(1, rows):
        yield from (f"M{a} {row}H{b}" for a, b in _runs(assignment[row] != assignment[row - 1]))
    for column in range(1, columns):
        yield from (f"M{column} {a}V{b}" for a, b in _runs(assignment[:, column] != assignment[:, column - 1]))


def _runs(mask: np.ndarray) -> Iterator[tuple[int, int]]:
    steps = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    yield from zip(steps[::2].tolist(), steps[1::2].tolist(), strict=True)


def _shrink(image: np.ndarray, side: int) -> np.ndarray:
    """Block means, by a whole factor, to at most about `side` pixels a side."""
    factor = -(-max(image.shape[:2]) // side)
    if factor == 1:
        return image
    height, width = (size // factor * factor for size in image.shape[:2])
    if height == 0 or width == 0:
        return image[::factor, ::factor]
    blocks = image[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)
