"""A backbone learns a teacher's features and relations from images without labels, measured by its neighbours."""

from __future__ import annotations

from pathlib import Path

from reldistill import DataSettings, ModelSettings, PairSettings, TrainSettings, distill, evaluate, train

# %% A teacher. Yours is a foundation model: a timm name, a weights file, an earlier run.
labelled, budget = DataSettings(data="digits"), TrainSettings(epochs=4, lr=0.1)
train(labelled, ModelSettings(model="resnet14"), budget, out=Path("runs/teacher"))

# %% Its features and relations, from images alone: data="unlabelled:photos" for a folder of yours.
data = DataSettings(data="digits", task="features")
pair = PairSettings(teacher="runs/teacher", student="resnet8", method="serkd")
record = distill(data, pair, budget, out=Path("runs/backbone"))
print(f"relations {record.result.score_last:.1f} %")

# %% What the backbone's features know of labels that it never saw.
found = evaluate(labelled, ModelSettings(model="runs/backbone"), probes=["knn", "linear"])
for name, probe in found["probes"].items():
    print(f"{name} {probe['score']:.1f} %")
