"""Every variant of a comparison against every other, on the page and in Markdown."""

from __future__ import annotations

import html
from collections.abc import Sequence

from reldistill.report.captions import caption
from reldistill.report.comparison.pictures_section import section, shown_name
from reldistill.report.comparison.summary import Comparison, Summary, every_pair
from reldistill.report.words import decimals, known, signed

FEWEST = 3
PAIRS = """
Points by which the one on the left is ahead of the one above, over the seeds that both have finished, at the last
epoch, the best mean first. Bold where the 95 % interval leaves out 0; each interval stands alone, and among so many
some leave it out by chance.
"""


def pairs_section(comparison: Comparison, rows: Sequence[Summary]) -> str:
    """A table of the page; empty where there is no more to say than the comparison's own table says."""
    names, cells = _table(comparison, rows)
    if not names:
        return ""
    shown = [html.escape(shown_name(name)) for name in names]
    heads = "".join(f"<th scope='col'>{name}</th>" for name in shown)
    lines = []
    for name, line in zip(shown, cells, strict=True):
        inner = "".join(f'<td class="{_look(sign)}">{text}</td>' for text, sign in line)
        lines.append(f"<tr><th scope='row'>{name}</th>{inner}</tr>")
    table = f'<table class="pairs num"><thead><tr><th></th>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return section("pairs", "Every pair", f'<div class="scroll">{table}</div>\n{caption(PAIRS)}')


def pairs_markdown(comparison: Comparison, rows: Sequence[Summary]) -> list[str]:
    """The same as lines of a table."""
    names, cells = _table(comparison, rows)
    if not names:
        return []
    lines = ["| ahead of | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for name, line in zip(names, cells, strict=True):
        lines.append("| " + " | ".join([name, *(f"**{text}**" if sign else text for text, sign in line)]) + " |")
    return lines


def _table(comparison: Comparison, rows: Sequence[Summary]) -> tuple[list[str], list[list[tuple[str, int]]]]:
    """The variants, best mean first, and for each its (points, 1 or −1 where that is beyond noise) against each."""
    ranked = sorted((row for row in rows if known(row.mean)), key=lambda row: -(row.mean or 0.0))
    names, digits = [row.variant for row in ranked], decimals(comparison.test_images)
    if len(names) < FEWEST:
        return [], []
    found = every_pair(comparison, names)
    cells = []
    for one in names:
        line = []
        for other in names:
            between = found.get((one, other))
            sign = 0 if between is None else int(between.low > 0) - int(between.high < 0)
            line.append(("" if between is None else signed(between.points, digits), sign))
        cells.append(line)
    return names, cells


def _look(sign: int) -> str:
    return {1: "beyond", -1: "behind", 0: ""}[sign]
