from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slow_references as slow
from ddp_helpers import run_on_ranks
from reldistill.losses.rkd import RKD, rkd_loss

SEEDS = st.integers(0, 2**31)


def embeddings(*, samples=6, student_dim=4, teacher_dim=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = (samples, student_dim), (samples, teacher_dim)
    return tuple(torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)


def rotation(dim, seed):
    return torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed)).double())[0]


def test_matches_the_loop():
    student, teacher = embeddings()
    distance = slow.distance_loss(student[None], teacher[None])
    angle = slow.angle_loss(student[None], teacher[None])
    parts = RKD().parts(student, teacher)
    assert parts["distance"].item() == pytest.approx(distance, rel=1e-9)
    assert parts["angle"].item() == pytest.approx(angle, rel=1e-9)
    assert rkd_loss(student, teacher).item() == pytest.approx(25 * distance + 50 * angle, rel=1e-9)
    assert RKD(distance_weight=2, angle_weight=0.5)(student, teacher).item() == pytest.approx(
        2 * distance + 0.5 * angle, rel=1e-9
    )


@given(seed=SEEDS, scale=st.floats(1e-3, 1e3), which=st.sampled_from([0, 1]))
@settings(max_examples=25, deadline=None)
def test_rotation_reflection_translation_and_positive_scale(seed, scale, which):
    pair = list(embeddings(seed=seed))
    before = rkd_loss(*pair)
    dim = pair[which].shape[1]
    pair[which] = scale * pair[which] @ rotation(dim, seed) + torch.arange(dim)
    torch.testing.assert_close(rkd_loss(*pair), before, rtol=1e-7, atol=1e-10)


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_order_of_the_samples(seed):
    student, teacher = embeddings(seed=seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(rkd_loss(student[order], teacher[order]), rkd_loss(student, teacher), rtol=1e-9, atol=0)


def test_zero_when_similar_and_not_otherwise():
    student, teacher = embeddings()
    wider = torch.nn.functional.pad(3 * teacher, (0, 2)) @ rotation(9, 0) - 5
    assert rkd_loss(wider, teacher).item() < 1e-10
    assert rkd_loss(student, teacher).item() > 1e-2


def test_a_batch_of_one_or_two():
    student, teacher = embeddings(samples=1)
    assert rkd_loss(student.requires_grad_(), teacher).item() == 0.0
    student, teacher = embeddings(samples=2)
    loss = rkd_loss(student.requires_grad_(), teacher)
    assert loss.item() == pytest.approx(0.0, abs=1e-14)
    loss.backward()
    assert student.grad.abs().max() < 1e-12


def test_two_samples_in_one_place():
    student, teacher = embeddings()
    student[3] = student[0]
    student.requires_grad_()
    parts = RKD().parts(student, teacher)
    assert parts["distance"].item() == pytest.approx(slow.distance_loss(student[None], teacher[None]), rel=1e-9)
    assert parts["angle"].item() == pytest.approx(slow.angle_loss(student[None], teacher[None]), rel=1e-9)
    sum(parts.values()).backward()
    assert student.grad.isfinite().all()


def shares(rank, world_size):
    student, teacher = (part.chunk(world_size)[rank] for part in embeddings())
    student = student.clone().requires_grad_()
    parts = RKD().parts(student, teacher)
    (25 * parts["distance"] + 50 * parts["angle"]).backward()
    return {"gradient": student.grad} | {name: part.detach() for name, part in parts.items()}


@pytest.mark.slow
def test_two_processes_relate_the_samples_of_both():
    """Each rank has the whole batch's value; gradients, averaged over ranks as DDP does, are the whole batch's."""
    student, teacher = embeddings()
    student.requires_grad_()
    parts = RKD().parts(student, teacher)
    rkd_loss(student, teacher).backward()
    ranks = run_on_ranks(shares)
    for rank in ranks:
        for name, part in parts.items():
            torch.testing.assert_close(rank[name], part.detach(), rtol=1e-12, atol=0)
    together = torch.cat([rank["gradient"] for rank in ranks]) / 2
    torch.testing.assert_close(together, student.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((4, 5, 1), (4, 5), r"student: expected \(B, D\)"),
        ((4, 5), (4, 5, 1), r"teacher: expected \(B, D\)"),
        ((4, 5), (3, 5), "B is 4 in the student and 3 in the teacher"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_wrong_axes_are_named(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        rkd_loss(torch.zeros(student), torch.zeros(teacher))
