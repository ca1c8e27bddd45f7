"""Where the time of a training step goes, in the run that `reldistill distill` makes of images held in memory.

    python -m benchmarks.profile --archive cifar10-jpeg.zip --teacher my_resnet.py:resnet56 \\
        --teacher-weights resnet56-cifar10jpeg.safetensors --student resnet20

writes benchmarks/results/profile.json: the share of each part, each second counted once. `losses, backward` is the time
from the start of the backward pass until the student's class scores have their gradient. On a busy machine, set
OMP_NUM_THREADS=1 and say `--clock cpu`.
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.relations import machine
from benchmarks.steps import device_name
from benchmarks.subset import subset
from reldistill.data.loader import MemoryPixels
from reldistill.networks.extract import Extractor
from reldistill.runs.distill import distill
from reldistill.step.distiller import Distiller
from reldistill.step.term import Term
from reldistill.training.module import DistillationModule
from reldistill.training.settings import DataSettings, PairSettings, TrainSettings
from reldistill.training.trainer import resolve_precision

RESULTS = Path(__file__).parent / "results" / "profile.json"
WARM_UP = 10
REST = "Trainer, logging, rest"


class Clock:
    """Seconds by name, those of an inner part taken off the outer one."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.seconds: dict[str, float] = defaultdict(float)
        self.names = [REST]
        self.began = now()
        self.running = False

    def switch(self) -> None:
        """Give the time since the last switch to the part that is going on."""
        now = self.now()
        if self.running:
            self.seconds[self.names[-1]] += now - self.began
        self.began = now

    def call(self, name: str, function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """Call, as that part."""
        self.switch()
        self.names.append(name)
        try:
            return function(*arguments, **more)
        finally:
            self.switch()
            self.names.pop()

    def rename(self, name: str) -> None:
        """What is going on becomes another part."""
        self.switch()
        self.names[-1] = name

    def start(self) -> None:
        """Forget what came before."""
        self.switch()
        self.seconds.clear()
        self.running = True

    def stop(self) -> None:
        """Count no further."""
        self.switch()
        self.running = False


def instrument(clock: Clock, stack: ExitStack) -> None:
    """Time the parts of every step until the stack is closed."""

    def wrap(owner: type, method: str, name: str | Callable[[Any], str]) -> None:
        original = getattr(owner, method)

        @functools.wraps(original)
        def timed(self: Any, *arguments: Any, **more: Any) -> Any:
            return clock.call(name if isinstance(name, str) else name(self), original, self, *arguments, **more)

        stack.enter_context(patch.object(owner, method, timed))

    def batches(self: MemoryPixels, *arguments: Any) -> Iterator[Any]:
        source = original_batches(self, *arguments)
        while (batch := clock.call("data", next, source, None)) is not None:
            yield batch

    def forward(self: Extractor, images: Any, **more: Any) -> Any:
        role = "student" if self.network.training else "teacher"
        handles = [
            self.network.register_forward_pre_hook(lambda *_: clock.rename(f"{role} forward")),
            self.network.register_forward_hook(lambda *_: clock.rename("normalisation, hooks")),
        ]
        try:
            features = clock.call("normalisation, hooks", original_forward, self, images, **more)
        finally:
            for handle in handles:
                handle.remove()
        if features.logits is not None and features.logits.requires_grad:
            features.logits.register_hook(lambda _: clock.rename("student backward"))
        return features

    def step(self: Any, closure: Callable[[], Any] | None = None) -> Any:
        assert closure is not None
        return clock.call("optimiser", original_step, self, lambda: clock.call(REST, closure))

    def training_step(self: DistillationModule, *arguments: Any) -> Any:
        if self.batches_done == WARM_UP:
            clock.start()
        return original_training_step(self, *arguments)

    def validation(self: DistillationModule) -> None:
        clock.stop()
        original_validation(self)

    original_batches, original_forward, original_step = MemoryPixels.batches, Extractor.forward, torch.optim.SGD.step
    original_training_step = DistillationModule.training_step
    original_validation = DistillationModule.on_validation_epoch_start
    for owner, method, replacement in (
        (MemoryPixels, "batches", batches),
        (Extractor, "forward", forward),
        (torch.optim.SGD, "step", step),
        (DistillationModule, "training_step", training_step),
        (DistillationModule, "on_validation_epoch_start", validation),
    ):
        stack.enter_context(patch.object(owner, method, replacement))
    wrap(Term, "forward", lambda term: f"loss {term.name}")
    wrap(Distiller, "forward", "task, adapters, sums")
    wrap(DistillationModule, "backward", "losses, backward")


def shares(method: str, networks: dict[str, Any], archive: Path, *, batch_size: int, clock: Clock) -> dict[str, Any]:
    """One method's epoch: its share by part, and the seconds of a step."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        instrument(clock, stack)
        distill(
            DataSettings(data=str(archive), image_size=32),
            PairSettings(**networks, method=method),
            TrainSettings(epochs=1, batch_size=batch_size, lr=0.02),
            out=Path(folder) / "run",
        )
    total = sum(clock.seconds.values())
    share = {name: seconds / total for name, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1])}
    return {"seconds": total, "share": share}


def main() -> None:
    """Profile every method that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--teacher-weights")
    parser.add_argument("--student", required=True)
    parser.add_argument("--methods", nargs="+", default=["kd", "serkd", "sekd"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    networks = {"teacher": given.teacher, "teacher_weights": given.teacher_weights, "student": given.student}
    now = time.perf_counter if given.clock == "wall" else time.process_time
    methods = {}
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "subset.zip"
        # The steps before the clock starts come on top. Of ten classes.
        images = -(-(given.steps + WARM_UP) * given.batch_size // 10)
        subset(given.archive, archive, images=images, val="train")
        for method in given.methods:
            methods[method] = shares(method, networks, archive, batch_size=given.batch_size, clock=Clock(now))
            print(method, *(f"{name} {100 * s:.1f} %" for name, s in methods[method]["share"].items()), sep="\n  ")
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.profile", *sys.argv[1:]]),
        **networks,
        "batch_size": given.batch_size,
        "steps": given.steps,
        "clock": given.clock,
        "precision": resolve_precision("auto"),
        "device": device_name(),
        "machine": machine(),
        "methods": methods,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
