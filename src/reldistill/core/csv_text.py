"""Tables as CSV, in which no text is run as a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from reldistill.core.checks import printable

_BEGIN_FORMULAS = ("=", "+", "-", "@")


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """One line per row behind a line of headings; numbers are written in full, and None as nothing.

    A spreadsheet runs a text that begins like a formula; such a text gets an apostrophe in front, which a spreadsheet
    reads as the sign of a text. Characters that cannot be printed, tabs among them, are escaped.

    Args:
        rows: heading → value.
        columns: the headings; by default those of the first row.

    >>> csv_text([{"run": "=2+3", "gain": -1.5}])
    "run,gain\\n'=2+3,-1.5\\n"
    """
    names = list(columns if columns is not None else rows[0] if rows else [])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_harmless(name) for name in names])
    writer.writerows([_harmless(row.get(name)) for name in names] for row in rows)
    return out.getvalue()


def _harmless(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(_BEGIN_FORMULAS) else text
