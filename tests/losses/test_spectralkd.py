from __future__ import annotations

import cmath
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

from drawn import SEEDS, few, normal, order, same
from reldistill.losses.spectralkd import SpectralKD, half_spectrum, spectralkd_loss


def maps(seed=0):
    return normal((2, 3, 2, 4), (2, 5, 2, 4), seed=seed)


def channel_means(image, count):
    """Of (C, H, W): window k covers the channels ⌊kC/c⌋ to ⌈(k+1)C/c⌉."""
    size = len(image)
    return [image[k * size // count : math.ceil((k + 1) * size / count)].mean(dim=0) for k in range(count)]


def coefficient(plane, v, u):
    """Σ x e^{−2πi (vy/H + ux/W)} / √(HW)."""
    height, width = plane.shape
    waves = [
        plane[y, x].item() * cmath.exp(-2j * math.pi * (v * y / height + u * x / width))
        for y in range(height)
        for x in range(width)
    ]
    return sum(waves) / math.sqrt(height * width)


def slow(student, teacher):
    squares = []
    for ours, theirs in zip(student, teacher, strict=True):
        for s, t in zip(ours, channel_means(theirs, len(ours)), strict=True):
            for v in range(s.shape[0]):
                for u in range(s.shape[1] // 2 + 1):
                    gap = coefficient(s, v, u) - coefficient(t, v, u)
                    squares += [gap.real**2, gap.imag**2]
    return math.fsum(squares) / len(squares)


def test_matches_the_loop():
    student, teacher = maps()
    assert spectralkd_loss([student], [teacher]).item() == pytest.approx(slow(student, teacher), rel=1e-9)
    others = normal((2, 2, 3, 5), (2, 2, 3, 5), seed=4)
    both = (slow(student, teacher) + slow(*others)) / 2
    assert SpectralKD()([student, others[0]], [teacher, others[1]]).item() == pytest.approx(both, rel=1e-9)


@pytest.mark.parametrize("width", [4, 5])
def test_by_parseval_the_whole_spectrum_is_the_plain_square(width):
    """Columns without a twin in the other half count once, all others twice."""
    student, teacher = normal((2, 3, 3, width), (2, 3, 3, width))
    squares = (half_spectrum(student) - half_spectrum(teacher)).square().sum(dim=(0, 1, 2, 4))
    twins = torch.full_like(squares, 2.0)
    twins[0] = 1.0
    if width % 2 == 0:
        twins[-1] = 1.0
    same((twins * squares).sum(), (student - teacher).square().sum())


def test_unlike_sizes():
    student, teacher = normal((2, 3, 4, 2), (2, 3, 2, 4))
    expected = spectralkd_loss([F.avg_pool2d(student, (2, 1))], [F.avg_pool2d(teacher, (1, 2))])
    same(spectralkd_loss([student], [teacher]), expected)
    wide, narrow = normal((2, 4, 2, 3), (2, 2, 2, 3))
    same(spectralkd_loss([wide], [narrow]), spectralkd_loss([wide.unflatten(1, (2, 2)).mean(dim=2)], [narrow]))


@given(seed=SEEDS)
@few
def test_a_common_shift_mirror_and_order(seed):
    student, teacher = maps(seed)
    before = spectralkd_loss([student], [teacher])
    samples = order(2, seed)
    same(spectralkd_loss([student[samples]], [teacher[samples]]), before)
    shifted = [one.roll((1, 2), dims=(2, 3)) for one in (student, teacher)]
    same(spectralkd_loss(shifted[:1], shifted[1:]), before)
    for axis in (2, 3):
        same(spectralkd_loss([student.flip(axis)], [teacher.flip(axis)]), before)


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_refused():
    student, teacher = maps()
    with pytest.raises(ValueError, match="equally many maps: 2 and 1"):
        spectralkd_loss([student, student], [teacher])
    with pytest.raises(ValueError, match=r"student: expected \(B, C, H, W\)"):
        spectralkd_loss([student[0]], [teacher])
