from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reldistill.losses.deit_soft import DeiTSoft, deit_soft_loss

SEEDS = st.integers(0, 2**31)


def logits(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2)]


def softened(row, temperature):
    exponentials = [math.exp(z / temperature) for z in row]
    return [x / math.fsum(exponentials) for x in exponentials]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_matches_the_loop(temperature):
    student, teacher = logits()
    total = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        s, t = softened(ours, temperature), softened(theirs, temperature)
        total += math.fsum(q * math.log(q / p) for p, q in zip(s, t, strict=True))
    expected = temperature**2 * total / 6
    assert deit_soft_loss(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-9)
    assert DeiTSoft(temperature=temperature)(student, teacher).item() == pytest.approx(expected, rel=1e-9)


@given(seed=SEEDS, shift=st.floats(-50, 50))
@settings(max_examples=20, deadline=None)
def test_shift_order_and_classes(seed, shift):
    student, teacher = logits(seed)
    moved = deit_soft_loss(student.flip(0, 1) + shift, teacher.flip(0, 1) - shift)
    torch.testing.assert_close(moved, deit_soft_loss(student, teacher), rtol=1e-8, atol=1e-12)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        DeiTSoft(temperature=0)
