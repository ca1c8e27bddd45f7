from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from reldistill.relations.channel_graph import channel_adjacency
from reldistill.relations.kernels import channel_differences as module
from reldistill.relations.kernels import channel_passes
from reldistill.relations.kernels.channel_differences import channel_differences

SETTINGS = [
    {},
    {"vertex": "raw"},
    {"vertex": "none"},
    {"edge": False},
    {"graphs": "none"},
    {"graphs": "none", "edge": False},
    {"graphs": "sample", "groups": 2},
    {"attention": False, "groups": 3},
]


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def total(student: torch.Tensor, teacher: torch.Tensor, **setting) -> torch.Tensor:
    """A function of everything that is found."""
    found = channel_differences(student, teacher, **setting)
    return found.vertex + 2 * found.edge + (found.student * maps(*found.student.shape, seed=9).to(student.device)).sum()


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_gradcheck(setting):
    student, teacher = maps(3, 6, 2, 3).requires_grad_(), maps(3, 6, 2, 3, seed=1)
    assert torch.autograd.gradcheck(lambda s: total(s, teacher, **setting), student)


def test_graphs_are_those_of_channel_graph():
    student, teacher = maps(3, 6, 2, 3), maps(3, 6, 2, 3, seed=1)
    mean = channel_differences(student, teacher, groups=2)
    each = channel_differences(student, teacher, graphs="sample")
    for index, images in ((2, student), (3, teacher)):
        for half, graph in zip(images.chunk(2, dim=1), mean[index], strict=True):
            assert_close(graph, channel_adjacency(half).mean(dim=0), rtol=1e-13, atol=1e-14)
        assert_close(each[index][:, 0], channel_adjacency(images), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_neither_the_number_of_images_at_a_time_nor_the_memory_format_matters(setting, monkeypatch):
    student, teacher = maps(5, 6, 4, 3), maps(5, 6, 4, 3, seed=1)
    results = []
    for block, ours, theirs in (
        (1 << 20, student, teacher),
        (1, student, teacher),
        (150, student.contiguous(memory_format=torch.channels_last), teacher),
        (150, student.mT.contiguous().mT, teacher.contiguous(memory_format=torch.channels_last)),
    ):
        monkeypatch.setattr(channel_passes, "_BLOCK_CPU", block)
        ours = ours.detach().requires_grad_()
        value = total(ours, theirs, **setting)
        results.append((value.detach(), *torch.autograd.grad(value, ours)))
    for result in results[1:]:
        assert_close(result, results[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("scale", [1e-28, 1e-20, 1e-10, 1e20, 1e35])
@pytest.mark.parametrize("who", ["student", "teacher", "both", "one channel"])
def test_magnitudes_whose_squares_leave_float32(who, scale):
    pair = [maps(2, 4, 3, 3, seed=s, dtype=torch.float32) for s in (0, 1)]
    factors = [torch.ones(1, 4, 1, 1), torch.ones(1, 4, 1, 1)]
    if who == "one channel":
        factors[0][0, 1] = factors[1][0, 2] = scale
    else:
        factors = [torch.full((1, 4, 1, 1), scale if who in (w, "both") else 1.0) for w in ("student", "teacher")]
    plain, scaled = pair[0].requires_grad_(), (pair[0].detach() * factors[0]).requires_grad_()
    expected = channel_differences(plain, pair[1], attention=False)
    found = channel_differences(scaled, pair[1] * factors[1], attention=False)
    assert_close(found, expected, rtol=1e-4, atol=1e-6)
    slopes = []
    for result, leaf in ((expected, plain), (found, scaled)):
        (slope,) = torch.autograd.grad(result.vertex + result.edge + result.student.square().sum(), leaf)
        slopes.append(slope)
    assert_close(slopes[1] * factors[0], slopes[0], rtol=1e-3, atol=1e-5)


def test_dead_channels():
    student, teacher = maps(2, 4, 3, 3), maps(2, 4, 3, 3, seed=1)
    student[0, 1] = teacher[1, 2] = 0
    student.requires_grad_()
    found = channel_differences(student, teacher, attention=False, graphs="sample")
    assert found.student[0, 0, 1].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert found.teacher[1, 0, 2].tolist() == [0.0, 0.0, 1.0, 0.0]
    units = [x / x.flatten(2).norm(dim=2).clamp_min(1e-30)[..., None, None] for x in (student, teacher)]
    assert_close(found.vertex, (units[0] - units[1]).square().sum(dim=(2, 3)).mean())
    (gradient,) = torch.autograd.grad(found.vertex + found.edge + found.student.sum(), student)
    assert gradient.isfinite().all()
    assert (gradient[0, 1] == 0).all()
    assert (gradient[1, 2] != 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_activation_is_not_hidden(value):
    student = maps(1, 3, 2, 2)
    student[0, 1, 0, 0] = value
    found = channel_differences(student, maps(1, 3, 2, 2, seed=1))
    assert found.vertex.isnan()
    assert found.edge.isnan()
    assert found.student[0, 0, 1].isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_change_nothing_but_the_gradients_type(dtype):
    student, teacher = (maps(2, 4, 3, 3, seed=s).to(dtype) for s in (0, 1))
    wide = student.float().requires_grad_()
    student.requires_grad_()
    expected = channel_differences(wide, teacher.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = channel_differences(student, teacher)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    (slope,) = torch.autograd.grad(expected.vertex + expected.edge, wide)
    (gradient,) = torch.autograd.grad(found.vertex + found.edge, student)
    assert torch.equal(gradient, slope.to(dtype))


def test_operators_keep_their_promises():
    """Schema, shapes under tracing, and autograd registration, as PyTorch checks them."""
    student, teacher = maps(3, 6, 2, 3).requires_grad_(), maps(3, 6, 2, 3, seed=1)
    for setting in (("unit", True, "batch", 2), ("raw", False, "sample", 1), ("none", True, "none", 1)):
        torch.library.opcheck(
            module._differences,
            (student, teacher, *setting, 1.0, "relative"),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )


def test_second_derivatives_and_groups_that_do_not_divide_are_refused():
    student, teacher = maps(1, 3, 2, 2).requires_grad_(), maps(1, 3, 2, 2, seed=1)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(channel_differences(student, teacher).vertex, student, create_graph=True)
    with pytest.raises(ValueError, match="groups = 2 does not divide the C = 3 channels"):
        channel_differences(student, teacher, groups=2)
