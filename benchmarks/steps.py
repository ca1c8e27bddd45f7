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
from pathlib import Path

import torch

from reldistill.methods import build_distiller
from reldistill.run import resolve_precision
from reldistill.saved import open_network
from reldistill.tasks.classification import Classification
from reldistill.types import Batch

RESULTS = Path(__file__).parent / "results" / "steps.json"
METHODS = ("none", "kd", "rkd", "kd+rkd", "serkd", "sekd", "serkd+sekd")


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
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision("auto")
    images = torch.rand(given.batch_size, 3, given.image_size, given.image_size, device=device)
    batch = Batch(
        images.to(memory_format=torch.channels_last),
        torch.randint(given.num_classes, (given.batch_size,), device=device),
    )

    def step_of(method: str) -> float:
        distiller, optimizer = made[method]
        began = time.perf_counter()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            total = distiller(batch).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    made = {}
    for method in METHODS:
        torch.manual_seed(0)
        opened = [
            open_network(
                name,
                role=role,
                num_classes=given.num_classes,
                image_size=given.image_size,
                weights=weights,  # type: ignore[arg-type]
            )
            for role, name, weights in (
                ("student", given.student, None),
                ("teacher", given.teacher, given.teacher_weights),
            )
        ]
        distiller = build_distiller(
            method,
            student=opened[0].extractor,
            teacher=None if method == "none" else opened[1].extractor,
            image_size=given.image_size,
            task=Classification(),
        ).to(device, memory_format=torch.channels_last)
        made[method] = distiller, torch.optim.SGD(distiller.trainable_parameters(), lr=1e-3, momentum=0.9)
    for _ in range(3):
        for method in METHODS:
            step_of(method)
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(given.rounds):
        for method in METHODS:
            seconds[method].append(step_of(method))

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
        "teacher": given.teacher,
        "student": given.student,
        "batch_size": given.batch_size,
        "image_size": given.image_size,
        "precision": precision,
        "device": torch.cuda.get_device_name(0) if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "rounds": given.rounds,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        print(
            f"{row['method']:12s} {row['milliseconds']:8.1f} ms   {row['to_none']:.2f} × none   {row['to_kd']:.2f} × kd"
        )


if __name__ == "__main__":
    main()
