from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from drawn import SEEDS, few, normal, order, same, scales
from reldistill.losses.kd import kd_loss
from reldistill.losses.vrm import VRM, vrm_loss


def views(seed=0, *, samples=4, classes=3):
    """(logits, those of the second view) of student and teacher."""
    one, again, other, others = normal(*[(samples, classes)] * 4, seed=seed)
    return [one, again], [other, others]


def edges(rows, again):
    """Unit difference of each row and each row of the second view."""
    found = {}
    for i, one in enumerate(rows):
        for j, other in enumerate(again):
            gap = [a - b for a, b in zip(one, other, strict=True)]
            length = math.sqrt(math.fsum(x * x for x in gap))
            found[i, j] = [x / length for x in gap]
    return found


def centred(logits):
    return [[x - math.fsum(row) / len(row) for x in row] for row in logits.tolist()]


def entropy(row):
    chances = [math.exp(x) / math.fsum(math.exp(y) for y in row) for x in row]
    return -math.fsum(p * math.log(p) for p in chances)


def slow(student, teacher, *, keep):
    """(sample, class), edge by edge: half the squared distance of two unit edges."""
    sides = [[centred(view) for view in side] for side in (student, teacher)]
    apart = {
        pair: math.fsum((a - b) ** 2 for a, b in zip(edge, edges(*sides[1])[pair], strict=True)) / 2
        for pair, edge in edges(*sides[0]).items()
    }
    joint = {(i, j): entropy(a) + entropy(b) for i, a in enumerate(sides[0][0]) for j, b in enumerate(sides[0][1])}
    kept = sorted(joint, key=joint.__getitem__)[: math.ceil(keep * len(joint))]
    turned = [edges(*([*zip(*view, strict=True)] for view in side)) for side in sides]
    classes = [
        math.fsum((a - b) ** 2 for a, b in zip(turned[0][pair], turned[1][pair], strict=True)) / 2 for pair in turned[0]
    ]
    return math.fsum(apart[pair] for pair in kept) / len(kept), math.fsum(classes) / len(classes)


@pytest.mark.parametrize("keep", [1.0, 0.9, 0.4])
def test_matches_the_loop(keep):
    student, teacher = views()
    sample, between_classes = slow(student, teacher, keep=keep)
    parts = VRM(keep=keep).parts(student, teacher)
    assert parts["sample"].item() == pytest.approx(sample, rel=1e-9)
    assert parts["class"].item() == pytest.approx(between_classes, rel=1e-9)
    weights = {"sample_weight": 2.0, "class_weight": 0.5, "instance_weight": 0.1}
    expected = 2 * sample + between_classes / 2 + 0.1 * parts["instance"].item()
    assert vrm_loss(student, teacher, keep=keep, **weights).item() == pytest.approx(expected, rel=1e-9)


def test_the_control_is_kd_on_both_views():
    student, teacher = views()
    expected = sum(kd_loss(s, t, temperature=2.0) for s, t in zip(student, teacher, strict=True)) / 2
    same(VRM(temperature=2.0).parts(student, teacher, names=["instance"])["instance"], expected)


def test_pruned_edges_have_no_gradient():
    """Of two sure and two unsure images, the edges between the unsure ones go."""
    sure, unsure = torch.eye(4, dtype=torch.float64)[:2] * 9, 0.01 * torch.eye(4, dtype=torch.float64)[2:]
    one = torch.cat([sure, unsure]).requires_grad_()
    again = (torch.cat([sure, unsure]) + 0.1 * torch.arange(16, dtype=torch.float64).view(4, 4).sin()).requires_grad_()
    teacher = normal((4, 4), (4, 4))
    (gradient,) = torch.autograd.grad(VRM(keep=0.25).parts([one, again], teacher)["sample"], [one])
    assert gradient[:2].any(dim=1).all()
    assert not gradient[2:].any()


@given(seed=SEEDS)
@few
def test_a_constant_for_each_sample_and_a_scale_of_the_teacher(seed):
    student, teacher = views(seed)
    before = VRM().parts(student, teacher)
    shifts = normal((4, 1), (4, 1), (4, 1), (4, 1), seed=seed + 1)
    moved = [view + shift for view, shift in zip([*student, *teacher], shifts, strict=True)]
    for name, value in VRM().parts(moved[:2], moved[2:]).items():
        same(value, before[name])
    scale = scales(1, seed)
    scaled = VRM().parts(student, [scale * view for view in teacher], names=["sample", "class"])
    for name, value in scaled.items():
        same(value, before[name])


@given(seed=SEEDS)
@few
def test_order_of_samples_and_classes(seed):
    student, teacher = views(seed)
    samples, classes = order(4, seed), order(3, seed)
    moved = [[view[samples][:, classes] for view in side] for side in (student, teacher)]
    for name, value in VRM(keep=0.5).parts(*moved).items():
        same(value, VRM(keep=0.5).parts(student, teacher)[name])


def test_an_edge_without_a_length_adds_nothing():
    student, teacher = views()
    teacher[1][2] = teacher[0][1]  # as if image 1 looked like the second view of image 2
    parts = VRM(keep=1.0).parts([view.requires_grad_() for view in student], teacher)
    assert parts["sample"].isfinite()
    parts["sample"].backward()
    assert all(view.grad.isfinite().all() for view in student)
    alike = [[view, view] for view in (student[0], teacher[0])]
    assert VRM().parts(*alike)["sample"].isfinite()


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_refused():
    student, teacher = views()
    for keep in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"keep must be in \(0, 1\]"):
            VRM(keep=keep)
    with pytest.raises(ValueError, match="two views each: 1 and 2"):
        vrm_loss(student[:1], teacher)
    with pytest.raises(ValueError, match="teacher: expected K = 3"):
        vrm_loss(student, [teacher[0], teacher[1][:, :2]])
