from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from drawn import SEEDS, few, normal, order, same, which_network
from reldistill.losses.dkd import DKD, dkd_loss
from reldistill.losses.kd import kd_loss

LABELS = torch.tensor([0, 4, 2, 2])


def logits(seed=0):
    return normal((4, 5), (4, 5), seed=seed, scale=3.0)


def divergence(teacher, student):
    return math.fsum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))


def slow_parts(student, teacher, labels, temperature):
    target = nontarget = 0.0
    for ours, theirs, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        binary, others = [], []
        for row in (theirs, ours):
            weights = [math.exp(z / temperature) for z in row]
            rest = [w for k, w in enumerate(weights) if k != label]
            binary.append([weights[label] / sum(weights), sum(rest) / sum(weights)])
            others.append([w / sum(rest) for w in rest])
        target += divergence(*binary)
        nontarget += divergence(*others)
    return temperature**2 * target / len(student), temperature**2 * nontarget / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_matches_the_loop(temperature):
    student, teacher = logits()
    target, nontarget = slow_parts(student, teacher, LABELS, temperature)
    parts = DKD(temperature=temperature).parts(student, teacher, labels=LABELS)
    assert parts["target"].item() == pytest.approx(target, rel=1e-9)
    assert parts["nontarget"].item() == pytest.approx(nontarget, rel=1e-9)
    given_weights = dkd_loss(
        student, teacher, labels=LABELS, temperature=temperature, target_weight=0.5, nontarget_weight=3.0
    )
    assert given_weights.item() == pytest.approx(0.5 * target + 3 * nontarget, rel=1e-9)


def test_defaults_are_the_papers():
    student, teacher = logits()
    target, nontarget = slow_parts(student, teacher, LABELS, 4.0)
    assert dkd_loss(student, teacher, labels=LABELS).item() == pytest.approx(target + 8 * nontarget, rel=1e-9)


def test_kd_is_the_target_part_and_the_rest_by_what_the_teacher_gives_it():
    student, teacher = logits()
    for i in range(4):
        one = slice(i, i + 1)
        parts = DKD().parts(student[one], teacher[one], labels=LABELS[one])
        rest = 1 - F.softmax(teacher[i] / 4, dim=0)[LABELS[i]]
        same(parts["target"] + rest * parts["nontarget"], kd_loss(student[one], teacher[one]))


def test_two_classes_have_no_rest():
    student, teacher = normal((4, 2), (4, 2))
    labels = torch.tensor([0, 1, 1, 0])
    parts = DKD().parts(student, teacher, labels=labels)
    assert parts["nontarget"].item() == 0.0
    same(parts["target"], kd_loss(student, teacher))


def test_a_certain_teacher_still_teaches_the_rest():
    """Its probability of the true class rounds to 1, and KD's gradient on the others to nothing."""
    student, teacher = logits()
    certain = teacher.scatter(1, LABELS[:, None], 1e3).float()
    value = DKD(temperature=1.0).parts(student.float(), certain, labels=LABELS)["nontarget"]
    same(value.double(), DKD(temperature=1.0).parts(student, teacher, labels=LABELS)["nontarget"], tolerance=1e-5)


@given(seed=SEEDS, shift=st.floats(-100, 100), which=which_network)
@few
def test_a_constant_added_to_a_samples_logits(seed, shift, which):
    pair = logits(seed)
    before = dkd_loss(*pair, labels=LABELS)
    pair[which] = pair[which] + shift * torch.arange(4.0, dtype=torch.float64)[:, None]
    same(dkd_loss(*pair, labels=LABELS), before)


@given(seed=SEEDS)
@few
def test_order_of_the_samples_and_common_permutation_of_the_classes(seed):
    student, teacher = logits(seed)
    rows, columns = order(4, seed), order(5, seed)
    labels = columns.argsort()[LABELS][rows]
    found = dkd_loss(student[rows][:, columns], teacher[rows][:, columns], labels=labels)
    same(found, dkd_loss(student, teacher, labels=LABELS))


@given(seed=SEEDS)
@few
def test_at_least_zero_and_zero_at_equal(seed):
    student, teacher = logits(seed)
    assert all(part.item() > 0 for part in DKD().parts(student, teacher, labels=LABELS).values())
    assert dkd_loss(teacher, teacher, labels=LABELS).item() == 0.0


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature must be above 0"):
        DKD(temperature=0)


@pytest.mark.parametrize(
    ("student", "teacher", "labels", "message"),
    [
        ((4, 5, 1), (4, 5), (4,), r"student: expected \(B, K\)"),
        ((4, 5), (4, 6), (4,), "teacher: expected K = 5"),
        ((4, 5), (3, 5), (4,), "B is 4 in the student and 3 in the teacher"),
        ((4, 5), (4, 5), (4, 5), r"labels: expected \(B\)"),
        ((4, 5), (4, 5), (3,), "labels: expected B = 4"),
        ((4, 1), (4, 1), (4,), "student: expected K of 2 or more"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_wrong_axes_are_named(student, teacher, labels, message):
    with pytest.raises(ValueError, match=message):
        dkd_loss(torch.zeros(student), torch.zeros(teacher), labels=torch.zeros(labels, dtype=torch.long))
