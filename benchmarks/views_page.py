"""The section of docs/results.md on how many views of an image are enough, from benchmarks/results/views."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.comparisons_page import Commands
from reldistill.report.comparison.cell_records import ARRAYS_FILE, CellResult
from reldistill.report.comparison.comparison_text import difference_text, setting
from reldistill.report.comparison.summary import Comparison, read_comparison
from reldistill.report.seeds import difference_over_seeds

ALL = "all"
TITLE = "## How many views of an image are enough"
TEXT = (
    "What `--views` and a teacher cache cost: the epochs cycle through so many random changes of every image, or each "
    "has new ones. {epochs} epochs of a one-cycle schedule, whose rate ends at 0; in the last tenth the student alone "
    "moves by {moved} points or less on the validation images, which on so few is noise. One seed. Beside each "
    "accuracy on the test images its difference to that of ever new views, with the 95 % interval over the choice of "
    "test images. One view is far too few; 4 and 16 lie within noise of ever new ones, and `--cache-teacher` takes 16 "
    "by default, to be on the safe side."
)
COMMANDS = (
    "python -m benchmarks.subset cifar10-jpeg.zip cifar10-4k.zip --images 400 --val test",
    "python -m benchmarks.views --methods none kd --views all 4 16 1 --seeds 1 --out views -- --data cifar10-4k.zip "
    "--teacher my_resnet.py:resnet56 --teacher-weights resnet56-cifar10jpeg.safetensors --student resnet8 --epochs 40 "
    "--lr 0.1 --precision bf16-mixed",
)


def section(folder: Path, commands: Commands) -> str:
    """Of the comparisons in a folder, one for each number of views."""
    found = {path.name: read_comparison(path) for path in folder.iterdir() if path.is_dir()}
    order = sorted(found, key=lambda views: np.inf if views == ALL else int(views))
    methods = [method for method in found[ALL].variants if any(_finished(one, method) for one in found.values())]
    lines = [f"| views | {' | '.join(methods)} |", "| --- |" + " ---: |" * len(methods)]
    for views in order:
        cells = [_accuracy(_finished(found[views], method), _finished(found[ALL], method)) for method in methods]
        lines.append(f"| {'ever new ones' if views == ALL else views} | {' | '.join(cells)} |")
    commands.add(TITLE, COMMANDS)
    epochs = found[ALL].head.settings["epochs"]
    text = TEXT.format(epochs=epochs, moved=f"{_moved(found.values()):.2f}".rstrip("0"))
    return "\n".join([f"{TITLE}\n", f"{setting(found[ALL])} {text}\n", *lines, ""])


def _finished(comparison: Comparison, method: str) -> list[CellResult]:
    return [cell for cell in comparison.variants.get(method, []) if cell.status == "finished"]


def _accuracy(cells: Sequence[CellResult], fresh: Sequence[CellResult]) -> str:
    if not cells:
        return "–"
    hits = _hits(cells)
    text = f"{100 * hits.mean():.2f}"
    seeds = [[cell.plan.seed for cell in some] for some in (cells, fresh)]
    if cells[0].folder == (fresh[0].folder if fresh else None) or seeds[0] != seeds[1]:
        return text
    return f"{text} ({difference_text(difference_over_seeds(hits, _hits(fresh)), 2)})"


def _hits(cells: Sequence[CellResult]) -> np.ndarray:
    """(seeds, test images), whether each was right at the last epoch."""
    return np.stack([np.load(cell.folder / ARRAYS_FILE)["correct_last"] for cell in cells])


def _moved(comparisons: Sequence[Comparison]) -> float:
    """Largest difference between the last epoch and the one a tenth before, of the student alone."""
    histories = [cell.record.history for one in comparisons for cell in _finished(one, "none") if cell.record]
    return max(abs(h[-1].val["accuracy"] - h[-1 - len(h) // 10].val["accuracy"]) for h in histories)
