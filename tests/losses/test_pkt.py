from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from drawn import SEEDS, few, normal, order, rotation, same, scales, which_network
from reldistill.losses.pkt import PKT, pkt_loss


def vectors(seed=0):
    return normal((5, 3), (5, 7), seed=seed)


def slow_probabilities(samples, diagonal):
    rows = []
    for i, one in enumerate(samples):
        kernel = []
        for j, other in enumerate(samples):
            product = math.fsum(a * b for a, b in zip(one, other, strict=True))
            lengths = math.sqrt(math.fsum(a * a for a in one) * math.fsum(b * b for b in other))
            left_out = i == j and diagonal == "left_out"
            kernel.append(0.0 if left_out else (1 + product / lengths) / 2 + 1e-6)
        rows.append([k / math.fsum(kernel) for k in kernel])
    return rows


def slow(student, teacher, diagonal="kept"):
    ours, theirs = (slow_probabilities(side.tolist(), diagonal) for side in (student, teacher))
    terms = [
        q * math.log(q / p)
        for of_student, of_teacher in zip(ours, theirs, strict=True)
        for p, q in zip(of_student, of_teacher, strict=True)
        if q
    ]
    return math.fsum(terms) / len(terms)


@pytest.mark.parametrize("diagonal", ["kept", "left_out"])
def test_matches_the_loop(diagonal):
    student, teacher = vectors()
    expected = slow(student, teacher, diagonal)
    assert pkt_loss(student, teacher, diagonal=diagonal).item() == pytest.approx(expected, rel=1e-9)
    assert PKT(diagonal=diagonal)(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_the_diagonal_is_kept_unless_it_is_asked_for_and_makes_another_loss():
    student, teacher = vectors()
    kept, left_out = (pkt_loss(student, teacher, diagonal=one).item() for one in ("kept", "left_out"))
    assert pkt_loss(student, teacher).item() == PKT()(student, teacher).item() == kept
    assert abs(kept / left_out - 1) > 0.1


@pytest.mark.usefixtures("unchecked_types")
def test_another_word_is_refused():
    with pytest.raises(ValueError, match="diagonal must be one of kept, left_out, got 'out'"):
        PKT(diagonal="out")


def test_float32_of_nearly_equal_samples():
    """Where the cosines are all near 1 the value is small, and still that of the loop."""
    student, teacher = normal((5, 3), (5, 7))
    student, teacher = 5 + student, 5 + teacher
    assert pkt_loss(student.float(), teacher.float()).item() == pytest.approx(slow(student, teacher), rel=1e-2)


@pytest.mark.parametrize(("diagonal", "count"), [("kept", 1), ("left_out", 1), ("left_out", 2)])
def test_too_few_samples_have_no_choice_of_neighbours(diagonal, count):
    student, teacher = vectors()
    few_samples = student[:count].clone().requires_grad_()
    loss = pkt_loss(few_samples, teacher[:count], diagonal=diagonal)
    assert loss.item() == 0.0
    loss.backward()
    assert not few_samples.grad.any()


def test_opposite_samples_are_finite():
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = pkt_loss(student, torch.ones(3, 2))
    loss.backward()
    assert loss.item() > 0
    assert student.grad.isfinite().all()


@given(seed=SEEDS, which=which_network)
@few
def test_rotation_reflection_and_a_positive_scale_of_each_sample(seed, which):
    pair = vectors(seed)
    before = pkt_loss(*pair)
    pair[which] = scales(5, seed)[:, None] * pair[which] @ rotation(pair[which].shape[1], seed)
    same(pkt_loss(*pair), before)


@given(seed=SEEDS)
@few
def test_order_of_the_samples(seed):
    student, teacher = vectors(seed)
    samples = order(5, seed)
    same(pkt_loss(student[samples], teacher[samples]), pkt_loss(student, teacher))


@given(seed=SEEDS)
@few
def test_at_least_zero_and_zero_at_equal(seed):
    student, teacher = vectors(seed)
    assert pkt_loss(student, teacher).item() > 0
    assert pkt_loss(teacher, teacher).item() == 0.0


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
        pkt_loss(torch.zeros(student), torch.zeros(teacher))
