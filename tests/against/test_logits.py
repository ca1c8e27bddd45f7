"""The losses on class scores against their published formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from published import Array, Case, cases, check, divergence, numbers, pooled, softmax
from reldistill.losses import CSKD, DIST, DKD, KD, DeiTHard, DeiTSoft, HeadKD, LogitStd
from reldistill.losses.deit_soft import deit_soft_loss


def kd(student: Array, teacher: Array, *, tau: float) -> float:
    """Hinton et al. 2015: τ² KL of the softened probabilities, mean over samples."""
    pairs = zip(softmax(teacher / tau), softmax(student / tau), strict=True)
    return tau**2 * float(np.mean([divergence(theirs, ours) for theirs, ours in pairs]))


def dkd(student: Array, teacher: Array, *, labels: Array, tau: float, target: float, rest: float) -> float:
    """Zhao et al. 2022, equation 7: α TCKD + β NCKD."""
    total = 0.0
    for ours, theirs, label in zip(student / tau, teacher / tau, labels, strict=True):
        p, q = softmax(ours), softmax(theirs)
        binary = [np.array([one[label], 1 - one[label]]) for one in (p, q)]
        others = [np.delete(one, label) / (1 - one[label]) for one in (p, q)]
        total += target * divergence(binary[1], binary[0]) + rest * divergence(others[1], others[0])
    return tau**2 * total / len(student)


def logit_std(student: Array, teacher: Array, *, tau: float) -> float:
    """Sun et al. 2024: KD of z-scores over the classes."""
    scores = [(z - z.mean(axis=1, keepdims=True)) / z.std(axis=1, keepdims=True) for z in (student, teacher)]
    return kd(*scores, tau=tau)


def pearson(one: Array, other: Array) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum()))


def dist(student: Array, teacher: Array, *, tau: float, inter: float, intra: float) -> float:
    """Huang et al. 2022, equations 8 to 10, and the factor τ² of its authors' code."""
    ours, theirs = softmax(student / tau), softmax(teacher / tau)
    samples = np.mean([1 - pearson(p, q) for p, q in zip(ours, theirs, strict=True)])
    classes = np.mean([1 - pearson(p, q) for p, q in zip(ours.T, theirs.T, strict=True)])
    return tau**2 * float(inter * samples + intra * classes)


def deit_hard(student: Array, teacher: Array) -> float:
    """Touvron et al. 2021, equation 3, the distillation token's half: cross entropy with the teacher's choice."""
    chosen = teacher.argmax(axis=1)
    return float(-np.mean([np.log(softmax(z)[y]) for z, y in zip(student, chosen, strict=True)]))


def cskd(student: Array, teacher: Array, *, progress: float, tau: float, hard: bool) -> float:
    """Zhao et al. 2023: local targets that become the whole image's, and one sample for each place."""
    targets = (1 - progress) * teacher + progress * teacher.mean(axis=(2, 3), keepdims=True)
    height = min(student.shape[2], teacher.shape[2])
    width = min(student.shape[3], teacher.shape[3])
    ours, theirs = (pooled(side, height, width).transpose(0, 2, 3, 1).reshape(-1, student.shape[1])
                    for side in (student, targets))  # fmt: skip
    return deit_hard(ours, theirs) if hard else kd(ours, theirs, tau=tau)


def head_kd(student: Array, teacher: Array) -> float:
    """Yang et al. 2023, equation 9: cross entropy of every class by itself, weighed by how far the two are apart."""
    p, q = (1 / (1 + np.exp(-z)) for z in (student, teacher))
    entropy = -q * np.log(p) - (1 - q) * np.log(1 - p)
    seen = q.sum() / len(q)
    return float((abs(q - p) * entropy).sum() / len(q) / max(1.0, seen))


