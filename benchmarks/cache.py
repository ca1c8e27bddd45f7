"""What a step from a full teacher cache takes, as a ratio to a step of the student alone.

    python -m benchmarks.cache --archive cifar10-jpeg.zip --teacher my_resnet.py:resnet56 \\
        --teacher-weights resnet56-cifar10jpeg.safetensors --student resnet20

writes benchmarks/results/cache.json. Whole runs by the package take turns: the student alone, then each method with its
cache filled before; the median time of a training step, data loading included.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.relations import machine
from benchmarks.subset import subset
from reldistill.runs.distill import distill
from reldistill.training.settings import DataSettings, PairSettings, TrainSettings

RESULTS = Path(__file__).parent / "results" / "cache.json"
METHODS = ("kd", "serkd", "sekd")
GOAL = 1.15


def main() -> None:
    """Measure and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--teacher-weights")
    parser.add_argument("--student", required=True)
    parser.add_argument("--images", type=int, default=512, help="training images of each class")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subset(Path(given.archive), folder / "subset.zip", images=given.images, val="train")

        def seconds(method: str, out: str, *, cached: bool) -> float:
            record = distill(
                DataSettings(data=str(folder / "subset.zip"), image_size=32, views=1 if cached else None),
                PairSettings(
                    teacher=given.teacher,
                    teacher_weights=given.teacher_weights,
                    student=given.student,
                    method=method,
                    cache_teacher=str(folder / f"cache-{method}") if cached else None,
                ),
                TrainSettings(epochs=2 if cached and out == "filling" else 1, batch_size=128, lr=0.1),
                out=folder / f"{method}-{out}",
            )
            assert record.result.seconds_per_step is not None
            return record.result.seconds_per_step

        for method in METHODS:  # a second epoch holds the images that the first left out, so that nothing is missing
            seconds(method, "filling", cached=True)
        ratios: dict[str, dict[str, list[float]]] = {m: {"cached": [], "live": []} for m in METHODS}
        for round_ in range(given.rounds):
            alone = seconds("none", f"alone-{round_}", cached=False)
            for method in METHODS:
                for kind in ("cached", "live"):
                    found = seconds(method, f"{kind}-{round_}", cached=kind == "cached")
                    ratios[method][kind].append(found / alone)
        rows = [
            {
                "method": method,
                "ratio": statistics.median(found["cached"]),
                "ratio_live": statistics.median(found["live"]),
                "ratios": found["cached"],
                "goal": GOAL,
                "met": statistics.median(found["cached"]) <= GOAL,
                "bytes_per_view": sum(f.stat().st_size for f in (folder / f"cache-{method}").glob("*.f*"))
                / (10 * given.images),
            }
            for method, found in ratios.items()
        ]
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.cache", *sys.argv[1:]]),
        "teacher": given.teacher,
        "student": given.student,
        "machine": machine(),
        "rounds": given.rounds,
        "rows": rows,
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        print(
            f"{row['method']:8s} {row['ratio']:.2f} × the student alone (live {row['ratio_live']:.2f} ×), "
            f"{row['bytes_per_view'] / 1000:.1f} kB an image and view"
        )


if __name__ == "__main__":
    main()
