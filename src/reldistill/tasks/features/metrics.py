"""How a student of features is measured: whether it relates images as its teacher does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reldistill.core.safe_files import write_arrays
from reldistill.core.types import Batch, FeatureSource, Wanted
from reldistill.data.image_data import ImageData
from reldistill.relations.across_ranks import sum_over_ranks
from reldistill.report.agreement import agreement, similarities
from reldistill.report.draws import spread
from reldistill.tasks.neighbours import neighbours_right

SIMILARITIES_FILE = "similarities.npz"
COMPARED = 2000
"""Images whose relations are compared, at most."""
KEPT = 500
"""Images whose similarities are kept for intervals, at most."""


class Relations:
    """How alike student and teacher relate images to each other, percent; see `report.agreement`.

    Args:
        teacher: (n, D′), the teacher's pooled vectors of the images that are compared; None measures the teacher.
        probe: labelled images; where there are such, the score is what the features' nearest neighbours get right.
    """

    def __init__(self, teacher: np.ndarray | None = None, *, probe: ImageData | None = None) -> None:
        self._teacher, self._probe = teacher, probe
        self.score = "relations" if probe is None else "knn"
        self.start("cpu")

    def start(self, device: torch.device | str) -> None:
        """Forget everything."""
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._network: FeatureSource | None = None
        self.right: np.ndarray | None = None
        self.found: dict[str, float] = {}

    @torch.no_grad()
    def update(self, network: FeatureSource, batch: Batch) -> None:
        """Keep the pooled vectors of one batch."""
        pooled = network.ask(batch.images, Wanted(logits=False, pooled=True)).pooled
        if pooled is None or batch.indices is None:
            raise ValueError("relations need a network's pooled vectors and the images' indices")
        self._rows.append((batch.indices.to(pooled.device), pooled.float()))
        self._network = network

    def values(self) -> dict[str, float]:
        """`relations`, and with a probe `knn`; every process has to call it, and gets the same."""
        indices = torch.cat([indices for indices, _ in self._rows])
        rows = torch.cat([vectors for _, vectors in self._rows])
        count = int(sum_over_ranks(torch.tensor(len(indices), device=rows.device)))
        vectors = rows.new_zeros(count, rows.shape[1])
        vectors[indices] = rows
        self.vectors = sum_over_ranks(vectors)[torch.from_numpy(spread(count, COMPARED))].cpu().numpy()
        found = 100.0
        if self._teacher is not None:
            found = float(agreement(similarities(self.vectors), similarities(self._teacher))[0])
        self.found = {"relations": found}
        if self._probe is not None and self._network is not None:
            self.right = neighbours_right(self._network, self._probe, device=rows.device)
            self.found["knn"] = 100 * float(self.right.mean())
        return self.found

    def write(self, folder: Path) -> str | None:
        """Keep both networks' similarities of some images, and which of the probe's were right, for intervals."""
        if self._teacher is None:
            return None
        chosen = spread(len(self.vectors), KEPT)
        write_arrays(
            folder / SIMILARITIES_FILE,
            student=similarities(self.vectors[chosen]).astype(np.float32),
            teacher=similarities(self._teacher[chosen]).astype(np.float32),
            **({} if self.right is None else {"right": self.right}),
        )
        return SIMILARITIES_FILE
