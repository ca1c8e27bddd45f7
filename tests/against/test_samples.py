"""The losses on the samples of a batch against their published formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from published import Array, Case, cases, check, divergence, huber, numbers, softmax
from reldistill.losses import CC, CRD, PKT, RKD, SP, VRM


def unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def distances(samples: Array) -> Array:
    return np.linalg.norm(samples[:, None] - samples[None], axis=2)


def rkd(student: Array, teacher: Array, *, distance: float, angle: float) -> float:
    """Park et al. 2019, equations 4 to 8, means over distinct pairs and triples."""
    count = len(student)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    triples = [(i, j, k) for i, j in pairs for k in range(count) if k not in (i, j)]
    relative = []
    for side in (student, teacher):
        apart = distances(side)
        relative.append(apart / np.mean([apart[pair] for pair in pairs]))

    def cosine(side: Array, i: int, j: int, k: int) -> float:
        return float(unit(side[i] - side[j]) @ unit(side[k] - side[j]))

    by_distance = np.mean([huber(relative[0][pair] - relative[1][pair]) for pair in pairs])
    by_angle = np.mean([huber(cosine(student, *one) - cosine(teacher, *one)) for one in triples])
    return float(distance * by_distance + angle * by_angle)


def cc(student: Array, teacher: Array, *, gamma: float, order: int) -> float:
    """Peng et al. 2019, equations 6 to 8: the first terms of the Gaussian kernel's Taylor series on the sphere."""
    total = 0.0
    for i in range(len(student)):
        for j in range(len(student)):
            kernels = []
            for side in (student, teacher):
                product = float(unit(side[i]) @ unit(side[j]))
                terms = [(2 * gamma) ** p / math.factorial(p) * product**p for p in range(order + 1)]
                kernels.append(math.exp(-2 * gamma) * sum(terms))
            total += (kernels[0] - kernels[1]) ** 2
    return total / len(student) ** 2


def pkt(student: Array, teacher: Array, *, diagonal: bool) -> float:
    """Passalis and Tefas 2018, equations 4, 5 and 7, as a mean; with the diagonal of their code or without."""
    chances = []
    for side in (student, teacher):
        kernel = (1 + unit(side) @ unit(side).T) / 2 + 1e-6
        if not diagonal:
            np.fill_diagonal(kernel, 0)
        chances.append(kernel / kernel.sum(axis=1, keepdims=True))
    counted = np.ones((len(student),) * 2, dtype=bool) if diagonal else ~np.eye(len(student), dtype=bool)
    return divergence(chances[1][counted], chances[0][counted]) / counted.sum()


def sp(student: Array, teacher: Array) -> float:
    """Tung and Mori 2019, equations 1 to 4."""
    products = [side.reshape(len(side), -1) @ side.reshape(len(side), -1).T for side in (student, teacher)]
    return float(((unit(products[0]) - unit(products[1])) ** 2).sum() / len(student) ** 2)


VECTORS = numbers(6, 4, seed=1, shift=0.3), 2 * numbers(6, 9, seed=2, shift=-0.2)
MAPS = numbers(5, 3, 2, 4, seed=3, shift=0.4), numbers(5, 6, 3, 3, seed=4)


def vrm(student: list[Array], teacher: list[Array], *, keep: float) -> float:
    """Zhang et al. 2025: edges z_i − z'_j at unit length, between samples and between classes; unsure ones pruned."""
    sides = [[view - view.mean(axis=1, keepdims=True) for view in side] for side in (student, teacher)]

    def apart(turned: bool) -> Array:
        edges = []
        for one, again in sides:
            one, again = (one.T, again.T) if turned else (one, again)
            edges.append(unit(one[:, None] - again[None]))
        return ((edges[0] - edges[1]) ** 2).sum(axis=2) / 2

    entropies = [-(softmax(view) * np.log(softmax(view))).sum(axis=1) for view in student]
    joint = entropies[0][:, None] + entropies[1][None]
    kept = joint <= np.sort(joint.ravel())[math.ceil(keep * joint.size) - 1]
    return 25 * float(apart(turned=False)[kept].mean()) + 25 * float(apart(turned=True).mean())


