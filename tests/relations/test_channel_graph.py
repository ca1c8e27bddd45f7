from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from reldistill.relations.channel_graph import (
    channel_adjacency,
    split_channels,
    unit_channels,
)


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.usefixtures("each_form")
def test_adjacency_is_the_cosine_of_every_pair_of_channels():
    images = maps(2, 4, 3, 5)
    expected = torch.empty(2, 4, 4, dtype=torch.float64)
    for b in range(2):
        for i in range(4):
            for j in range(4):
                v, w = images[b, i].flatten().tolist(), images[b, j].flatten().tolist()
                dot = sum(x * y for x, y in zip(v, w, strict=True))
                expected[b, i, j] = dot / math.sqrt(sum(x * x for x in v)) / math.sqrt(sum(x * x for x in w))
    assert_close(channel_adjacency(images), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("each_form")
def test_known_values():
    image = torch.tensor([[[[1.0, 0.0]], [[3.0, 3.0]], [[0.0, -2.0]]]], dtype=torch.float64)
    half = math.sqrt(0.5)
    expected = torch.tensor([[[1.0, half, 0.0], [half, 1.0, -half], [0.0, -half, 1.0]]], dtype=torch.float64)
    assert_close(channel_adjacency(image), expected)


@pytest.mark.usefixtures("each_form")
def test_dead_channel_is_similar_only_to_itself_and_gets_no_gradient():
    image = maps(2, 3, 4, 4)
    image[0, 1] = 0
    image.requires_grad_()
    adjacency = channel_adjacency(image)
    assert adjacency[0, 1].tolist() == [0.0, 1.0, 0.0]
    assert adjacency[0, :, 1].tolist() == [0.0, 1.0, 0.0]
    (gradient,) = torch.autograd.grad((adjacency * maps(2, 3, 3, seed=1)).sum(), image)
    assert gradient.isfinite().all()
    assert (gradient[0, 1] == 0).all()
    assert (gradient[0, [0, 2]] != 0).all()
    assert (gradient[1] != 0).all()


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 1), (1, 1, 4, 4)])
def test_one_pixel_and_one_channel(shape):
    image = maps(*shape).requires_grad_()
    adjacency = channel_adjacency(image)
    assert_close(adjacency.abs(), torch.ones_like(adjacency) if shape[1] == 1 or shape[2] == 1 else adjacency.abs())
    (gradient,) = torch.autograd.grad(adjacency.sum(), image)
    assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)  # a cosine of single numbers is ±1


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("scale", [1e-28, 1e-20, 1e20, 1e35])
def test_magnitudes_whose_squares_leave_float32(scale):
    image = maps(2, 3, 4, 4, dtype=torch.float32).requires_grad_()
    scaled = (image.detach() * scale).requires_grad_()
    weight = maps(2, 3, 3, seed=1, dtype=torch.float32)
    adjacency, adjacency_of_scaled = channel_adjacency(image), channel_adjacency(scaled)
    assert_close(adjacency_of_scaled, adjacency)
    (gradient,) = torch.autograd.grad((adjacency * weight).sum(), image)
    (gradient_of_scaled,) = torch.autograd.grad((adjacency_of_scaled * weight).sum(), scaled)
    assert_close(gradient_of_scaled * scale, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("each_form")
def test_half_precision_extremes():
    signs = maps(2, 3, 8, 8).sign()
    image = (6e4 * signs).half().requires_grad_()
    adjacency = channel_adjacency(image)
    assert adjacency.dtype == torch.float32
    assert_close(adjacency, channel_adjacency(signs).float())
    (gradient,) = torch.autograd.grad(adjacency.square().sum(), image)
    assert gradient.isfinite().all()


@pytest.mark.usefixtures("each_form")
def test_a_broken_activation_is_not_hidden():
    image = maps(1, 3, 2, 2)
    image[0, 1, 0, 0] = torch.nan
    assert channel_adjacency(image)[0, 0, 1].isnan()
    image[0, 1, 0, 0] = torch.inf
    assert channel_adjacency(image)[0, 0, 1].isnan()


def test_autocast_changes_nothing():
    image = maps(2, 8, 4, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = channel_adjacency(image)
    assert lowered.dtype == torch.float32
    assert torch.equal(lowered, channel_adjacency(image))


def test_memory_format_changes_nothing():
    image = maps(2, 8, 4, 4)
    other = image.clone().to(memory_format=torch.channels_last)
    assert_close(channel_adjacency(other), channel_adjacency(image), rtol=0, atol=1e-14)


@pytest.mark.usefixtures("each_form")
def test_gradcheck():
    image = maps(2, 3, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(unit_channels, image)
    assert torch.autograd.gradcheck(channel_adjacency, image)


def test_second_derivatives_are_refused():
    image = maps(1, 3, 2, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(channel_adjacency(image).square().sum(), image, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@given(seed=st.integers(0, 10_000), exponents=st.lists(st.floats(-6, 6), min_size=4, max_size=4))
@settings(deadline=None)
def test_positive_scaling_of_any_channel_changes_nothing(seed, exponents):
    image = maps(2, 4, 3, 3, seed=seed)
    scale = torch.tensor(exponents, dtype=torch.float64).exp()[:, None, None]
    assert_close(channel_adjacency(image * scale), channel_adjacency(image), rtol=0, atol=1e-12)


@given(seed=st.integers(0, 10_000), order=st.permutations(range(9)))
@settings(deadline=None)
def test_permutation_of_the_positions_changes_nothing(seed, order):
    image = maps(2, 4, 3, 3, seed=seed)
    shuffled = image.flatten(2)[..., list(order)].view_as(image)
    assert_close(channel_adjacency(shuffled), channel_adjacency(image), rtol=0, atol=1e-12)


@given(seed=st.integers(0, 10_000), order=st.permutations(range(4)))
@settings(deadline=None)
def test_permutation_of_the_channels_permutes_rows_and_columns(seed, order):
    image, order = maps(2, 4, 3, 3, seed=seed), list(order)
    expected = channel_adjacency(image)[:, order][:, :, order]
    assert_close(channel_adjacency(image[:, order]), expected, rtol=0, atol=1e-12)


def test_groups_are_runs_of_neighbouring_channels():
    image = maps(2, 6, 3, 3)
    groups = split_channels(image, groups=3)
    assert groups.shape == (2, 3, 2, 3, 3)
    for g in range(3):
        assert torch.equal(groups[:, g], image[:, 2 * g : 2 * g + 2])
        assert_close(channel_adjacency(groups)[:, g], channel_adjacency(image[:, 2 * g : 2 * g + 2]))


@pytest.mark.parametrize("groups", [0, -1, 4, 7])
def test_groups_must_divide_the_channels(groups):
    with pytest.raises(ValueError, match=f"groups = {groups} does not divide the C = 6 channels"):
        split_channels(maps(1, 6, 2, 2), groups=groups)


def test_wrong_axes_are_named():
    with pytest.raises(ValueError, match=r"feature_map: expected \(B, C, H, W\), got a tensor of shape \(2, 3, 4\)"):
        channel_adjacency(maps(2, 3, 4))
