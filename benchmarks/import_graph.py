"""docs/pictures/imports.svg: the package's folders, and which imports which, read from the code.

python -m benchmarks.import_graph          draw it
python -m benchmarks.import_graph --check  fail if the picture is not what the code says
"""

from __future__ import annotations

import ast
import itertools
import re
import sys
from pathlib import Path

from benchmarks.pictures import frame

SOURCE = Path(__file__).parents[1] / "src" / "reldistill"
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "imports.svg"

HOLDS = {
    "cli": "commands",
    "recipes": "one reproduction a file",
    "comparison": "many runs",
    "export": "safetensors, ONNX",
    "runs": "settings → a folder of results",
    "tasks": "what images are labelled for",
    "methods": "names → terms → a Distiller",
    "training": "epochs, resume, cache",
    "report": "records → pages",
    "step": "Term, Distiller, balance",
    "networks": "any network → Features",
    "data": "files → batches",
    "losses": "one method a file",
    "relations": "distances, graphs, spectra",
    "core": "Batch, Features, checks",
}
"""What each folder holds, in a few words."""

STATIONS = ("data", "networks", "relations", "losses", "step", "training", "report")
"""The way of a batch."""

_WIDTH, _ROW, _BOX = 760, 82, (168, 46)
_STYLE = """
text { font: 13px var(--font); fill: var(--ink); text-anchor: middle; } .what { font-size: 11px; fill: var(--quiet); }
.box { fill: var(--panel); stroke: var(--quiet); } .station { stroke: var(--c1); stroke-width: 1.6; }
.badge { fill: var(--c1); } .number { font-size: 11px; fill: var(--paper); font-weight: 700; }
.edge { fill: none; stroke: var(--quiet); opacity: .7; } .against { stroke: var(--c2); stroke-dasharray: 5 3; }
#tip path { fill: var(--quiet); }
"""


def folders() -> set[str]:
    """The folders of the package."""
    return {file.parent.name for file in SOURCE.glob("*/__init__.py")}


def rows() -> list[list[str]]:
    """The folders from top to bottom, as `pyproject.toml` allows them to import."""
    settings = (SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    layers = re.search(r'name = "Imports go one way".*?layers = (\[.*?\])', settings, re.DOTALL)
    assert layers is not None
    return [
        [name.strip().removeprefix("reldistill.") for name in layer.split("|")] for layer in ast.literal_eval(layers[1])
    ]


def imports() -> set[tuple[str, str]]:
    """(folder, another one that a file in it imports); what is imported for types alone counts too."""
    found = set()
    for file in SOURCE.rglob("*/*.py"):
        here = file.relative_to(SOURCE).parts[0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            there = {name.split(".")[1] for name in names if name.startswith("reldistill.")} & folders()
            found |= {(here, other) for other in there - {here}}
    return found


def shown(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Without those that follow from others: a → c where a → b and b → c."""
    level = {name: row for row, names in enumerate(rows()) for name in names}
    down = {(a, b) for a, b in edges if level[a] < level[b]}
    reach = set(down)
    for via in sorted(level, key=level.__getitem__, reverse=True):
        reach |= {(a, c) for (a, b), (b2, c) in itertools.product(reach, reach) if b == b2 == via}
    implied = {(a, c) for a, c in down for b in level if (a, b) in reach and (b, c) in reach}
    return (down - implied) | (edges - down)


def picture() -> str:
    """The SVG."""
    unlike = {name for names in rows() for name in names} ^ folders() | HOLDS.keys() ^ folders()
    if unlike:
        raise SystemExit(
            f"src/reldistill, its layers and HOLDS in {Path(__file__).name} differ in: {', '.join(sorted(unlike))}"
        )
    places = _places()
    parts = [_edge(places[a], places[b]) for a, b in sorted(shown(imports()))]
    parts += [_box(name, HOLDS[name], *places[name]) for names in rows() for name in names]
    height = _ROW * len(rows())
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="The folders of reldistill and their imports">\n<style>{frame.colours("both")}{_STYLE}</style>\n'
        f'<defs>{tip}<path d="M0 0L8 4L0 8Z"/></marker></defs>\n{chr(10).join(parts)}\n</svg>\n'
    )


def _places() -> dict[str, tuple[float, float]]:
    """The middle of each box."""
    places = {}
    for row, names in enumerate(rows()):
        gap = _WIDTH / len(names)
        places |= {name: (gap * (column + 0.5), _ROW * (row + 0.5)) for column, name in enumerate(names)}
    return places


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x, y), (to_x, to_y) = start, end
    down = to_y > y
    y, to_y = (y + _BOX[1] / 2, to_y - _BOX[1] / 2) if down else (y - _BOX[1] / 2, to_y + _BOX[1] / 2)
    bend = 0.5 * (to_y - y)
    kind = "edge" if down else "edge against"
    path = f"M{x:g} {y:g}C{x:g} {y + bend:g} {to_x:g} {to_y - bend:g} {to_x:g} {to_y:g}"
    return f'<path class="{kind}" d="{path}" marker-end="url(#tip)"/>'


def _box(name: str, what: str, x: float, y: float) -> str:
    width, height = _BOX
    station = STATIONS.index(name) + 1 if name in STATIONS else 0
    left, top = x - width / 2, y - height / 2
    size = f'width="{width}" height="{height}" rx="5"'
    box = f'<rect class="box{" station" * bool(station)}" x="{left:g}" y="{top:g}" {size}/>'
    said = f'<text x="{x:g}" y="{y - 4:g}">{name}</text><text class="what" x="{x:g}" y="{y + 13:g}">{what}</text>'
    badge = (
        f'<circle class="badge" cx="{left:g}" cy="{top:g}" r="9"/>'
        f'<text class="number" x="{left:g}" y="{top + 4:g}">{station}</text>'
    )
    return box + said + badge * bool(station)


def main() -> int:
    """Draw the picture, or compare it with the code."""
    if "--check" not in sys.argv:
        PICTURE.write_text(picture(), encoding="utf-8")
    elif PICTURE.read_text(encoding="utf-8") != picture():
        print(
            "docs/pictures/imports.svg is not what the code says: run python -m benchmarks.import_graph",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
