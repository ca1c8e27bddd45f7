"""The template of a method keeps what every loss keeps, and the page around it runs. (tests/tasks has the task's.)"""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.contract import test_losses as contract
from torch import nn

import reldistill
from reldistill.core.user_code import run_file

DOCS = Path(__file__).parents[1] / "docs"


def is_of_one_row(name: str, check: Any) -> bool:
    """Whether it is a check of the contract that needs nothing but a row, and can run on this machine."""
    if not name.startswith("test_") or list(inspect.signature(check).parameters) != ["row"]:
        return False
    return not any(mark.name == "skipif" and mark.args[0] for mark in getattr(check, "pytestmark", []))


CHECKS = [check for name, check in vars(contract).items() if is_of_one_row(name, check)]


@pytest.fixture(scope="module")
def template() -> ModuleType:
    return run_file(DOCS / "templates" / "my_method.py", what="the template")


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("test_"))
def test_the_templates_loss_keeps_the_contract(check: Callable[[contract.Row], None], template: ModuleType) -> None:
    maps = contract.normal(4, 3, 3, 2, teacher=(4, 3, 2, 2))
    check(contract.Row("my_method", template.MyMethod, maps))


def test_the_contract_was_found() -> None:
    assert len(CHECKS) > 10


def test_the_templates_examples_print_what_they_say(template: ModuleType) -> None:
    results = [doctest.DocTestRunner().run(test) for test in doctest.DocTestFinder().find(template)]
    assert sum(one.attempted for one in results) >= 5
    assert not any(one.failed for one in results)


def test_invariances(template: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.rand(size, generator=generator) for size in ((4, 3, 3, 2), (4, 3, 2, 2)))
    value = template.my_method_loss(student, teacher)
    scales = torch.tensor([0.5, 3.0, 70.0, 1e-3])[:, None, None, None]
    shuffled = student.flatten(2)[:, :, [4, 0, 5, 2, 1, 3]].unflatten(2, (3, 2))
    channels, images = [2, 0, 1], [3, 1, 0, 2]
    for ours, theirs in (
        (scales * student, teacher),
        (student, scales * teacher),
        (shuffled, teacher),
        (student[:, channels], teacher[:, channels]),
        (student[images], teacher[images]),
    ):
        torch.testing.assert_close(template.my_method_loss(ours, theirs), value)
    unlike = template.my_method_loss(student[:, channels], teacher)
    assert abs(unlike - value) > 0.05 * value


def test_the_pages_distiller_learns_by_it(template: ModuleType) -> None:
    page = (DOCS / "guides" / "add-a-method.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"## In the Distiller\n\n```python\n(.*?)```", page, re.DOTALL)

    def network() -> reldistill.Extractor:
        stages = {f"layer{n}": nn.Conv2d(3 if n == 1 else 8, 8, 3, 2, 1) for n in (1, 2, 3)}
        layers = nn.Sequential()
        for name, layer in stages.items():
            layers.add_module(name, layer)
        layers.add_module("pool", nn.AdaptiveAvgPool2d(1))
        layers.add_module("flatten", nn.Flatten())
        layers.add_module("classifier", nn.Linear(8, 5))
        return reldistill.Extractor(layers)

    torch.manual_seed(0)
    names = {"student": network(), "teacher": network(), "MyMethod": template.MyMethod}
    exec(snippet, names)
    step = names["distiller"]((torch.rand(4, 3, 16, 16), torch.arange(4)))
    assert set(step.parts) == {"task", "my_method"}
    step.total.backward()
    assert names["student"].network.layer1.weight.grad.abs().max() > 0
