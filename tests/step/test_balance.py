"""Weights found while training: the stated share of the task's gradient, and a state that survives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reldistill.core.checks import UserError
from reldistill.core.types import Batch, ClassLabels
from reldistill.methods.build import build_distiller
from reldistill.methods.plan import Choices
from reldistill.step.balance import Balance
from reldistill.step.distiller import Distiller
from reldistill.tasks.classification.objective import Classification


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(2 * width, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(images)).mean(dim=(2, 3)))


def make(method: str = "serkd+sekd", **more: Any) -> Distiller:
    torch.manual_seed(0)
    return build_distiller(
        method,
        student=Net(4),
        teacher=Net(8),
        image_size=16,
        task=Classification(),
        choices=Choices(**{"balance": 0.5, "levels": [("layer1", "layer1"), ("layer2", "layer2")], **more}),
    )


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(8, 3, 16, 16, generator=generator)
    return Batch(images, ClassLabels(torch.randint(4, (8,), generator=generator)))


def norms(distiller: Distiller, given: Batch, weights: dict[str, float]) -> dict[str, float]:
    """Gradient norms of each part by itself, over the parameters that it shares with the task: the slow way."""
    parameters = dict(distiller.student.named_parameters())
    found: dict[str, dict[str, Tensor]] = {}
    for name in weights:
        only = make(balance=0.0, weights={other: weights[other] * (other == name) for other in weights})
        only.student.load_state_dict(distiller.student.state_dict())
        only.adapters.load_state_dict(distiller.adapters.state_dict(), strict=False)
        total = only(given).total
        total.backward()
        found[name] = {
            n: p.grad.clone() for n, p in only.student.named_parameters() if p.grad is not None and p.grad.any()
        }
    shared = {name: [n for n in parameters if n in found[name] and n in found["task"]] for name in weights}
    return {
        name: float(torch.cat([found[name][n].flatten() for n in shared[name]]).norm())
        / float(torch.cat([found["task"][n].flatten() for n in shared[name]]).norm())
        for name in weights
    }


def test_every_part_pulls_with_its_share() -> None:
    distiller = make(weights={"sekd.edge": 3.0})
    distiller(batch())
    assert distiller.balance is not None
    factors = distiller.balance.factors
    assert set(factors) == {
        "kd",
        "serkd.distance",
        "serkd.angle",
        "feature",
        "sekd.vertex",
        "sekd.edge",
        "sekd.spectral",
    }
    shares = norms(distiller, batch(), {"task": 1.0, **factors})
    assert shares.pop("task") == 1.0
    assert shares.pop("sekd.edge") == pytest.approx(0.5, rel=1e-3), "the weight multiplies the share, beside the factor"
    for name, share in shares.items():
        assert share == pytest.approx(0.5, rel=1e-3), name


def test_the_total_is_what_the_factors_say() -> None:
    distiller, fixed = (
        make(weights={"kd": 2.0}),
        make(balance=0.0, weights=dict.fromkeys(["serkd.distance", "kd"], 1.0)),
    )
    found, raw = distiller(batch()), fixed(batch())
    assert distiller.balance is not None
    factors = distiller.balance.factors
    assert float(found.parts["kd"]) == pytest.approx(2.0 * factors["kd"] * float(raw.parts["kd"]), rel=1e-5)
    assert float(found.parts["serkd.distance"]) == pytest.approx(
        factors["serkd.distance"] * float(raw.parts["serkd.distance"]), rel=1e-4
    )
    assert float(found.total.detach()) == pytest.approx(sum(float(v) for v in found.parts.values()), rel=1e-5)


def test_measured_now_and_then_and_smoothed() -> None:
    task, part = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))
    balance = Balance(["p"], share=0.1, every=3, smoothing=0.8)
    weight = nn.Parameter(torch.tensor(1.0))
    seen = []
    for slope in (2.0, 8.0, 8.0, 8.0, 8.0):
        values = balance(6.0 * weight + task, {"p": slope * weight + part}, scales={"p": 1.0}, parameters=[weight])
        seen.append(float(values["p"].detach()) / (slope + 1.0))
    first, second = 0.1 * 6 / 2, 0.1 * 6 / 8
    assert seen == pytest.approx([first] * 3 + [first**0.8 * second**0.2] * 2)


def test_a_weight_and_its_curriculum_keep_their_meaning() -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    for scale in (0.25, 4.0):
        balance = Balance(["p"], share=0.5)
        values = balance(6.0 * weight, {"p": scale * 3.0 * weight}, scales={"p": scale}, parameters=[weight])
        (gradient,) = torch.autograd.grad(values["p"], weight)
        assert float(gradient) == pytest.approx(scale * 0.5 * 6.0)


def test_a_part_without_gradient_waits() -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    balance = Balance(["p"], share=0.5)
    values = balance(6.0 * weight, {"p": 0.0 * weight}, scales={"p": 1.0}, parameters=[weight])
    assert float(values["p"].detach()) == 0.0
    assert balance.factors == {}
    values = balance(6.0 * weight, {"p": 2.0 * weight}, scales={"p": 1.0}, parameters=[weight])
    assert balance.factors == {"p": pytest.approx(1.5)}


def test_nothing_is_measured_without_training() -> None:
    distiller = make().eval()
    assert distiller.balance is not None
    distiller(batch())
    distiller.train()
    with torch.no_grad():
        distiller(batch())
    assert distiller.balance.factors == {}
    assert distiller.balance.steps == 0


def test_the_state_goes_with_the_distiller() -> None:
    first, second = make("kd+rkd", levels=[]), make("kd+rkd", levels=[])
    first(batch())
    second.load_state_dict(first.state_dict())
    assert first.balance is not None
    assert second.balance is not None
    assert second.balance.factors == first.balance.factors != {}
    assert second.balance.steps == first.balance.steps == 1
    assert torch.equal(first(batch(1)).total, second(batch(1)).total)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"share": 0.0}, "share"), ({"share": 1.0, "every": 0}, "every"), ({"share": 1.0, "smoothing": 1.0}, "smoothing")],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message} must be"):
        Balance(["p"], **settings)


def test_it_needs_the_task() -> None:
    with pytest.raises(UserError, match="balance weighs the parts by the task's gradient"):
        make(weights={"task": 0.0})
