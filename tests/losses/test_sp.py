from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drawn import SEEDS, few, normal, order, rotation, same, which_network
from reldistill.losses.sp import SP, sp_loss


def features(seed=0):
    return normal((5, 3, 2, 2), (5, 7), seed=seed)


def slow_similarities(samples):
    rows = []
    for one in samples.flatten(1).tolist():
        row = [math.fsum(a * b for a, b in zip(one, other, strict=True)) for other in samples.flatten(1).tolist()]
        length = math.sqrt(math.fsum(v * v for v in row))
        rows.append([v / length for v in row])
    return rows


def slow(student, teacher):
    pairs = zip(slow_similarities(student), slow_similarities(teacher), strict=True)
    total = math.fsum((a - b) ** 2 for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))
    return total / len(student) ** 2


def test_matches_the_loop():
    student, teacher = features()
    assert sp_loss(student, teacher).item() == pytest.approx(slow(student, teacher), rel=1e-9)
    assert SP()(student, teacher).item() == pytest.approx(slow(student, teacher), rel=1e-9)


def test_orthogonal_against_equal_samples():
    """Rows of the unit matrix against rows of 1/√B: B · (1 − 1/√B)² + B (B − 1) / B, over B²."""
    expected = (4 * (1 - 0.5) ** 2 + 12 * 0.25) / 16
    assert sp_loss(torch.eye(4), torch.ones(4, 2)).item() == pytest.approx(expected)


def test_one_sample_and_a_dead_one():
    student, teacher = features()
    assert sp_loss(student[:1], teacher[:1]).item() == pytest.approx(0.0, abs=1e-15)
    student[2] = 0.0
    loss = sp_loss(student.requires_grad_(), teacher)
    assert loss.item() > 0
    loss.backward()
    assert student.grad.isfinite().all()


@given(seed=SEEDS, scale=st.floats(1e-3, 1e3), which=which_network)
@few
def test_rotation_reflection_and_a_common_scale(seed, scale, which):
    pair = [side.flatten(1) for side in features(seed)]
    before = sp_loss(*pair)
    pair[which] = -scale * pair[which] @ rotation(pair[which].shape[1], seed)
    same(sp_loss(*pair), before)


@given(seed=SEEDS)
@few
def test_order_of_the_samples(seed):
    student, teacher = features(seed)
    samples = order(5, seed)
    same(sp_loss(student[samples], teacher[samples]), sp_loss(student, teacher))


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((4,), (4, 5), r"student: expected \(B, …\)"),
        ((4, 5), (4,), r"teacher: expected \(B, …\)"),
        ((4, 5), (3, 5), "B is 4 in the student and 3 in the teacher"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_wrong_axes_are_named(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        sp_loss(torch.zeros(student), torch.zeros(teacher))
