from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import slow_references as slow
from observers import LargestTensor
from reldistill.relations.superpixels import (
    Assignment,
    assign,
    common_grid,
    initial_superpixels,
    merge,
    nearest_superpixels,
    superpixel_grid,
    superpixel_tokens,
    superpixels_and_assignment,
)
from reldistill.relations.tokens import map_to_tokens

NEIGHBOURHOODS = pytest.mark.parametrize("neighbourhood", ["all", "local"])
# token grid, superpixel grid: divisible, not divisible, one superpixel, a token each, a line
GRIDS = [((6, 6), (3, 3)), ((7, 5), (4, 3)), ((9, 8), (5, 4)), ((3, 4), (1, 1)), ((3, 3), (3, 3)), ((1, 9), (1, 5))]


def feature_map(grid, *, images=2, dim=3, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(images, dim, *grid, generator=generator, dtype=torch.float64)


def loop(features, cells, **settings):
    """Superpixel tokens (B, M, D) and Q (B, N, M) by `slow_references`."""
    found = [slow.superpixels(image, cells, **settings) for image in features]
    return tuple(torch.tensor(part, dtype=torch.float64) for part in zip(*found, strict=True))


# Grids.


@pytest.mark.parametrize(
    ("grid", "cell", "expected"),
    [((14, 14), 2, (7, 7)), ((7, 5), 2, (4, 3)), ((7, 5), 3, (3, 2)), ((1, 1), 2, (1, 1)), ((4, 6), 1, (4, 6))],
)
def test_superpixel_grid_rounds_up(grid, cell, expected):
    assert superpixel_grid(grid, cell=cell) == expected


def test_superpixel_grid_refuses_an_empty_cell():
    with pytest.raises(ValueError, match="cell must be at least 1, got 0"):
        superpixel_grid((4, 4), cell=0)


def test_common_grid_is_the_coarser_along_each_axis():
    assert common_grid((7, 4), (5, 6)) == (5, 4)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_nearest_superpixels_are_the_3x3_around_the_home_cell(height, width, h, w):
    h, w = min(h, height), min(w, width)
    index = nearest_superpixels((height, width), (h, w))
    assert index.shape == (height * width, 9)
    for (y, x), found in zip(itertools.product(range(height), range(width)), index.tolist(), strict=True):
        a, b = slow.home_cell(y, height, h), slow.home_cell(x, width, w)
        expected = {r * w + c for r in range(a - 1, a + 2) for c in range(b - 1, b + 2) if 0 <= r < h and 0 <= c < w}
        assert {m for m in found if m >= 0} == expected
        assert sum(m >= 0 for m in found) == len(expected)


@given(st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_every_superpixel_is_home_to_a_token(tokens, cells):
    cells = min(cells, tokens)
    assert {slow.home_cell(y, tokens, cells) for y in range(tokens)} == set(range(cells))


# Against the equations.


@pytest.mark.parametrize(("grid", "cells"), GRIDS)
def test_initial_superpixels_are_the_cells_means(grid, cells):
    features = feature_map(grid)
    expected = loop(features, cells, iterations=0)[0]
    torch.testing.assert_close(initial_superpixels(features, grid=cells), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(superpixel_tokens(features, grid=cells, iterations=0), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("each_form")
@NEIGHBOURHOODS
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize(("grid", "cells"), GRIDS)
def test_superpixel_tokens_match_the_loop(grid, cells, iterations, neighbourhood):
    features = feature_map(grid)
    expected, q = loop(features, cells, iterations=iterations, local=neighbourhood == "local")
    found, assignment = superpixels_and_assignment(
        features, grid=cells, iterations=iterations, neighbourhood=neighbourhood
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(assignment.dense(), q, rtol=1e-9, atol=1e-12)
    again = superpixel_tokens(features, grid=cells, iterations=iterations, neighbourhood=neighbourhood)
    assert torch.equal(again, found)


@pytest.mark.usefixtures("each_form")
@NEIGHBOURHOODS
def test_merging_is_q_with_its_columns_scaled_to_one(neighbourhood):
    features = feature_map((7, 5))
    found, assignment = superpixels_and_assignment(features, grid=(4, 3), neighbourhood=neighbourhood)
    q = assignment.dense()
    torch.testing.assert_close(q.sum(dim=2), torch.ones(2, 35, dtype=torch.float64))
    columns = q / q.sum(dim=1, keepdim=True)
    torch.testing.assert_close(found, columns.mT @ map_to_tokens(features), rtol=1e-10, atol=1e-12)


def test_local_sees_its_neighbours_only():
    """And is not the dense softmax cut off: the rows sum to 1 within the neighbours."""
    features = feature_map((10, 10))
    _, local = superpixels_and_assignment(features, grid=(5, 5), neighbourhood="local")
    _, dense = superpixels_and_assignment(features, grid=(5, 5))
    seen = torch.zeros(100, 25, dtype=torch.bool)
    for token, found in enumerate(nearest_superpixels((10, 10), (5, 5)).tolist()):
        seen[token, [m for m in found if m >= 0]] = True
    assert (local.dense()[:, ~seen] == 0).all()
    within = dense.dense() * seen
    torch.testing.assert_close(local.dense(), within / within.sum(dim=2, keepdim=True), rtol=1e-9, atol=1e-12)


def test_local_is_all_where_everything_is_near():
    features = feature_map((5, 4))
    for settings_ in ({"iterations": 1}, {"iterations": 2}):
        dense = superpixel_tokens(features, grid=(2, 2), neighbourhood="all", **settings_)
        local = superpixel_tokens(features, grid=(2, 2), neighbourhood="local", **settings_)
        torch.testing.assert_close(local, dense, rtol=1e-10, atol=1e-12)


def test_one_superpixel_is_the_mean():
    features = feature_map((3, 4))
    torch.testing.assert_close(superpixel_tokens(features, grid=(1, 1))[:, 0], features.mean(dim=(2, 3)))


def test_temperature_is_the_root_of_the_width():
    """Two tokens ±a of D equal entries: log-odds of the own superpixel against the other are 2·a²·D/√D."""
    for dim in (1, 4, 9):
        features = torch.full((1, dim, 1, 2), 0.5, dtype=torch.float64)
        features[..., 1] *= -1
        _, assignment = superpixels_and_assignment(features, grid=(1, 2))
        q = assignment.dense()[0]
        assert math.log(q[0, 0] / q[0, 1]) == pytest.approx(2 * 0.25 * math.sqrt(dim), rel=1e-12)


@pytest.mark.usefixtures("each_form")
@NEIGHBOURHOODS
@pytest.mark.parametrize("iterations", [1, 2])
def test_gradcheck(neighbourhood, iterations):
    features = feature_map((5, 3), dim=2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f: superpixel_tokens(f, grid=(3, 2), iterations=iterations, neighbourhood=neighbourhood), features
    )


# Another network's assignment.


@NEIGHBOURHOODS
@pytest.mark.parametrize(
    ("teacher_grid", "student_grid", "cells"),
    [
        ((6, 6), (6, 6), (3, 3)),
        ((8, 8), (4, 4), (2, 2)),
        ((4, 4), (9, 7), (2, 2)),
        ((7, 5), (4, 6), (2, 3)),
        ((16, 16), (3, 3), (2, 2)),
        ((6, 6), (3, 6), (3, 3)),
    ],
)
@pytest.mark.usefixtures("each_form")
def test_teachers_assignment_is_resampled_bilinearly(teacher_grid, student_grid, cells, neighbourhood):
    """As if the dense Q were a stack of M maps, resized to the student's grid, its columns scaled to sum 1 again."""
    teacher, student = feature_map(teacher_grid, dim=4), feature_map(student_grid, seed=1)
    _, assignment = superpixels_and_assignment(teacher, grid=cells, neighbourhood=neighbourhood)
    found = superpixel_tokens(student, grid=cells, assignment=assignment)
    q = assignment.dense().mT.unflatten(2, teacher_grid)
    if student_grid != teacher_grid:
        q = F.interpolate(q, size=student_grid, mode="bilinear", align_corners=False)
    q = q.flatten(2)
    expected = (q / q.sum(dim=2, keepdim=True)) @ map_to_tokens(student)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@NEIGHBOURHOODS
def test_tokens_that_resampling_skips_do_not_set_the_scale(neighbourhood):
    """Two tokens of the student fall between 3 and 4, and 11 and 12, of sixteen; the others own superpixel 0 alone."""
    student = feature_map((1, 2), images=1).float()
    likes = torch.full((16, 2), -200.0)
    likes[:, 0] = 0.0
    likes[[3, 4, 11, 12]] = torch.tensor([-200.0, 0.0])
    neighbours = nearest_superpixels((1, 16), (1, 2)) if neighbourhood == "local" else None
    if neighbours is not None:
        likes = likes.gather(1, neighbours.clamp_min(0)).masked_fill(neighbours < 0, -torch.inf)
    assignment = Assignment(likes[None], (1, 16), (1, 2), neighbours)
    expected = student.mean(dim=(2, 3))[:, None].expand(1, 2, 3)
    torch.testing.assert_close(superpixel_tokens(student, grid=(1, 2), assignment=assignment), expected)


@NEIGHBOURHOODS
def test_another_assignment_has_the_gradient_of_a_linear_map(neighbourhood):
    _, assignment = superpixels_and_assignment(feature_map((8, 6)), grid=(4, 3), neighbourhood=neighbourhood)
    student = feature_map((5, 5), seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: superpixel_tokens(f, grid=(4, 3), assignment=assignment), student)


def test_detached_assignment_takes_no_gradient():
    teacher = feature_map((4, 4)).requires_grad_()
    _, assignment = superpixels_and_assignment(teacher, grid=(2, 2))
    assert assignment.log_weights.requires_grad
    assert not assignment.detach().log_weights.requires_grad


# What is drawn.


@pytest.mark.usefixtures("each_form")
@NEIGHBOURHOODS
def test_labels_are_the_heaviest_superpixels(neighbourhood):
    _, assignment = superpixels_and_assignment(feature_map((7, 9)), grid=(4, 5), neighbourhood=neighbourhood)
    labels = assignment.labels()
    assert labels.shape == (2, 7, 9)
    assert torch.equal(labels.flatten(1), assignment.dense().argmax(dim=2))


@NEIGHBOURHOODS
def test_labels_follow_what_the_tokens_show(neighbourhood):
    """Two regions of one activation each, on a border that no cell boundary meets."""
    features = torch.zeros(1, 2, 6, 6)
    features[:, 0, :, :3] = 8.0
    features[:, 1, :, 3:] = 8.0
    _, assignment = superpixels_and_assignment(features, grid=(1, 2), neighbourhood=neighbourhood)
    assert assignment.labels()[0].tolist() == [[0, 0, 0, 1, 1, 1]] * 6


# Extremes.


@NEIGHBOURHOODS
@pytest.mark.parametrize("value", [0.0, 0.1, -6e4])
def test_constant_map_gives_constant_superpixels(value, neighbourhood):
    features = torch.full((2, 5, 7, 7), value)
    found = superpixel_tokens(features, grid=(4, 4), neighbourhood=neighbourhood)
    torch.testing.assert_close(found, torch.full((2, 16, 5), value))


@pytest.mark.usefixtures("each_form")
@NEIGHBOURHOODS
def test_a_superpixel_that_no_token_prefers_is_not_lost(neighbourhood):
    """The cell of large activations takes every token; in float32 the columns of the others are 0 throughout."""
    features = 1 + 0.1 * feature_map((6, 6), images=1, dim=4).float()
    features[:, :, 2:4, 2:4] *= 300
    found, assignment = superpixels_and_assignment(features.requires_grad_(), grid=(3, 3), neighbourhood=neighbourhood)
    assert (assignment.dense().sum(dim=1) == 0).sum() == 8
    expected = loop(features.detach(), (3, 3), local=neighbourhood == "local")[0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)
    found.sum().backward()
    assert features.grad.isfinite().all()


@NEIGHBOURHOODS
def test_half_precision_of_any_magnitude(neighbourhood):
    features = (feature_map((6, 6)).sign() * 6e4).half().requires_grad_()
    found = superpixel_tokens(features, grid=(3, 3), iterations=2, neighbourhood=neighbourhood)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    found.sum().backward()
    assert features.grad.isfinite().all()


def test_autocast_does_not_shorten_it():
    features = feature_map((6, 6)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, assignment = superpixels_and_assignment(features, grid=(3, 3))
        merged = merge(features, assignment)
    expected = superpixel_tokens(features, grid=(3, 3))
    assert torch.equal(found, expected)
    assert torch.equal(merged, expected)


def test_local_never_holds_a_number_for_each_pair():
    """64×64 tokens and 32×32 superpixels: 4 million pairs; forward and backward stay with O(9·N·D)."""
    features = feature_map((64, 64), images=1).float().requires_grad_()
    with LargestTensor() as watch:
        superpixel_tokens(features, grid=(32, 32), neighbourhood="local").sum().backward()
    assert 9 * 64**2 <= watch.numbers <= 9 * 64**2 * 3
    assert features.grad.abs().max() > 0


# Misuse.


def test_more_superpixels_than_tokens():
    with pytest.raises(ValueError, match=r"a grid of \(2, 2\) tokens cannot hold \(3, 2\) superpixels"):
        superpixel_tokens(torch.zeros(1, 3, 2, 2), grid=(3, 2))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"neighbourhood": "near"}, "neighbourhood must be one of all, local, got 'near'"),
        ({"iterations": -1}, "iterations must be at least 0, got -1"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        superpixel_tokens(torch.zeros(1, 3, 4, 4), grid=(2, 2), **arguments)


@pytest.mark.usefixtures("unchecked_types")
def test_sizes_are_named():
    tokens = torch.zeros(1, 12, 3)
    with pytest.raises(ValueError, match="tokens: expected N = 16"):
        assign(tokens, torch.zeros(1, 4, 3), token_grid=(4, 4), superpixel_grid=(2, 2))
    with pytest.raises(ValueError, match="superpixels: expected D = 3"):
        assign(tokens, torch.zeros(1, 4, 2), token_grid=(3, 4), superpixel_grid=(2, 2))


@pytest.mark.usefixtures("unchecked_types")
def test_assignment_of_another_grid_or_batch():
    _, assignment = superpixels_and_assignment(feature_map((4, 4)), grid=(2, 2))
    with pytest.raises(ValueError, match=r"assignment: its grid is \(2, 2\), expected \(1, 2\)"):
        superpixel_tokens(feature_map((4, 4)), grid=(1, 2), assignment=assignment)
    with pytest.raises(ValueError, match="feature_map: expected B = 2"):
        superpixel_tokens(feature_map((4, 4), images=3), grid=(2, 2), assignment=assignment)
