"""The whole of the package in a few minutes on a laptop, on scans of handwritten digits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reldistill.core.checks import UserError, check_range
from reldistill.training.settings import DataSettings, ModelSettings, PairSettings, TrainSettings

if TYPE_CHECKING:
    from reldistill.report.record import RunRecord

TEACHER = "resnet20"
STUDENT = "resnet8"


def quickstart(
    *,
    out: Path,
    methods: Sequence[str],
    epochs: int = 6,
    teacher_epochs: int = 20,
    seed: int = 0,
    resume: bool = False,
) -> list[RunRecord]:
    """Train a teacher, then the student by every method with the same images, order, initial weights and budget.

    Args:
        out: folder for the runs and report.html.
        methods: what to compare.
        epochs: passes over the training images for each student.
        teacher_epochs: passes over the training images for the teacher.
        seed: of weights, order and augmentation.
        resume: continue what is there.

    Raises:
        UserError: when a method is not known, or the folder holds runs and `resume` was not asked for.
    """
    from reldistill.methods.build import method_names
    from reldistill.report.run.render import render_html
    from reldistill.runs.distill import distill
    from reldistill.runs.train import train
    from reldistill.training.progress import say

    for method in methods:
        method_names(method)
    check_range("teacher_epochs", teacher_epochs, 1)
    of_teacher, budget = (
        TrainSettings(epochs=number, batch_size=64, lr=0.1, seed=seed) for number in (teacher_epochs, epochs)
    )
    if (out / "teacher").exists() and not resume:
        raise UserError(f"{out} already holds a quickstart: continue it with --resume, or give another --out")
    images = DataSettings(data="digits", image_size=32)
    say(f"1 of {len(methods) + 1}: the teacher, {TEACHER}")
    teacher = out / "teacher"
    records = [train(images, ModelSettings(model=TEACHER), of_teacher, out=teacher, resume=resume)]
    for position, method in enumerate(methods, start=2):
        say(f"{position} of {len(methods) + 1}: {STUDENT} by {method}")
        pair = PairSettings(teacher=str(teacher), student=STUDENT, method=method)
        records.append(distill(images, pair, budget, out=out / method, resume=resume))
    render_html([teacher, *(out / method for method in methods)], out / "report.html")
    return records
