"""Records → what people read: tables, verdict, Markdown, CSV, JSON and one HTML page. No torch here."""

from __future__ import annotations

from reldistill.report.compare import Row, comparison_table
from reldistill.report.page import render_html
from reldistill.report.text import print_table, print_verdict, render_csv, render_markdown, to_json
from reldistill.report.verdict import verdict

__all__ = [
    "Row",
    "comparison_table",
    "print_table",
    "print_verdict",
    "render_csv",
    "render_html",
    "render_markdown",
    "to_json",
    "verdict",
]
