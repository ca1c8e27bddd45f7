"""Default weights, chosen on images that no test accuracy is reported on.

    python -m benchmarks.weights --archive cifar10-jpeg.zip --teacher my_resnet.py:resnet56 \\
        --teacher-weights resnet56-cifar10jpeg.safetensors --student resnet20

    python -m benchmarks.weights --archive cifar10-jpeg.zip --teacher my_resnet.py:resnet56 \\
        --teacher-weights resnet56-cifar10jpeg.safetensors --student vit_tiny_patch16_224 --lr 0.002 \\
        --student-arguments '{"img_size": 32, "patch_size": 4, "embed_dim": 48, "depth": 4, "num_heads": 3}'

    python -m benchmarks.weights --archive digits --teacher runs/quickstart/teacher --student resnet8 \\
        --batch-size 64 --lr 0.1 --schedule constant --seeds 0 1

Each runs every line of GRID for six epochs and adds a row to benchmarks/results/weights.json after it; rows that are
there are not run again. Of an archive the first 1,500 training images of each class are trained on and the next 1,500
measured on; its test images are not touched.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path

from benchmarks.subset import subset
from reldistill.runs.distill import distill
from reldistill.training.settings import DataSettings, PairSettings, TrainSettings

RESULTS = Path(__file__).parent / "results" / "weights.json"
IMAGES_A_CLASS = 1500
EPOCHS = 6

# label → (method, weights, levels other than the automatic ones)
GRID: dict[str, tuple[str, dict[str, float], list[str]]] = {
    "none": ("none", {}, []),
    "kd 1": ("kd", {"kd": 1.0}, []),
    "kd 4": ("kd", {"kd": 4.0}, []),
    "serkd 1, 2; feature 1": ("serkd", {"serkd.distance": 1.0, "serkd.angle": 2.0, "feature": 1.0}, []),
    "serkd 5, 10; feature 1": ("serkd", {"serkd.distance": 5.0, "serkd.angle": 10.0, "feature": 1.0}, []),
    "serkd 5, 10; feature 1; last of 4 blocks": (
        "serkd",
        {"serkd.distance": 5.0, "serkd.angle": 10.0, "feature": 1.0},
        ["blocks.3:blocks.3"],
    ),
    "serkd 25, 50; feature 1": ("serkd", {"serkd.distance": 25.0, "serkd.angle": 50.0, "feature": 1.0}, []),
    "serkd 25, 50; feature 3": ("serkd", {"serkd.distance": 25.0, "serkd.angle": 50.0, "feature": 3.0}, []),
    "serkd 25, 50; feature 8": ("serkd", {"serkd.distance": 25.0, "serkd.angle": 50.0, "feature": 8.0}, []),
    "serkd 25, 50; feature 8; kd 0.3": (
        "serkd",
        {"serkd.distance": 25.0, "serkd.angle": 50.0, "feature": 8.0, "kd": 0.3},
        [],
    ),
    "serkd 0, 0; feature 1": ("serkd", {"serkd.distance": 0.0, "serkd.angle": 0.0, "feature": 1.0}, []),
    "serkd 0, 0; feature 8": ("serkd", {"serkd.distance": 0.0, "serkd.angle": 0.0, "feature": 8.0}, []),
    "serkd 25, 50; feature 0": ("serkd", {"serkd.distance": 25.0, "serkd.angle": 50.0, "feature": 0.0}, []),
    "sekd 1, 1, 1": ("sekd", {"sekd.vertex": 1.0, "sekd.edge": 1.0, "sekd.spectral": 1.0}, []),
    "sekd 3, 3, 3": ("sekd", {"sekd.vertex": 3.0, "sekd.edge": 3.0, "sekd.spectral": 3.0}, []),
}


def main() -> None:
    """Run what is missing from the grid for one pair of networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", required=True, help="an archive of CIFAR-10, or digits")
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--teacher-weights")
    parser.add_argument("--student", required=True)
    parser.add_argument("--student-arguments", type=json.loads, default={})
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--schedule", default="one-cycle")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--only", nargs="*", choices=list(GRID), default=[label for label, (*_, levels) in GRID.items() if not levels]
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows = json.loads(given.results.read_text()) if given.results.is_file() else []
    done = {(row["teacher"], row["student"], row["schedule"], row["label"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        data = given.archive
        if data != "digits":
            data = str(Path(folder) / "subset.zip")
            subset(Path(given.archive), Path(data), images=IMAGES_A_CLASS, val="train")
        for label, seed in itertools.product(given.only, given.seeds):
            if (given.teacher, given.student, given.schedule, label, seed) in done:
                continue
            method, weights, levels = GRID[label]
            record = distill(
                DataSettings(data=data, image_size=32),
                PairSettings(
                    teacher=given.teacher,
                    teacher_weights=given.teacher_weights,
                    student=given.student,
                    student_arguments=given.student_arguments,
                    method=method,
                    weights=weights,
                    levels=levels,
                ),
                TrainSettings(
                    epochs=EPOCHS, batch_size=given.batch_size, lr=given.lr, schedule=given.schedule, seed=seed
                ),
                out=Path(folder) / f"{label.replace(' ', '_')}-{seed}",
            )
            rows = json.loads(given.results.read_text()) if given.results.is_file() else []
            rows.append(
                {
                    "teacher": given.teacher,
                    "teacher_weights": given.teacher_weights,
                    "student": given.student,
                    "label": label,
                    "method": method,
                    "score_last": record.result.score_last,
                    "score_best": record.result.score_best,
                    "parts_last_epoch": record.history[-1].train,
                    "images": record.data.val_images,
                    "epochs": EPOCHS,
                    "seed": seed,
                    "archive": given.archive,
                    "batch_size": given.batch_size,
                    "lr": given.lr,
                    "schedule": given.schedule,
                    "student_arguments": given.student_arguments,
                }
            )
            given.results.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
