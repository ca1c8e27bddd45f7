from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reldistill.training.defaults import DEFAULTS
from reldistill.training.optimisers import lr_factor, make_optimizer

SCHEDULES = ("one-cycle", "cosine", "step", "constant")
progress = st.floats(0.0, 1.0)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(progress, progress)
def test_a_factor_is_a_share_of_the_peak(schedule: str, at: float, warm_up: float) -> None:
    assert 0.0 <= lr_factor(at, schedule=schedule, warm_up=warm_up) <= 1.0


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warm_up", [0.0, 0.1, 0.3, 1.0, None])
def test_it_rises_through_the_warm_up_and_falls_after_it(schedule: str, warm_up: float | None) -> None:
    rise = {"one-cycle": 0.3}.get(schedule, 0.05) if warm_up is None else warm_up
    factors = [(p / 1000, lr_factor(p / 1000, schedule=schedule, warm_up=warm_up)) for p in range(1001)]
    before = [f for p, f in factors if p < rise]
    after = [f for p, f in factors if p >= rise]
    assert all(a <= b for a, b in pairwise(before))
    assert all(a >= b for a, b in pairwise(after))
    if rise < 1:
        peak = max(f for _, f in factors)
        assert peak == pytest.approx(1.0, abs=1e-4)
        assert before == [] or before[0] <= 0.05
        assert before == [] or before[-1] > 0.95


def test_where_each_schedule_ends() -> None:
    assert lr_factor(1.0, schedule="one-cycle") == pytest.approx(0.0)
    assert lr_factor(1.0, schedule="cosine") == pytest.approx(0.0)
    assert lr_factor(1.0, schedule="constant") == 1.0
    assert lr_factor(1.0, schedule="step") == pytest.approx(1e-3)


def test_the_cosine_is_half_way_down_half_way_through() -> None:
    assert lr_factor(0.6, schedule="cosine", warm_up=0.2) == pytest.approx(0.5)
    assert lr_factor(0.65, schedule="one-cycle") == pytest.approx(0.5)


def test_a_tenth_at_each_milestone() -> None:
    marks = (0.4, 0.8)
    at = {p: lr_factor(p, schedule="step", warm_up=0.0, milestones=marks) for p in (0.0, 0.39, 0.4, 0.79, 0.8, 1.0)}
    assert at == pytest.approx({0.0: 1.0, 0.39: 1.0, 0.4: 0.1, 0.79: 0.1, 0.8: 0.01, 1.0: 0.01})


def test_default_rates_grow_with_the_batch() -> None:
    assert DEFAULTS.lr_for("sgd", 128) == pytest.approx(0.1)
    assert DEFAULTS.lr_for("sgd", 64) == pytest.approx(0.05)
    assert DEFAULTS.lr_for("adamw", 512) == pytest.approx(2e-3)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_step_is_that_of_its_momentum(nesterov: bool) -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    optimizer = make_optimizer([module], optimizer="sgd", lr=0.1, weight_decay=0.01, nesterov=nesterov)
    weight, velocity = 1.0, 0.0
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.full((1, 1), 2.0)).sum().backward()
        optimizer.step()
        gradient = 2.0 + 0.01 * weight
        velocity = 0.9 * velocity + gradient
        weight -= 0.1 * (gradient + 0.9 * velocity if nesterov else velocity)
        assert module.weight.item() == pytest.approx(weight, rel=1e-6)


def test_adamw_decays_weights_but_not_biases_and_norms() -> None:
    module = network()
    before = {name: value.clone() for name, value in module.named_parameters()}
    optimizer = make_optimizer([module], optimizer="adamw", lr=0.1, weight_decay=0.5)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in module.named_parameters():
        expected = before[name] * (0.95 if value.ndim > 1 else 1.0)
        torch.testing.assert_close(value, expected, msg=name)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_frozen_parameters_are_left_out(name: str) -> None:
    module, other = network(), nn.Linear(2, 2)
    module[0].requires_grad_(False)
    optimizer = make_optimizer([module, other], optimizer=name, lr=0.1, weight_decay=0.0)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for m in (module, other) for p in m.parameters() if p.requires_grad}


def test_adamw_of_norms_alone() -> None:
    optimizer = make_optimizer([nn.BatchNorm2d(3)], optimizer="adamw", lr=0.1, weight_decay=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]


class WithPositions(nn.Module):
    """A network that names, as timm's do, what is not to be decayed."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
        self.project = nn.Linear(8, 2)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "of_another_variant"}


def test_adamw_leaves_alone_what_a_network_asks_for() -> None:
    inside = nn.ModuleDict({"student": WithPositions(), "adapter": nn.Linear(2, 3)})
    optimizer = make_optimizer([inside], optimizer="adamw", lr=1e-3, weight_decay=0.1)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(inside["student"].project.weight), id(inside["adapter"].weight)}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 5
