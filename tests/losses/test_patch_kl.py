from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given

from drawn import SEEDS, few, normal, order, rotation, same, scales, which_network
from reldistill.losses.patch_kl import PatchKL, patch_kl_loss


def maps(seed=0):
    return normal((3, 4, 2, 3), (3, 7, 2, 3), seed=seed)


def slow_rows(image, temperature):
    patches = image.flatten(1).T.tolist()
    lengths = [math.sqrt(math.fsum(v * v for v in patch)) for patch in patches]
    rows = []
    for i, one in enumerate(patches):
        weights = []
        for j, other in enumerate(patches):
            cosine = math.fsum(a * b for a, b in zip(one, other, strict=True)) / (lengths[i] * lengths[j])
            weights.append(math.exp(cosine / temperature))
        rows.append([w / math.fsum(weights) for w in weights])
    return rows


def slow(student, teacher, temperature):
    values = []
    for images in zip(student, teacher, strict=True):
        for ours, theirs in zip(*(slow_rows(image, temperature) for image in images), strict=True):
            values.append(math.fsum(t * math.log(t / s) for s, t in zip(ours, theirs, strict=True)))
    return math.fsum(values) / len(values)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_matches_the_loop(temperature):
    student, teacher = maps()
    expected = slow(student, teacher, temperature)
    assert patch_kl_loss(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-8)
    assert PatchKL(temperature=temperature)(student, teacher).item() == pytest.approx(expected, rel=1e-8)


def test_default_temperature():
    assert PatchKL()(*maps()).item() == pytest.approx(slow(*maps(), 0.07), rel=1e-8)
    same(patch_kl_loss(*maps()), PatchKL()(*maps()))


def test_the_larger_map_is_averaged_over_cells():
    student, teacher = normal((3, 4, 4, 2), (3, 7, 2, 6))
    found = patch_kl_loss(student, teacher)
    same(found, patch_kl_loss(F.avg_pool2d(student, (2, 1)), F.avg_pool2d(teacher, (1, 3))))


def test_one_patch_and_a_dead_one():
    assert patch_kl_loss(*normal((3, 4, 1, 1), (3, 7, 2, 2))).item() == 0.0
    student, teacher = maps()
    student[:, :, 1, 1] = 0.0
    loss = patch_kl_loss(student.requires_grad_(), teacher)
    loss.backward()
    assert loss.item() > 0
    assert student.grad.isfinite().all()


def test_patches_alike_against_patches_apart():
    """A uniform student, a teacher whose row is e^{1/τ} for itself and 1 for each other."""
    apart = torch.eye(4).reshape(1, 4, 2, 2)
    itself = math.e / (math.e + 3)
    entropy = -(itself * math.log(itself) + (1 - itself) * math.log((1 - itself) / 3))
    found = patch_kl_loss(torch.ones(1, 4, 2, 2), apart, temperature=1.0)
    assert found.item() == pytest.approx(math.log(4) - entropy, rel=1e-5)


@given(seed=SEEDS, which=which_network)
@few
def test_rotation_and_reflection_of_the_patches_and_a_positive_scale_of_each(seed, which):
    pair = maps(seed)
    before = patch_kl_loss(*pair)
    side = pair[which]
    turned = torch.einsum("bdhw,de->behw", side, rotation(side.shape[1], seed))
    pair[which] = turned * scales(18, seed).reshape(3, 1, 2, 3)
    same(patch_kl_loss(*pair), before)


@given(seed=SEEDS, which=which_network)
@few
def test_rotation_and_reflection_on_grids_of_different_size(seed, which):
    pair = normal((3, 4, 4, 4), (3, 7, 2, 2), seed=seed)
    before = patch_kl_loss(*pair)
    pair[which] = torch.einsum("bdhw,de->behw", pair[which], rotation(pair[which].shape[1], seed))
    same(patch_kl_loss(*pair), before)


@given(seed=SEEDS)
@few
def test_order_of_the_samples_and_common_permutation_of_the_positions(seed):
    student, teacher = maps(seed)
    samples, positions = order(3, seed), order(6, seed)
    moved = [side[samples].flatten(2)[..., positions].unflatten(2, (2, 3)) for side in (student, teacher)]
    same(patch_kl_loss(*moved), patch_kl_loss(student, teacher))


@given(seed=SEEDS)
@few
def test_at_least_zero_and_zero_at_equal(seed):
    student, teacher = maps(seed)
    assert patch_kl_loss(student, teacher).item() > 0
    assert patch_kl_loss(teacher, teacher).item() == 0.0


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature must be above 0"):
        PatchKL(temperature=0)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        patch_kl_loss(*maps(), temperature=math.nan)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((4, 5), (4, 5, 2, 2), r"student: expected \(B, D, H, W\)"),
        ((4, 5, 2, 2), (4, 5, 4), r"teacher: expected \(B, D, H, W\)"),
        ((4, 5, 2, 2), (3, 5, 2, 2), "B is 4 in the student and 3 in the teacher"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_wrong_axes_are_named(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        patch_kl_loss(torch.zeros(student), torch.zeros(teacher))
