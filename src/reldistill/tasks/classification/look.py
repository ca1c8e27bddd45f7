"""The one look at the test images of classification: what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from reldistill.core.types import Batch, ClassLabels, Features, FeatureSource
from reldistill.data.image_data import ImageData
from reldistill.data.images import test_loader
from reldistill.networks.saved import OpenedNetwork
from reldistill.report.draws import spread
from reldistill.tasks.looks import device_of, kept, outputs
from reldistill.tasks.neighbours import BANK, known_vectors, neighbour_logits
from reldistill.training.settings import TrainSettings

BINS = 15
SHOWN = 500
MOST_CLASSES = 1000
_COUNTED = 4


class ClassLook:
    """Logits and features of every test image: see `tasks.base.Look`.

    Of a network without class scores, the logits are the logarithms of its nearest neighbours' votes.

    Args:
        logits: (n, K).
        labels: (n,).
        features: (m, D) of the images `shown`.
        shown: (m,) indices of the images whose features are kept.
    """

    @torch.no_grad()
    def __init__(self, network: OpenedNetwork, images: ImageData, training: TrainSettings) -> None:
        test, device = test_loader(images), device_of(training)
        extractor = network.extractor.to(device).eval()
        scores = _scores(extractor, images, device)
        self.shown = spread(test.images, SHOWN)
        logits, labels, features = [], [], []
        for batch, found in outputs(extractor, test, training, logits=True):
            logits.append(scores(found).float().cpu().numpy())
            labels.append(batch.targets_as(ClassLabels).labels.cpu().numpy())
            features.append(kept(batch, found, self.shown))
        self.logits, self.labels = np.concatenate(logits), np.concatenate(labels)
        self.features = np.concatenate(features)
        self.predicted = self.logits.argmax(axis=1)
        self.correct = self.predicted == self.labels
        self.score = 100 * float(self.correct.mean())
        self.has_scores = extractor.num_classes > 0
        self.calibration_error: float | None = None
        if self.has_scores:
            self.calibration_error = calibration_error(self.logits, self.labels)

    def arrays(self) -> dict[str, np.ndarray]:
        """Which images were right, features, and how the classes' logits go together."""
        return {
            "correct_last": self.correct,
            "features": self.features.astype(np.float32),
            "correlation": logit_correlation(self.logits[:, :MOST_CLASSES]),
        }

    def reference_arrays(self) -> dict[str, np.ndarray]:
        """The same, with labels and predictions."""
        return {
            "labels": self.labels,
            "shown": self.shown,
            "predicted": self.predicted,
            "correct": self.correct,
            "features": self.features,
            **({"correlation": logit_correlation(self.logits[:, :MOST_CLASSES])} if self.has_scores else {}),
        }

    def beside(self, teacher: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        """Agreement, calibration, and how far the correlations of the logits lie apart."""
        gap = None
        if "correlation" in teacher:
            correlation = logit_correlation(self.logits[:, :MOST_CLASSES])
            off = ~np.eye(len(correlation), dtype=bool)
            gap = float(np.abs(correlation - teacher["correlation"])[off].mean())
        return {
            "agreement": 100 * float((self.predicted == teacher["predicted"]).mean()),
            "calibration_error": self.calibration_error,
            "correlation_gap": gap,
        }

    @classmethod
    def features_of(cls, network: OpenedNetwork, images: ImageData, training: TrainSettings) -> Iterator[np.ndarray]:
        """One array."""
        yield cls(network, images, training).features

    @staticmethod
    def run_once(extractor: nn.Module, side: int) -> None:
        """Logits."""
        extractor(torch.rand(1, 3, side, side))

    @staticmethod
    def some_batch(images: ImageData) -> Batch:
        """Noise with a class each."""
        random = torch.Generator().manual_seed(0)
        pixels = torch.rand(_COUNTED, 3, images.image_size, images.image_size, generator=random)
        indices = torch.arange(_COUNTED)
        return Batch(pixels, ClassLabels(indices % len(images.classes)), indices)


def _scores(network: FeatureSource, images: ImageData, device: torch.device) -> Callable[[Features], Tensor]:
    """Scores of each class, by the network's own logits or by an image's neighbours among training images."""
    if network.num_classes:

        def own(found: Features) -> Tensor:
            if found.logits is None:
                raise ValueError(f"{network.name} gives no logits: a look needs class scores")
            return found.logits

        return own
    bank = known_vectors(network, images.train.plain(BANK), device=device)

    def neighbours(found: Features) -> Tensor:
        if found.pooled is None:
            raise ValueError(f"{network.name} gives no pooled vector: a look needs one")
        return neighbour_logits(found.pooled, bank, classes=len(images.classes))

    return neighbours


def calibration_error(logits: np.ndarray, labels: np.ndarray, *, bins: int = BINS) -> float:
    """Expected calibration error in percent: |accuracy - confidence|, averaged over the images by bin of confidence.

    Bins are equally wide, open below and closed above (Guo et al., ICML 2017, arXiv 1706.04599).
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    confidence = probabilities.max(axis=1)
    gap = (logits.argmax(axis=1) == labels) - confidence
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return 100 * float(np.abs(np.bincount(place, weights=gap, minlength=bins)).sum() / len(labels))


def logit_correlation(logits: np.ndarray) -> np.ndarray:
    """(n, K) → (K, K) correlation of two classes' logits over the images; 0 for a class whose logit never moves."""
    centred = logits.astype(np.float64) - logits.mean(axis=0)
    size = np.sqrt((centred**2).sum(axis=0))
    scaled = centred / np.where(size > 0, size, 1.0)
    return (scaled.T @ scaled).astype(np.float32)
