"""What a comparison or a sweep consists of: cells, each one run with all its settings."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reldistill.core.checks import UserError, check_range
from reldistill.core.safe_read import Unreadable, parse_json, quoted
from reldistill.report.comparison.cell_records import CellPlan
from reldistill.training.settings import DataSettings, PairSettings, TrainSettings

_MOST_AXES = 2
_MOST_SEEDS = 1000
TASK = "task"
_KINDS_OF_NUMBERS = {"int": True, "int | None": True, "float": False, "float | None": False}  # whether whole


@dataclass(frozen=True)
class Cell:
    """One run of a comparison: what it is called, and all its settings."""

    plan: CellPlan
    data: DataSettings
    networks: PairSettings
    training: TrainSettings


@dataclass(frozen=True)
class MethodParts:
    """A method's parts and settings for a pair of networks: see `for_method`."""

    parts: Sequence[str]
    losses: Sequence[str]
    looks_inside: bool


@dataclass(frozen=True)
class Axis:
    """A setting and the values it takes: `serkd.angle` (a part's weight), `serkd:cell` (a loss's setting) or `lr`."""

    name: str
    values: tuple[Any, ...]


def for_method(networks: PairSettings, method: str, known: MethodParts) -> PairSettings:
    """The pair with this method, and of weights, settings and levels only what it has."""
    return dataclasses.replace(
        networks,
        method=method,
        weights={name: weight for name, weight in networks.weights.items() if name in (TASK, *known.parts)},
        settings={name: values for name, values in networks.settings.items() if name in known.losses},
        levels=networks.levels if known.looks_inside else [],
    )


def check_choices(networks: PairSettings, methods: Mapping[str, MethodParts]) -> None:
    """UserError for a weight, setting or levels that no method of the comparison has a use for."""
    parts = dict.fromkeys([TASK, *(part for known in methods.values() for part in known.parts)])
    losses = dict.fromkeys(loss for known in methods.values() for loss in known.losses)
    for name in networks.weights:
        if name not in parts:
            raise UserError(f"--weights: '{name}' is not a part of any of the methods: they have {', '.join(parts)}")
    for name in networks.settings:
        if name not in losses:
            there = ", ".join(losses) or "none"
            raise UserError(f"--settings: '{name}' is not a loss of any of the methods: they have {there}")
    if networks.levels and not any(known.looks_inside for known in methods.values()):
        raise UserError("--levels are given, but none of the methods looks at a level")


def compared_cells(
    data: DataSettings,
    networks: PairSettings,
    training: TrainSettings,
    *,
    methods: Mapping[str, MethodParts],
    seeds: int,
) -> list[Cell]:
    """Every seed of every method; seed by seed, so that early results are of all methods."""
    return [
        Cell(
            CellPlan(f"{method}/seed-{seed}", method, method, networks.student, seed),
            data,
            for_method(networks, method, known),
            dataclasses.replace(training, seed=seed),
        )
        for seed in _seeds(training, seeds)
        for method, known in methods.items()
    ]


def swept_cells(
    data: DataSettings,
    networks: PairSettings,
    training: TrainSettings,
    *,
    students: Sequence[str],
    over: Sequence[Axis],
    seeds: int,
) -> list[Cell]:
    """Every seed of every student at every point of the grid."""
    cells = []
    for seed in _seeds(training, seeds):
        for number, student in enumerate(students):
            for point in points(over):
                pair, budget = at_point(dataclasses.replace(networks, student=student), training, point)
                where = ",".join(f"{name}={_word(value)}" for name, value in point.items())
                folder = f"{_folder(student, number, students)}/{where.replace(':', '.').replace('/', '-')}/seed-{seed}"
                variant = f"{student} · {where}" if len(students) > 1 else where
                cells.append(
                    Cell(
                        CellPlan(folder, variant, networks.method, student, seed, point),
                        data,
                        pair,
                        dataclasses.replace(budget, seed=seed),
                    )
                )
    return cells


