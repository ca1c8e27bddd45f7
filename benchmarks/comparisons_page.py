"""The sections of docs/results.md that `reldistill compare` and `sweep` filled, from benchmarks/results."""

from __future__ import annotations

import itertools
import json
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reldistill.report.comparison import comparison_text
from reldistill.report.comparison.cell_records import ARRAYS_FILE, TEST_FILE
from reldistill.report.comparison.comparison_text import difference_text, spread
from reldistill.report.comparison.pairs_section import PAIRS, pairs_markdown
from reldistill.report.comparison.summary import Comparison, Summary, read_comparison, summaries
from reldistill.report.paired import ALONE
from reldistill.report.record import read_record
from reldistill.report.seeds import METHOD, difference_over_seeds
from reldistill.report.words import percent

UNSEEN = "val2017.json"


@dataclass(frozen=True)
class Section:
    """What the records don't say of a comparison.

    Args:
        title: of the section.
        text: of the budget, the networks, the images.
        before: the commands whose outcome the comparison starts from.
        after: those that follow it.
    """

    title: str
    text: str
    before: Sequence[str] = ()
    after: Sequence[str] = ()


class Commands:
    """The commands behind the figures of a page, each said once, under the title of the section that has it first."""

    def __init__(self) -> None:
        self._of_sections: dict[str, list[str]] = {}

    def add(self, title: str, commands: Sequence[str]) -> None:
        """Those of one section, but for what an earlier section has already."""
        known = {command for earlier in self._of_sections.values() for command in earlier}
        self._of_sections[title.strip("# \n")] = [one for one in dict.fromkeys(commands) if one not in known]

    def section(self) -> str:
        """The page's last one."""
        blocks = ["\n".join([f"# {title}", *commands]) for title, commands in self._of_sections.items()]
        return "\n".join(["## Commands\n", "```bash", "\n\n".join(blocks), "```", ""])


_MINUTES = (
    "A budget of minutes a run, on a fifth of the training images: how fast a method helps, not how far it gets. The "
    "test images were looked at once, at the end of each run."
)
_CIFAR = "python -m benchmarks.subset cifar10-jpeg.zip cifar10-10k.zip --images 1000 --val test"

SECTIONS = {
    "compare-resnet56-resnet20": Section("Methods side by side: ResNet-56 into ResNet-20", _MINUTES, [_CIFAR]),
    "compare-resnet56-vgg8": Section("Methods side by side: ResNet-56 into VGG-8", _MINUTES, [_CIFAR]),
    "sweep-dkd-resnet20": Section(
        "The weight of dkd's other classes: ResNet-56 into ResNet-20",
        "The tables above have the literature's default, 8 after a warm-up, which is meant for 240 epochs.",
        [_CIFAR],
    ),
    "sweep-balance-resnet20": Section(
        "Weights found while training: ResNet-56 into ResNet-20",
        "`balance` is the share of the task's gradient that each part of serkd+sekd gets (`--balance`); 0 stands for "
        "the default weights, which were chosen by hand on this very pair, on other images (the features still at 1: "
        "see below).",
        [_CIFAR],
    ),
    "sweep-balance-digits": Section(
        "Weights found while training: scans of digits",
        "The same for ResNet-20 into ResNet-8, on one of the pairs that the default weights were chosen on too.",
        ["reldistill train --data digits --model resnet20 --epochs 20 --batch-size 64 --out digits-teacher"],
    ),
    "compare-coco128": Section(
        "Detectors that learn 128 images of COCO by heart",
        "Both detectors start from random weights, see 128 images of COCO again and again, and are asked for the "
        "objects in these same images: a check that targets, transforms and losses are right, and of how fast a method "
        "helps, not of detection. What they find in 128 images that neither has seen stands beside it, for what it is. "
        "(The teacher was trained before [an FCOS started with boxes of a cell's "
        "size](decisions.md#fcos-starts-with-boxes-of-a-cells-size).)",
        ["python -m benchmarks.same_images coco256 coco128"],
        [
            "for run in teacher detectors/*/seed-*; do",
            f"    reldistill evaluate $run --data coco:coco256 --json > $run/{UNSEEN}",
            "done",
        ],
    ),
}


