"""Our relations against their textbook form, and what they add to a training step.

    python -m benchmarks.relations [--quick]

prints a table and writes benchmarks/results/relations.json, a row at a time. The two forms of a case take turns; the
ratio is the median of the rounds' ratios. Extra peak memory is that of one call over the same process just before it,
in a fresh process for each. On a machine that is busy with other things, set OMP_NUM_THREADS=1 and say `--clock cpu`:
the processor time of this process instead of the time on the wall.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import pkgutil
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import benchmarks
from benchmarks.cases import Case
from benchmarks.steps import best_device, device_name, seconds_of
from reldistill.training.trainer import resolve_precision

RESULTS = Path(__file__).parent / "results" / "relations.json"
ROUNDS = 25, 50  # of a case, at least and at most
MEMORY_MEASURES = ("smaller", "fits")
AT_MOST = ("costs", "fits")
MIB = 1 << 20


def all_cases(quick: bool) -> list[Case]:
    """Every row of the table: what the modules benchmarks/cases_NAME.py say."""
    names = [m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name.startswith("cases_")]
    return [case for name in sorted(names) for case in importlib.import_module(f"benchmarks.{name}").cases(quick)]


def measured(case: Case, *, quick: bool, clock: str, seconds: float) -> dict[str, Any]:
    """One row: `part`, `sizes`, `ratio`, `goal`, `met`, and the figures behind them."""
    row: dict[str, Any] = {"part": case.part, "sizes": case.sizes, "ratio": None, "goal": case.goal, "met": False}
    row |= {"measure": case.measure, "note": case.note}
    if case.measure in MEMORY_MEASURES:
        row |= _memory(case, quick=quick)
    else:
        row |= _times(case, quick=quick, clock=clock, seconds=seconds)
    reached = row["ratio"] <= case.goal if case.measure in AT_MOST else row["ratio"] >= case.goal
    agrees = row.get("agreement") is None or row["agreement"] <= case.tolerance
    if case.pieces is not None and not reached:
        row["pieces"] = case.pieces()
    return row | {"met": reached and agrees, "quick": quick, "command": _command(), "machine": machine()}


def _times(case: Case, *, quick: bool, clock: str, seconds: float) -> dict[str, Any]:
    assert case.textbook is not None, f"{case.part}: nothing to compare with"
    take: Callable[[Callable[[], object]], float] = seconds_of if clock == "wall" else _cpu_seconds
    if case.prepare is not None:
        case.prepare()
    began = time.perf_counter()
    values = case.ours(), case.textbook()
    row: dict[str, Any] = {}
    if case.compares_values:
        row["agreement"] = _difference(*values) if case.agreement is None else case.agreement()
        row["tolerance"] = case.tolerance
    one_round = time.perf_counter() - began
    rounds = 3 if quick else max(ROUNDS[0], min(ROUNDS[1], int(seconds / one_round)))
    ours: list[float] = []
    textbook: list[float] = []
    for number in range(rounds):
        # The order alternates, so that what a form leaves in the caches favours neither.
        for form, taken in [(case.ours, ours), (case.textbook, textbook)][:: -1 if number % 2 else 1]:
            taken.append(take(form))
    over = (ours, textbook) if case.measure == "costs" else (textbook, ours)
    ratios = [a / b for a, b in zip(*over, strict=True)]
    return row | {
        "ratio": statistics.median(ratios),
        "ratio_quartiles": _quartiles(ratios),
        "seconds": {"ours": statistics.median(ours), "compared": statistics.median(textbook)},
        "seconds_quartiles": {"ours": _quartiles(ours), "compared": _quartiles(textbook)},
        "rounds": rounds,
        "clock": clock,
    }


def _difference(ours: torch.Tensor, textbook: torch.Tensor) -> float:
    return float((ours - textbook).abs().max() / textbook.abs().max())


def _quartiles(values: Sequence[float]) -> list[float]:
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def _cpu_seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def _memory(case: Case, *, quick: bool) -> dict[str, Any]:
    ours = _extra_in_fresh_process(case, "ours", quick=quick)
    textbook = None if case.textbook is None else _extra_in_fresh_process(case, "textbook", quick=quick)
    ratio = ours if textbook is None else textbook / max(ours, 1.0)
    return {"ratio": ratio, "extra_mib": {"ours": ours, "compared": textbook}}


def _extra_in_fresh_process(case: Case, form: str, *, quick: bool) -> float:
    command = [sys.executable, "-m", "benchmarks.relations", "--extra-of", case.part, case.sizes, form]
    ended = subprocess.run(
        command + ["--quick"] * quick, capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    if ended.returncode:
        raise RuntimeError(f"{case.part}, {form}, in a process of its own: {ended.stderr.strip()}")
    return float(ended.stdout)


def extra_mib(part: str, sizes: str, form: str, *, quick: bool) -> float:
    """Extra peak memory of one call of a form in this process, MiB."""
    (case,) = [c for c in all_cases(quick) if (c.part, c.sizes) == (part, sizes)]
    # The same on a small case first: libraries that load, thread pools that start, are not the form's memory.
    for small in (c for c in all_cases(True) if c.part == part):
        _form(small, form)()
    if case.prepare is not None:
        case.prepare()
    gc.collect()
    if best_device().type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _form(case, form)()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    before = _peak_from_now_on()
    _form(case, form)()
    return (_peak() - before) / MIB


def _form(case: Case, form: str) -> Callable[[], torch.Tensor]:
    chosen = case.ours if form == "ours" else case.textbook
    assert chosen is not None
    return chosen


def _peak_from_now_on() -> int:
    """Forget the peak so far where the system can (Linux); bytes that are in use now."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    return _peak()


