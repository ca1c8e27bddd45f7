"""The files of a comparison or sweep: JSON, CSV, Markdown and one page, all from its cells as they are now."""

from __future__ import annotations

from pathlib import Path

from reldistill.core.safe_files import write_text
from reldistill.report.comparison.cell_records import dump_json
from reldistill.report.comparison.comparison_page import comparison_page
from reldistill.report.comparison.comparison_text import comparison_csv, comparison_markdown, verdict
from reldistill.report.comparison.summary import Comparison, comparison_json, summaries


def write_tables(comparison: Comparison) -> None:
    """Everything but the page: cheap enough to be done after every cell."""
    rows = summaries(comparison)
    content = {
        "json": dump_json(comparison_json(comparison, rows, verdict(comparison, rows))),
        "csv": comparison_csv(rows),
        "md": comparison_markdown(comparison, rows),
    }
    for suffix, text in content.items():
        write_text(comparison.folder / f"{comparison.head.kind}.{suffix}", text)


def write_comparison(comparison: Comparison, *, page: Path | None = None) -> Path:
    """All files, the page by default beside the others; returns the page's path."""
    write_tables(comparison)
    target = page or comparison.folder / f"{comparison.head.kind}.html"
    return write_text(target, comparison_page(comparison, summaries(comparison)), make_folder=page is not None)
