"""What each method adds to a training step: interleaved in one process, as ratios to `none` and to `kd`.

    python -m benchmarks.steps --teacher my_resnet.py:resnet56 --teacher-weights resnet56-cifar10jpeg.safetensors \\
        --student resnet20

writes benchmarks/results/steps.json. The images are random: a step's time doesn't depend on what they show.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import device as best_device
from reldistill import Choices, build_distiller
from reldistill.core.types import Batch, ClassLabels
from reldistill.methods.build import TaskObjective
from reldistill.networks.saved import open_network
from reldistill.step.distiller import Distiller
from reldistill.tasks.classification.objective import Classification
from reldistill.tasks.detection.boxes import Boxes
from reldistill.tasks.detection.networks.saved_detectors import open_detector
from reldistill.tasks.detection.objective import Detection
from reldistill.training.trainer import resolve_precision

RESULTS = Path(__file__).parent / "results" / "steps.json"
METHODS = ("none", "kd", "rkd", "kd+rkd", "serkd", "sekd", "serkd+sekd")


@dataclass(frozen=True)
class Pair:
    """Two networks and the images they see.

    Args:
        teacher: as the zoo takes it.
        student: likewise.
        batch_size: images of a step.
        image_size: their side.
        num_classes: of the images, and so of both networks.
        teacher_weights: a file; without one the teacher's weights are random, which costs the same time.
    """

    teacher: str
    student: str
    batch_size: int
    image_size: int
    num_classes: int
    teacher_weights: str | None = None

    @property
    def frame(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.image_size, self.image_size

    def distiller(self, method: str, settings: Mapping[str, Mapping[str, Any]] | None = None) -> Distiller:
        """By that method, on the benchmarks' device."""
        torch.manual_seed(0)
        distiller = build_distiller(
            method,
            student=self.opened(self.student),
            teacher=None if method == "none" else self.opened(self.teacher, self.teacher_weights),
            image_size=self.image_size,
            task=self.task(),
            choices=Choices(settings=settings or {}),
        )
        return distiller.to(best_device(), memory_format=torch.channels_last)

    def opened(self, name: str, weights: str | None = None) -> Any:
        """The extractor of one of the networks."""
        sizes = {"num_classes": self.num_classes, "image_size": self.image_size}
        return open_network(name, role="model", weights=weights, **sizes).extractor

    def task(self) -> TaskObjective:
        """What the student learns beside."""
        return Classification()

    def batch(self) -> Batch:
        """Random images."""
        device = best_device()
        images = torch.rand(self.batch_size, 3, self.image_size, self.image_size, device=device)
        labels = torch.randint(self.num_classes, (self.batch_size,), device=device)
        return Batch(images.to(memory_format=torch.channels_last), ClassLabels(labels))


@dataclass(frozen=True)
class DetectorPair(Pair):
    """Two detectors, and images of 4:3 with seven boxes each, as many as COCO has in the mean.

    `image_size` is the shorter side.
    """

    @property
    def frame(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.image_size, self.image_size * 4 // 3

    @property
    def classes(self) -> list[str]:
        """Names for the classes."""
        return [f"class {number}" for number in range(self.num_classes)]

    def opened(self, name: str, weights: str | None = None) -> Any:
        """The extractor of one of the detectors."""
        return open_detector(
            name, role="model", classes=self.classes, min_size=self.image_size, weights=weights
        ).extractor

    def task(self) -> TaskObjective:
        """The detector's own losses."""
        return Detection(self.classes)

    def batch(self) -> Batch:
        """Random images and boxes."""
        count, (height, width) = 7 * self.batch_size, self.frame
        starts, ends = torch.rand(count, 2) * 0.6, torch.rand(count, 2) * 0.3
        corners = torch.cat([starts, starts + 0.1 + ends], dim=1) * torch.tensor([width, height, width, height])
        boxes = Boxes(
            corners,
            torch.randint(self.num_classes, (count,)),
            torch.arange(self.batch_size).repeat_interleave(7),
            torch.tensor([[height, width]] * self.batch_size),
        )
        images = torch.rand(self.batch_size, 3, height, width).to(memory_format=torch.channels_last)
        return Batch(images, boxes, torch.arange(self.batch_size)).to(best_device())


def autocast() -> torch.autocast:
    """The precision that a run takes by itself."""
    return torch.autocast(best_device().type, dtype=torch.bfloat16, enabled=resolve_precision("auto") == "bf16-mixed")


def training_step(distiller: Distiller, batch: Batch) -> Callable[[], Tensor]:
    """One whole training step as a function: both networks, losses, backward, SGD; its result is the loss."""
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=1e-3, momentum=0.9)

    def step() -> Tensor:
        with autocast():
            total = distiller(batch).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return total.detach()

    return step


def seconds_of(function: Callable[[], object]) -> float:
    """How long one call takes, on the GPU until it has finished there."""
    if best_device().type == "cuda":
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        began.record()
        function()
        ended.record()
        torch.cuda.synchronize()
        return began.elapsed_time(ended) / 1000
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def device_name() -> str:
    """The GPU's name, or CPU."""
    return torch.cuda.get_device_name(0) if best_device().type == "cuda" else "CPU"


def main() -> None:
    """Measure all methods on one pair of networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--teacher-weights")
    parser.add_argument("--student", required=True)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--num-classes", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20)
    given = vars(parser.parse_args())
    rounds = given.pop("rounds")
    pair = Pair(**given)
    batch = pair.batch()
    steps = {method: training_step(pair.distiller(method), batch) for method in METHODS}
    for _ in range(3):
        for step in steps.values():
            step()
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(rounds):
        for method, step in steps.items():
            seconds[method].append(seconds_of(step))

    def ratio(method: str, base: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[method], seconds[base], strict=True))

    rows = [
        {
            "method": method,
            "milliseconds": 1000 * statistics.median(seconds[method]),
            "fastest_milliseconds": 1000 * min(seconds[method]),
            "to_none": ratio(method, "none"),
            "to_kd": ratio(method, "kd"),
        }
        for method in METHODS
    ]
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.steps", *sys.argv[1:]]),
        "teacher": pair.teacher,
        "student": pair.student,
        "batch_size": pair.batch_size,
        "image_size": pair.image_size,
        "precision": resolve_precision("auto"),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rounds": rounds,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        print(
            f"{row['method']:12s} {row['milliseconds']:8.1f} ms   {row['to_none']:.2f} × none   {row['to_kd']:.2f} × kd"
        )


if __name__ == "__main__":
    main()
