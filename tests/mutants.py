"""Faults that the tests have to notice: each is put into a copy of the source, whose tests then have to fail.

    python tests/mutants.py             # all of them
    python tests/mutants.py crd fgd     # those whose names contain one of the words

Files are named by the ends of their paths, below `src/reldistill` and below `tests`. A mutant whose line has changed is
refused: write it anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE, TESTS = Path("src/reldistill"), Path("tests")
SECONDS = 900  # what takes longer hangs, which is noticed too


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Args:
        name: what is wrong then.
        file: the end of the path of the file that it is in.
        line: what stands there, exactly once.
        fault: what stands there instead.
        tests: ends of paths of test files, by spaces; with `::` and its name for a single test.
    """

    name: str
    file: str
    line: str
    fault: str
    tests: str


MUTANTS = (
    # Seventeen that lived once -----------------------------------------------------------------------------------
    Mutant(
        "shared seed: every rank its own",
        "across_ranks.py",
        "dist.broadcast(seed, src=0)",
        "pass",
        "contract/test_losses.py::test_two_processes_are_one",
    ),
    Mutant(
        "interval of an AP: the seeds are not drawn again",
        "report/seeds.py",
        "np.take_along_axis(change, chosen, axis=0)",
        "change",
        "report/test_seeds.py",
    ),
    Mutant(
        "interval of an AP: half of the bias corrected",
        "report/draws.py",
        "2 * shift + z",
        "shift + z",
        "metrics/test_resampled_ap.py",
    ),
    Mutant(
        "export of a detector: corners may differ 100,000 times as much",
        "detection/export.py",
        "BOX_PARITY, SCORE_PARITY = 1e-4, 1e-4",
        "BOX_PARITY, SCORE_PARITY = 1e1, 1e-4",
        "detection/test_export.py",
    ),
    Mutant(
        "a run's card: its mean and std are ignored",
        "networks/saved.py",
        "loaded = replace(loaded, mean=card.mean, std=card.std)",
        "pass",
        "networks/test_saved.py",
    ),
    Mutant(
        "cards: a file that only a card names is run",
        "core/trust.py",
        "if not is_from_outside(name) or name in _named:",
        "if name:",
        "networks/test_cards.py::test_a_card_runs_no_file",
    ),
    Mutant(
        "class order: the other way round",
        "networks/class_order.py",
        "return [place[name] for name in classes]",
        "return [list(classes).index(name) for name in trained_on]",
        "networks/test_class_order.py",
    ),
    Mutant(
        "copies: equal sizes will do",
        "data/copies.py",
        "digest(key) == digest(other)",
        "len(digest(key)) == len(digest(other))",
        "data/test_copies.py",
    ),
    Mutant(
        "fgd: the weights for FCOS are RetinaNet's",
        "detection/methods.py",
        "name: 1.6 * weight for name",
        "name: weight for name",
        "detection/test_methods.py::test_settings_of_fgd_are_its_authors",
    ),
    Mutant(
        "crd: momentum the other way round",
        "losses/crd.py",
        "self.momentum * bank[indices] + (1 - self.momentum) * gather_batch(embedding)",
        "(1 - self.momentum) * bank[indices] + self.momentum * gather_batch(embedding)",
        "losses/test_crd.py",
    ),
    Mutant(
        "balance: smoothing the other way round",
        "step/balance.py",
        "self.smoothing * math.log(before) + (1 - self.smoothing) * math.log(found)",
        "(1 - self.smoothing) * math.log(before) + self.smoothing * math.log(found)",
        "step/test_balance.py",
    ),
    Mutant(
        "augmentation: grey as if red were blue",
        "data/augment.py",
        "GREY = (0.299, 0.587, 0.114)",
        "GREY = (0.114, 0.587, 0.299)",
        "data/test_augment.py",
    ),
    Mutant(
        "augmentation of boxes: grey as if red were blue",
        "box_augment.py",
        "GREY = (124, 116, 104)",
        "GREY = (104, 116, 124)",
        "test_box_augment.py",
    ),
    Mutant(
        "fgd: left and upper edges to the nearest cell",
        "losses/fgd.py",
        "(boxes[..., :2] * sides).floor()",
        "(boxes[..., :2] * sides).round()",
        "losses/test_fgd.py",
    ),
    Mutant(
        "fgd: right and lower edges to the nearest cell",
        "losses/fgd.py",
        "(boxes[..., 2:] * sides).ceil()",
        "(boxes[..., 2:] * sides).round()",
        "losses/test_fgd.py",
    ),
    Mutant(
        "patience: an epoch longer than asked",
        "training/keeper.py",
        "self.epoch - best >= self.patience",
        "self.epoch - best > self.patience",
        "training/test_keeper.py",
    ),
    Mutant(
        "a part that outweighs the task: tenfold",
        "training/module.py",
        "> 100 * abs(task)",
        "> 10 * abs(task)",
        "training/test_module.py",
    ),
    Mutant(
        "a part that outweighs the task: negative ones never do",
        "training/module.py",
        "abs(float(value)) > 100",
        "float(value) > 100",
        "training/test_module.py",
    ),
    Mutant(
        "which images were right: an index just beyond them",
        "classification/metrics.py",
        "int(indices.max()) >= self.images",
        "int(indices.max()) > self.images",
        "classification/test_metrics.py",
    ),
    Mutant(
        "errors of a detector: an object of 32² pixels is small",
        "detection_errors.py",
        "(areas >= SMALL)",
        "(areas > SMALL)",
        "test_detection_errors.py",
    ),
    Mutant(
        "errors of a detector: an object of 96² pixels is large",
        "detection_errors.py",
        "(areas > LARGE)",
        "(areas >= LARGE)",
        "test_detection_errors.py",
    ),
    Mutant(
        "subspace: accepted before a missed direction could grow",
        "subspace_iteration.py",
        "good = worst <= target and wanted_growth <= 0",
        "good = worst <= target",
        "kernels/test_subspace_iteration.py",
    ),
    Mutant(
        "subspace: a missed direction need not grow",
        "subspace_iteration.py",
        "_LEAST_GROWTH = 50.0",
        "_LEAST_GROWTH = 1.0",
        "kernels/test_subspace_iteration.py",
    ),
    Mutant(
        "onnx: the file is written in place",
        "onnx_files.py",
        "write_bytes(target, part.read_bytes())",
        "target.write_bytes(part.read_bytes())",
        "export/test_export.py::test_a_graph_takes_the_place_of_a_file_in_one_step",
    ),
    Mutant(
        "distiller: a shared adapter's first tensor for every place",
        "step/distiller.py",
        "key = (term.adapter, term.student, (",
        'key = (term.adapter, "", (',
        "step/test_distiller.py",
    ),
    Mutant(
        "distiller: an adapter to the teacher fits the first of its places",
        "step/distiller.py",
        "(term.teacher_name, term.teacher_now) if fits else ()",
        "()",
        "step/test_distiller.py",
    ),
    # Losses ------------------------------------------------------------------------------------------------------
    Mutant(
        "kd: temperature not squared",
        "losses/kd.py",
        'reduction="batchmean", log_target=True) * temperature**2',
        'reduction="batchmean", log_target=True) * temperature',
        "losses/test_kd.py",
    ),
    Mutant(
        "dkd: weights exchanged",
        "losses/dkd.py",
        '{"target": target_weight, "nontarget": nontarget_weight}',
        '{"target": nontarget_weight, "nontarget": target_weight}',
        "losses/test_dkd.py",
    ),
    Mutant(
        "at: power ignored",
        "losses/at.py",
        "side.abs() ** power",
        "side.abs() ** 2",
        "losses/test_at.py",
    ),
    Mutant(
        "cc: one term fewer",
        "losses/cc.py",
        "range(1, order + 1)",
        "range(1, order)",
        "losses/test_cc.py",
    ),
    Mutant(
        "pkt: pairs with oneself not counted",
        "losses/pkt.py",
        'pairs = count * count if diagonal == "kept"',
        'pairs = count * (count - 1) if diagonal == "kept"',
        "losses/test_pkt.py",
    ),
    Mutant(
        "ofd: shallow maps count more",
        "losses/ofd.py",
        "2.0 ** (depth - len(student))",
        "2.0 ** (len(student) - depth)",
        "losses/test_ofd.py",
    ),
    Mutant(
        "vid: no price on the variance",
        "losses/vid.py",
        "/ variance + variance.log()).mean()",
        "/ variance).mean()",
        "losses/test_vid.py",
    ),
    Mutant(
        "mgd: masks what it should keep",
        "losses/mgd.py",
        ">= self.ratio)",
        "< self.ratio)",
        "losses/test_mgd.py",
    ),
    Mutant(
        "leap: smoothing the other way round",
        "losses/leap.py",
        "self.smoothing * (linear_cka",
        "(1 - self.smoothing) * (linear_cka",
        "losses/test_leap.py",
    ),
    Mutant(
        "leap: stays a step beyond the longest stay",
        "losses/leap.py",
        "progress - self.begun >= self.longest_stay",
        "progress - self.begun > self.longest_stay",
        "losses/test_leap.py",
    ),
    # Relations ---------------------------------------------------------------------------------------------------
    Mutant(
        "channel graph: a dead channel is unlike itself",
        "channel_graph.py",
        "(unit @ unit.mT).masked_fill(itself, 1.0)",
        "(unit @ unit.mT)",
        "relations/test_channel_graph.py",
    ),
    Mutant(
        "tokens: odd sizes rounded down",
        "relations/tokens.py",
        "-(-height // 2)",
        "height // 2",
        "relations/test_tokens.py",
    ),
    Mutant(
        "cells: by a token's left edge, not its centre",
        "relations/tokens.py",
        "(2 * i + 1) * cells // (2 * tokens)",
        "i * cells // tokens",
        "relations/test_tokens.py relations/test_superpixels.py",
    ),
    Mutant(
        "relational attention: edges weighed one way",
        "attention_products.py",
        "torch.add(factor, factor.mT, out=out)",
        "torch.add(factor, factor, out=out)",
        "relations/test_attention.py kernels/test_against_equations.py",
    ),
    Mutant(
        "spectrum: shifted weights without their half",
        "normalised_graph.py",
        "return (1.0 + adjacency) / 2.0",
        "return 1.0 + adjacency",
        "relations/test_spectrum.py",
    ),
    Mutant(
        "ranks: everybody's share is the first's",
        "across_ranks.py",
        "whole.chunk(_world_size())[dist.get_rank()]",
        "whole.chunk(_world_size())[0]",
        "losses/test_mgd.py",
    ),
    # Step and training -------------------------------------------------------------------------------------------
    Mutant(
        "term: the curriculum forgotten for a loss without parts",
        "step/term.py",
        'self.weights[""] * factor * self.loss',
        'self.weights[""] * self.loss',
        "step/test_term.py",
    ),
    Mutant(
        "adamw: biases and norms decay",
        "optimisers.py",
        "p.ndim <= 1 or",
        "p.ndim < 1 or",
        "training/test_optimisers.py",
    ),
    Mutant(
        "step schedule: a step late",
        "optimisers.py",
        "progress >= mark",
        "progress > mark",
        "training/test_optimisers.py",
    ),
    Mutant(
        "one-cycle: begins at a tenth",
        "optimisers.py",
        "0.04 + 0.96 *",
        "0.1 + 0.9 *",
        "training/test_optimisers.py",
    ),
    Mutant(
        "moving average: decay the other way round",
        "training/module.py",
        "get_ema_multi_avg_fn(ema_decay)",
        "get_ema_multi_avg_fn(1 - ema_decay)",
        "training/test_module.py",
    ),
    Mutant(
        "seed of a step: the same for all batches of an epoch",
        "training/keeper.py",
        "_mix(self.seed, self.epoch, self.batch, trainer.global_rank)",
        "_mix(self.seed, self.epoch, 0, trainer.global_rank)",
        "training/test_keeper.py",
    ),
    Mutant(
        "seed of a step: the same for all ranks",
        "training/keeper.py",
        "_mix(self.seed, self.epoch, self.batch, trainer.global_rank)",
        "_mix(self.seed, self.epoch, self.batch, 0)",
        "training/test_keeper.py",
    ),
    Mutant(
        "views: a run without a cache sees new ones",
        "runs/fit.py",
        'images.train.cycle_views(run.settings["views"])',
        'images.train.cycle_views(run.settings["views"] if cache else None)',
        "comparison/test_same_images.py::test_of_a_comparison",
    ),
    Mutant(
        "spectrum: isolated vertices stay among the others",
        "relations/normalised_graph.py",
        "ISOLATION = 1.5",
        "ISOLATION = 0.0",
        "losses/test_sekd_dead_channels.py::test_the_spectrum_is_that_of_the_others",
    ),
    Mutant(
        "teacher cache: always the first view",
        "training/keeper.py",
        "self.epoch % pl_module.teacher_cache.views",
        "0",
        "training/test_keeper.py",
    ),
    Mutant(
        "teacher cache: stored values may be anything like the live ones",
        "teacher_cache.py",
        "_TOLERANCE = 0.05",
        "_TOLERANCE = 0.5",
        "training/test_teacher_cache.py::test_values_may_be_off_by_a_twentieth_of_the_largest",
    ),
    Mutant(
        "resume: what was warned of is warned of again",
        "training/checkpoint.py",
        'module.warned = set(state["warned"])',
        "module.warned = set()",
        "training/test_module.py::test_a_resumed_run_does_not_warn_again",
    ),
    # Metrics -----------------------------------------------------------------------------------------------------
    Mutant(
        "cross entropy of validation: batches weigh alike",
        "classification/metrics.py",
        'labels, reduction="sum")',
        'labels, reduction="mean")',
        "classification/test_metrics.py",
    ),
    Mutant(
        "voc: a recall of exactly a tenth is not reached",
        "voc_ap.py",
        "10 * found >= tenths * objects",
        "10 * found > tenths * objects",
        "test_voc_ap.py",
    ),
    Mutant(
        "resampled AP: of equal objects the first",
        "resampled_ap.py",
        "len(values) - 1 - int(values[::-1].argmax())",
        "int(values.argmax())",
        "test_resampled_ap.py",
    ),
    Mutant(
        "errors of a detector: a fit of exactly a half is none",
        "detection_errors.py",
        '"classification": of_others.max(axis=1) >= FITS',
        '"classification": of_others.max(axis=1) > FITS',
        "test_detection_errors.py",
    ),
    # Data --------------------------------------------------------------------------------------------------------
    Mutant(
        "fingerprint: labels left out",
        "data/samples.py",
        "\\0{label}\\0",
        "\\0\\0",
        "data/test_samples.py",
    ),
    # Reports and export ------------------------------------------------------------------------------------------
    Mutant(
        "wilson's interval: its centre pulled twice as far",
        "report/intervals.py",
        "(share + z2 / 2) / (1 + z2)",
        "(share + z2) / (1 + z2)",
        "report/test_intervals.py",
    ),
    Mutant(
        "mcnemar: one-sided",
        "report/intervals.py",
        "min(1.0, 2 * tail / 2**flips)",
        "min(1.0, tail / 2**flips)",
        "report/test_intervals.py",
    ),
    Mutant(
        "a difference is resolved by either of its two tests",
        "report/intervals.py",
        "(self.low > 0 or self.high < 0) and",
        "(self.low > 0 or self.high < 0) or",
        "report/test_intervals.py",
    ),
    Mutant(
        "best epoch: the last of equals",
        "report/record.py",
        "(pair[0], -pair[1])",
        "(pair[0], pair[1])",
        "report/test_record.py",
    ),
    Mutant(
        "verdict: a teacher as good as the student alone passes",
        "report/run/verdict.py",
        "max(teachers) <= min(alone)",
        "max(teachers) < min(alone)",
        "run/test_verdict.py",
    ),
    Mutant(
        "verdict: chance puts more than all outside their intervals",
        "report/run/verdict.py",
        "min(5 * len(gains), 100)",
        "5 * len(gains)",
        "run/test_verdict.py",
    ),
    Mutant(
        "export of a network: its answers may differ by a tenth",
        "tasks/graphs.py",
        "PARITY = 1e-3",
        "PARITY = 1e-1",
        "classification/test_export.py",
    ),
)


