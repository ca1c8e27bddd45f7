"""The tables on sekd's page are those of the committed measurement."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from benchmarks.spectra import RESULTS, dead, gradients, random_maps, tables

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "sekd.md"


def test_the_page_shows_what_was_measured() -> None:
    page, rows = PAGE.read_text(), json.loads(RESULTS.read_text())["rows"]
    shown = [line for line in tables(rows).splitlines() if line and not line.startswith(("| ---", "| maps", "| net"))]
    assert len(shown) > len(rows)
    assert all(line in page for line in shown)


def test_dead_channels_are_counted() -> None:
    maps = torch.ones(2, 3, 2, 2)
    maps[0, 1] = maps[:, 2] = 0
    assert dead(maps) == (1, 1.5)


def test_gradients_are_compared() -> None:
    found = gradients(*(maps[:2, :16] for maps in random_maps(64)), dense=True)
    assert 0.9 < found["length"] < 1.01
    assert 0.99 < found["cosine"] < 1.0 + 1e-9
    assert 0 < found["distance"] < 0.2
