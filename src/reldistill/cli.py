"""The command `reldistill`: every command's options come from a typed signature; heavy imports wait until they run."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import json as json_format
import logging
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from reldistill.checks import UserError
from reldistill.options import Options
from reldistill.train.settings import DataSettings, ModelSettings, PairSettings, TrainSettings

_JSON_HELP = "print one JSON document on standard output, all else on standard error"
_OVER_HELP = (
    "one or two settings with their values: a part's weight (serkd.angle=1,10,50), a loss's setting (serkd:cell=1,2) "
    "or a number of training (lr=0.1,0.2)"
)
Given = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a command found: as JSON, as it is shown to a person, and the exit code."""

    json: Any
    show: Callable[[], None]
    code: int = 0


@dataclass(frozen=True)
class Command:
    """One word after `reldistill`.

    Args:
        summary: what it does.
        options: what it can be told.
        run: does it.
    """

    summary: str
    options: Callable[[str], Options]
    run: Callable[[Given], Answer | None]


@dataclass(frozen=True)
class Group:
    """A word that is followed by one of several.

    Args:
        summary: what they are.
        members: word → command; only called when it is needed.
    """

    summary: str
    members: Callable[[], Mapping[str, Command | Group]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the result is the exit code.

    0, or 1 where some of a comparison's runs failed, 2 after bad input, 130 after an interrupt.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(given)
    except UserError as error:
        print(f"reldistill: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "reldistill: stopped; a run goes on from its last checkpoint by the same command with --resume",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _dispatch(given: list[str]) -> int:
    if given == ["--version"]:
        import reldistill

        print(f"reldistill {reldistill.__version__}")
        return 0
    name, rest = "reldistill", given
    chosen: Command | Group = Group(
        "Distil the relations inside a large vision model into a small one.", lambda: COMMANDS
    )
    while isinstance(chosen, Group):
        members = chosen.members()
        if not rest or rest[0] in ("-h", "--help"):
            print(_overview(name, chosen.summary, members))
            return 0
        chosen = _member(rest[0], members, prog=name)
        name, rest = f"{name} {rest[0]}", rest[1:]
    try:
        values = chosen.options(name).parse(rest)
    except SystemExit:  # after --help and --print_config
        return 0
    with _results_only(), _own_warnings():
        answer = chosen.run(values)
    if answer is not None and values["json"]:
        print(json_format.dumps(answer.json, indent=2, ensure_ascii=False))
    elif answer is not None:
        answer.show()
    sys.stdout.flush()
    return answer.code if answer is not None else 0


def _member(word: str, members: Mapping[str, Command | Group], *, prog: str) -> Command | Group:
    if word in members:
        return members[word]
    see = f"(see: {prog} --help)"
    if word.startswith("-"):
        raise UserError(f"{word} must come after one of {', '.join(members)} {see}")
    close = difflib.get_close_matches(word, members, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(members)}"
    raise UserError(f"{prog} has no '{word}': {hint} {see}")


def _overview(prog: str, summary: str, members: Mapping[str, Command | Group]) -> str:
    width = min(shutil.get_terminal_size().columns, 100) - 2
    indent = max(map(len, members)) + 4
    lines = [
        textwrap.fill(member.summary, width, initial_indent=f"  {name}".ljust(indent), subsequent_indent=" " * indent)
        for name, member in members.items()
    ]
    usage = f"{prog} {'COMMAND' if prog == 'reldistill' else 'NAME'}"
    return "\n".join([f"usage: {usage} [options]", "", summary, "", *lines, "", f"{usage} --help explains each."])


@contextlib.contextmanager
def _results_only() -> Iterator[None]:
    """Send what libraries and child processes print to standard error: standard output is for the command's result."""
    sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ValueError):  # closed, or not a file
            kept = os.dup(1)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 1)
            os.dup2(2, 1)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


