from __future__ import annotations

import pytest

from reldistill.comparison.cells import (
    Axis,
    MethodParts,
    at_point,
    check_choices,
    compared_cells,
    for_method,
    points,
    read_axes,
    swept_cells,
)
from reldistill.core.checks import UserError
from reldistill.training.settings import DataSettings, PairSettings, TrainSettings

DATA = DataSettings(data="digits")
KD = MethodParts(["kd"], ["kd"], False)
SERKD = MethodParts(["kd", "serkd.distance", "serkd.angle", "feature"], ["kd", "serkd", "feature"], True)
ALONE = MethodParts([], [], False)


def pair(**changes: object) -> PairSettings:
    return PairSettings(teacher="t", student="s", **changes)  # type: ignore[arg-type]


def test_each_method_gets_what_it_has_a_use_for() -> None:
    given = pair(
        weights={"task": 0.5, "kd": 2, "serkd.angle": 4},
        settings={"serkd": {"cell": 2}, "kd": {"temperature": 2}},
        levels=["a:b"],
    )
    alone, kd, serkd = (for_method(given, *m) for m in (("none", ALONE), ("kd", KD), ("serkd", SERKD)))
    assert (alone.method, alone.weights, alone.settings, alone.levels) == ("none", {"task": 0.5}, {}, [])
    assert (kd.weights, kd.settings, kd.levels) == ({"task": 0.5, "kd": 2}, {"kd": {"temperature": 2}}, [])
    assert (serkd.weights, serkd.settings, serkd.levels) == (given.weights, given.settings, ["a:b"])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"weights": {"sekd.edge": 1}},
            "--weights: 'sekd.edge' is not a part of any of the methods: they have task, kd",
        ),
        ({"settings": {"sekd": {}}}, "--settings: 'sekd' is not a loss of any of the methods: they have kd, serkd"),
    ],
)
def test_what_no_method_has_is_refused(given: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        check_choices(pair(**given), {"none": ALONE, "kd": KD, "serkd": SERKD})


def test_levels_that_nobody_looks_at_are_refused() -> None:
    check_choices(pair(levels=["a"]), {"serkd": SERKD})
    with pytest.raises(UserError, match="none of the methods looks at a level"):
        check_choices(pair(levels=["a"]), {"kd": KD})


def test_cells_of_a_comparison_differ_in_method_and_seed_alone() -> None:
    cells = compared_cells(
        DATA, pair(), TrainSettings(seed=5, epochs=7), methods={"none": ALONE, "kd+rkd": KD}, seeds=2
    )
    assert [cell.plan.cell for cell in cells] == ["none/seed-5", "kd+rkd/seed-5", "none/seed-6", "kd+rkd/seed-6"]
    assert [cell.training.seed for cell in cells] == [5, 5, 6, 6]
    assert {(cell.training.epochs, cell.data.data, cell.networks.student) for cell in cells} == {(7, "digits", "s")}
    with pytest.raises(UserError, match="seeds 0: give at least 1"):
        compared_cells(DATA, pair(), TrainSettings(), methods={"none": ALONE}, seeds=0)


def test_axes() -> None:
    assert read_axes(["serkd.angle=1,10, 50", "serkd:assignment=hard,soft"]) == [
        Axis("serkd.angle", (1, 10, 50)),
        Axis("serkd:assignment", ("hard", "soft")),
    ]
    assert read_axes(["kd:flag=true,false"])[0].values == (True, False)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "give one or two settings, not 0"),
        (["a=1", "b=1", "c=1"], "give one or two settings, not 3"),
        (["a=1", "a=2"], "'a' is given twice"),
        (["a"], "expected NAME=VALUE"),
        (["a="], "expected NAME=VALUE"),
        (["=1"], "expected NAME=VALUE"),
        (["serkd:=1"], "expected NAME=VALUE"),
        (["a=1,1"], "'a' names a value twice"),
    ],
)
def test_wrong_axes(given: list[str], text: str) -> None:
    with pytest.raises(UserError, match=text):
        read_axes(given)


def test_a_point_sets_weight_loss_setting_and_number_of_training() -> None:
    networks, training = at_point(
        pair(weights={"kd": 2}, settings={"serkd": {"iterations": 2}}),
        TrainSettings(),
        {"serkd.angle": 10, "serkd:cell": 3, "lr": 0.2, "warm_up": 0.1, "ema": 0.9},
    )
    assert networks.weights == {"kd": 2, "serkd.angle": 10}
    assert networks.settings == {"serkd": {"iterations": 2, "cell": 3}}
    assert (training.lr, networks.warm_up, training.ema) == (0.2, 0.1, 0.9)


@pytest.mark.parametrize(
    ("point", "text"),
    [({"serkd.angle": "x"}, "serkd.angle takes numbers, got 'x'"), ({"lr": -1}, "lr -1: give more than 0")],
)
def test_a_point_with_a_wrong_value(point: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        at_point(pair(), TrainSettings(), point)


def test_cells_of_a_sweep() -> None:
    axes = [Axis("serkd.angle", (1, 0.5)), Axis("serkd:cell", (2,))]
    assert points(axes) == [{"serkd.angle": 1, "serkd:cell": 2}, {"serkd.angle": 0.5, "serkd:cell": 2}]
    students = ["resnet8", "a/nets.py:net", "b/nets.py:net"]
    cells = swept_cells(DATA, pair(method="serkd"), TrainSettings(), students=students, over=axes, seeds=2)
    assert len({cell.plan.cell for cell in cells}) == len(cells) == 12
    assert cells[0].plan.cell == "resnet8/serkd.angle=1,serkd.cell=2/seed-0"
    assert cells[2].plan.cell == "nets.py.net-2/serkd.angle=1,serkd.cell=2/seed-0"
    assert cells[1].plan.variant == "resnet8 · serkd.angle=0.5,serkd:cell=2"
    assert (cells[1].networks.weights, cells[1].networks.settings) == ({"serkd.angle": 0.5}, {"serkd": {"cell": 2}})
    assert {cell.networks.student for cell in cells} == set(students)
    alone = swept_cells(DATA, pair(), TrainSettings(), students=["resnet8"], over=axes[:1], seeds=1)
    assert [cell.plan.variant for cell in alone] == ["serkd.angle=1", "serkd.angle=0.5"]
