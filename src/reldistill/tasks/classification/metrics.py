"""How a classifier is measured while it trains and afterwards."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from reldistill.core.safe_files import write_bytes
from reldistill.core.types import Batch, ClassLabels, FeatureSource, Wanted
from reldistill.relations.across_ranks import sum_over_ranks

CORRECT_FILE = "val_correct.npy"


class Accuracy:
    """Top-1 accuracy in percent and mean cross entropy over images, and which of the images were right.

    In a distributed run each process measures its own images, and `values` is over all of them.
    """

    score = "accuracy"

    def __init__(self) -> None:
        self.start("cpu")

    def start(self, device: torch.device | str) -> None:
        """Forget everything; count on that device from now on."""
        wide = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self._totals = torch.zeros(3, device=device, dtype=wide)
        self._hits: list[tuple[Tensor, Tensor]] = []
        self.images = 0
        self.found: dict[str, float] = {}
        self.hits: Tensor | None = None

    @torch.no_grad()
    def update(self, network: FeatureSource, batch: Batch) -> None:
        """Measure one batch."""
        logits = network.ask(batch.images, Wanted()).logits
        if logits is None:
            raise ValueError("the network gives no logits: classification measures class scores")
        labels = batch.targets_as(ClassLabels).labels
        hits = logits.argmax(dim=1) == labels
        loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
        self._totals[0] += hits.sum()
        self._totals[1] += loss
        self._totals[2] += len(hits)
        if batch.indices is not None:
            self._hits.append((batch.indices, hits))

    def values(self) -> dict[str, float]:
        """`accuracy` and `loss`; every process has to call it, and gets the same."""
        hits, loss, images = sum_over_ranks(self._totals).tolist()
        self.images = int(images)
        self.hits = self._by_image()
        self.found = {"accuracy": 100 * hits / images, "loss": loss / images}
        return self.found

    def write(self, folder: Path) -> str | None:
        """Keep which images were right, in the order of their indices; the file's name, if there was anything to keep.

        Asked for after `values`, of one process.
        """
        if self.hits is None:
            return None
        buffer = io.BytesIO()
        np.save(buffer, self.hits.numpy())
        write_bytes(folder / CORRECT_FILE, buffer.getvalue())
        return CORRECT_FILE

    def _by_image(self) -> Tensor | None:
        """(images,) booleans; None where the images are not known by an index each."""
        if not self._hits:
            return None
        indices = torch.cat([i for i, _ in self._hits])
        if int(indices.max()) >= self.images:
            return None
        flat = torch.zeros(self.images, dtype=torch.int64, device=indices.device)
        flat[indices] = torch.cat([h for _, h in self._hits]).long()
        return sum_over_ranks(flat).bool().cpu()