TWO_VIEWS = ([numbers(5, 4, seed=31), numbers(5, 4, seed=32)], [numbers(5, 4, seed=33), 2 * numbers(5, 4, seed=34)])


@cases(
    [
        *(
            Case(f"rkd, λ_D {d}, λ_A {a}", lambda d=d, a=a: RKD(distance_weight=d, angle_weight=a), *VECTORS,
                 lambda s, t, d=d, a=a: rkd(s, t, distance=d, angle=a))
            for d, a in ((25.0, 50.0), (1.0, 0.0), (0.0, 1.0))
        ),
        *(
            Case(f"cc, γ {gamma}, P {order}", lambda g=gamma, p=order: CC(sharpness=g, order=p), *VECTORS,
                 lambda s, t, g=gamma, p=order: cc(s, t, gamma=g, order=p))
            for gamma, order in ((0.4, 2), (1.3, 3), (0.7, 1))
        ),
        Case("pkt, as its code", PKT, *VECTORS, lambda s, t: pkt(s, t, diagonal=True)),
        Case("pkt, as its paper", lambda: PKT(diagonal="left_out"), *VECTORS, lambda s, t: pkt(s, t, diagonal=False)),
        Case("sp", SP, *MAPS, sp),
        *(
            Case(f"vrm, {keep} kept", lambda keep=keep: VRM(keep=keep), *TWO_VIEWS,
                 lambda s, t, keep=keep: vrm(s, t, keep=keep))
            for keep in (0.9, 0.6, 1.0)
        ),
    ]
)  # fmt: skip
def test_value_and_slope(case: Case) -> None:
    check(case)


def crd_step(loss: CRD, student: Array, teacher: Array, indices: list[int], scales: list[float] | None) -> tuple:
    """Tian et al. 2020, equation 17 with the estimator h of its appendix: value, the constants Z, the new banks.

    Every image but the last is of one class, so that all K negatives are the last image, whatever chance says.
    """
    state = {name: value.numpy().copy() for name, value in loss.state_dict().items()}
    spheres = [
        unit(side @ state[f"{name}_embedding.weight"].T + state[f"{name}_embedding.bias"])
        for name, side in (("student", student), ("teacher", teacher))
    ]
    banks = [state["student_bank"], state["teacher_bank"]]
    negatives, total, found = loss.negatives, 0.0, []
    for anchors, bank, scale in zip(spheres, banks[::-1], scales or [None, None], strict=True):
        positive = np.exp((anchors * bank[indices]).sum(axis=1) / loss.temperature)
        negative = np.exp(anchors @ bank[-1] / loss.temperature)
        if scale is None:
            scale = float((positive + negatives * negative).sum() / (len(anchors) * (1 + negatives)))
        found.append(scale)
        right, wrong = (value / scale / (value / scale + negatives) for value in (positive, negative))
        total += float(np.mean(-np.log(right) - negatives * np.log(1 - wrong)))
    for bank, anchors in zip(banks, spheres, strict=True):
        bank[indices] = unit(loss.momentum * bank[indices] + (1 - loss.momentum) * anchors)
    return total, found, banks


def test_crd_over_two_steps() -> None:
    torch.manual_seed(0)
    loss = CRD(student_dim=5, teacher_dim=7, images=4, dim=3, negatives=50, temperature=0.4, momentum=0.3).double()
    assert loss.negatives == 3
    scales = None
    for step, indices in enumerate(([2, 0, 1], [1, 2, 0])):
        student, teacher = numbers(3, 5, seed=10 + step), numbers(3, 7, seed=20 + step)
        expected, scales, banks = crd_step(loss, student, teacher, indices, scales)
        value = loss(
            torch.from_numpy(student),
            torch.from_numpy(teacher),
            labels=torch.tensor([6, 6, 6]),
            indices=torch.tensor(indices),
        )
        assert value.item() == pytest.approx(expected, rel=1e-9)
        np.testing.assert_allclose(loss.student_bank.numpy(), banks[0], rtol=1e-9)
        np.testing.assert_allclose(loss.teacher_bank.numpy(), banks[1], rtol=1e-9)
