from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ddp_helpers import run_on_ranks
from reldistill.core.types import Batch, ClassLabels
from reldistill.losses.kd import kd_loss
from reldistill.losses.vrm import VRM
from reldistill.methods.build import build_distiller
from reldistill.methods.plan import Choices
from reldistill.methods.views import strong_view
from reldistill.networks.extract import Extractor
from reldistill.step.distiller import Distiller
from reldistill.step.term import Term
from reldistill.tasks.classification.objective import Classification


def images(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.rand(count, 3, 16, 16, generator=generator), ClassLabels(torch.arange(count) % 4))


def network(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)
    )


def test_a_view_is_another_image_and_follows_the_seed() -> None:
    batch = images()
    before = batch.images.clone()
    torch.manual_seed(3)
    first, second = strong_view(batch), strong_view(batch)
    assert first.shape == before.shape
    assert ((first >= 0) & (first <= 1)).all()
    assert all((one - other).abs().mean() > 0.02 for one, other in zip(first, before, strict=True))
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(strong_view(batch), first)
    assert torch.equal(batch.images, before)


def seen(rank: int, world_size: int) -> torch.Tensor:
    batch = images()
    torch.manual_seed(3 + rank)  # ranks whose generators have gone apart
    return strong_view(Batch(batch.images.chunk(world_size)[rank]))


@pytest.mark.slow
def test_two_processes_see_what_one_sees() -> None:
    torch.testing.assert_close(torch.cat(run_on_ranks(seen)), seen(0, 1), rtol=0, atol=0)


def test_both_networks_say_what_the_loss_compares_of_one_second_view() -> None:
    student, teacher = network(4), network(8)
    weights = {"vrm.sample": 2.0, "vrm.class": 3.0, "vrm.instance": 0.5}
    module = build_distiller(
        "vrm", student=student, teacher=teacher, image_size=16, task=Classification(), choices=Choices(weights=weights)
    )
    torch.manual_seed(7)
    step = module(images())
    torch.manual_seed(7)
    views = [images().images, strong_view(images())]
    sides = [[one(view) for view in views] for one in (student, teacher)]
    expected = VRM().parts(*sides)
    for name, value in expected.items():
        torch.testing.assert_close(step.parts[f"vrm.{name}"], weights[f"vrm.{name}"] * value.detach())
    labels = images().targets.for_loss("labels", views[0])
    torch.testing.assert_close(step.parts["task"], nn.functional.cross_entropy(sides[0][0], labels).detach())
    control = sum(kd_loss(ours, theirs) for ours, theirs in zip(*sides, strict=True)) / 2
    torch.testing.assert_close(expected["instance"], control)
    step.total.backward()
    assert all(p.grad is not None and p.grad.any() for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_others_have_no_second_view_made() -> None:
    module = build_distiller("kd", student=network(4), teacher=network(8), image_size=16, task=Classification())
    module.second_view = lambda batch: pytest.fail("nobody asked for it")
    module(images())


def test_what_two_views_need() -> None:
    student, teacher = Extractor(network(4)), Extractor(network(8))
    term = Term("vrm", VRM(), student="logits", teacher="logits", weights={"sample": 1.0})
    with pytest.raises(ValueError, match="term 'vrm' compares two views of the images: give a second_view"):
        Distiller(student, {"teacher": teacher}, terms=[copy.deepcopy(term)], adapters={}, task=Classification())
    with pytest.raises(ValueError, match="vrm: a loss of two views takes what comes out of the networks"):
        Term("vrm", VRM(), student="a", teacher="a", weights={"sample": 1.0}, adapter="one")
