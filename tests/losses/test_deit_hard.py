from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reldistill.losses.deit_hard import DeiTHard, deit_hard_loss

SEEDS = st.integers(0, 2**31)


def logits(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2)]


def test_matches_the_loop():
    student, teacher = logits()
    terms = []
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        chosen = max(range(5), key=theirs.__getitem__)
        terms.append(math.log(math.fsum(math.exp(z) for z in ours)) - ours[chosen])
    assert deit_hard_loss(student, teacher).item() == pytest.approx(math.fsum(terms) / 6, rel=1e-12)


def test_small_where_the_decisions_agree():
    _, teacher = logits()
    assert deit_hard_loss(1e4 * teacher, teacher).item() < 1e-9
    assert deit_hard_loss(-1e4 * teacher, teacher).item() > 1e3


@given(seed=SEEDS, shift=st.floats(-50, 50), scale=st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_shifts_and_a_positive_scale_of_the_teacher(seed, shift, scale):
    student, teacher = logits(seed)
    found = deit_hard_loss(student + shift, scale * teacher - shift * scale)
    torch.testing.assert_close(found, deit_hard_loss(student, teacher), rtol=1e-9, atol=1e-12)


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_order_of_samples_and_classes(seed):
    student, teacher = logits(seed)
    moved = [one.flip(0, 1) for one in (student, teacher)]
    torch.testing.assert_close(deit_hard_loss(*moved), deit_hard_loss(student, teacher), rtol=1e-12, atol=0)


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_axes_are_named():
    with pytest.raises(ValueError, match="teacher: expected K = 5"):
        DeiTHard()(torch.zeros(2, 5), torch.zeros(2, 4))
