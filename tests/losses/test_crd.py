from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_helpers import run_on_ranks
from reldistill.losses.crd import CRD

IMAGES = 10
SEEDS = st.integers(0, 2**31)


def made(**more) -> CRD:
    torch.manual_seed(0)
    return CRD(**{"student_dim": 4, "teacher_dim": 5, "images": IMAGES, "dim": 3, "negatives": 4, **more}).double()


def batch(seed=0, *, samples=4, classes=3):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(samples, dim, generator=generator, dtype=torch.float64) for dim in (4, 5))
    indices = torch.randperm(IMAGES, generator=generator)[:samples]
    return student, teacher, {"labels": indices % classes, "indices": indices}


def loop(embeddings, bank, indices, negatives, scale, *, temperature):
    """L(a, bank) as the docstring writes it; the scale is the mean of the exponentials where it is None."""
    rows = [[int(i), *drawn] for i, drawn in zip(indices, negatives.tolist(), strict=True)]
    dots = [
        [math.exp(math.fsum(x * y for x, y in zip(a, bank[k].tolist(), strict=True)) / temperature) for k in row]
        for a, row in zip(embeddings.tolist(), rows, strict=True)
    ]
    if scale is None:
        scale = math.fsum(x for row in dots for x in row) / sum(len(row) for row in dots)
    terms = []
    for first, *others in dots:
        count = len(others)
        h = [(x / scale) / (x / scale + count) for x in (first, *others)]
        terms.append(-math.log(h[0]) - math.fsum(math.log(1 - x) for x in h[1:]))
    return math.fsum(terms) / len(terms), scale


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("momentum", [0.5, 0.2])
def test_matches_the_loop_over_two_steps(monkeypatch, momentum):
    """The second step meets what the first one left: a changed bank, and the first one's scale."""
    loss = made(momentum=momentum)
    banks = {"student": loss.student_bank.clone(), "teacher": loss.teacher_bank.clone()}
    scales = [None, None]
    for seed in range(2):
        student, teacher, more = batch(seed)
        more["indices"] = torch.tensor([7, 2, 9, 4])
        negatives = torch.randint(IMAGES, (4, 4), generator=torch.Generator().manual_seed(seed))
        monkeypatch.setattr(loss, "_draw", lambda *_, drawn=negatives: drawn)
        with torch.no_grad():
            ours, theirs = unit(loss.student_embedding(student)), unit(loss.teacher_embedding(teacher))
        first, scales[0] = loop(ours, banks["teacher"], more["indices"], negatives, scales[0], temperature=0.07)
        second, scales[1] = loop(theirs, banks["student"], more["indices"], negatives, scales[1], temperature=0.07)
        assert loss(student, teacher, **more).item() == pytest.approx(first + second, rel=1e-9)
        for name, seen in (("student", ours), ("teacher", theirs)):
            for row, index in enumerate(more["indices"]):
                banks[name][index] = unit((momentum * banks[name][index] + (1 - momentum) * seen[row])[None])[0]
            torch.testing.assert_close(getattr(loss, f"{name}_bank"), banks[name], rtol=1e-12, atol=1e-12)


@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_negatives_are_all_images_of_other_classes(seed):
    loss = made(negatives=9)
    labels = torch.randint(3, (IMAGES,), generator=torch.Generator().manual_seed(seed))
    labels[:3] = torch.arange(3)
    torch.manual_seed(seed)
    drawn = torch.cat([loss._draw(labels, labels) for _ in range(20)], dim=1)
    for own, row in zip(labels, drawn, strict=True):
        others = {i for i in range(IMAGES) if labels[i] != own}
        assert set(row.tolist()) <= others
        assert len(set(row.tolist())) > len(others) / 2


def test_draws_differ_from_step_to_step_and_follow_the_seed():
    loss, labels = made(), torch.arange(IMAGES) % 3
    torch.manual_seed(5)
    first, second = loss._draw(labels, labels), loss._draw(labels, labels)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(loss._draw(labels, labels), first)


def test_an_image_whose_class_is_not_known_yet_counts_as_another():
    loss = made(images=2, negatives=100)
    assert loss.negatives == 1
    labels = torch.tensor([0])
    assert loss._draw(labels, torch.tensor([0, -1])).tolist() == [[1]]
    assert loss._draw(labels, torch.tensor([0, 0])).shape == (1, 0)


