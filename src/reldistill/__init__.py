"""reldistill: distil the relations inside a large vision model into a small one."""

__version__ = "0.1.0"
