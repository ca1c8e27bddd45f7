from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drawn import SEEDS, few, normal, order, same, which_network
from reldistill.losses.dist import DIST, dist_loss


def logits(seed=0):
    return normal((6, 5), (6, 5), seed=seed, scale=3.0)


def softmax(rows, temperature):
    weights = [[math.exp(z / temperature) for z in row] for row in rows]
    return [[w / math.fsum(row) for w in row] for row in weights]


def correlation(ours, theirs):
    a, b = ([v - math.fsum(row) / len(row) for v in row] for row in (ours, theirs))
    product = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def slow_parts(student, teacher, temperature):
    ours, theirs = (softmax(z.tolist(), temperature) for z in (student, teacher))
    values = []
    for rows in ((ours, theirs), (list(zip(*ours, strict=True)), list(zip(*theirs, strict=True)))):
        found = [correlation(*pair) for pair in zip(*rows, strict=True)]
        values.append(temperature**2 * (1 - math.fsum(found) / len(found)))
    return values


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_matches_the_loop(temperature):
    student, teacher = logits()
    inter, intra = slow_parts(student, teacher, temperature)
    parts = DIST(temperature=temperature).parts(student, teacher)
    assert parts["inter"].item() == pytest.approx(inter, rel=1e-9)
    assert parts["intra"].item() == pytest.approx(intra, rel=1e-9)
    value = dist_loss(student, teacher, temperature=temperature, inter_weight=0.5, intra_weight=3.0)
    assert value.item() == pytest.approx(0.5 * inter + 3 * intra, rel=1e-9)


def test_defaults_are_the_papers():
    student, teacher = logits()
    inter, intra = slow_parts(student, teacher, 4.0)
    assert dist_loss(student, teacher).item() == pytest.approx(2 * inter + 2 * intra, rel=1e-9)


def test_a_linear_function_of_the_probabilities_is_enough():
    """For `inter`: probabilities moved half of the way to uniform, as a student less sure than the teacher's."""
    _, teacher = logits()
    student = (0.5 * teacher.softmax(dim=1) + 0.1).log()
    assert abs(DIST(temperature=1.0).parts(student, teacher)["inter"].item()) < 1e-12


def test_opposite_probabilities():
    _, teacher = logits()
    student = (0.4 - 0.4 * teacher.softmax(dim=1)).log()
    parts = DIST(temperature=1.0).parts(student, teacher)
    assert parts["inter"].item() == pytest.approx(2.0, rel=1e-9)


def test_one_sample_and_uniform_probabilities_have_no_correlation():
    student, teacher = logits()
    alone = DIST(temperature=1.0).parts(student[:1].requires_grad_(), teacher[:1])
    assert alone["intra"].item() == 1.0
    flat = torch.zeros(6, 5, dtype=torch.float64, requires_grad=True)
    parts = DIST(temperature=1.0).parts(flat, teacher)
    assert [part.item() for part in parts.values()] == [1.0, 1.0]
    sum(parts.values()).backward()
    assert not flat.grad.any()


@given(seed=SEEDS, shift=st.floats(-100, 100), which=which_network)
@few
def test_a_constant_added_to_a_samples_logits(seed, shift, which):
    pair = logits(seed)
    before = dist_loss(*pair)
    pair[which] = pair[which] + shift * torch.arange(6.0, dtype=torch.float64)[:, None]
    same(dist_loss(*pair), before)


@given(seed=SEEDS)
@few
def test_order_of_the_samples_and_common_permutation_of_the_classes(seed):
    student, teacher = logits(seed)
    rows, columns = order(6, seed), order(5, seed)
    same(dist_loss(student[rows][:, columns], teacher[rows][:, columns]), dist_loss(student, teacher))


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature must be above 0"):
        DIST(temperature=0)


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
        dist_loss(torch.zeros(student), torch.zeros(teacher))
