from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from reldistill.losses.kd import KD, kd_loss

SEEDS = st.integers(0, 2**31)


def logits(*, samples=4, classes=5, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(samples, classes, generator=generator, dtype=torch.float64) for _ in range(2))


def slow_kd(student, teacher, temperature):
    total = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        probabilities = []
        for row in (ours, theirs):
            weights = [math.exp(z / temperature) for z in row]
            probabilities.append([w / math.fsum(weights) for w in weights])
        total += math.fsum(t * math.log(t / s) for s, t in zip(*probabilities, strict=True))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_matches_the_loop(temperature):
    student, teacher = logits()
    expected = slow_kd(student, teacher, temperature)
    assert kd_loss(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-9)
    assert KD(temperature=temperature)(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    single = kd_loss(student.float(), teacher.float(), temperature=temperature)
    assert single.item() == pytest.approx(expected, rel=1e-4)


def test_default_temperature_is_four():
    student, teacher = logits()
    expected = slow_kd(student, teacher, 4.0)
    assert kd_loss(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    assert KD()(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_gradient_is_the_difference_of_the_probabilities():
    student, teacher = logits()
    student.requires_grad_()
    kd_loss(student, teacher, temperature=2.0).backward()
    difference = F.softmax(student / 2, dim=1) - F.softmax(teacher / 2, dim=1)
    torch.testing.assert_close(student.grad, 2.0 * difference.detach() / 4, rtol=1e-9, atol=1e-12)


def test_hot_is_the_squared_difference_of_centred_logits():
    """For large τ: the mean over samples of Σ (centred difference)² / 2K."""
    student, teacher = logits()
    difference = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    expected = difference.square().sum(dim=1).mean() / (2 * 5)
    assert kd_loss(student, teacher, temperature=1e4).item() == pytest.approx(expected.item(), rel=1e-3)


def test_certain_teacher_is_cross_entropy():
    student, _ = logits()
    labels = torch.tensor([0, 3, 2, 4])
    teacher = 1e3 * F.one_hot(labels, 5).double()
    expected = F.cross_entropy(student, labels).item()
    assert kd_loss(student, teacher, temperature=1.0).item() == pytest.approx(expected, rel=1e-9)


@given(seed=SEEDS, shift=st.floats(-100, 100), which=st.sampled_from([0, 1]))
@settings(max_examples=20, deadline=None)
def test_a_constant_added_to_a_samples_logits(seed, shift, which):
    pair = list(logits(seed=seed))
    before = kd_loss(*pair)
    pair[which] = pair[which] + shift * torch.arange(4.0, dtype=torch.float64)[:, None]
    torch.testing.assert_close(kd_loss(*pair), before, rtol=1e-9, atol=1e-12)


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_order_of_the_samples_and_common_permutation_of_the_classes(seed):
    student, teacher = logits(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(4, generator=generator), torch.randperm(5, generator=generator)
    found = kd_loss(student[rows][:, columns], teacher[rows][:, columns])
    torch.testing.assert_close(found, kd_loss(student, teacher), rtol=1e-9, atol=1e-12)


@given(seed=SEEDS, temperature=st.floats(0.1, 100))
@settings(max_examples=20, deadline=None)
def test_at_least_zero_and_zero_at_equal(seed, temperature):
    student, teacher = logits(seed=seed)
    assert kd_loss(student, teacher, temperature=temperature).item() > 0
    assert kd_loss(teacher, teacher, temperature=temperature).item() == 0.0


def test_extreme_half_precision_logits():
    student = torch.tensor([[6e4, -6e4], [-6e4, 6e4]], dtype=torch.float16, requires_grad=True)
    teacher = torch.tensor([[-6e4, 6e4], [-6e4, 6e4]], dtype=torch.float16)
    loss = kd_loss(student, teacher)
    largest = float(teacher[0, 1])
    assert loss.item() == pytest.approx(4**2 * (2 * largest / 4) / 2, rel=1e-5)
    loss.backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        KD(temperature=temperature)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        kd_loss(*logits(), temperature=temperature)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((4, 5, 1), (4, 5), r"student: expected \(B, K\)"),
        ((4, 5), (4, 6), "teacher: expected K = 5"),
        ((4, 5), (3, 5), "B is 4 in the student and 3 in the teacher"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_wrong_axes_are_named(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        kd_loss(torch.zeros(student), torch.zeros(teacher))
