from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from drawn import SEEDS, few, normal, order, same, scales, which_network
from reldistill.losses.features import ProjectedFeatures, features_loss
from reldistill.networks.adapters import LinearProjection


def sides(seed=0):
    """(pooled, map) of student and teacher."""
    pooled, patches, other, others = normal((3, 5), (3, 4, 2, 3), (3, 5), (3, 4, 2, 3), seed=seed)
    return (pooled, patches), (other, others)


def slow(student, teacher):
    """Means of 1 − cosine, vector by vector."""
    values = []
    for ours, theirs in zip(student, teacher, strict=True):
        pairs = zip(*(one.movedim(1, -1).flatten(0, -2).tolist() for one in (ours, theirs)), strict=True)
        apart = []
        for a, b in pairs:
            dots = [math.fsum(x * y for x, y in zip(p, q, strict=True)) for p, q in ((a, b), (a, a), (b, b))]
            apart.append(1 - dots[0] / math.sqrt(dots[1] * dots[2]))
        values.append(math.fsum(apart) / len(apart))
    return values


def test_matches_the_loop():
    pooled, patches = slow(*sides())
    parts = ProjectedFeatures().parts(*sides())
    assert parts["pooled"].item() == pytest.approx(pooled, rel=1e-12)
    assert parts["patches"].item() == pytest.approx(patches, rel=1e-12)
    weighted = features_loss(*sides(), pooled_weight=0.3, patches_weight=2.0)
    assert weighted.item() == pytest.approx(0.3 * pooled + 2 * patches, rel=1e-12)
    assert features_loss(*sides()).item() == pytest.approx(pooled + patches, rel=1e-12)


def test_squares_in_units_of_the_teachers():
    student, teacher = sides()
    parts = ProjectedFeatures(distance="mse").parts(student, teacher)
    for name, ours, theirs in zip(("pooled", "patches"), student, teacher, strict=True):
        same(parts[name], (ours - theirs).square().mean() / theirs.square().mean())


def test_parts_by_name():
    assert list(ProjectedFeatures().parts(*sides(), names=["patches"])) == ["patches"]
    with pytest.raises(ValueError, match="part must be one of pooled, patches, got 'all'"):
        ProjectedFeatures().parts(*sides(), names=["all"])


@given(seed=SEEDS, which=which_network)
@few
def test_positive_scale_of_each_vector(seed, which):
    both = list(sides(seed))
    before = features_loss(*both)
    pooled, patches = both[which]
    both[which] = (pooled * scales(3, seed)[:, None], patches * scales(18, seed + 1).reshape(3, 1, 2, 3))
    same(features_loss(*both), before)


@given(seed=SEEDS)
@few
def test_common_scale(seed):
    both, scale = sides(seed), scales(1, seed)
    scaled = [tuple(scale * one for one in side) for side in both]
    same(features_loss(*scaled, distance="mse"), features_loss(*both, distance="mse"))


@given(seed=SEEDS)
@few
@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_order_of_samples_and_places(seed, distance):
    both = sides(seed)
    samples, places = order(3, seed), order(6, seed)
    moved = [
        (pooled[samples], patches[samples].flatten(2)[:, :, places].unflatten(2, (2, 3))) for pooled, patches in both
    ]
    same(features_loss(*moved, distance=distance), features_loss(*both, distance=distance))


def test_a_vector_of_0_is_half_from_all():
    (pooled, patches), teacher = sides()
    parts = ProjectedFeatures().parts((0 * pooled, patches), teacher)
    assert parts["pooled"].item() == pytest.approx(0.5)


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_refused():
    (pooled, patches), teacher = sides()
    with pytest.raises(ValueError, match="distance must be one of cosine, mse, got 'l1'"):
        ProjectedFeatures(distance="l1")
    with pytest.raises(ValueError, match="teacher's pooled: expected D = 4"):
        features_loss((pooled[:, :4], patches), teacher)
    with pytest.raises(ValueError, match="student's patches: expected"):
        features_loss((pooled, pooled), teacher)


def test_the_projection_is_a_linear_map_of_every_place():
    torch.manual_seed(0)
    adapter = LinearProjection(4, 7, teacher_size=(2, 3)).double()
    (_, patches), _ = sides()
    weight, bias = adapter.project.weight[:, :, 0, 0], adapter.project.bias
    same(adapter(patches)[1, :, 0, 2], weight @ patches[1, :, 0, 2] + bias)
    assert LinearProjection(4, 4, teacher_size=(4, 4))(patches.float()).shape == (3, 4, 4, 4)
