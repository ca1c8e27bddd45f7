"""Records → what people read: tables, verdict, Markdown, CSV, JSON and one HTML page. No torch here."""

from __future__ import annotations

from reldistill.report.paired import Row, comparison_table
from reldistill.report.run.page import render_html
from reldistill.report.run.text import print_table, print_verdict, render_csv, render_markdown, to_json
from reldistill.report.run.verdict import verdict

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
