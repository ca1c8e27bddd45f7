"""Every word that can follow `reldistill`."""

from __future__ import annotations

from reldistill.cli import comparisons
from reldistill.cli import network_commands as networks
from reldistill.cli import run_commands as runs
from reldistill.cli.forms import Command, Group, of_cells, of_function, of_settings
from reldistill.training.settings import DataSettings, ModelSettings, PairSettings, TrainSettings

COMMANDS: dict[str, Command | Group] = {
    "quickstart": of_function(runs.quickstart),
    "distill": of_settings(
        "Distil a teacher into a student on labelled images.", runs.distill_, DataSettings, PairSettings, TrainSettings
    ),
    "train": of_settings(
        "Train a network: a teacher, or a student alone.", runs.train_, DataSettings, ModelSettings, TrainSettings
    ),
    "compare": of_cells(
        "Run methods under the same conditions, several seeds each, and report which are better beyond noise.",
        comparisons.compare_,
        sweep=False,
    ),
    "sweep": of_cells(
        "Run a method over a grid of one or two settings, for one student or more.", comparisons.sweep_, sweep=True
    ),
    "evaluate": of_function(runs.evaluate_, positional=["model"], opens_runs=True),
    "layers": of_function(networks.layers, positional=["model"], opens_runs=True),
    "list": of_function(networks.list_, positional=["what", "pattern"]),
    "run": Group("Run a recipe: one reproduction with its command, cost and expected score.", runs.recipes),
    "export": of_function(networks.export, positional=["run"], opens_runs=True),
    "report": of_function(runs.report, positional=["runs"]),
}
