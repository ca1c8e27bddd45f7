from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reldistill.losses.fitnets import FitNets, fitnets_loss


def features(*, shape=(4, 3, 2, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("shape", [(4,), (4, 6), (4, 5, 3), (4, 3, 2, 5)])
def test_matches_the_loop(shape):
    student, teacher = features(shape=shape)
    ours, theirs = student.flatten().tolist(), teacher.flatten().tolist()
    squared = math.fsum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True)) / len(ours)
    scale = math.fsum(b * b for b in theirs) / len(theirs)
    assert fitnets_loss(student, teacher).item() == pytest.approx(squared, rel=1e-12)
    assert fitnets_loss(student, teacher, relative=True).item() == pytest.approx(squared / scale, rel=1e-12)
    assert FitNets()(student, teacher).item() == pytest.approx(squared, rel=1e-12)
    assert FitNets(relative=True)(student, teacher).item() == pytest.approx(squared / scale, rel=1e-12)


def test_relative_is_one_for_a_student_that_says_nothing():
    _, teacher = features()
    assert fitnets_loss(torch.zeros_like(teacher), 1e3 * teacher, relative=True).item() == pytest.approx(1.0)


@given(seed=st.integers(0, 2**31), exponent=st.floats(-20, 20))
@settings(max_examples=20, deadline=None)
def test_common_scale_with_relative(seed, exponent):
    student, teacher = features(seed=seed)
    scale = 10.0**exponent
    before = fitnets_loss(student, teacher, relative=True)
    torch.testing.assert_close(fitnets_loss(scale * student, scale * teacher, relative=True), before, rtol=1e-9, atol=0)


@given(seed=st.integers(0, 2**31), relative=st.booleans())
@settings(max_examples=20, deadline=None)
def test_order_of_samples_channels_and_positions(seed, relative):
    student, teacher = features(seed=seed)
    before = fitnets_loss(student, teacher, relative=relative)
    for axis in range(4):
        order = torch.randperm(student.shape[axis], generator=torch.Generator().manual_seed(seed))
        student, teacher = student.index_select(axis, order), teacher.index_select(axis, order)
    torch.testing.assert_close(fitnets_loss(student, teacher, relative=relative), before, rtol=1e-12, atol=0)


def test_relative_to_a_silent_teacher_divides_nothing():
    student, teacher = features()
    found = fitnets_loss(student, torch.zeros_like(teacher), relative=True)
    assert found.item() == pytest.approx(student.square().mean().item())


@pytest.mark.parametrize("relative", [False, True])
def test_extreme_half_precision(relative):
    student = torch.full((2, 3), -6e4, dtype=torch.float16, requires_grad=True)
    teacher = torch.full((2, 3), 6e4, dtype=torch.float16)
    loss = fitnets_loss(student, teacher, relative=relative)
    largest = float(teacher[0, 0])
    assert loss.item() == pytest.approx(4.0 if relative else (2 * largest) ** 2, rel=1e-6)
    loss.backward()
    assert student.grad.isfinite().all()


@pytest.mark.usefixtures("unchecked_types")
def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3\) in the student, \(2, 4\) in the teacher; an adapter"):
        fitnets_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="must have one shape"):
        fitnets_loss(torch.zeros(()), torch.zeros(()))