def test_instances_are_classes_of_their_own():
    """Without labels, and the same as with an image's place as its class."""
    student, teacher, more = batch()
    values = []
    for loss, labels in ((made(contrast="instances"), {}), (made(), {"labels": more["indices"]})):
        for _ in range(2):
            torch.manual_seed(3)
            values.append(loss(student, teacher, indices=more["indices"], **labels))
    assert made(contrast="instances").needs == ("indices",)
    torch.testing.assert_close(values[:2], values[2:], rtol=0, atol=0)
    loss, labels = made(images=3, negatives=50, contrast="instances"), torch.arange(3)
    assert all(own not in row for own, row in zip(labels, loss._draw(labels, labels), strict=True))


@pytest.mark.usefixtures("unchecked_types")
def test_classes_are_contrasted_by_labels():
    student, teacher, more = batch()
    with pytest.raises(ValueError, match="crd contrasts classes: give them, or take contrast='instances'"):
        made()(student, teacher, indices=more["indices"])
    with pytest.raises(ValueError, match="contrast must be one of classes, instances, got 'images'"):
        made(contrast="images")


def test_one_class_leaves_the_positives_alone():
    loss = made(images=4)
    student, teacher, more = batch()
    more = {"labels": torch.zeros(4, dtype=torch.int64), "indices": torch.arange(4)}
    value = loss(student.requires_grad_(), teacher, **more)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@given(seed=SEEDS, scale=st.floats(1e-2, 1e2), which=st.sampled_from([0, 1]))
@settings(max_examples=15, deadline=None)
def test_a_positive_scale_without_biases(seed, scale, which):
    def value(pair, more):
        loss = made()
        torch.nn.init.zeros_(loss.student_embedding.bias)
        torch.nn.init.zeros_(loss.teacher_embedding.bias)
        torch.manual_seed(seed)
        return loss(*pair, **more)

    *pair, more = batch(seed)
    before = value(pair, more)
    pair[which] = scale * pair[which]
    torch.testing.assert_close(value(pair, more), before, rtol=1e-9, atol=0)


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_order_of_the_samples(seed):
    """With negatives that every sample shares, so that chance has no say."""
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    student, teacher, more = batch(seed)
    values = []
    for chosen in (torch.arange(4), order):
        loss = made()
        loss._draw = lambda *_: torch.tensor([[0, 1, 2]]).expand(4, 3)
        values.append(loss(student[chosen], teacher[chosen], **{k: v[chosen] for k, v in more.items()}))
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)


def test_both_maps_learn_to_tell_images_apart():
    torch.manual_seed(0)
    loss = CRD(student_dim=6, teacher_dim=6, images=8, dim=8, negatives=7)
    vectors = torch.eye(8)[:, :6] + torch.randn(8, 6)
    more = {"labels": torch.arange(8), "indices": torch.arange(8)}
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.02)
    values = []
    for _ in range(60):
        value = loss(vectors, vectors.flip(1), **more)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.5 * values[0]
    similarity = loss.student_bank @ loss.teacher_bank.T
    assert (similarity.argmax(dim=1) == torch.arange(8)).all()


def steps(rank, world_size):
    loss = made()
    values = []
    for seed in range(3):
        torch.manual_seed(100 * rank + seed)  # ranks are seeded apart, as a run seeds them
        student, teacher, more = batch(seed)
        mine = {name: tensor.chunk(world_size)[rank] for name, tensor in more.items()}
        values.append(loss(student.chunk(world_size)[rank], teacher.chunk(world_size)[rank], **mine).detach())
    return {"values": torch.stack(values), **loss.state_dict()}


@pytest.mark.slow
def test_two_processes_keep_one_bank():
    whole, (first, second) = steps(0, 1), run_on_ranks(steps)
    torch.testing.assert_close((first["values"] + second["values"]) / 2, whole["values"], rtol=1e-10, atol=0)
    for name in ("student_bank", "teacher_bank", "bank_labels", "log_scales"):
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], whole[name], rtol=1e-10, atol=1e-12)


def test_state_is_in_the_state_dict():
    names = {"student_bank", "teacher_bank", "bank_labels", "log_scales"}
    assert names < set(made().state_dict())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"images": 1}, "images must be at least 2, got 1"),
        ({"negatives": 0}, "dim and negatives must be at least 1, got 3 and 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
    ],
)
def test_settings_are_checked(more, message):
    with pytest.raises(ValueError, match=message):
        made(**more)


@pytest.mark.parametrize("index", [-1, IMAGES])
def test_an_index_outside_the_bank(index):
    student, teacher, more = batch()
    more["indices"][1] = index
    with pytest.raises(ValueError, match=r"indices: expected 0 to 9"):
        made()(student, teacher, **more)


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_axes_are_named():
    student, teacher, more = batch()
    with pytest.raises(ValueError, match=r"teacher: expected D = 5"):
        made()(student, teacher[:, :3], **more)
