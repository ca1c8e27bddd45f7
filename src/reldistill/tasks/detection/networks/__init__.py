"""Detectors: by name, from a run, and asked for Features."""
