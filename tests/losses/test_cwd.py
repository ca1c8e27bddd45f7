from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from drawn import SEEDS, few, normal, order, same, which_network
from reldistill.losses.cwd import CWD, cwd_loss


def maps(seed=0):
    return normal((3, 4, 2, 3), (3, 4, 2, 3), seed=seed, scale=2.0)


def slow(student, teacher, temperature):
    total = 0.0
    for ours, theirs in zip(student.flatten(2).flatten(0, 1), teacher.flatten(2).flatten(0, 1), strict=True):
        weights = [[math.exp(v / temperature) for v in side.tolist()] for side in (ours, theirs)]
        p, q = ([w / math.fsum(side) for w in side] for side in weights)
        total += math.fsum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / (student.shape[0] * student.shape[1])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_matches_the_loop(temperature):
    student, teacher = maps()
    expected = slow(student, teacher, temperature)
    assert cwd_loss(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-9)
    assert CWD(temperature=temperature)(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_default_temperature_is_four():
    assert CWD()(*maps()).item() == pytest.approx(slow(*maps(), 4.0), rel=1e-9)
    same(cwd_loss(*maps()), CWD()(*maps()))


def test_hot_is_the_squared_difference_of_centred_channels():
    student, teacher = maps()
    difference = (student - student.mean((2, 3), keepdim=True)) - (teacher - teacher.mean((2, 3), keepdim=True))
    expected = difference.square().mean() / 2
    assert cwd_loss(student, teacher, temperature=1e4).item() == pytest.approx(expected.item(), rel=1e-3)


def test_one_position():
    assert cwd_loss(*normal((3, 4, 1, 1), (3, 4, 1, 1))).item() == 0.0


@given(seed=SEEDS, which=which_network)
@few
def test_a_constant_added_to_a_channel_of_an_image(seed, which):
    pair = maps(seed)
    before = cwd_loss(*pair)
    pair[which] = pair[which] + normal((3, 4, 1, 1), seed=seed, scale=50.0)[0]
    same(cwd_loss(*pair), before)


@given(seed=SEEDS)
@few
def test_order_of_the_samples_and_common_permutation_of_the_channels_and_of_the_positions(seed):
    student, teacher = maps(seed)
    samples, channels, positions = order(3, seed), order(4, seed), order(6, seed)
    moved = [side[samples][:, channels].flatten(2)[..., positions].unflatten(2, (2, 3)) for side in (student, teacher)]
    same(cwd_loss(*moved), cwd_loss(student, teacher))


@given(seed=SEEDS)
@few
def test_at_least_zero_and_zero_at_equal(seed):
    student, teacher = maps(seed)
    assert cwd_loss(student, teacher).item() > 0
    assert cwd_loss(teacher, teacher).item() == 0.0


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature must be above 0"):
        CWD(temperature=0)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        cwd_loss(*maps(), temperature=-1)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((4, 5), (4, 5, 2, 2), r"student: expected \(B, C, H, W\)"),
        ((4, 5, 2, 2), (4, 6, 2, 2), "teacher: expected C = 5"),
        ((4, 5, 2, 2), (4, 5, 2, 3), "teacher: expected W = 2"),
        ((4, 5, 2, 2), (3, 5, 2, 2), "B is 4 in the student and 3 in the teacher"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_wrong_axes_are_named(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        cwd_loss(torch.zeros(student), torch.zeros(teacher))