EARLIER = "earlier-serkd"
"""Folders of runs of serkd by an earlier default, by its name here, and in there by pair of PAIRS_OF_CLASSIFIERS."""

EARLIER_WORDS = (
    "Two defaults of serkd between CNNs are others than at first, both chosen on validation images: the weight of its "
    "features, see the end of this page, and the level, where the deepest one has fewer than nine superpixels. "
    "`serkd` of the tables above is by the defaults of today; beside it, on test images that nothing was chosen by, "
    "the same runs with one of them as it was, and the option that gives it."
)

DEFAULTS = {
    "feature-1": ("features weigh 1, not 8", """`--weights '{"feature": 1}'`"""),
    "last-level": ("the 4×4 level, not the 8×8 one", "`--levels layer5:layer3`"),
}

PAIRS_OF_CLASSIFIERS = {
    "compare-resnet56-resnet20": "ResNet-56 → ResNet-20",
    "compare-resnet56-vgg8": "ResNet-56 → VGG-8",
}


def sections(results: Path, commands: Commands) -> list[str]:
    """One for each comparison among the records, and how their intervals are made; what they ran goes to `commands`."""
    found = [
        _section(read_comparison(results / folder), words, commands)
        for folder, words in SECTIONS.items()
        if (results / folder).is_dir()
    ]
    if (results / EARLIER).is_dir():
        found.append(_before_and_after(results))
    return [*found, f"## How the intervals of the comparisons are made\n\n{METHOD}\n"] if found else []


