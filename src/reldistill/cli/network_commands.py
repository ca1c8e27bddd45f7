"""Commands about networks, methods and recipes by name: heavy imports wait until they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reldistill.cli.forms import Answer, know_task
from reldistill.core.checks import printable


def layers(
    model: str,
    arguments: dict[str, Any] = {},  # noqa: B006
    image_size: int | None = None,
    num_classes: int | None = None,
    all: bool = False,
    json: bool = False,
) -> Answer:
    """List the places of a network that can be tapped, and which the automatic choice would take.

    Args:
        model: a network's name, FILE.py:factory (which runs that file), or a run folder.
        arguments: keyword arguments of the network's constructor.
        image_size: side of its images, for a detector the shorter one; by default its own.
        num_classes: classes of the network that is built for the list; by default its own.
        all: every place, not just the stages.
        json: print one JSON document on standard output, all else on standard error.
    """
    from reldistill.cli.listing import layers_of, print_layers

    rows = layers_of(model, arguments=arguments, image_size=image_size, num_classes=num_classes, everything=all)
    return Answer(rows, lambda: print_layers(rows))


def list_(what: str, pattern: str = "", json: bool = False) -> Answer:
    """List methods, models or recipes.

    Args:
        what: methods, models or recipes.
        pattern: show only names that hold this, e.g. resnet.
        json: print one JSON document on standard output, all else on standard error.
    """
    from reldistill.cli.listing import print_listing, rows_of

    rows = rows_of(what, pattern)
    return Answer(rows, lambda: print_listing(rows))


def export(
    run: Path,
    format: str = "safetensors",
    out: Path | None = None,
    best: bool = False,
    raw: bool = False,
    task: str | None = None,
    json: bool = False,
) -> Answer:
    """Write a run's student without teacher, adapters or anything of this package.

    Args:
        run: a finished run's folder.
        format: safetensors (a state dict for the network's own class; a detector's with the code that loads it) or
            onnx.
        out: the file; by default export.FORMAT in the run's folder.
        best: the best epoch's weights, not the last's.
        raw: leave the normalisation out of the ONNX graph, which otherwise takes RGB images in [0, 1].
        task: FILE.py:CLASS where the run's task is one of your own, which runs that file.
        json: print one JSON document on standard output, all else on standard error.
    """
    from reldistill.export.student_files import export_run

    know_task(task)
    result = export_run(run, format=format, out=out, best=best, raw=raw)
    return Answer(result, lambda: print(printable(result["summary"])))
