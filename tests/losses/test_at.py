from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

from drawn import SEEDS, few, normal, order, same, scales, signs, which_network
from reldistill.losses.at import AT, at_loss


def maps(seed=0):
    return normal((4, 3, 2, 4), (4, 5, 2, 4), seed=seed)


def slow_attention(image, power):
    sums = [math.fsum(abs(v) ** power for v in at) / len(at) for at in image.flatten(1).T.tolist()]
    length = math.sqrt(math.fsum(s * s for s in sums))
    return [s / length for s in sums]


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_matches_the_loop(power):
    student, teacher = maps()
    squares = [
        (a - b) ** 2
        for ours, theirs in zip(student, teacher, strict=True)
        for a, b in zip(slow_attention(ours, power), slow_attention(theirs, power), strict=True)
    ]
    expected = math.fsum(squares) / len(squares)
    assert at_loss(student, teacher, power=power).item() == pytest.approx(expected, rel=1e-9)
    assert AT(power=power)(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_default_power_is_two():
    same(at_loss(*maps()), at_loss(*maps(), power=2.0))
    assert AT().power == 2.0


def test_the_larger_attention_is_averaged_over_cells():
    student, teacher = normal((4, 3, 4, 2), (4, 5, 2, 6))
    small = F.avg_pool2d(student.square().mean(1, keepdim=True), (2, 1)).sqrt()
    narrow = F.avg_pool2d(teacher.square().mean(1, keepdim=True), (1, 3)).sqrt()
    same(at_loss(student, teacher), at_loss(small, narrow))


def test_one_position_and_one_that_is_active_alone():
    student, teacher = normal((4, 3, 1, 1), (4, 5, 3, 3))
    assert at_loss(student, teacher).item() == pytest.approx(0.0, abs=1e-15)
    here, there = torch.zeros(2, 1, 1, 4), torch.zeros(2, 1, 1, 4)
    here[..., 0], there[..., 3] = 5.0, 0.1
    assert at_loss(here, there).item() == pytest.approx(2 / 4)


@given(seed=SEEDS, which=which_network)
@few
def test_a_scale_image_by_image(seed, which):
    pair = maps(seed)
    before = at_loss(*pair)
    pair[which] = (signs(4, seed) * scales(4, seed))[:, None, None, None] * pair[which]
    same(at_loss(*pair), before)


@given(seed=SEEDS, which=which_network)
@few
def test_a_permutation_and_a_change_of_signs_of_the_channels(seed, which):
    pair = maps(seed)
    before = at_loss(*pair)
    channels = pair[which].shape[1]
    pair[which] = pair[which][:, order(channels, seed)] * signs(channels, seed)[:, None, None]
    same(at_loss(*pair), before)


@given(seed=SEEDS)
@few
def test_order_of_the_samples_and_common_permutation_of_the_positions(seed):
    student, teacher = maps(seed)
    samples, positions = order(4, seed), order(8, seed)
    moved = [side[samples].flatten(2)[..., positions].unflatten(2, (2, 4)) for side in (student, teacher)]
    same(at_loss(*moved), at_loss(student, teacher))


@pytest.mark.parametrize("power", [0.5, math.nan])
def test_power_must_have_a_gradient_at_zero(power):
    with pytest.raises(ValueError, match="power must be at least 1"):
        AT(power=power)
    with pytest.raises(ValueError, match="power must be at least 1"):
        at_loss(*maps(), power=power)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((4, 5), (4, 5, 2, 2), r"student: expected \(B, C, H, W\)"),
        ((4, 5, 2, 2), (4, 5, 4), r"teacher: expected \(B, C, H, W\)"),
        ((4, 5, 2, 2), (3, 5, 2, 2), "B is 4 in the student and 3 in the teacher"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_wrong_axes_are_named(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        at_loss(torch.zeros(student), torch.zeros(teacher))
