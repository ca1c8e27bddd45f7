"""docs/results.md, docs/speed.md and the README's table from the records in benchmarks/results.

python -m benchmarks.results_page          write the pages
python -m benchmarks.results_page --check  fail if a page differs from what the records say
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import comparisons_page, speed_page, views_page
from benchmarks.comparisons_page import Commands
from benchmarks.weights import GRID
from reldistill.report.record import RunRecord, find_runs, read_record
from reldistill.report.run.render import Row, comparison_table, verdict

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "results.md"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- results: made from the records -->", "<!-- end of results -->"

INTRODUCTION = """\
# Results on real data

Made by `python -m benchmarks.results_page` from the records in `benchmarks/results`; a test fails when the two differ.
The [commands](#commands) behind all figures are at the end.

The images are CIFAR-10 stored as JPEG (50,000 to train on, 10,000 to test on), so that figures lie below those on the
lossless set. One seed each where nothing else is said. The **last** epoch is what is compared; the best one was picked
on the test images and is flattered by that. *Gain* is over the student alone at the last epoch, with its 95 % interval
over the choice of test images, paired image by image. It does not cover the seed, which alone moves an accuracy by some
tenths of a point.
"""

PAIRS = {
    "resnet56-resnet20": (
        "## ResNet-56 into ResNet-20\n",
        "The teacher is a network in a user's own file; the student is the literature's `resnet20`. Six epochs of a "
        "one-cycle schedule: far from convergence, as a day's first trials are. (`serkd` by the weight that its "
        "features had then: today `--weights '{\"feature\": 1}'`.)\n",
    ),
    "vit-vit": (
        "## A ViT into a narrower ViT\n",
        "Two of timm's ViTs with patches of 4×4 pixels and four blocks, the teacher trained here first for 16 epochs, "
        "the students for six: far from what ViTs can do with more time.\n",
    ),
}


def page() -> str:
    """The whole page."""
    sections, commands = [INTRODUCTION], Commands()
    for folder, (title, text) in PAIRS.items():
        if (RESULTS / folder).is_dir():
            records = [read_record(run) for run in find_runs([RESULTS / folder])]
            sections += [title, text, _table(records), "\n**In words**\n", _bullets(verdict(records))]
            commands.add(title, [row.command for row in comparison_table(records) if row.command])
    sections += comparisons_page.sections(RESULTS, commands)
    if (RESULTS / "views").is_dir():
        sections += [views_page.section(RESULTS / "views", commands)]
    if (RESULTS / "weights.json").is_file():
        sections += [_weights(json.loads((RESULTS / "weights.json").read_text()), commands)]
    if (RESULTS / "steps.json").is_file():
        sections += [_steps(json.loads((RESULTS / "steps.json").read_text()), commands)]
    return "\n".join([*sections, commands.section()])


def readme() -> str:
    """The README with its table made anew."""
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{comparisons_page.headline(RESULTS)}\n{END}{after}"


def _table(records: Sequence[RunRecord]) -> str:
    lines = [
        "| run | network | parameters | last epoch, % | best, % (epoch) | gain, points |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in comparison_table(records):
        lines.append(
            f"| {row.label} | {row.network.split(':')[-1]} | {row.parameters:,} | {_number(row.score_last)} "
            f"| {_best(row)} | {_gain(row)} |"
        )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _best(row: Row) -> str:
    return "" if row.score_best is None else f"{row.score_best:.2f} ({row.best_epoch})"


def _gain(row: Row) -> str:
    return "" if row.gain is None else f"{row.gain.points:+.2f} ± {row.gain.margin:.2f}"


def _bullets(text: str) -> str:
    # The machine was shared while these runs went on, so what they say of time is left out; see the steps below.
    lines = [
        line.split(" (")[0] if "× the time per step" in line.split("(")[-1] else line for line in text.splitlines()
    ]
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _weights(rows: Sequence[dict[str, Any]], commands: Commands) -> str:
    title = "## Where the default weights come from\n"
    lines = [
        title,
        "The numbers after a method are the weights of its parts: distance, angle and feature; vertex, edge and "
        "spectral. On CIFAR-10, the first 1,500 training images of each class are trained on, the next 1,500 measured "
        "on: no test image was looked at. (The teacher was trained on all of them; the students were not.) Six "
        "epochs, by a one-cycle schedule or at a constant rate. Accuracy at the last epoch in percent, the mean over "
        "the seeds with the standard deviation where there are several; the columns are in the order of their "
        "commands.\n",
    ]
    settings = list(dict.fromkeys(_setting(row) for row in rows))
    lines += [
        f"| weights | {' | '.join(_setting_words(setting) for setting in settings)} |",
        f"| --- |{' ---: |' * len(settings)}",
    ]
    for label in [label for label in GRID if any(row["label"] == label for row in rows)]:
        cells = []
        for setting in settings:
            found = [row["score_last"] for row in rows if row["label"] == label and _setting(row) == setting]
            spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.2f}{spread}" if found else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    commands.add(title, [_weights_command([row for row in rows if _setting(row) == setting]) for setting in settings])
    return "\n".join([*lines, ""])


def _setting(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["teacher"], row["student"], row["schedule"]


def _setting_words(setting: tuple[str, str, str]) -> str:
    teacher, student, schedule = setting
    archive = "digits, " if "quickstart" in teacher else ""
    return f"{archive}{teacher.split(':')[-1].split('/')[-1]} → {student}, {schedule}"


def _weights_command(rows: Sequence[dict[str, Any]]) -> str:
    first, seeds = rows[0], sorted({row["seed"] for row in rows})
    words = ["python", "-m", "benchmarks.weights", "--archive", first["archive"], "--teacher", first["teacher"]]
    words += ["--teacher-weights", first["teacher_weights"]] if first["teacher_weights"] else []
    words += ["--student", first["student"]]
    words += ["--student-arguments", json.dumps(first["student_arguments"])] if first["student_arguments"] else []
    words += ["--batch-size", str(first["batch_size"]), "--lr", str(first["lr"]), "--schedule", first["schedule"]]
    return shlex.join([*words, "--seeds", *map(str, seeds)])


def _steps(result: dict[str, Any], commands: Commands) -> str:
    title = "## What a step costs\n"
    commands.add(title, [result["command"]])
    lines = [
        title,
        f"{result['teacher'].split(':')[-1]} into {result['student']}, batch {result['batch_size']} of "
        f"{result['image_size']}×{result['image_size']} images, {result['precision']}, {result['device']} with "
        f"{result['threads']} threads; the methods take turns, {result['rounds']} rounds, median ratio of a round's "
        "steps.\n",
        "| method | to the student alone | to kd |",
        "| --- | ---: | ---: |",
        *(f"| {row['method']} | {row['to_none']:.2f} × | {row['to_kd']:.2f} × |" for row in result["rows"]),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Write the pages, or compare them with the records."""
    failed = 0
    for path, made in ((PAGE, page()), (speed_page.PAGE, speed_page.page()), (README, readme())):
        if "--check" not in sys.argv:
            path.write_text(made, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != made:
            print(f"{path.name} is not what the records say: run python -m benchmarks.results_page", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