@contextlib.contextmanager
def _own_warnings() -> Iterator[None]:
    """Show this package's warnings as one line each; those of libraries are for programmers, unless asked for by -W."""
    if sys.warnoptions:
        yield
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if _rank():
        logging.getLogger("reldistill").setLevel(logging.ERROR)  # the first process says it
    package = str(Path(__file__).parent)

    def show(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
        if filename.startswith(package) and not _rank():
            print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield


# The commands --------------------------------------------------------------------------------------------------------


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
        resume: go on with what is there.
        json: print one JSON document on standard output, all else on standard error.
    """
    from reldistill.recipes.quickstart import quickstart as run

    records = run(out=out, methods=methods, epochs=epochs, teacher_epochs=teacher_epochs, seed=seed, resume=resume)
    return _runs(records, page=out / "report.html")


def _distill(given: Given) -> Answer | None:
    from reldistill.run import distill

    groups = (_part(given, DataSettings), _part(given, PairSettings), _part(given, TrainSettings))
    record = distill(*groups, out=given["out"], resume=given["resume"])
    return _runs([record], page=given["out"] / "report.html")


def _train(given: Given) -> Answer | None:
    from reldistill.run import train

    groups = (_part(given, DataSettings), _part(given, ModelSettings), _part(given, TrainSettings))
    record = train(*groups, out=given["out"], resume=given["resume"])
    return _runs([record], page=given["out"] / "report.html")


# The underscore keeps jsonargparse from finding the package's own `evaluate` by that name, which would import it all.
def evaluate_(
    model: str,
    data: str,
    weights: str | None = None,
    pretrained: bool = False,
    arguments: dict[str, Any] = {},  # noqa: B006
    image_size: int | None = None,
    batch_size: int = 128,
    val_fraction: float | None = None,
    skip_bad_images: bool = False,
    download: bool = False,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    json: bool = False,
) -> Answer:
    """Measure a network on the validation images.

    Args:
        model: a run folder, or a network's name.
        data: images, as in reldistill distill.
        weights: file with the network's weights; for a run folder, student-best.safetensors in it is the best epoch.
        pretrained: take the published weights.
        arguments: keyword arguments of the network's constructor.
        image_size: side of the images in a batch.
        batch_size: images a pass.
        val_fraction: share held out where the data bring no validation folder; by default the run's own, or 0.1.
        skip_bad_images: leave out images that can't be read.
        download: fetch the data set if it is not there.
        precision: 32-true or bf16-mixed.
        json: print one JSON document on standard output, all else on standard error.
    """
    from reldistill.folders import recorded_settings
    from reldistill.run import evaluate as run

    if val_fraction is None:
        val_fraction = recorded_settings(model).get("val_fraction", 0.1)
    result = run(
        DataSettings(
            data=data,
            image_size=image_size,
            val_fraction=val_fraction,
            skip_bad_images=skip_bad_images,
            download=download,
        ),
        ModelSettings(model=model, model_weights=weights, model_pretrained=pretrained, model_arguments=arguments),
        batch_size=batch_size,
        precision=precision,
    )
    low, high = result["accuracy_interval"]
    text = (
        f"{result['model']}: {result['accuracy']:.2f} % of {result['images']:,} validation images right "
        f"(95 % interval {low:.2f} to {high:.2f}), cross entropy {result['loss']:.4f}"
    )
    return Answer(result, lambda: print(text))


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
        model: a network's name, FILE.py:factory, or a run folder.
        arguments: keyword arguments of the network's constructor.
        image_size: side of its images; by default its own.
        num_classes: classes of the network that is built for the list; by default its own.
        all: every place, not just the stages.
        json: print one JSON document on standard output, all else on standard error.
    """
    from reldistill.listing import layers_of, print_layers

    rows = layers_of(model, arguments=arguments, image_size=image_size, num_classes=num_classes, everything=all)
    return Answer(rows, lambda: print_layers(rows))


def list_(what: str, pattern: str = "", json: bool = False) -> Answer:
    """List methods, models or recipes.

    Args:
        what: methods, models or recipes.
        pattern: show only names that hold this, e.g. resnet.
        json: print one JSON document on standard output, all else on standard error.
    """
    from reldistill.listing import print_listing, rows_of

    rows = rows_of(what, pattern)
    return Answer(rows, lambda: print_listing(rows))


def export(
    run: Path,
    format: str = "safetensors",
    out: Path | None = None,
    best: bool = False,
    raw: bool = False,
    json: bool = False,
) -> Answer:
    """Write a run's student without teacher, adapters or anything of this package.

    Args:
        run: a finished run's folder.
        format: safetensors (a state dict for the network's own class) or onnx.
        out: the file; by default export.FORMAT in the run's folder.
        best: the best epoch's weights, not the last's.
        raw: leave the normalisation out of the ONNX graph, which otherwise takes RGB images in [0, 1].
        json: print one JSON document on standard output, all else on standard error.
    """
    from reldistill.export import export_run

    result = export_run(run, format=format, out=out, best=best, raw=raw)
    return Answer(result, lambda: print(result["summary"]))


def report(
    runs: list[Path],
    out: Path | None = None,
    markdown: Path | None = None,
    csv: Path | None = None,
    json: bool = False,
) -> Answer | None:
    """Compare runs: a table and a verdict, and one HTML page that opens without a network.

    On the folder of a comparison or a sweep, its tables and its page are made again.

    Args:
        runs: run folders, or folders that hold some; or the folder of a comparison or sweep.
        out: the page; by default report.html in the first folder.
        markdown: file for the table as Markdown.
        csv: file for the table as CSV.
        json: print one JSON document on standard output, all else on standard error.
    """
    from reldistill.files import write_text
    from reldistill.report.comparison import kind_in
    from reldistill.report.record import find_runs, read_record
    from reldistill.report.render import render_csv, render_html, render_markdown

    if len(runs) == 1 and kind_in(runs[0]):
        return _comparison_again(runs[0], out=out, markdown=markdown, csv=csv)
    folders = find_runs(runs)
    records = [read_record(folder) for folder in folders]
    page = out or runs[0] / "report.html"
    with _writable(page):
        render_html(folders, page)
    for path, text in ((markdown, render_markdown), (csv, render_csv)):
        if path is not None:
            with _writable(path):
                write_text(path, text(records))
    return _runs(records, page=page)


def _compare(given: Given) -> Answer | None:
    from reldistill.comparison.run import compare, planned_comparison

    groups = _cell_settings(given)
    chosen = {"methods": given["methods"], "seeds": given["seeds"]}
    if given["dry_run"]:
        return _planned(planned_comparison(*groups, **chosen), given["out"])
    return _comparison(compare(*groups, **chosen, out=given["out"], jobs=given["jobs"]))


def _sweep(given: Given) -> Answer | None:
    from reldistill.comparison.cells import read_axes
    from reldistill.comparison.run import planned_sweep, sweep

    groups = _cell_settings(given, student="")
    chosen = {"students": given["students"], "seeds": given["seeds"]}
    if given["dry_run"]:
        return _planned(planned_sweep(*groups, **chosen, over=read_axes(given["over"])), given["out"])
    return _comparison(sweep(*groups, **chosen, over=given["over"], out=given["out"], jobs=given["jobs"]))


def _cell_settings(given: Given, **fixed: Any) -> tuple[Any, Any, Any]:
    """What the runs of a comparison share; which of them a method or a student belongs to is decided later."""
    known = {**given, "hold_out_test": True, **({} if "method" in given else {"method": "none"}), **fixed}
    return _part(known, DataSettings), _part(known, PairSettings), _part(known, TrainSettings)


def _planned(cells: Sequence[Any], out: Path) -> Answer:
    from reldistill.comparison.run import plan_line
    from reldistill.report.cells import read_cell

    rows = [{"cell": cell.plan.cell, "status": read_cell(out, cell.plan).status} for cell in cells]

    def show() -> None:
        print(plan_line(cells, out))
        for row in rows:
            print(f"  {row['cell']}  {row['status']}")

    return Answer(rows, show)


def _comparison(found: Any, *, page: Path | None = None) -> Answer:
    """A comparison's or sweep's table and verdict; exit code 1 where a cell failed."""
    from reldistill.report.comparison import comparison_json, summaries
    from reldistill.report.comparison_text import print_comparison, verdict

    rows = summaries(found)

    def show() -> None:
        from rich.console import Console

        print_comparison(found, rows, Console(highlight=False))
        print(f"report: {page or found.folder / f'{found.head.kind}.html'}")

    return Answer(comparison_json(found, rows, verdict(found, rows)), show, 1 if found.failed else 0)


def _comparison_again(folder: Path, *, out: Path | None, markdown: Path | None, csv: Path | None) -> Answer:
    from reldistill.files import write_text
    from reldistill.report.comparison import read_comparison, summaries
    from reldistill.report.comparison_files import write_comparison
    from reldistill.report.comparison_text import comparison_csv, comparison_markdown

    found = read_comparison(folder)
    rows = summaries(found)
    with _writable(out or folder):
        page = write_comparison(found, page=out)
    for path, text in ((markdown, lambda: comparison_markdown(found, rows)), (csv, lambda: comparison_csv(rows))):
        if path is not None:
            with _writable(path):
                write_text(path, text())
    return dataclasses.replace(_comparison(found, page=page), code=0)


def _recipe(function: Callable[..., Any]) -> Command:
    def run(given: Given) -> Answer | None:
        record = function(**{name: given[name] for name in inspect.signature(function).parameters})
        return _runs([record], page=given["out"] / "report.html")

    def options(prog: str) -> Options:
        found = Options(prog, _before_arguments(function))
        found.add(function)
        found.add_one("json", bool, _JSON_HELP, default=False)
        return found

    return Command(_first_sentence(function), options, run)


def _recipes() -> dict[str, Command]:
    from reldistill.recipes import RECIPES

    return {name: _recipe(function) for name, function in RECIPES.items()}


# How they are put together -------------------------------------------------------------------------------------------


def _of_function(function: Callable[..., Answer | None], *, positional: Sequence[str] = ()) -> Command:
    def options(prog: str) -> Options:
        found = Options(prog, _before_arguments(function))
        found.add(function, positional=positional)
        return found

    def run(given: Given) -> Answer | None:
        return function(**{name: given[name] for name in inspect.signature(function).parameters})

    return Command(_first_sentence(function), options, run)


def _of_settings(summary: str, run: Callable[[Given], Answer | None], *groups: type) -> Command:
    def options(prog: str) -> Options:
        found = Options(prog, summary)
        found.add_one("out", Path, "folder for everything that comes of the run", required=True)
        found.add_one("resume", bool, "go on with the run in --out from its last checkpoint", default=False)
        found.add_one("json", bool, _JSON_HELP, default=False)
        for group in groups:
            found.add(group)
        return found

    return Command(summary, options, run)


def _of_cells(summary: str, run: Callable[[Given], Answer | None], *, sweep: bool) -> Command:
    def options(prog: str) -> Options:
        found = Options(prog, summary)
        if sweep:
            found.add_one("students", list[str], "one or more, each as --student of distill takes it", required=True)
            found.add_one("over", list[str], _OVER_HELP, required=True)
        else:
            found.add_one("methods", list[str], "what to compare; several at once are joined by +", required=True)
        found.add_one("seeds", int, "runs of each, with seeds from --seed on", default=1 if sweep else 3)
        found.add_one("out", Path, "folder for all runs, tables and the page", required=True)
        found.add_one("jobs", int, "runs at a time, each in a process of its own", default=1)
        found.add_one("dry_run", bool, "say which runs there would be and which are finished, and stop", default=False)
        found.add_one("resume", bool, "as everywhere; here what is in --out is gone on with in any case", default=False)
        found.add_one("json", bool, _JSON_HELP, default=False)
        found.add(DataSettings, skip=["hold_out_test"])
        found.add(PairSettings, skip=["student"] if sweep else ["method"])
        found.add(TrainSettings)
        return found

    return Command(summary, options, run)


def _before_arguments(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").split("\n\nArgs:")[0]


def _first_sentence(function: Callable[..., Any]) -> str:
    return " ".join(_before_arguments(function).split("\n\n")[0].split())


def _part(given: Given, kind: type) -> Any:
    return kind(**{field.name: given[field.name] for field in fields(kind)})


def _runs(records: Sequence[Any], *, page: Path) -> Answer | None:
    """The comparison of runs; nothing in a process that is not the first of several."""
    from reldistill.report.render import print_table, print_verdict, to_json

    if _rank():
        return None

    def show() -> None:
        from rich.console import Console

        console = Console(highlight=False)
        print_table(records, console)
        print_verdict(records, console)
        print(f"report: {page}")

    return Answer(to_json(records), show)


def _rank() -> int:
    """This process's number among those of a run, as far as the environment tells."""
    return next((int(os.environ[n]) for n in ("RANK", "LOCAL_RANK", "NODE_RANK") if os.environ.get(n)), 0)


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


COMMANDS: dict[str, Command | Group] = {
    "quickstart": _of_function(quickstart),
    "distill": _of_settings(
        "Distil a teacher into a student on labelled images.", _distill, DataSettings, PairSettings, TrainSettings
    ),
    "train": _of_settings(
        "Train a network: a teacher, or a student alone.", _train, DataSettings, ModelSettings, TrainSettings
    ),
    "compare": _of_cells(
        "Run methods under the same conditions, several seeds each, and say which are better beyond noise.",
        _compare,
        sweep=False,
    ),
    "sweep": _of_cells("Run a method over a grid of one or two settings, for one student or more.", _sweep, sweep=True),
    "evaluate": _of_function(evaluate_, positional=["model"]),
    "layers": _of_function(layers, positional=["model"]),
    "list": _of_function(list_, positional=["what", "pattern"]),
    "run": Group("Run a recipe: one reproduction with its command, cost and expected score.", _recipes),
    "export": _of_function(export, positional=["run"]),
    "report": _of_function(report, positional=["runs"]),
}