STUDENT, TEACHER = 2 * numbers(5, 7, seed=1), 3 * numbers(5, 7, seed=2)
LABELS = np.array([3, 0, 6, 6, 2])
PLACES = numbers(3, 4, 6, 3, seed=3), 3 * numbers(3, 4, 3, 3, seed=4)
FINER = numbers(3, 4, 2, 2, seed=5), 3 * numbers(3, 4, 4, 6, seed=6)
ANCHORS = numbers(3, 6, 4, seed=7, shift=-0.3), numbers(3, 6, 4, seed=8, shift=-0.5)
FEW = numbers(3, 2, 2, seed=9), numbers(3, 2, 2, seed=10, shift=-4.0)


@cases(
    [
        *(
            Case(f"kd, τ {tau}", lambda tau=tau: KD(temperature=tau), STUDENT, TEACHER,
                 lambda s, t, tau=tau: kd(s, t, tau=tau))
            for tau in (4.0, 1.0, 2.5)
        ),
        *(
            Case(f"dkd, τ {tau}, α {a}, β {b}",
                 lambda tau=tau, a=a, b=b: DKD(temperature=tau, target_weight=a, nontarget_weight=b), STUDENT, TEACHER,
                 lambda s, t, labels, tau=tau, a=a, b=b: dkd(s, t, labels=labels, tau=tau, target=a, rest=b),
                 {"labels": LABELS})
            for tau, a, b in ((4.0, 1.0, 8.0), (1.0, 1.0, 0.5), (3.0, 0.7, 2.0))
        ),
        *(
            Case(f"logit_std, τ {tau}", lambda tau=tau: LogitStd(temperature=tau), STUDENT, TEACHER,
                 lambda s, t, tau=tau: logit_std(s, t, tau=tau))
            for tau in (2.0, 0.8)
        ),
        *(
            Case(f"dist, τ {tau}, β {b}, γ {c}",
                 lambda tau=tau, b=b, c=c: DIST(temperature=tau, inter_weight=b, intra_weight=c), STUDENT, TEACHER,
                 lambda s, t, tau=tau, b=b, c=c: dist(s, t, tau=tau, inter=b, intra=c))
            for tau, b, c in ((4.0, 2.0, 2.0), (1.0, 1.0, 1.0), (1.5, 0.3, 1.7))
        ),
        Case("deit_hard", DeiTHard, STUDENT, TEACHER, deit_hard),
        *(
            Case(f"deit_soft, τ {tau}", lambda tau=tau: DeiTSoft(temperature=tau), STUDENT, TEACHER,
                 lambda s, t, tau=tau: kd(s, t, tau=tau))
            for tau in (3.0, 1.2)
        ),
        *(
            Case(f"cskd, {targets}, {progress} done, {name}",
                 lambda targets=targets: CSKD(targets=targets, temperature=1.6), *sides,
                 lambda s, t, progress, hard=targets == "hard": cskd(s, t, progress=progress, tau=1.6, hard=hard),
                 {"progress": progress})
            for targets in ("hard", "soft")
            for name, sides in (("a coarser teacher", PLACES), ("a finer teacher", FINER))
            for progress in (0.0, 0.3, 1.0)
        ),
        Case("head_kd", HeadKD, *ANCHORS, head_kd),
        Case("head_kd, a teacher that sees next to nothing", HeadKD, *FEW, head_kd),
    ]
)  # fmt: skip
def test_value_and_slope(case: Case) -> None:
    check(case)


def test_the_two_cases_of_head_kd_are_two() -> None:
    seen = [float((1 / (1 + np.exp(-teacher))).sum() / len(teacher)) for _, teacher in (ANCHORS, FEW)]
    assert seen[0] > 2 > 1 > seen[1]


def test_the_code_of_deit_divides_by_the_classes_too() -> None:
    """Its mean is over all B · K numbers; the weight that makes ours of it is 1 / K of the paper's."""
    per_number = 9.0 * sum(divergence(q, p) for q, p in zip(softmax(TEACHER / 3), softmax(STUDENT / 3), strict=True))
    per_number /= STUDENT.size
    ours = deit_soft_loss(torch.from_numpy(STUDENT), torch.from_numpy(TEACHER)).item()
    assert ours / STUDENT.shape[1] == pytest.approx(per_number, rel=1e-9)
