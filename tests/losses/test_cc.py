from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from drawn import SEEDS, few, normal, order, rotation, same, scales, which_network
from reldistill.losses.cc import CC, cc_loss


def vectors(seed=0):
    return normal((5, 3), (5, 7), seed=seed)


def cosine(one, other):
    product = math.fsum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(math.fsum(a * a for a in one) * math.fsum(b * b for b in other))


def slow(student, teacher, sharpness, order):
    def kernel(one, other):
        c = cosine(one, other)
        terms = [(2 * sharpness) ** p / math.factorial(p) * c**p for p in range(order + 1)]
        return math.exp(-2 * sharpness) * math.fsum(terms)

    ours, theirs = student.tolist(), teacher.tolist()
    count = range(len(ours))
    squares = [(kernel(ours[i], ours[j]) - kernel(theirs[i], theirs[j])) ** 2 for i in count for j in count]
    return math.fsum(squares) / len(ours) ** 2


@pytest.mark.parametrize(("sharpness", "order"), [(0.4, 2), (1.5, 1), (0.1, 5)])
def test_matches_the_loop(sharpness, order):
    student, teacher = vectors()
    expected = slow(student, teacher, sharpness, order)
    assert cc_loss(student, teacher, sharpness=sharpness, order=order).item() == pytest.approx(expected, rel=1e-9)
    assert CC(sharpness=sharpness, order=order)(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_defaults_are_the_papers():
    assert CC()(*vectors()).item() == pytest.approx(slow(*vectors(), 0.4, 2), rel=1e-9)


def test_many_terms_are_the_gaussian_of_the_distance():
    student, teacher = vectors()
    kernels = []
    for side in (student, teacher):
        unit = side / side.norm(dim=1, keepdim=True)
        kernels.append((-0.7 * torch.cdist(unit, unit).square()).exp())
    expected = (kernels[0] - kernels[1]).square().mean()
    same(cc_loss(student, teacher, sharpness=0.7, order=20), expected, tolerance=1e-6)


def test_a_vector_of_zero_is_orthogonal_to_all():
    student, teacher = vectors()
    student[1] = 0.0
    loss = cc_loss(student.requires_grad_(), teacher)
    loss.backward()
    assert loss.item() > 0
    assert student.grad.isfinite().all()
    assert not student.grad[1].any()


@given(seed=SEEDS, which=which_network)
@few
def test_rotation_reflection_and_a_positive_scale_of_each_sample(seed, which):
    pair = vectors(seed)
    before = cc_loss(*pair)
    pair[which] = scales(5, seed)[:, None] * pair[which] @ rotation(pair[which].shape[1], seed)
    same(cc_loss(*pair), before)


@given(seed=SEEDS)
@few
def test_order_of_the_samples(seed):
    student, teacher = vectors(seed)
    samples = order(5, seed)
    same(cc_loss(student[samples], teacher[samples]), cc_loss(student, teacher))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"sharpness": 0.0}, "sharpness must be above 0, got 0.0"), ({"order": 0}, "order must be at least 1, got 0")],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        CC(**settings)
    with pytest.raises(ValueError, match=message):
        cc_loss(*vectors(), **settings)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((4, 5, 1), (4, 5), r"student: expected \(B, D\)"),
        ((4, 5), (4, 5, 1), r"teacher: expected \(B, D\)"),
        ((4, 5), (3, 5), "B is 4 in the student and 3 in the teacher"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_wrong_axes_are_named(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        cc_loss(torch.zeros(student), torch.zeros(teacher))
