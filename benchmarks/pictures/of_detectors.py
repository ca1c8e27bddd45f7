"""The picture of the method on class scores of anchors: the two detectors of `examples/detection.py`."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from benchmarks.pictures import frame

EXAMPLE = Path(__file__).parents[2] / "examples" / "detection.py"
CELLS = 12  # of the finest level along each side of the example's images
IMAGE = 3


def head_kd(path: Path) -> None:
    """The class scores of a level's cells, and how much each counts."""
    example = runpy.run_path(str(EXAMPLE))
    image = example["held_out"].images[IMAGE : IMAGE + 1]
    with torch.no_grad():
        logits = {
            role: example[role].eval()(image, logits=False, scores=True).scores[0, : CELLS**2]
            for role in ("student", "teacher")
        }
    p, q = (logits[role].sigmoid() for role in ("student", "teacher"))
    weighted = (q - p).abs() * functional.binary_cross_entropy_with_logits(logits["student"], q, reduction="none")
    drawn, axes = frame.figure(1, 4, height=1.95)
    pixels = (image[0].permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    frame.photograph(axes[0, 0], pixels)
    for ax, scores, title in ((axes[0, 1], p, "student"), (axes[0, 2], q, "teacher")):
        frame.heat(ax, _as_colours(scores), title)
    frame.heat(axes[0, 3], weighted.sum(1).unflatten(0, (CELLS, CELLS)).numpy(), "what counts")
    frame.write(
        drawn, path, title="Class scores of the cells of a level in student and teacher, and what counts of them"
    )


def _as_colours(scores: torch.Tensor) -> np.ndarray:
    """(cells, 3): the three classes are red, green and blue."""
    colours: np.ndarray = scores.unflatten(0, (CELLS, CELLS)).numpy()
    return colours


PICTURES = {head_kd.__name__: head_kd}