class Refused(Exception):
    """The list and the tree do not fit each other."""


def ending_in(end: str, folder: Path) -> Path:
    """The one file below a folder whose path ends like that."""
    found = [path for path in folder.rglob(Path(end).name) if path.match(end)]
    if len(found) != 1:
        raise Refused(f"{end}: {len(found)} files below {folder} end in this")
    return found[0]


def mutated(mutant: Mutant, root: Path) -> tuple[Path, str]:
    """The file below a tree, and what it holds with the fault in it."""
    path = ending_in(mutant.file, root / SOURCE)
    text = path.read_text(encoding="utf-8")
    if (count := text.count(mutant.line)) != 1:
        raise Refused(f"{mutant.name}: {mutant.line!r} occurs {count} times in {path}, not once: write it anew")
    return path, text.replace(mutant.line, mutant.fault)


def named_tests(mutant: Mutant, root: Path) -> list[str]:
    """Its tests, as pytest takes them."""
    names = []
    for name in mutant.tests.split():
        end, _, function = name.partition("::")
        path = ending_in(end, root / TESTS)
        if function and f"def {function}(" not in path.read_text(encoding="utf-8"):
            raise Refused(f"{mutant.name}: {path} has no test {function}")
        names.append(f"{path}::{function}" if function else str(path))
    return names