def _peak() -> int:
    """The largest resident size of this process, bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine() -> dict[str, Any]:
    """What the figures were taken on, and by which command."""
    return {
        "device": device_name(),
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "precision_of_steps": resolve_precision("auto"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _command() -> str:
    """As it was given, but for where the rows go."""
    words = sys.argv[1:]
    if "--out" in words:
        at = words.index("--out")
        words = words[:at] + words[at + 2 :]
    return shlex.join(["python", "-m", "benchmarks.relations", *words])


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def text_of(row: dict[str, Any]) -> str:
    """One line of the table on the terminal."""
    sign = "≤" if row["measure"] in AT_MOST else "≥"
    unit = " MiB" if row["measure"] == "fits" else " ×"
    return (
        f"{row['part']:44s} {row['sizes']:68s} {row['ratio']:8.3g}{unit:4s} (goal {sign} {row['goal']:g}) "
        f"{'met' if row['met'] else 'MISSED'}"
    )


def write_row(out: Path, row: dict[str, Any]) -> None:
    """Put a row in the place of the one of that part, sizes and device, or behind the others."""

    def key(r: dict[str, Any]) -> tuple[str, str, str]:
        return r["part"], r["sizes"], r["machine"]["device"]

    rows = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else []
    places = [i for i, r in enumerate(rows) if key(r) == key(row)]
    if places:
        rows[places[0]] = row
    else:
        rows.append(row)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: whether it works, no figures")
    parser.add_argument("--only", default="", help="parts whose name holds this")
    parser.add_argument("--seconds", type=float, default=40.0, help="of measuring a case, where that is enough rounds")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--extra-of", nargs=3, metavar=("PART", "SIZES", "FORM"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.extra_of:
        part, sizes, form = given.extra_of
        print(extra_mib(part, sizes, form, quick=given.quick))
        return
    cases = all_cases(given.quick)
    if not given.only and given.out.is_file():
        # A whole run leaves no row of a case that is no more, nor one of another size.
        rows = json.loads(given.out.read_text(encoding="utf-8"))
        kept = {(case.part, case.sizes) for case in cases}
        rows = [r for r in rows if r["machine"]["device"] != device_name() or (r["part"], r["sizes"]) in kept]
        given.out.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    # Popped one by one: a case that is done lets go of its tensors.
    cases.reverse()
    while cases:
        case = cases.pop()
        if given.only in case.part:
            row = measured(case, quick=given.quick, clock=given.clock, seconds=given.seconds)
            write_row(given.out, row)
            print(text_of(row), flush=True)


if __name__ == "__main__":
    main()
