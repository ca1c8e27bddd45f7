from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reldistill.losses.simkd import SimKD, simkd_loss


def maps(*student, teacher=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in (student, teacher or student)]


def test_matches_the_loop():
    student, teacher = maps(2, 3, 2, 2)
    squares = [(s - t) ** 2 for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)]
    assert simkd_loss(student, teacher).item() == pytest.approx(sum(squares) / len(squares), rel=1e-12)


def test_a_larger_map_of_the_teacher_is_averaged():
    student, teacher = maps(2, 3, 2, 2, teacher=(2, 3, 4, 6))
    averaged = torch.stack(
        [teacher[:, :, 2 * y : 2 * y + 2, 3 * x : 3 * x + 3].mean(dim=(2, 3)) for y in range(2) for x in range(2)],
        dim=2,
    ).unflatten(2, (2, 2))
    torch.testing.assert_close(simkd_loss(student, teacher), simkd_loss(student, averaged), rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(3, 4, 2, 3), (3, 4)])
@given(seed=st.integers(0, 2**31), shift=st.floats(-10, 10))
@settings(max_examples=15, deadline=None)
def test_order_channels_positions_and_a_common_shift(shape, seed, shift):
    pair = maps(*shape, seed=seed)
    axes = tuple(range(len(shape)))
    moved = [one.flip(axes) + shift for one in pair]
    torch.testing.assert_close(simkd_loss(*moved), simkd_loss(*pair), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("teacher", [(2, 4, 2, 2), (2, 3)])
@pytest.mark.usefixtures("unchecked_types")
def test_wrong_shapes_are_named(teacher):
    with pytest.raises(ValueError, match="student and teacher must have as many channels"):
        SimKD()(torch.zeros(2, 3, 2, 2), torch.zeros(teacher))
