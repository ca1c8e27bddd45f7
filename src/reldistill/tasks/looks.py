"""What the looks at test images have in common."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from reldistill.core.types import Batch, Features, FeatureSource, Wanted
from reldistill.data.loader import Loader
from reldistill.training.settings import TrainSettings
from reldistill.training.trainer import has_gpu, resolve_precision


def device_of(training: TrainSettings) -> torch.device:
    """Where a run looks at its test images."""
    return torch.device("cuda" if has_gpu(training.accelerator) else "cpu")


def outputs(
    network: FeatureSource, test: Loader, training: TrainSettings, *, logits: bool
) -> Iterator[tuple[Batch, Features]]:
    """Each batch and the network's features of it, pooled vectors included, in the run's precision.

    Args:
        network: in eval mode, on `device_of(training)`.
        test: the test images.
        training: how the run trains.
        logits: whether the logits are wanted too.
    """
    device = device_of(training)
    bfloat16 = resolve_precision(training.precision, training.accelerator) == "bf16-mixed"
    for batch in test:
        batch = batch.to(device)
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
            features = network.ask(batch.images, Wanted(logits=logits, pooled=True))
        yield batch, features


def kept(batch: Batch, features: Features, shown: np.ndarray) -> np.ndarray:
    """(n, D) float32, the pooled vectors of those images of a batch whose indices are `shown`.

    Raises:
        ValueError: when the network gave no pooled vectors, or the batch has no indices.
    """
    if features.pooled is None or batch.indices is None:
        raise ValueError("a look needs pooled vectors and the images' indices: give Batch its indices")
    return features.pooled.float().cpu().numpy()[np.isin(batch.indices.cpu().numpy(), shown)]
