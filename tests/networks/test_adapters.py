from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from reldistill.core.types import LevelInfo
from reldistill.networks.adapters import (
    EachLevel,
    MapAdapter,
    NormedProjection,
    PixelwiseRegressor,
    PyramidAdapter,
    StridedTokeniser,
    map_adapter,
)

sizes = st.integers(1, 9)
channels = st.integers(1, 5)


def level(count: int, height: int, width: int | None = None) -> LevelInfo:
    return LevelInfo("level", count, height, width or height, 1.0, "map", 0.5)


@settings(max_examples=30, deadline=None)
@given(channels, channels, sizes, sizes, sizes, sizes)
def test_any_map_takes_the_teachers_shape_and_all_weights_get_a_gradient(
    ours: int, theirs: int, height: int, width: int, to_height: int, to_width: int
) -> None:
    adapter = MapAdapter(ours, theirs, teacher_size=(to_height, to_width))
    student = torch.rand(2, ours, height, width, requires_grad=True)
    adapted = adapter(student)
    assert adapted.shape == (2, theirs, to_height, to_width)
    adapted.square().sum().backward()
    for tensor in (student, *adapter.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("teacher_size", [(3, 5), (8, 8), (6, 4)])
def test_values_are_those_of_a_convolution_and_a_bilinear_resize_in_either_order(teacher_size: tuple[int, int]) -> None:
    adapter = MapAdapter(4, 6, teacher_size=teacher_size).double()
    student = torch.rand(2, 4, 6, 4, dtype=torch.float64)
    weight = adapter.project.weight[:, :, 0, 0]
    projected = torch.einsum("bchw,dc->bdhw", student, weight)
    resized = functional.interpolate(projected, teacher_size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(adapter(student), resized)


def test_one_width_needs_no_weights_and_one_size_no_resize() -> None:
    assert not list(MapAdapter(4, 4, teacher_size=(2, 2)).parameters())
    student = torch.rand(2, 4, 3, 3)
    assert torch.equal(MapAdapter(4, 4, teacher_size=(3, 3))(student), student)


def test_map_adapter_is_made_only_where_the_shapes_differ() -> None:
    assert map_adapter(level(4, 8), level(4, 8)) is None
    for teacher in (level(5, 8), level(4, 7), level(4, 8, 9)):
        adapter = map_adapter(level(4, 8), teacher)
        assert adapter is not None
        shape = adapter(torch.rand(1, 4, 8, 8)).shape
        assert shape == (1, teacher.channels, teacher.height, teacher.width)


@settings(max_examples=30, deadline=None)
@given(channels, st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 2, 4]))
def test_tokeniser_covers_every_cell(count: int, height: int, width: int, factor: int) -> None:
    student = torch.rand(2, count, height, width, requires_grad=True)
    tokeniser = StridedTokeniser(count, factor=factor)
    nn.init.ones_(tokeniser.convolution.weight)
    tokens = tokeniser(student)
    assert tokens.shape == (2, count, -(-height // factor), -(-width // factor))
    tokens.sum().backward()
    assert (student.grad > 0).all()


def test_tokeniser_with_equal_weights_is_average_pooling() -> None:
    tokeniser = StridedTokeniser(3, factor=2)
    with torch.no_grad():
        tokeniser.convolution.weight.zero_()
        tokeniser.convolution.bias.zero_()
        for channel in range(3):
            tokeniser.convolution.weight[channel, channel] = 0.25
    student = torch.rand(2, 3, 8, 6)
    torch.testing.assert_close(tokeniser(student), functional.avg_pool2d(student, 2))
    # At an odd edge the last row and column stand for those that are not there.
    odd = torch.rand(1, 3, 3, 3)
    torch.testing.assert_close(tokeniser(odd)[:, :, 1, 1], odd[:, :, 2, 2])


@pytest.mark.parametrize("kind", [PixelwiseRegressor, NormedProjection])
@pytest.mark.parametrize("size", [(3, 5), (8, 8), (4, 4)])
def test_regressors_and_projections_take_the_teachers_shape(kind: type[nn.Module], size: tuple[int, int]) -> None:
    adapter = kind(3, 6, teacher_size=size)
    made = adapter(torch.rand(2, 3, 4, 4))
    assert made.shape == (2, 6, *size)
    made.square().sum().backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None, name


def test_a_normed_projection_has_mean_0_and_variance_1() -> None:
    made = NormedProjection(3, 6, teacher_size=(4, 4))(10 * torch.rand(8, 3, 4, 4))
    torch.testing.assert_close(made.mean(dim=(0, 2, 3)), torch.zeros(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(made.var(dim=(0, 2, 3), correction=0), torch.ones(6), rtol=1e-3, atol=0)


def test_each_level_has_its_own_adapter() -> None:
    adapters = EachLevel([nn.Identity(), nn.Flatten()])
    first, second = adapters(torch.ones(2, 3), torch.zeros(2, 3, 4))
    assert first.shape == (2, 3)
    assert second.shape == (2, 12)
    with pytest.raises(ValueError, match="shorter"):
        adapters(torch.ones(2, 3))


def test_a_pyramid_adapter_fits_the_map_of_each_batch():
    adapter = PyramidAdapter(3, 5)
    student = torch.rand(2, 3, 4, 6)
    for size in ((4, 6), (8, 12), (3, 2)):
        assert adapter(student, teacher=torch.rand(2, 5, *size)).shape == (2, 5, *size)
    same_size = adapter(student, teacher=torch.rand(2, 5, 4, 6))
    assert torch.equal(same_size, adapter.project(student))


def test_a_pyramid_adapter_of_one_width_only_resizes():
    adapter = PyramidAdapter(3, 3)
    assert not list(adapter.parameters())
    student = torch.rand(2, 3, 4, 6)
    assert torch.equal(adapter(student, teacher=student), student)
    constant = adapter(torch.full((1, 3, 4, 6), 2.5), teacher=torch.zeros(1, 3, 5, 9))
    torch.testing.assert_close(constant, torch.full((1, 3, 5, 9), 2.5))
