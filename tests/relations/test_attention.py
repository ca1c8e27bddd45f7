from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from reldistill.relations.attention import map_attention, relational_attention
from reldistill.relations.kernels.attention_products import relational_attention_both_ways


def spatial_attention(teacher: torch.Tensor, **setting) -> torch.Tensor:
    return map_attention(teacher.flatten(2), **setting)[0].unflatten(1, teacher.shape[2:])


def channel_attention(teacher: torch.Tensor, **setting) -> torch.Tensor:
    return map_attention(teacher.flatten(2), **setting)[1]


MAP_ATTENTION = [spatial_attention, channel_attention]


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def similarities(batch: int, channels: int, *, seed: int = 0) -> torch.Tensor:
    """(batch, channels, channels) symmetric, in [−1, 1], 1 on the diagonal."""
    unit = torch.nn.functional.normalize(maps(batch, channels, 4, seed=seed), dim=2)
    return unit @ unit.mT


def softmax_times_count(values: list[float]) -> list[float]:
    exponentials = [math.exp(v) for v in values]
    return [len(values) * e / sum(exponentials) for e in exponentials]


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("scale", ["relative", "raw"])
def test_map_attention_is_the_softmax_of_mean_magnitudes(scale):
    teacher, temperature = maps(2, 3, 2, 4), 0.7
    spatial = spatial_attention(teacher, temperature=temperature, scale=scale)
    channel = channel_attention(teacher, temperature=temperature, scale=scale)
    assert spatial.shape == (2, 2, 4)
    assert channel.shape == (2, 3)
    for b in range(2):
        flat = teacher[b].flatten(1).tolist()
        unit = 1.0 if scale == "raw" else sum(abs(x) for row in flat for x in row) / 24
        by_position = [sum(abs(flat[c][x]) for c in range(3)) / 3 / unit / temperature for x in range(8)]
        by_channel = [sum(abs(x) for x in row) / 8 / unit / temperature for row in flat]
        assert_close(spatial[b].flatten().tolist(), softmax_times_count(by_position))
        assert_close(channel[b].tolist(), softmax_times_count(by_channel))


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.001])
def test_relational_attention_is_the_row_softmax_of_similarities(temperature):
    adjacency = similarities(2, 3)
    attention = relational_attention(adjacency, temperature=temperature)
    both = relational_attention_both_ways(adjacency, temperature=temperature, out=torch.empty_like(adjacency))
    for b in range(2):
        rows = [softmax_times_count([(a - 1) / temperature for a in row]) for row in adjacency[b].tolist()]
        for i, j in itertools.product(range(3), repeat=2):
            assert attention[b, i, j].item() == pytest.approx(rows[i][j], rel=1e-12)
            assert both[b, i, j].item() == pytest.approx(rows[i][j] + rows[j][i], rel=1e-12)


@pytest.mark.parametrize("attention", MAP_ATTENTION)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.05, 20))
@settings(deadline=None)
def test_weights_have_mean_one(attention, seed, temperature):
    weights = attention(maps(2, 3, 4, 5, seed=seed), temperature=temperature).flatten(1)
    assert_close(weights.mean(dim=1), torch.ones(2, dtype=torch.float64))
    adjacency = similarities(2, 5, seed=seed)
    edges = relational_attention(adjacency, temperature=temperature)
    assert_close(edges.mean(dim=2), torch.ones(2, 5, dtype=torch.float64))


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("attention", MAP_ATTENTION)
@pytest.mark.parametrize("magnitude", [0.0, 1e-42, 1e-35, 1e-25, 1e30])
def test_no_magnitude_is_too_small_or_too_large(attention, magnitude):
    weights = attention(magnitude * maps(2, 3, 4, 5, dtype=torch.float32)).flatten(1)
    assert_close(weights.mean(dim=1), torch.ones(2))


@pytest.mark.parametrize("attention", MAP_ATTENTION)
@given(seed=st.integers(0, 10_000), exponent=st.floats(-8, 8))
@settings(deadline=None)
def test_relative_attention_does_not_depend_on_the_networks_scale(attention, seed, exponent):
    teacher = maps(2, 3, 4, 4, seed=seed)
    per_image = torch.tensor([math.exp(exponent), 1.0], dtype=torch.float64)[:, None, None, None]
    assert_close(attention(teacher * per_image), attention(teacher))


@pytest.mark.parametrize("attention", MAP_ATTENTION)
def test_raw_attention_does(attention):
    teacher = maps(1, 3, 4, 4)
    assert attention(100 * teacher, scale="raw").max() > 1.5 * attention(teacher, scale="raw").max()


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("attention", MAP_ATTENTION)
def test_temperature_goes_from_one_place_to_everywhere(attention):
    teacher = maps(1, 3, 4, 4)
    assert_close(attention(teacher, temperature=1e6), torch.ones_like(attention(teacher)), rtol=0, atol=1e-4)
    sharp = attention(teacher, temperature=1e-3)
    assert_close(sharp.max(), torch.tensor(float(sharp.numel()), dtype=torch.float64))


def test_attention_follows_the_strongest_position_and_channel():
    teacher = torch.full((1, 3, 2, 2), 0.1)
    teacher[0, 1, 0, 1] = -5.0  # magnitude counts, not sign
    assert spatial_attention(teacher).flatten().argmax() == 1
    assert channel_attention(teacher).argmax() == 1


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("attention", MAP_ATTENTION)
@pytest.mark.parametrize("value", [0.0, -3.0])
def test_constant_and_zero_maps_weigh_everything_alike(attention, value):
    weights = attention(torch.full((2, 3, 4, 4), value))
    assert_close(weights, torch.ones_like(weights))


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("attention", MAP_ATTENTION)
@pytest.mark.parametrize("scale", ["relative", "raw"])
def test_half_precision_extremes_are_finite(attention, scale):
    teacher = (6e4 * maps(2, 3, 4, 4).sign()).half()
    teacher[:, 0] = 0
    weights = attention(teacher, scale=scale)
    assert weights.dtype == torch.float32
    assert weights.isfinite().all()
    assert_close(weights.flatten(1).mean(dim=1), torch.ones(2))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        spatial_attention(maps(1, 2, 2, 2), temperature=temperature)


@pytest.mark.usefixtures("unchecked_types")
def test_unknown_scale_and_wrong_axes():
    with pytest.raises(ValueError, match="scale must be 'relative' or 'raw', got 'log'"):
        channel_attention(maps(1, 2, 2, 2), scale="log")
    with pytest.raises(ValueError, match=r"teacher: expected \(B, C, HW\)"):
        map_attention(maps(2, 2, 2, 2))
