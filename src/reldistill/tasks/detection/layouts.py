"""How labelled boxes may lie in a folder. Nothing heavy is imported: settings are checked by it."""

from __future__ import annotations

LAYOUTS = ("coco", "voc", "yolo")
"""What stands before the colon of a data set's name."""


def is_detection(data: str) -> bool:
    """Whether a name is that of labelled boxes: `coco:`, `voc:` or `yolo:` and a folder."""
    return data.partition(":")[0] in LAYOUTS and ":" in data
