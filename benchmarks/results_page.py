"""docs/results.md from the records in benchmarks/results.

python -m benchmarks.results_page          write the page
python -m benchmarks.results_page --check  fail if the page differs from what the records say
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reldistill.report.record import RunRecord, find_runs, read_record
from reldistill.report.render import Row, comparison_table, verdict

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "results.md"

INTRODUCTION = """\
# Results on real data

Made by `python -m benchmarks.results_page` from the records in `benchmarks/results`; a test fails when the two differ.

The images are CIFAR-10 stored as JPEG (50,000 to train on, 10,000 to test on), so that figures lie below those on the
lossless set. One seed each. The **last** epoch is what is compared; the best one was picked on the test images and is
flattered by that. *Gain* is over the student alone at the last epoch, with its 95 % interval over the choice of test
images, paired image by image. It does not cover the seed, which alone moves an accuracy by some tenths of a point.
"""

PAIRS = {
    "resnet56-resnet20": (
        "## ResNet-56 into ResNet-20\n",
        "The teacher is a network in a user's own file; the student is the literature's `resnet20`. Six epochs of a "
        "one-cycle schedule: far from convergence, as a day's first trials are.\n",
    ),
    "vit-vit": (
        "## A ViT into a narrower ViT\n",
        "Two of timm's ViTs with patches of 4×4 pixels, the teacher trained here first, on 1,500 training images of "
        "each class and all test images:\n\n```bash\npython -m benchmarks.subset cifar10-jpeg.zip cifar10-15k.zip "
        "--images 1500\n```\n\nSo few images and epochs leave both far from what ViTs can do.\n",
    ),
}


def page() -> str:
    """The whole page."""
    sections = [INTRODUCTION]
    for folder, (title, text) in PAIRS.items():
        if (RESULTS / folder).is_dir():
            records = [read_record(run) for run in find_runs([RESULTS / folder])]
            sections += [title, text, _table(records), "\n**In words**\n", _bullets(verdict(records))]
    if (RESULTS / "weights.json").is_file():
        sections += [_weights(json.loads((RESULTS / "weights.json").read_text()))]
    if (RESULTS / "steps.json").is_file():
        sections += [_steps(json.loads((RESULTS / "steps.json").read_text()))]
    return "\n".join(sections)


def _table(records: Sequence[RunRecord]) -> str:
    lines = [
        "| run | network | parameters | last epoch, % | best, % (epoch) | gain, points | command |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in comparison_table(records):
        lines.append(
            f"| {row.label} | {row.network.split(':')[-1]} | {row.parameters:,} | {_number(row.accuracy_last)} "
            f"| {_best(row)} | {_gain(row)} | {f'`{row.command}`' if row.command else ''} |"
        )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _best(row: Row) -> str:
    return "" if row.accuracy_best is None else f"{row.accuracy_best:.2f} ({row.best_epoch})"


def _gain(row: Row) -> str:
    return "" if row.gain is None else f"{row.gain.points:+.2f} ± {row.gain.margin:.2f}"


def _bullets(text: str) -> str:
    # The machine was shared while these runs went on, so what they say of time is left out; see the steps below.
    lines = [
        line.split(" (")[0] if "× the time per step" in line.split("(")[-1] else line for line in text.splitlines()
    ]
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _weights(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "## Where the default weights come from\n",
        "The numbers after a method are the weights of its parts: distance, angle and feature; vertex, edge and "
        "spectral. On CIFAR-10, the first 1,500 training images of each class are trained on, the next 1,500 measured "
        "on: no test image was looked at. (The teacher was trained on all of them; the students were not.) Six "
        "epochs.\n",
    ]
    for pair in dict.fromkeys((row["teacher"], row["student"]) for row in rows):
        chosen = [row for row in rows if (row["teacher"], row["student"]) == pair]
        lines += [
            f"```bash\n{_weights_command(chosen)}\n```\n",
            f"| {pair[1]} | seeds | images | last epoch, % |",
            "| --- | ---: | ---: | ---: |",
        ]
        for label in dict.fromkeys(row["label"] for row in chosen):
            found = [row["accuracy_last"] for row in chosen if row["label"] == label]
            each = f" ({', '.join(f'{a:.2f}' for a in found)})" if len(found) > 1 else ""
            images = chosen[0]["images"]
            lines.append(f"| {label} | {len(found)} | {images:,} | {sum(found) / len(found):.2f}{each} |")
        lines.append("")
    return "\n".join(lines)


def _weights_command(rows: Sequence[dict[str, Any]]) -> str:
    first, seeds = rows[0], sorted({row["seed"] for row in rows})
    words = ["python", "-m", "benchmarks.weights", "--archive", first["archive"], "--teacher", first["teacher"]]
    words += ["--teacher-weights", first["teacher_weights"]] if first["teacher_weights"] else []
    words += ["--student", first["student"], "--batch-size", str(first["batch_size"]), "--lr", str(first["lr"])]
    return shlex.join([*words, "--seeds", *map(str, seeds)])


def _steps(result: dict[str, Any]) -> str:
    lines = [
        "## What a step costs\n",
        f"{result['teacher'].split(':')[-1]} into {result['student']}, batch {result['batch_size']} of "
        f"{result['image_size']}×{result['image_size']} images, {result['precision']}, {result['device']} with "
        f"{result['threads']} threads; the methods take turns, {result['rounds']} rounds, median ratio of a round's "
        "steps.\n",
        f"```bash\n{result['command']}\n```\n",
        "| method | to the student alone | to kd |",
        "| --- | ---: | ---: |",
        *(f"| {row['method']} | {row['to_none']:.2f} × | {row['to_kd']:.2f} × |" for row in result["rows"]),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Write the page, or compare it with the records."""
    made = page()
    if "--check" in sys.argv:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != made:
            print("docs/results.md is not what the records say: run python -m benchmarks.results_page", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
