"""What can be named: methods, networks, recipes, and the places inside a network."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from reldistill.core.checks import LARGEST_SIDE, UserError, check_range

_MOST_CLASSES = 100_000

if TYPE_CHECKING:
    from reldistill.core.types import FeatureSource
    from reldistill.methods.build import TermSource


def rows_of(what: str, pattern: str = "") -> list[dict[str, Any]]:
    """One dict per entry.

    Args:
        what: `methods`, `models` or `recipes`.
        pattern: text that the name must hold.

    Raises:
        UserError: when `what` is something else, or no name holds the pattern.
    """
    lists = {"methods": _methods, "models": _models, "recipes": _recipes}
    if what not in lists:
        raise UserError(f"there is no list of '{what}': choose methods, models or recipes")
    wanted = pattern.lower().replace("-", "_")
    rows = [row for row in lists[what]() if wanted in row["name"].lower().replace("-", "_")]
    if not rows:
        raise UserError(f"none of the {what} has '{pattern}' in its name (see: reldistill list {what})")
    return rows


def layers_of(
    model: str, *, arguments: Mapping[str, Any], image_size: int | None, num_classes: int | None, everything: bool
) -> list[dict[str, Any]]:
    """The places of a network that can be tapped, in order of execution.

    Args:
        model: a name, FILE.py:factory, or a run folder.
        arguments: keyword arguments of its constructor.
        image_size: side of its images; None for its own.
        num_classes: classes to build it with; None for its own.
        everything: every place; otherwise those that the automatic choice draws from.
    """
    from reldistill.core.tasks import FALLBACK, task_names
    from reldistill.tasks.base import task_named

    check_range("image_size", image_size, 1, LARGEST_SIDE)
    check_range("num_classes", num_classes, 1, _MOST_CLASSES)
    tasks = [task_named(name) for name in task_names()]
    task = next((task for task in tasks if task.claims_network(model)), task_named(FALLBACK))
    opened = task.open_alone(model, num_classes=num_classes, image_size=image_size, arguments=arguments)
    extractor = opened.extractor
    side = image_size or opened.card.input_size
    places = extractor.survey(side) if everything else extractor.stages(side)
    if not places:
        raise UserError(f"{model} has no level at {side}x{side} pixels: give a larger --image-size")
    takers = _takers(extractor, side, task.methods)
    return [
        {
            "name": level.name,
            "channels": level.channels,
            "height": level.height,
            "width": level.width,
            "stride": level.stride,
            "kind": level.kind,
            "auto": takers.get(level.name, []),
        }
        for level in places
    ]


def print_layers(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table on standard output."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("level", "channels", "size", "stride", "kind", "taken by auto"):
        table.add_column(name, justify="right" if name in ("channels", "size", "stride") else "left")
    for row in rows:
        size = f"{row['height']}x{row['width']}"
        table.add_row(
            row["name"], str(row["channels"]), size, f"{row['stride']:g}", row["kind"], ", ".join(row["auto"])
        )
    _print(table, soft_wrap=True)


def print_listing(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table on standard output."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name, no_wrap=name == "name")
    for row in rows:
        table.add_row(*(", ".join(value) if isinstance(value, list) else str(value) for value in row.values()))
    _print(table)


def _print(table: Table, *, soft_wrap: bool = False) -> None:
    console = Console(soft_wrap=soft_wrap)
    with console.capture() as printed:
        console.print(table)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))


def _takers(network: FeatureSource, side: int, methods: TermSource) -> dict[str, list[str]]:
    """Level → the methods that would take it when this network meets one like itself."""
    from reldistill.methods.build import build_terms
    from reldistill.methods.table import METHODS

    takers: dict[str, list[str]] = {}
    for method in METHODS:
        with contextlib.suppress(UserError):  # no level of this network suits the method
            for term in build_terms(method, methods, methods.plan(network, network, side)):
                for place in term.student_places:
                    takers.setdefault(place, [])
                    takers[place] += [method] * (method not in takers[place])
    return takers


def _methods() -> list[dict[str, Any]]:
    from reldistill.methods.table import METHODS

    return [
        {"name": n, "transfers": m.summary, "needs": _in_order(m.needs), "uses": _in_order(m.uses), "paper": m.paper}
        for n, m in METHODS.items()
    ]


def _in_order(needs: frozenset[str]) -> list[str]:
    """What a method needs of images and teachers, in words; what every network has is left out."""
    words = {"labels": "labels", "boxes": "labelled boxes", "classes": "class scores"}
    return [word for name, word in words.items() if name in needs]


def _models() -> list[dict[str, Any]]:
    from reldistill.core.tasks import task_names
    from reldistill.networks.zoo import list_networks
    from reldistill.tasks.base import task_named

    of_tasks = [entry for name in task_names() for entry in task_named(name).networks()]
    return [
        {"name": e.name, "source": e.source, "licence": e.licence, "note": e.note}
        for e in (*list_networks(), *of_tasks)
    ]


def _recipes() -> list[dict[str, Any]]:
    from reldistill.recipes import RECIPES

    return [{"name": n, "what": (inspect.getdoc(r) or "").split("\n")[0]} for n, r in RECIPES.items()]
