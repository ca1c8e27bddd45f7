from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drawn import SEEDS, few, normal, order, same
from reldistill.losses.cskd import CSKD, cskd_loss

progresses = st.floats(0, 1)


def scores(seed=0):
    return normal((2, 4, 2, 4), (2, 4, 2, 2), seed=seed, scale=2.0)


def softmax(values):
    weights = [math.exp(v) for v in values]
    return [w / sum(weights) for w in weights]


def mean(values):
    return math.fsum(values) / len(values)


def slow(student, teacher, *, progress, targets, temperature):
    """Of a student with twice the teacher's columns."""
    terms = []
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        places = [(row, column) for row in range(len(theirs[0])) for column in range(len(theirs[0][0]))]
        overall = [mean([one[row][column] for row, column in places]) for one in theirs]
        for row, column in places:
            local = [one[row][column] for one in theirs]
            target = [(1 - progress) * here + progress * whole for here, whole in zip(local, overall, strict=True)]
            said = [(one[row][2 * column] + one[row][2 * column + 1]) / 2 for one in ours]
            if targets == "hard":
                terms.append(-math.log(softmax(said)[target.index(max(target))]))
            else:
                said, target = (softmax([v / temperature for v in side]) for side in (said, target))
                divergence = math.fsum(t * math.log(t / s) for t, s in zip(target, said, strict=True))
                terms.append(temperature**2 * divergence)
    return mean(terms)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("targets", "temperature"), [("hard", 1.0), ("soft", 1.0), ("soft", 3.0)])
def test_matches_the_loop(targets, temperature, progress):
    student, teacher = scores()
    expected = slow(student, teacher, progress=progress, targets=targets, temperature=temperature)
    found = cskd_loss(student, teacher, progress=progress, targets=targets, temperature=temperature)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    assert CSKD(targets=targets, temperature=temperature)(student, teacher, progress=progress).item() == found.item()


def test_defaults_are_the_papers():
    student, teacher = scores()
    expected = slow(student, teacher, progress=0.0, targets="hard", temperature=1.0)
    assert CSKD()(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_a_finer_teacher_is_averaged():
    student, teacher = scores()
    coarse = teacher.unfold(3, 2, 2).mean(dim=-1)
    for targets in ("hard", "soft"):
        ours = student[..., :1]
        same(
            cskd_loss(ours, teacher, progress=0.2, targets=targets),
            cskd_loss(ours, coarse, progress=0.2, targets=targets),
        )


@given(seed=SEEDS, progress=progresses, shift=st.floats(-50, 50))
@few
def test_constants_added_to_scores(seed, progress, shift):
    student, teacher = scores(seed)
    for targets in ("hard", "soft"):
        before = cskd_loss(student, teacher, progress=progress, targets=targets)
        of_places = shift * torch.arange(16.0, dtype=torch.float64).view(2, 1, 2, 4)
        same(cskd_loss(student + of_places, teacher, progress=progress, targets=targets), before)
        of_samples = shift * torch.arange(2.0, dtype=torch.float64).view(2, 1, 1, 1)
        same(cskd_loss(student, teacher + of_samples, progress=progress, targets=targets), before)


@given(seed=SEEDS, progress=progresses, scale=st.floats(1e-2, 1e2))
@few
def test_scale_of_the_teacher_with_hard_targets(seed, progress, scale):
    student, teacher = scores(seed)
    same(cskd_loss(student, scale * teacher, progress=progress), cskd_loss(student, teacher, progress=progress))


@given(seed=SEEDS, progress=progresses)
@few
def test_orders_of_samples_classes_and_places(seed, progress):
    student, teacher = normal((3, 4, 2, 2), (3, 4, 2, 2), seed=seed)
    rows, classes, places = order(3, seed), order(4, seed), order(4, seed + 1)
    turned = [x[rows][:, classes].flatten(2)[..., places].unflatten(2, (2, 2)) for x in (student, teacher)]
    for targets in ("hard", "soft"):
        before = cskd_loss(student, teacher, progress=progress, targets=targets)
        same(cskd_loss(*turned, progress=progress, targets=targets), before)


@given(seed=SEEDS)
@few
def test_soft_targets_are_met_by_the_teachers_own_scores(seed):
    _, teacher = scores(seed)
    assert cskd_loss(teacher, teacher, progress=0.0, targets="soft").item() == pytest.approx(0.0, abs=1e-12)
    whole = teacher.mean(dim=(2, 3), keepdim=True).expand_as(teacher)
    assert cskd_loss(whole, teacher, targets="soft", progress=1.0).item() == pytest.approx(0.0, abs=1e-12)
    assert cskd_loss(whole, teacher, targets="soft", progress=0.0).item() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": "both"}, "targets must be 'hard' or 'soft', got 'both'"),
        ({"temperature": 0.0}, "temperature must be"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        CSKD(**settings)
    with pytest.raises(ValueError, match=message):
        cskd_loss(*scores(), progress=0.0, **settings)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((2, 4), (2, 4, 2, 2), r"student: expected \(B, K, H, W\)"),
        ((2, 4, 2, 2), (2, 5, 2, 2), "teacher: expected K = 4"),
        ((2, 4, 2, 2), (3, 4, 2, 2), "B is 2 in the student and 3 in the teacher"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_wrong_axes_are_named(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        cskd_loss(torch.zeros(student), torch.zeros(teacher), progress=0.0)