def run_tests(names: Sequence[str], root: Path) -> tuple[int | None, str]:
    """pytest's exit code, None after too long, and the last line it said."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (root / "src", root))),
        "PYTHONDONTWRITEBYTECODE": "1",  # a fault of the same length, within the same second, would go unseen
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *names]
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"still running after {SECONDS} s"
    return done.returncode, (done.stdout + done.stderr).strip().rpartition("\n")[2]


def outcome(mutant: Mutant, root: Path) -> str:
    """`killed` or `alive`; another word where its tests could not run."""
    path, text = mutated(mutant, root)
    before = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    try:
        code, said = run_tests(named_tests(mutant, root), root)
    finally:
        path.write_text(before, encoding="utf-8")
    return {0: "alive", 1: "killed", None: "killed"}.get(code, f"broken: {said}")


def main(words: Sequence[str]) -> int:
    """Print what becomes of each mutant, and the score; 1 unless all are killed."""
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "results", "site"))
        for mutant in chosen:
            mutated(mutant, copy)
        names = sorted({name for mutant in chosen for name in named_tests(mutant, copy)})
        code, said = run_tests(names, copy)
        if code != 0:
            raise Refused(f"the tests fail without any fault: {said}")
        outcomes = []
        for mutant in chosen:
            start = time.perf_counter()
            outcomes.append(outcome(mutant, copy))
            print(f"{outcomes[-1]:<8}{time.perf_counter() - start:>5.0f} s  {mutant.name}", flush=True)
    killed = outcomes.count("killed")
    print(f"{killed} of {len(chosen)} killed")
    return int(killed < len(chosen))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Refused as refusal:
        sys.exit(str(refusal))
