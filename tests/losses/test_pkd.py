from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from drawn import SEEDS, few, normal, order, same, scales, which_network
from reldistill.losses.pkd import PKD, pkd_loss


def maps(seed=0):
    return normal((3, 4, 2, 3), (3, 4, 2, 3), seed=seed, scale=2.0)


def correlation(ours: list[float], theirs: list[float]) -> float:
    means = [sum(side) / len(side) for side in (ours, theirs)]
    centred = [[value - mean for value in side] for side, mean in zip((ours, theirs), means, strict=True)]
    product = math.fsum(a * b for a, b in zip(*centred, strict=True))
    return product / math.sqrt(math.prod(math.fsum(value**2 for value in side) for side in centred))


def slow(student, teacher):
    channels = student.shape[1]
    pairs = [(student[:, c].flatten().tolist(), teacher[:, c].flatten().tolist()) for c in range(channels)]
    return sum(1 - correlation(*pair) for pair in pairs) / channels


def test_matches_the_loop():
    student, teacher = maps()
    assert pkd_loss(student, teacher).item() == pytest.approx(slow(student, teacher), rel=1e-9)
    assert PKD()(student, teacher).item() == pytest.approx(slow(student, teacher), rel=1e-9)


@given(seed=SEEDS, which=which_network)
@few
def test_positive_scale_and_shift_of_any_channel(seed, which):
    pair = maps(seed)
    before = pkd_loss(*pair)
    pair[which] = pair[which] * scales(4, seed)[:, None, None] + 5 * normal((4, 1, 1), seed=seed)[0]
    same(pkd_loss(*pair), before, tolerance=1e-5)


@given(seed=SEEDS)
@few
def test_order_of_the_samples_and_common_permutation_of_the_channels_and_of_the_positions(seed):
    student, teacher = maps(seed)
    samples, channels, positions = order(3, seed), order(4, seed), order(6, seed)
    moved = [side[samples][:, channels].flatten(2)[..., positions].unflatten(2, (2, 3)) for side in (student, teacher)]
    same(pkd_loss(*moved), pkd_loss(student, teacher))


def test_it_lies_between_agreement_and_opposition():
    _, teacher = maps()
    assert pkd_loss(teacher, teacher).item() == 0
    assert pkd_loss(-3 * teacher + 1, teacher).item() == pytest.approx(2)


def test_a_constant_channel_is_uncorrelated():
    student, teacher = maps()
    student[:, 0] = 7.0
    rest = slow(student[:, 1:], teacher[:, 1:]) * 3
    # the constant one has no deviation left to differ from the teacher's own
    assert pkd_loss(student, teacher).item() == pytest.approx((rest + 0.5) / 4, rel=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((4, 5), (4, 5, 2, 2), r"student: expected \(B, C, H, W\)"),
        ((4, 5, 2, 2), (4, 6, 2, 2), "teacher: expected C = 5"),
        ((4, 5, 2, 2), (3, 5, 2, 2), "B is 4 in the student and 3 in the teacher"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_wrong_axes_are_named(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        pkd_loss(torch.zeros(student), torch.zeros(teacher))
