from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from drawn import SEEDS, few, normal, order, same, scales, signs, which_network
from reldistill.losses.ickd import ICKD, ickd_loss


def maps(seed=0):
    return normal((3, 4, 2, 3), (3, 4, 3, 3), seed=seed)


def slow_correlations(image):
    channels = image.flatten(1).tolist()
    rows = []
    for one in channels:
        row = [math.fsum(a * b for a, b in zip(one, other, strict=True)) for other in channels]
        length = math.sqrt(math.fsum(v * v for v in row))
        rows.append([v / length for v in row])
    return rows


def slow(student, teacher):
    total = 0.0
    for images in zip(student, teacher, strict=True):
        ours, theirs = (slow_correlations(image) for image in images)
        squares = [(a - b) ** 2 for pair in zip(ours, theirs, strict=True) for a, b in zip(*pair, strict=True)]
        total += math.fsum(squares) / len(ours)
    return total / len(student)


def test_matches_the_loop():
    student, teacher = maps()
    assert ickd_loss(student, teacher).item() == pytest.approx(slow(student, teacher), rel=1e-9)
    assert ICKD()(student, teacher).item() == pytest.approx(slow(student, teacher), rel=1e-9)


def test_channels_apart_against_channels_alike():
    """Rows of the unit matrix against rows of 1/√C: (1 − 1/√C)² + (C − 1) / C a channel."""
    apart = torch.eye(4).reshape(1, 4, 2, 2)
    assert ickd_loss(apart, torch.ones(1, 4, 2, 2)).item() == pytest.approx(0.5**2 + 3 / 4)


def test_one_channel_and_a_dead_one():
    student, teacher = maps()
    assert ickd_loss(student[:, :1], teacher[:, :1]).item() == pytest.approx(0.0, abs=1e-15)
    student[:, 2] = 0.0
    loss = ickd_loss(student.requires_grad_(), teacher)
    loss.backward()
    assert student.grad.isfinite().all()


@given(seed=SEEDS, which=which_network)
@few
def test_a_scale_of_an_images_map_and_a_permutation_of_its_positions(seed, which):
    pair = maps(seed)
    before = ickd_loss(*pair)
    side = pair[which]
    moved = side.flatten(2)[..., order(side[0, 0].numel(), seed)].view_as(side)
    pair[which] = (signs(3, seed) * scales(3, seed))[:, None, None, None] * moved
    same(ickd_loss(*pair), before)


@given(seed=SEEDS)
@few
def test_order_of_the_samples_and_common_permutation_of_the_channels(seed):
    student, teacher = maps(seed)
    samples, channels = order(3, seed), order(4, seed)
    found = ickd_loss(student[samples][:, channels], teacher[samples][:, channels])
    same(found, ickd_loss(student, teacher))


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
        ickd_loss(torch.zeros(student), torch.zeros(teacher))
