"""What can be named: methods, networks, recipes, and the places inside a network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from reldistill.checks import UserError


def rows_of(what: str, pattern: str = "") -> list[dict[str, Any]]:
    """One dict an entry.

    Args:
        what: `methods`, `models` or `recipes`.
        pattern: text that the name must hold.

    Raises:
        UserError: when `what` is something else.
    """
    lists = {"methods": _methods, "models": _models, "recipes": _recipes}
    if what not in lists:
        raise UserError(f"there is no list of '{what}': say methods, models or recipes")
    return [row for row in lists[what]() if pattern.lower() in row["name"].lower()]


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
    from reldistill.features.levels import pick_levels
    from reldistill.saved import open_network

    opened = open_network(model, role="model", num_classes=num_classes, image_size=image_size, arguments=arguments)
    extractor, side = opened.extractor, opened.card.input_size
    stages = extractor.stages(side)
    chosen = {count: {level.name for level in pick_levels(stages, count)} for count in (1, 3)}
    return [
        {
            "name": level.name,
            "channels": level.channels,
            "height": level.height,
            "width": level.width,
            "stride": level.stride,
            "kind": level.kind,
            "auto": [count for count in chosen if level.name in chosen[count]],
        }
        for level in (extractor.survey(side) if everything else stages)
    ]


def print_layers(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table on standard output."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("level", "channels", "size", "stride", "kind", "taken by auto"):
        table.add_column(name, justify="right" if name in ("channels", "size", "stride") else "left")
    for row in rows:
        auto = ", ".join({1: "serkd, fitnets", 3: "sekd"}[count] for count in row["auto"])
        size = f"{row['height']}x{row['width']}"
        table.add_row(row["name"], str(row["channels"]), size, f"{row['stride']:g}", row["kind"], auto)
    Console(soft_wrap=True).print(table)


def print_listing(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table on standard output."""
    if not rows:
        raise UserError("nothing by that name")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name, no_wrap=name == "name")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


def _methods() -> list[dict[str, Any]]:
    from reldistill.methods import METHODS

    return [{"name": n, "transfers": m.summary, "paper": m.paper} for n, m in METHODS.items()]


def _models() -> list[dict[str, Any]]:
    from reldistill.features.zoo import list_networks

    return [{"name": e.name, "source": e.source, "note": e.note} for e in list_networks()]


def _recipes() -> list[dict[str, Any]]:
    from reldistill.recipes import RECIPES

    return [{"name": n, "what": (inspect.getdoc(r) or "").split("\n")[0]} for n, r in RECIPES.items()]