def read_axes(given: Iterable[str]) -> list[Axis]:
    """`serkd.angle=1,10,50` → the axis.

    Raises:
        UserError: when a text is not NAME=VALUE,VALUE…, or there are more than two.
    """
    axes = [_read_axis(text) for text in given]
    if not 1 <= len(axes) <= _MOST_AXES:
        raise UserError(f"--over: give one or two settings, not {len(axes)}, e.g. --over serkd.angle=1,10,50")
    if len({axis.name for axis in axes}) < len(axes):
        raise UserError(f"--over: '{axes[0].name}' is given twice")
    return axes


def points(over: Sequence[Axis]) -> list[dict[str, Any]]:
    """The grid, the last axis running fastest.

    >>> points([Axis("kd", (1, 2)), Axis("kd:temperature", (4,))])
    [{'kd': 1, 'kd:temperature': 4}, {'kd': 2, 'kd:temperature': 4}]
    """
    names = [axis.name for axis in over]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(axis.values for axis in over))]


def at_point(
    networks: PairSettings, training: TrainSettings, point: Mapping[str, Any]
) -> tuple[PairSettings, TrainSettings]:
    """The settings with a point's values in them.

    Raises:
        UserError: when a value is not what its setting takes.
    """
    for name, value in point.items():
        loss, colon, setting = name.partition(":")
        if colon:
            own = {**networks.settings.get(loss, {}), setting: value}
            networks = dataclasses.replace(networks, settings={**networks.settings, loss: own})
        elif name in (numbers := _numbers(TrainSettings)):
            training = dataclasses.replace(training, **{name: _as_number(name, value, whole=numbers[name])})
        elif name in (numbers := _numbers(PairSettings)):
            networks = dataclasses.replace(networks, **{name: _as_number(name, value, whole=numbers[name])})
        else:
            weight = _as_number(name, value)
            networks = dataclasses.replace(networks, weights={**networks.weights, name: weight})
    return networks, training


def _read_axis(text: str) -> Axis:
    name, equals, values = text.partition("=")
    found = [value.strip() for value in values.split(",") if value.strip()]
    if not name or not equals or not found or name.endswith(":"):
        raise UserError(
            f"--over: expected NAME=VALUE,VALUE… with a part's weight (serkd.angle), a loss's setting (serkd:cell) or "
            f"a number of training (lr), got '{text}'"
        )
    if name.strip() in _OTHERS:
        raise UserError(f"--over: {name.strip()} is not a number to choose; give it as an option of its own")
    axis = Axis(name.strip(), tuple(_value(name.strip(), value) for value in found))
    if len(set(axis.values)) < len(found):
        raise UserError(f"--over: '{axis.name}' names a value twice")
    return axis


def _value(name: str, text: str) -> Any:
    try:
        value = parse_json(text)
    except Unreadable:
        return text
    if isinstance(value, dict | list):
        raise UserError(f"--over: {name} takes numbers and words, got {quoted(text)}")
    return value


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _as_number(name: str, value: Any, *, whole: bool = False) -> Any:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not math.isfinite(value):
        raise UserError(f"--over: {name} takes {'whole ' * whole}numbers, got {quoted(value)}")
    return value


def _numbers(settings: type) -> dict[str, bool]:
    """The settings that are numbers, and whether they are whole ones; the seed is not one to choose."""
    found = {one.name: str(one.type) for one in dataclasses.fields(settings)}
    return {n: _KINDS_OF_NUMBERS[kind] for n, kind in found.items() if kind in _KINDS_OF_NUMBERS and n != "seed"}


_OTHERS = {one.name for kind in (DataSettings, PairSettings, TrainSettings) for one in dataclasses.fields(kind)} - {
    *_numbers(PairSettings),
    *_numbers(TrainSettings),
}
"""Settings that no axis can have: words, switches, what the images are."""


def check_seeds(count: int) -> None:
    """UserError where there are no runs, or more than anyone would wait for."""
    check_range("seeds", count, 1, _MOST_SEEDS)


def _seeds(training: TrainSettings, count: int) -> range:
    check_seeds(count)
    return range(training.seed, training.seed + count)


def _folder(student: str, number: int, students: Sequence[str]) -> str:
    """A student's name as a folder's: the end of a path, numbered where two end alike."""
    name = Path(student).name.replace(":", ".")
    same = [other for other in students if Path(other).name.replace(":", ".") == name]
    return name if len(same) == 1 else f"{name}-{number + 1}"