def headline(results: Path) -> str:
    """The README's table: the pairs of classifiers side by side, those methods that all of them were compared by."""
    found = {name: read_comparison(results / folder) for folder, name in PAIRS_OF_CLASSIFIERS.items()}
    rows = {name: {row.variant: row for row in summaries(comparison)} for name, comparison in found.items()}
    means = {
        method: statistics.mean(each[method].mean or 0.0 for each in rows.values())
        for method in next(iter(rows.values()))
        if all(method in each and each[method].mean is not None for each in rows.values())
    }
    lines = ["| | " + " | ".join(found) + " |", "| --- |" + " ---: |" * len(found)]
    for method in sorted(means, key=lambda method: -means[method]):
        cells = [_ahead_of_kd(each[method]) for each in rows.values()]
        lines.append(f"| {'student alone' if method == ALONE else f'`{method}`'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ahead_of_kd(row: Summary) -> str:
    text = spread(row.mean, row.std, 1)
    return f"**{text}**" if row.vs_kd is not None and row.vs_kd.low > 0 else text


def _section(comparison: Comparison, words: Section, commands: Commands) -> str:
    """Without times and memory: the machine was shared while the cells ran."""
    rows = summaries(comparison)
    detectors = comparison.head.settings.get("task") == "detection"
    table = _points if comparison.head.kind == "sweep" else _boxes if detectors else _classes
    ran = [*words.before, *_training(comparison), shlex.join(comparison.head.command), *words.after]
    commands.add(words.title, ran)
    said = [*comparison_text.verdict(comparison, rows), *comparison_text.caveats(comparison, rows)]
    return "\n".join(
        [
            f"## {words.title}\n",
            f"{comparison_text.setting(comparison)} {words.text}\n",
            *table(comparison, rows),
            "",
            *(f"- {line}" for line in said),
            "",
        ]
    )


def _before_and_after(results: Path) -> str:
    """serkd by a default that it had and by those it has, on test images that neither was chosen by."""
    lines = [
        "| pair | earlier | option | earlier, % | now, % | change | seeds |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for (default, words), (folder, pair) in itertools.product(DEFAULTS.items(), PAIRS_OF_CLASSIFIERS.items()):
        earlier = results / EARLIER / default / folder
        if not earlier.is_dir():
            continue
        cells = {cell.plan.seed: cell.folder for cell in read_comparison(results / folder).variants["serkd"]}
        then = sorted(earlier.iterdir())
        today = [cells[int(run.name.removeprefix("seed-"))] for run in then]
        change = difference_over_seeds(*(_hits(some) for some in (today, then)))
        lines.append(
            f"| {pair} | {' | '.join(words)} | {_mean_score(then)} | {_mean_score(today)} "
            f"| {difference_text(change, 2)} | {len(then)} |"
        )
    return "\n".join([f"## What other defaults of serkd changed\n\n{EARLIER_WORDS}\n", *lines, ""])


def _mean_score(runs: Sequence[Path]) -> str:
    return of_several([json.loads((run / TEST_FILE).read_text())["test_last"] for run in runs], 2)


def _hits(runs: Sequence[Path]) -> np.ndarray:
    """(runs, test images), whether each was right at the last epoch."""
    return np.stack([np.load(run / ARRAYS_FILE)["correct_last"] for run in runs])


def _training(comparison: Comparison) -> list[str]:
    """The commands that made the teacher, where its record stands beside the cells."""
    folder, name = comparison.folder / "teacher", comparison.head.settings["teacher"]
    if not folder.is_dir():
        return []
    command = read_record(folder).command
    out = command[command.index("--out") + 1]
    return [shlex.join(command), *([f"mv {out} {name}"] if out != name else [])]


def _points(comparison: Comparison, rows: Sequence[Summary]) -> list[str]:
    lines = [
        "| point | validation, best epoch, % | test, last epoch, % | seeds |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {row.variant}{' (chosen)' * row.chosen} | {spread(row.mean_val, row.std_val, 2)} "
            f"| {spread(row.mean, row.std, 2)} | {len(row.seeds)} |"
            for row in rows
        ),
    ]
    return _with_pairs(lines, comparison, rows)


def _classes(comparison: Comparison, rows: Sequence[Summary]) -> list[str]:
    lines = [
        "| method | last epoch, % | over the student alone | over kd | agrees with the teacher, % | seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        if row.mean is not None:
            lines.append(
                f"| {row.variant} | {spread(row.mean, row.std, 2)} | {difference_text(row.vs_none, 2)} "
                f"| {difference_text(row.vs_kd, 2)} | {percent(row.agreement, 2)} | {len(row.seeds)} |"
            )
    return _with_pairs(lines, comparison, rows)


def _with_pairs(lines: list[str], comparison: Comparison, rows: Sequence[Summary]) -> list[str]:
    pairs = pairs_markdown(comparison, rows)
    return [*lines, "", f"Each against each. {' '.join(PAIRS.split())}", "", *pairs] if pairs else lines


def _boxes(comparison: Comparison, rows: Sequence[Summary]) -> list[str]:
    lines = [
        "| method | AP | over the student alone | AP50 | AP of unseen images | seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    teacher = comparison.folder / "teacher"
    measured = read_record(teacher).history[-1].val
    unseen = json.loads((teacher / UNSEEN).read_text())
    lines.append(f"| teacher | {measured['AP']:.1f} | | {measured['AP50']:.1f} | {unseen['AP']:.2f} | 1 |")
    for row in rows:
        cells = [cell for cell in comparison.variants[row.variant] if cell.record is not None and cell.test is not None]
        ap50 = [cell.record.history[-1].val["AP50"] for cell in cells if cell.record is not None]
        unseen_aps = [json.loads((cell.folder / UNSEEN).read_text())["AP"] for cell in cells]
        lines.append(
            f"| {row.variant} | {spread(row.mean, row.std, 1)} | {difference_text(row.vs_none, 1)} "
            f"| {of_several(ap50, 1)} | {of_several(unseen_aps, 2)} | {len(cells)} |"
        )
    return lines


def of_several(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation over the seeds."""
    return spread(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, digits)
