from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from drawn import SEEDS, few, normal, order, same
from reldistill.losses.head_kd import HeadKD, head_kd_loss


def scores(seed=0, shift=0.0):
    student, teacher = normal((3, 5, 4), (3, 5, 4), seed=seed, scale=2.0)
    return student, teacher + shift


def probability(score: float) -> float:
    return 1 / (1 + math.exp(-score))


def slow(student, teacher):
    total, seen = 0.0, 0.0
    for ours, theirs in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        p, q = probability(ours), probability(theirs)
        total += abs(q - p) * (-q * math.log(p) - (1 - q) * math.log(1 - p))
        seen += q
    images = len(student)
    return (total / images) / max(1.0, seen / images)


@pytest.mark.parametrize("shift", [0.0, -8.0])
def test_matches_the_loop(shift):
    """Also where the teacher sees less than one object an image."""
    student, teacher = scores(shift=shift)
    assert (teacher.sigmoid().sum() / 3 < 1) == (shift < 0)
    assert head_kd_loss(student, teacher).item() == pytest.approx(slow(student, teacher), rel=1e-9)
    assert HeadKD()(student, teacher).item() == pytest.approx(slow(student, teacher), rel=1e-9)


@given(seed=SEEDS)
@few
def test_order_of_the_samples_and_common_permutation_of_the_anchors_and_of_the_classes(seed):
    student, teacher = scores(seed)
    samples, anchors, classes = order(3, seed), order(5, seed), order(4, seed)
    moved = [side[samples][:, anchors][..., classes] for side in (student, teacher)]
    same(head_kd_loss(*moved), head_kd_loss(student, teacher))


def test_anchors_on_which_both_agree_add_nothing():
    student, teacher = scores()
    quiet = torch.full((3, 100, 4), -60.0, dtype=torch.float64)
    longer = [torch.cat([side, quiet], dim=1) for side in (student, teacher)]
    same(head_kd_loss(*longer), head_kd_loss(student, teacher))


@given(seed=SEEDS)
@few
def test_at_least_zero_and_zero_at_equal(seed):
    student, teacher = scores(seed)
    assert head_kd_loss(student, teacher).item() > 0
    assert head_kd_loss(teacher, teacher).item() == 0


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((4, 5), (4, 5, 2), r"student: expected \(B, A, K\)"),
        ((4, 5, 2), (4, 6, 2), "teacher: expected A = 5"),
        ((4, 5, 2), (4, 5, 3), "teacher: expected K = 2"),
        ((4, 5, 2), (3, 5, 2), "B is 4 in the student and 3 in the teacher"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_wrong_axes_are_named(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        head_kd_loss(torch.zeros(student), torch.zeros(teacher))
