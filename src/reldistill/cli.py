"""The command `reldistill`: every subcommand's flags come from a typed signature; heavy imports wait until they run."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from reldistill.checks import UserError
from reldistill.train.settings import DataSettings, ModelSettings, PairSettings, TrainSettings

_CLASS_NAME = re.compile(r"<class '(?:[\w.]*\.)?(\w+)'>")
_OPTION = re.compile(r"--[a-z][a-z_]*")


class _Parser(ArgumentParser):
    """Options with dashes, a short usage, and errors of one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = " ".join(_CLASS_NAME.sub(r"\1", str(message)).split())
        text = re.sub(r'Parser key "([\w.]+)": ?', lambda m: f"--{m[1].replace('_', '-')}: ", text)
        raise UserError(f"{_dashed(text)} (see: {self.prog.replace(' [options]', '')} --help)")

    def format_help(self) -> str:
        text = super().format_help().replace(" [options]", "")
        text = _CLASS_NAME.sub(lambda m: m[1].lower(), text.replace(" {true,false}", ""))
        return _dashed(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the result is the exit code: 0, 2 after bad input, 130 after an interrupt."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parser, subparsers = _parsers()
        chosen = parser.parse_args(_normalised(given, subparsers))
        _COMMANDS[chosen.subcommand](chosen[chosen.subcommand])
    except UserError as error:
        print(f"reldistill: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("reldistill: stopped; the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


# The subcommands -----------------------------------------------------------------------------------------------------


def quickstart(
    out: Path = Path("runs/quickstart"),
    methods: list[str] = ["none", "kd", "rkd", "serkd", "sekd"],  # noqa: B006 - a default that help shows
    seed: int = 0,
    resume: bool = False,
    json: bool = False,
) -> None:
    """Train a teacher on 1,797 scans of digits, then a small student alone and by each method; under four minutes.

    Args:
        out: folder for the runs and report.html.
        methods: what to compare.
        seed: of weights, order and augmentation.
        resume: go on with what is there.
        json: print one JSON document on standard output.
    """
    from reldistill.recipes.quickstart import quickstart as run

    records = run(out=out, methods=methods, seed=seed, resume=resume)
    _show(records, as_json=json, page=out / "report.html")


def _distill(given: Namespace) -> None:
    from reldistill.run import distill

    record = distill(
        _part(given, DataSettings),
        _part(given, PairSettings),
        _part(given, TrainSettings),
        out=given.out,
        resume=given.resume,
    )
    _show([record], as_json=given.json, page=given.out / "report.html")


def _train(given: Namespace) -> None:
    from reldistill.run import train

    record = train(
        _part(given, DataSettings),
        _part(given, ModelSettings),
        _part(given, TrainSettings),
        out=given.out,
        resume=given.resume,
    )
    _show([record], as_json=given.json, page=given.out / "report.html")


def evaluate(
    model: str,
    data: str,
    weights: str | None = None,
    pretrained: bool = False,
    arguments: dict[str, Any] = {},  # noqa: B006
    image_size: int | None = None,
    batch_size: int = 128,
    val_fraction: float = 0.1,
    skip_bad_images: bool = False,
    download: bool = False,
    precision: str = "32-true",
    json: bool = False,
) -> None:
    """Measure a network on the validation images.

    Args:
        model: a run folder, or a network's name.
        data: as in distill.
        weights: file with the network's weights; for a run folder, student-best.safetensors in it is the best epoch.
        pretrained: take the published weights.
        arguments: keyword arguments of the network's constructor.
        image_size: side of the images in a batch.
        batch_size: images a pass.
        val_fraction: share held out where the data bring no validation folder.
        skip_bad_images: leave out images that can't be read.
        download: fetch the data set if it is not there.
        precision: 32-true or bf16-mixed.
        json: print one JSON document on standard output.
    """
    from reldistill.run import evaluate as run

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
    if json:
        _print_json(result)
        return
    low, high = result["accuracy_interval"]
    print(
        f"{result['model']}: {result['accuracy']:.2f} % of {result['images']:,} validation images right "
        f"(95 % interval {low:.2f} to {high:.2f}), cross entropy {result['loss']:.4f}"
    )


def layers(
    model: str,
    arguments: dict[str, Any] = {},  # noqa: B006
    image_size: int | None = None,
    num_classes: int = 10,
    all: bool = False,
    json: bool = False,
) -> None:
    """List the places of a network that can be tapped, and which the automatic choice would take.

    Args:
        model: a network's name, FILE.py:factory, or a run folder.
        arguments: keyword arguments of the network's constructor.
        image_size: side of its images.
        num_classes: classes of the network that is built for the list.
        all: every place, not just the stages.
        json: print one JSON document on standard output.
    """
    from reldistill.listing import layers_of, print_layers

    rows = layers_of(model, arguments=arguments, image_size=image_size, num_classes=num_classes, everything=all)
    if json:
        _print_json(rows)
    else:
        print_layers(rows)


def list_(what: str, pattern: str = "", json: bool = False) -> None:
    """List methods, models or recipes.

    Args:
        what: methods, models or recipes.
        pattern: show only names that hold this, e.g. resnet.
        json: print one JSON document on standard output.
    """
    from reldistill.listing import print_listing, rows_of

    rows = rows_of(what, pattern)
    if json:
        _print_json(rows)
    else:
        print_listing(rows)


def export(
    run: Path,
    format: str = "safetensors",
    out: Path | None = None,
    best: bool = False,
    raw: bool = False,
    json: bool = False,
) -> None:
    """Write a run's student without teacher, adapters or anything of this package.

    Args:
        run: a finished run's folder.
        format: safetensors (a state dict for the network's own class) or onnx.
        out: the file; by default student.FORMAT in the run's folder.
        best: the best epoch's weights, not the last's.
        raw: leave the normalisation out of the ONNX graph, which otherwise takes RGB images in [0, 1].
        json: print one JSON document on standard output.
    """
    from reldistill.export import export_run

    result = export_run(run, format=format, out=out, best=best, raw=raw)
    if json:
        _print_json(result)
    else:
        print(result["summary"])


def report(
    runs: list[Path],
    out: Path | None = None,
    markdown: Path | None = None,
    csv: Path | None = None,
    json: bool = False,
) -> None:
    """Compare runs: a table and a verdict, and one HTML page that opens without a network.

    Args:
        runs: run folders, or folders that hold some.
        out: the page; by default report.html in the first folder.
        markdown: file for the table as Markdown.
        csv: file for the table as CSV.
        json: print one JSON document on standard output.
    """
    from reldistill.report.record import find_runs, read_record, write_atomically
    from reldistill.report.render import render_csv, render_html, render_markdown

    folders = find_runs(runs)
    records = [read_record(folder) for folder in folders]
    page = out or runs[0] / "report.html"
    render_html(folders, page)
    if markdown is not None:
        write_atomically(markdown, render_markdown(records))
    if csv is not None:
        write_atomically(csv, render_csv(records))
    _show(records, as_json=json, page=page)


# How they are put together -------------------------------------------------------------------------------------------


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    import reldistill

    parser = _Parser(prog="reldistill", description="Distil the relations inside a large vision model into a small one.")
    parser.add_argument("--version", action="version", version=f"reldistill {reldistill.__version__}")
    commands = parser.add_subcommands(required=True, metavar="COMMAND")
    made: dict[str, _Parser] = {}
    for name in _COMMANDS:
        sub = _SIGNATURES[name]()
        made[name] = sub
        commands.add_subcommand(name, sub, help=(sub.description or "").split(".")[0])
    _add_recipes(made["run"])
    return parser, made


def _from_function(function: Callable[..., None], *, positional: Sequence[str] = ()) -> Callable[[], _Parser]:
    def make() -> _Parser:
        parser = _Parser(description=(inspect.getdoc(function) or "").split("\n\n")[0])
        parser.add_argument("--config", action="config", help="a YAML file with any of these settings")
        parser.add_function_arguments(function, as_group=False, skip=set(positional))
        for name in positional:
            kind = inspect.signature(function, eval_str=True).parameters[name]
            optional = kind.default is not inspect.Parameter.empty
            many = "list" in str(kind.annotation)
            extra: dict[str, Any] = {"nargs": "?", "default": kind.default} if optional else {}
            if many:
                extra = {"nargs": "+"}
            parser.add_argument(name, type=Path if "Path" in str(kind.annotation) else str, help=_argument(function, name), **extra)
        return parser

    return make


def _argument(function: Callable[..., None], name: str) -> str:
    found = re.search(rf"^    {name}: (.*)$", inspect.getdoc(function) or "", flags=re.MULTILINE)
    return found[1] if found else ""


def _run_parser(*groups: type, description: str) -> Callable[[], _Parser]:
    def make() -> _Parser:
        parser = _Parser(description=description)
        parser.add_argument("--config", action="config", help="a YAML file with any of these settings")
        parser.add_argument("--out", type=Path, required=True, help="folder for everything that comes of the run")
        parser.add_argument("--resume", type=bool, default=False, help="go on with the run in --out from its last checkpoint")
        parser.add_argument("--json", type=bool, default=False, help="print one JSON document on standard output")
        for group in groups:
            parser.add_class_arguments(group, None)
        return parser

    return make


def _run_recipe_parser() -> _Parser:
    return _Parser(description="Run a recipe: one reproduction with its command, cost and expected score.")


def _add_recipes(parser: _Parser) -> None:
    from reldistill.recipes import RECIPES

    commands = parser.add_subcommands(required=True, metavar="RECIPE")
    for name, recipe in RECIPES.items():
        sub = _Parser(description=inspect.getdoc(recipe))
        sub.add_function_arguments(recipe, as_group=False)
        sub.add_argument("--json", type=bool, default=False, help="print one JSON document on standard output")
        commands.add_subcommand(name, sub, help=(inspect.getdoc(recipe) or "").split("\n")[0])


def _run_recipe(given: Namespace) -> None:
    from reldistill.recipes import RECIPES

    chosen = given[given.subcommand]
    keywords = {name: chosen[name] for name in inspect.signature(RECIPES[given.subcommand]).parameters}
    record = RECIPES[given.subcommand](**keywords)
    _show([record], as_json=chosen.json, page=chosen.out / "report.html")


def _call(function: Callable[..., None]) -> Callable[[Namespace], None]:
    def call(given: Namespace) -> None:
        names = inspect.signature(function).parameters
        function(**{name: _plain(given[name]) for name in names})

    return call


_COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "quickstart": _call(quickstart),
    "distill": _distill,
    "train": _train,
    "evaluate": _call(evaluate),
    "layers": _call(layers),
    "list": _call(list_),
    "run": _run_recipe,
    "export": _call(export),
    "report": _call(report),
}
_SIGNATURES: dict[str, Callable[[], _Parser]] = {
    "quickstart": _from_function(quickstart),
    "distill": _run_parser(
        DataSettings, PairSettings, TrainSettings, description="Distil a teacher into a student on labelled images."
    ),
    "train": _run_parser(
        DataSettings, ModelSettings, TrainSettings, description="Train a network: a teacher, or a student alone."
    ),
    "evaluate": _from_function(evaluate, positional=["model"]),
    "layers": _from_function(layers, positional=["model"]),
    "list": _from_function(list_, positional=["what", "pattern"]),
    "run": _run_recipe_parser,
    "export": _from_function(export, positional=["run"]),
    "report": _from_function(report, positional=["runs"]),
}


def _normalised(arguments: list[str], parsers: dict[str, _Parser]) -> list[str]:
    """`--batch-size` → `--batch_size`; a switch without a value is true."""
    command = next((a for a in arguments if not a.startswith("-")), "")
    parser = parsers.get(command)
    if command == "run":
        recipe = next((a for a in arguments[arguments.index(command) + 1 :] if not a.startswith("-")), "")
        found = getattr(parser, "_subcommands_action", None)
        parser = found.choices.get(recipe) if found is not None else None
    switches = {o for a in parser._actions if a.type is bool for o in a.option_strings} if parser else set()
    result = []
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            name = name.replace("-", "_").replace("__", "--", 1)
            argument = name + equals + value
            following = arguments[position + 1].lower() if position + 1 < len(arguments) else ""
            if name in switches and not equals and following not in ("true", "false"):
                argument = f"{name}=true"
        result.append(argument)
    return result


def _part(given: Namespace, kind: type) -> Any:
    return kind(**{name: _plain(given[name]) for name in inspect.signature(kind).parameters})


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return {name: _plain(item) for name, item in vars(value).items()}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


def _dashed(text: str) -> str:
    return _OPTION.sub(lambda m: m[0] if m[0] == "--print_config" else m[0].replace("_", "-"), text)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _show(records: Sequence[Any], *, as_json: bool, page: Path) -> None:
    from rich.console import Console

    from reldistill.report.render import print_table, to_json, verdict

    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    if as_json:
        _print_json(to_json(records))
        return
    print_table(records, Console())
    print(verdict(records))
    print(f"report: {page}")
