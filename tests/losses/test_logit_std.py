from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drawn import SEEDS, few, normal, order, same, scales, which_network
from reldistill.losses.kd import kd_loss
from reldistill.losses.logit_std import LogitStd, logit_std_loss


def logits(seed=0):
    return normal((4, 5), (4, 5), seed=seed, scale=3.0)


def slow(student, teacher, temperature):
    total = 0.0
    for rows in zip(student.tolist(), teacher.tolist(), strict=True):
        probabilities = []
        for row in rows:
            mean = math.fsum(row) / len(row)
            deviation = math.sqrt(math.fsum((z - mean) ** 2 for z in row) / len(row))
            weights = [math.exp((z - mean) / deviation / temperature) for z in row]
            probabilities.append([w / math.fsum(weights) for w in weights])
        total += math.fsum(t * math.log(t / s) for s, t in zip(*probabilities, strict=True))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_matches_the_loop(temperature):
    student, teacher = logits()
    expected = slow(student, teacher, temperature)
    assert logit_std_loss(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-9)
    assert LogitStd(temperature=temperature)(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_default_temperature_is_two():
    student, teacher = logits()
    assert LogitStd()(student, teacher).item() == pytest.approx(slow(student, teacher, 2.0), rel=1e-9)


def test_kd_of_logits_that_are_z_scores_already():
    student, teacher = ((z - z.mean(1, keepdim=True)) / z.std(1, correction=0, keepdim=True) for z in logits())
    same(logit_std_loss(student, teacher), kd_loss(student, teacher, temperature=2.0))


def test_equal_logits_are_uniform():
    """0.1 has no exact sum: what is left after the mean is rounding, and no order of the classes."""
    _, teacher = logits()
    flat = torch.full((4, 5), 0.1, dtype=torch.float64, requires_grad=True)
    z = (teacher - teacher.mean(1, keepdim=True)) / teacher.std(1, correction=0, keepdim=True)
    loss = logit_std_loss(flat, teacher)
    same(loss, kd_loss(torch.zeros(4, 5).double(), z, temperature=2.0))
    loss.backward()
    assert not flat.grad.any()


@given(seed=SEEDS, shift=st.floats(-100, 100), which=which_network)
@few
def test_a_constant_added_to_a_samples_logits_and_a_positive_scale_of_them(seed, shift, which):
    pair = logits(seed)
    before = logit_std_loss(*pair)
    pair[which] = scales(4, seed)[:, None] * pair[which] + shift * torch.arange(4.0, dtype=torch.float64)[:, None]
    same(logit_std_loss(*pair), before, tolerance=1e-6)


@given(seed=SEEDS)
@few
def test_order_of_the_samples_and_common_permutation_of_the_classes(seed):
    student, teacher = logits(seed)
    rows, columns = order(4, seed), order(5, seed)
    same(logit_std_loss(student[rows][:, columns], teacher[rows][:, columns]), logit_std_loss(student, teacher))


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature must be above 0"):
        LogitStd(temperature=-1)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        logit_std_loss(*logits(), temperature=0)


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
        logit_std_loss(torch.zeros(student), torch.zeros(teacher))
