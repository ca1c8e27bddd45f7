"""Default weights, chosen on images that no test accuracy is reported on.

    python -m benchmarks.weights --archive cifar10-jpeg.zip --teacher my_resnet.py:resnet56 \\
        --teacher-weights resnet56-cifar10jpeg.safetensors --student resnet20

takes the first 1,500 training images of each class to train on and the next 1,500 to measure on (the archive's test
images are not touched), runs each line of GRID for six epochs with one seed, and adds a row to
benchmarks/results/weights.json after each; rows that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.subset import subset
from reldistill.run import distill
from reldistill.train.settings import DataSettings, PairSettings, TrainSettings

RESULTS = Path(__file__).parent / "results" / "weights.json"
IMAGES_A_CLASS = 1500
EPOCHS = 6

# label → (method, weights other than the method's own at the time: all 1, serkd.angle 2)
GRID: dict[str, tuple[str, dict[str, float]]] = {
    "none": ("none", {}),
    "kd 1": ("kd", {"kd": 1.0}),
    "kd 4": ("kd", {"kd": 4.0}),
    "serkd 1, 2; feature 1": ("serkd", {"serkd.distance": 1.0, "serkd.angle": 2.0, "feature": 1.0}),
    "serkd 25, 50; feature 1": ("serkd", {"serkd.distance": 25.0, "serkd.angle": 50.0, "feature": 1.0}),
    "sekd 1, 1, 1": ("sekd", {"sekd.vertex": 1.0, "sekd.edge": 1.0, "sekd.spectral": 1.0}),
    "sekd 3, 3, 3": ("sekd", {"sekd.vertex": 3.0, "sekd.edge": 3.0, "sekd.spectral": 3.0}),
}


def main() -> None:
    """Run what is missing from the grid for one pair of networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--teacher-weights")
    parser.add_argument("--student", required=True)
    parser.add_argument("--only", nargs="*", choices=list(GRID), default=list(GRID))
    given = parser.parse_args()
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    done = {(row["teacher"], row["student"], row["label"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "subset.zip"
        subset(given.archive, data, images=IMAGES_A_CLASS, val="train")
        for label in given.only:
            if (given.teacher, given.student, label) in done:
                continue
            method, weights = GRID[label]
            record = distill(
                DataSettings(data=str(data)),
                PairSettings(
                    teacher=given.teacher,
                    teacher_weights=given.teacher_weights,
                    student=given.student,
                    method=method,
                    weights=weights,
                ),
                TrainSettings(epochs=EPOCHS, batch_size=128, lr=0.2, seed=0),
                out=Path(folder) / label.replace(" ", "_"),
            )
            rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
            rows.append(
                {
                    "teacher": given.teacher,
                    "teacher_weights": given.teacher_weights,
                    "student": given.student,
                    "label": label,
                    "method": method,
                    "accuracy_last": record.result.accuracy_last,
                    "accuracy_best": record.result.accuracy_best,
                    "parts_last_epoch": record.history[-1].train,
                    "images": record.data.val_images,
                    "epochs": EPOCHS,
                    "seed": 0,
                }
            )
            RESULTS.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
