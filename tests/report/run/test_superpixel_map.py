from __future__ import annotations

import base64
import io
import re

import matplotlib.image
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reldistill.report.run.superpixel_map import image_data, region_map


def cells_of(svg: str) -> dict[str, set[tuple[int, int]]]:
    """Colour → cells that its path covers."""
    found: dict[str, set[tuple[int, int]]] = {}
    for path, colour in re.findall(r'<path d="([^"]*)" fill="([^"]*)"', svg):
        for x, y, stop in re.findall(r"M(\d+) (\d+)H(\d+)V", path):
            found.setdefault(colour, set()).update((int(y), column) for column in range(int(x), int(stop)))
    return found


def borders_of(svg: str) -> float:
    """Length of all border lines, in cells."""
    path = re.search(r'class="border" d="([^"]*)"', svg)
    if path is None:
        return 0
    across = sum(int(b) - int(a) for a, b in re.findall(r"M(\d+) \d+H(\d+)", path.group(1)))
    return across + sum(int(b) - int(a) for a, b in re.findall(r"M\d+ (\d+)V(\d+)", path.group(1)))


@settings(max_examples=40, deadline=None)
@given(arrays(np.int16, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.integers(0, 5)))
def test_regions_cover_the_grid_once_and_borders_run_between_them(assignment: np.ndarray) -> None:
    svg = region_map(assignment, image_id="i", aspect=1.0, label="x")
    covered = [cell for cells in cells_of(svg).values() for cell in cells]
    assert sorted(covered) == [(y, x) for y in range(assignment.shape[0]) for x in range(assignment.shape[1])]
    changes = np.count_nonzero(np.diff(assignment, axis=0)) + np.count_nonzero(np.diff(assignment, axis=1))
    assert borders_of(svg) == changes


def test_one_index_has_one_colour_in_every_map() -> None:
    first = cells_of(region_map(np.array([[3, 4]]), image_id="i", aspect=1.0, label="x"))
    second = cells_of(region_map(np.array([[4], [3]]), image_id="i", aspect=1.0, label="x"))
    assert set(first) == set(second)
    assert len(first) == 2


def decoded(address: str) -> np.ndarray:
    kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", address).groups()  # type: ignore[union-attr]
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(data)), format=kind)


def test_small_images_are_kept_without_loss() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    assert np.array_equal((decoded(image_data(image))[..., :3] * 255).round().astype(np.uint8), image)


def test_photographs_shrink_and_keep_their_shape() -> None:
    image = np.full((500, 1000, 3), 130, dtype=np.uint8)
    address = image_data(image)
    small = decoded(address)
    assert small.shape[1] <= 192
    assert abs(small.shape[1] / small.shape[0] - 2) < 0.05
    assert len(address) < 5000
    assert abs(int(small.mean()) - 130) <= 2


def test_an_image_of_one_pixel_in_height() -> None:
    assert decoded(image_data(np.zeros((1, 900, 3), dtype=np.uint8))).shape[0] == 1
