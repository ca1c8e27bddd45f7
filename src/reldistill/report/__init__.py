"""Records → words, tables, intervals and pages. No torch."""
