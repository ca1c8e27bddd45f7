"""Measurements whose records are committed in benchmarks/results, and the page that is made from them."""
