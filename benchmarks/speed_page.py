"""docs/speed.md from relations.json, cache.json and profile.json; `benchmarks.results_page` writes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "speed.md"

INTRODUCTION = """\
# What the relations cost

Made by `python -m benchmarks.results_page` from `benchmarks/results`; a test fails when the two differ.

The textbook form of each relation, written from its equation (batched, no loop over images), is in
`benchmarks/reference`; the package never imports it. Both forms take turns in one process, forward and backward, and
the ratio is the median of the rounds' ratios. Extra peak memory is that of one call over the same process just before
it, in a fresh process for each form. A whole step is both networks, all losses, backward and the optimiser.

```bash
python -m benchmarks.relations
```
"""

RATIO = {
    "faster": "{ratio:.1f} × faster",
    "costs": "{percent:+.1f} % time",
    "smaller": "1/{ratio:.0f} of the memory",
    "fits": "{ratio:,.0f} MiB",
}
GOAL = {
    "faster": "≥ {ratio:g} ×",
    "costs": "≤ {percent:+.0f} %",
    "smaller": "≤ 1/{ratio:g}",
    "fits": "≤ {ratio:,.0f} MiB",
}


def page() -> str:
    """The whole page."""
    sections = [INTRODUCTION]
    if (RESULTS / "relations.json").is_file():
        sections.append(_relations(json.loads((RESULTS / "relations.json").read_text(encoding="utf-8"))))
    if (RESULTS / "cache.json").is_file():
        sections.append(_cache(json.loads((RESULTS / "cache.json").read_text(encoding="utf-8"))))
    if (RESULTS / "profile.json").is_file():
        sections.append(_profile(json.loads((RESULTS / "profile.json").read_text(encoding="utf-8"))))
    return "\n".join(sections)


def _relations(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for device in dict.fromkeys(row["machine"]["device"] for row in rows):
        chosen = [row for row in rows if row["machine"]["device"] == device]
        lines += [f"## On the {device}\n" if device == "CPU" else f"## On one {device}\n", _conditions(chosen), ""]
        lines += [
            "| part | sizes | found | quartiles | goal | values differ by | |",
            "| --- | --- | ---: | ---: | ---: | ---: | --- |",
            *map(_row, chosen),
            "",
        ]
        if device != "CPU":
            lines += [_on_a_gpu(chosen), ""]
        notes = {row["note"]: row["part"] for row in chosen if row["note"]}
        lines += [f"- {part}: {note}." for note, part in notes.items()] + [""]
        missed = [row for row in chosen if row.get("pieces") and not row["met"]]
        if missed:
            lines += [
                "Where the goal is missed, and what ours takes its time for (by PyTorch's profiler, which adds to what "
                "is left over):",
                "",
            ]
            lines += [*map(_missed, missed), ""]
    return "\n".join(lines)


def _on_a_gpu(rows: Sequence[dict[str, Any]]) -> str:
    """Why so many goals are out of reach there."""
    parts = [row["seconds"]["compared"] for row in rows if row.get("seconds") and "whole step" not in row["part"]]
    least, most = (_ms(seconds) for seconds in (min(parts), max(parts)))
    return (
        f"The goals of single parts were set for two CPU cores. Here their textbook forms take {least} to {most}, "
        "most of it to start one small operation after the other; a way that computes less gains little on that, and "
        "what ours gain is by starting fewer (recorded as CUDA graphs, small spectra in one visit to the CPU)."
    )


def _conditions(rows: Sequence[dict[str, Any]]) -> str:
    """What machine and in what way, said once where all rows agree."""
    said = []
    for row in rows:
        machine = row["machine"]
        threads = machine["threads"]
        clock = ", processor time of a shared machine" if row.get("clock") == "cpu" else ""
        said.append(
            f"{machine['cpu']}, {threads} thread{'s' * (threads != 1)}, PyTorch {machine['torch']}, steps in "
            f"{machine['precision_of_steps']}{clock}{'; small sizes, a trial of the benchmark' * row['quick']}"
        )
    # Memory has no clock: its rows say what the others say but for that.
    kinds = [kind for kind in dict.fromkeys(said) if not any(other.startswith(f"{kind},") for other in said)]
    return "; ".join(kinds) + "."


def _row(row: dict[str, Any]) -> str:
    found, goal = (_words(form[row["measure"]], row[key]) for form, key in ((RATIO, "ratio"), (GOAL, "goal")))
    quartiles = " – ".join(
        _words("{percent:+.1f} %" if row["measure"] == "costs" else "{ratio:.1f}", q)
        for q in row.get("ratio_quartiles", [])
    )
    agreement = "" if row.get("agreement") is None else f"{row['agreement']:.0e}"
    return (
        f"| {row['part']} | {row['sizes']} | {found} | {quartiles} | {goal} | {agreement} "
        f"| {'met' if row['met'] else '**missed**'} |"
    )


def _missed(row: dict[str, Any]) -> str:
    compared, costs = row["seconds"]["compared"], row["measure"] == "costs"
    goal = f"leaves {_ms(compared * (row['goal'] - 1))} to add" if costs else f"is {_ms(compared / row['goal'])}"
    taken = row["seconds"]["ours"] - compared if costs else row["seconds"]["ours"]
    pieces = ", ".join(f"{name} {_ms(seconds)}" for name, seconds in row["pieces"].items())
    return (
        f"- {row['part']}, {row['sizes']}: the goal {goal}, ours {'adds' if costs else 'takes'} {_ms(taken)}; {pieces}."
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 0.1 else f"{1e3 * seconds:.0f} ms"


def _words(form: str, ratio: float) -> str:
    if form == RATIO["faster"] and ratio < 0.95:
        form, ratio = "{ratio:.1f} × slower", 1 / ratio
    return form.format(ratio=ratio, percent=100 * (ratio - 1))


def _cache(result: dict[str, Any]) -> str:
    lines = [
        "## From a teacher cache\n",
        f"{result['student']} from {result['teacher'].split(':')[-1]} on CIFAR-10, one view, the cache full "
        f"(`--cache-teacher`); the median training step of whole runs that take turns, {result['rounds']} rounds, "
        f"{result['machine']['cpu']}, {result['machine']['threads']} threads.\n",
        f"```bash\n{result['command']}\n```\n",
        "| method | from the cache, to the student alone | with the teacher running | goal | an image and view | |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {row['method']} | {row['ratio']:.2f} × | {row['ratio_live']:.2f} × | ≤ {row['goal']:g} × "
        f"| {row['bytes_per_view'] / 1000:.1f} kB | {'met' if row['met'] else '**missed**'} |"
        for row in result["rows"]
    ]
    return "\n".join([*lines, *_of_losses(result), ""])


def _of_losses(result: dict[str, Any]) -> list[str]:
    """Why a method misses: its losses alone, by the profile of steps with the teacher."""
    file = RESULTS / "profile.json"
    profiled = json.loads(file.read_text(encoding="utf-8"))["methods"] if file.is_file() else {}
    lines = []
    for row in result["rows"]:
        share = profiled.get(row["method"], {}).get("share", {})
        losses = sum(share.get(part, 0.0) for part in (f"loss {row['method']}", "loss feature", "losses, backward"))
        alone = 1 - losses - share.get("teacher forward", 0.0)
        if share and not row["met"]:
            lines.append(
                f"- {row['method']}: its losses alone are {100 * losses / alone:.0f} % of what a step without them and "
                "without the teacher takes (see the profile below), reading the cache is the rest."
            )
    return ["", *lines] if lines else []


def _profile(result: dict[str, Any]) -> str:
    lines = [
        "## Where a step's time goes\n",
        f"{result['student']} from {result['teacher']} on CIFAR-10 held in memory, batch {result['batch_size']}, "
        f"{result['precision']}, {result['device']}, {result['machine']['threads']} thread"
        f"{'s' * (result['machine']['threads'] != 1)}; {result['steps']} steps a method; share of the step's "
        f"{'processor' if result['clock'] == 'cpu' else 'wall-clock'} time. What is ours is data, hooks, losses and "
        "logging.\n",
        f"```bash\n{result['command']}\n```\n",
    ]
    methods = list(result["methods"])
    lines += ["| part | " + " | ".join(methods) + " |", "| --- |" + " ---: |" * len(methods)]
    parts = list(dict.fromkeys(part for method in methods for part in result["methods"][method]["share"]))
    for part in parts:
        shares = [result["methods"][method]["share"].get(part) for method in methods]
        lines.append(f"| {part} | " + " | ".join("" if s is None else f"{100 * s:.1f} %" for s in shares) + " |")
    return "\n".join([*lines, ""])
