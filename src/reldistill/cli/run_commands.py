"""Commands that train, measure and report: heavy imports wait until they run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from reldistill.cli.comparisons import comparison_again
from reldistill.cli.forms import (
    JSON_HELP,
    Answer,
    Command,
    Given,
    add_trust,
    before_arguments,
    first_sentence,
    know_task,
    part_of,
)
from reldistill.cli.options import Options
from reldistill.core.checks import printable
from reldistill.runs.folders import rank
from reldistill.training.settings import DataSettings, ModelSettings, PairSettings, TrainSettings


def quickstart(
    out: Path = Path("runs/quickstart"),
    methods: list[str] = ["none", "kd", "rkd", "serkd", "sekd"],  # noqa: B006 - a default that help shows
    epochs: int = 6,
    teacher_epochs: int = 20,
    seed: int = 0,
    resume: bool = False,
    json: bool = False,
) -> Answer | None:
    """Train a teacher on 1,797 scans of digits, then a small student alone and by each method; under four minutes.

    Args:
        out: folder for the runs and report.html.
        methods: what to compare.
        epochs: passes over the training images for each student.
        teacher_epochs: passes over the training images for the teacher.
        seed: of weights, order and augmentation.
        resume: continue what is there.
        json: print one JSON document on standard output, all else on standard error.
    """
    from reldistill.recipes.quickstart import quickstart as run

    records = run(out=out, methods=methods, epochs=epochs, teacher_epochs=teacher_epochs, seed=seed, resume=resume)
    return runs_answer(records, page=out / "report.html")


def distill_(given: Given) -> Answer | None:
    """`reldistill distill`."""
    from reldistill.runs.distill import distill

    groups = (part_of(given, DataSettings), part_of(given, PairSettings), part_of(given, TrainSettings))
    record = distill(*groups, out=given["out"], resume=given["resume"])
    return runs_answer([record], page=given["out"] / "report.html")


def train_(given: Given) -> Answer | None:
    """`reldistill train`."""
    from reldistill.runs.train import train

    groups = (part_of(given, DataSettings), part_of(given, ModelSettings), part_of(given, TrainSettings))
    record = train(*groups, out=given["out"], resume=given["resume"])
    return runs_answer([record], page=given["out"] / "report.html")


def evaluate_(
    model: str,
    data: str,
    weights: str | None = None,
    pretrained: bool = False,
    arguments: dict[str, Any] = {},  # noqa: B006
    task: str = "auto",
    image_size: int | None = None,
    batch_size: int | None = None,
    val_fraction: float | None = None,
    skip_bad_images: bool = False,
    download: bool = False,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    probe: list[str] = [],  # noqa: B006
    json: bool = False,
) -> Answer:
    """Measure a network on the validation images.

    Args:
        model: a run folder, or a network's name, FILE.py:factory among them (which runs that file).
        data: images, as in reldistill distill.
        weights: file with the network's weights; for a run folder, student-best.safetensors in it is the best epoch.
        pretrained: take the published weights.
        arguments: keyword arguments of the network's constructor.
        task: what the images are labelled for, as in reldistill distill.
        image_size: side of the images in a batch; for detection the shorter side that the network gives them.
        batch_size: images per pass; by default 128, for detection 8.
        val_fraction: share held out where the data bring no validation folder; by default the run's own, or 0.1.
        skip_bad_images: leave out images that can't be read.
        download: fetch the data set if it is not there.
        precision: 32-true or bf16-mixed.
        probe: measure not its class scores but what its features know of the labels, for any network, with a head or
            without: knn, the classes of the 20 nearest training images; linear, a logistic regression on them;
            retrieval, the mean average precision of finding training images of the same class.
        json: print one JSON document on standard output, all else on standard error.
    """
    from reldistill.runs.evaluate import evaluate as run
    from reldistill.runs.folders import recorded_settings

    if val_fraction is None:
        val_fraction = recorded_settings(model).get("val_fraction", 0.1)
    result = run(
        DataSettings(
            data=data,
            task=task,
            image_size=image_size,
            val_fraction=val_fraction,
            skip_bad_images=skip_bad_images,
            download=download,
        ),
        ModelSettings(model=model, model_weights=weights, model_pretrained=pretrained, model_arguments=arguments),
        batch_size=batch_size,
        precision=precision,
        probes=probe,
    )
    return Answer(result, lambda: print(printable(result["summary"])))


def report(
    runs: list[Path],
    out: Path | None = None,
    markdown: Path | None = None,
    csv: Path | None = None,
    task: str | None = None,
    json: bool = False,
) -> Answer | None:
    """Compare runs: a table and a verdict, and one HTML page that opens without a network.

    On the folder of a comparison or a sweep, its tables and its page are made again.

    Args:
        runs: run folders, or folders that hold some; or the folder of a comparison or sweep.
        out: the page; by default report.html in the first folder.
        markdown: file for the table as Markdown.
        csv: file for the table as CSV.
        task: FILE.py:CLASS where the runs' task is one of your own, which runs that file.
        json: print one JSON document on standard output, all else on standard error.
    """
    from reldistill.core.safe_files import check_target, write_text
    from reldistill.report.comparison.summary import kind_in
    from reldistill.report.record import find_runs, read_record
    from reldistill.report.run.render import render_csv, render_html, render_markdown

    know_task(task)
    for path in (out, markdown, csv):
        if path is not None:
            check_target(path)
    if len(runs) == 1 and kind_in(runs[0]):
        return comparison_again(runs[0], out=out, markdown=markdown, csv=csv)
    folders = find_runs(runs)
    records = [read_record(folder) for folder in folders]
    page = out or runs[0] / "report.html"
    render_html(folders, page)
    for path, text in ((markdown, render_markdown), (csv, render_csv)):
        if path is not None:
            write_text(path, text(records), make_folder=True)
    return runs_answer(records, page=page)


def _recipe(function: Callable[..., Any]) -> Command:
    def run(given: Given) -> Answer | None:
        record = function(**{name: given[name] for name in inspect.signature(function).parameters})
        return runs_answer([record], page=given["out"] / "report.html")

    def options(prog: str) -> Options:
        found = Options(prog, before_arguments(function))
        found.add(function)
        add_trust(found)
        found.add_one("json", bool, JSON_HELP, default=False)
        return found

    return Command(first_sentence(function), options, run)


def recipes() -> dict[str, Command]:
    """Name → the command that runs that recipe."""
    from reldistill.recipes import RECIPES

    return {name: _recipe(function) for name, function in RECIPES.items()}


def runs_answer(records: Sequence[Any], *, page: Path) -> Answer | None:
    """The comparison of runs; nothing in a process that is not the first of several."""
    from reldistill.report.run.render import print_table, print_verdict, to_json

    if rank():
        return None

    def show() -> None:
        from rich.console import Console

        console = Console(highlight=False)
        print_table(records, console)
        print_verdict(records, console)
        print(f"report: {page}")

    return Answer(to_json(records), show)
