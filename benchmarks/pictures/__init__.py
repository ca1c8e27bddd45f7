"""The documentation's pictures, drawn by the package's own functions; `python -m benchmarks.pictures` makes them."""
