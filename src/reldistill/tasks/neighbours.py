"""Judging a network without class scores by the nearest neighbours of its features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from reldistill.core.types import FeatureSource
from reldistill.data.image_data import ImageData
from reldistill.data.loader import Loader
from reldistill.networks.probes import (
    NEIGHBOURS,
    Labelled,
    PooledVectors,
    knn_right,
    neighbour_votes,
    untrained_twin,
)
from reldistill.networks.saved import OpenedNetwork
from reldistill.report.intervals import mcnemar_p_value, wilson_interval
from reldistill.tasks.base import Judgement, Measure

BANK, ASKED = 2000, 1000
"""By how many images a network is judged, at most: of training, and of validation."""
LARGEST_BANK = 10_000
"""Training images among which a probe looks for neighbours, at most."""
SURE = 0.05
"""The largest p-value by which a teacher is better than the same network untrained."""


def judge(teacher: OpenedNetwork, images: ImageData, measure: Measure) -> Judgement:
    """By the classes of the nearest training images, beside guessing and the same network untrained."""
    classes = len(images.classes)
    right = _right(teacher, images, measure)
    untrained = _right(replace(teacher, extractor=untrained_twin(teacher.extractor)), images, measure)
    (low, high), chance, score = wilson_interval(int(right.sum()), len(right)), 100 / classes, 100 * right.mean()
    said = (
        f"teacher {teacher.card.name}: by the {NEIGHBOURS} nearest neighbours of its features {score:.1f} % ({low:.1f} "
        f"to {high:.1f}) of {len(right):,} validation images right; guessing {chance:.1f} %, the same network without "
        f"weights {100 * untrained.mean():.1f} %"
    )
    only_this, only_other = int((right & ~untrained).sum()), int((untrained & ~right).sum())
    knows = low > chance and only_this > only_other and mcnemar_p_value(only_this, only_other) < SURE
    fault = f"the features of the teacher {teacher.card.name} are no better than guessing or than random weights"
    return Judgement(PooledVectors(), said, float(score), None if knows else fault)


def _right(network: OpenedNetwork, images: ImageData, measure: Measure) -> np.ndarray:
    """(n,) booleans, for some of the validation images."""
    bank, asked = PooledVectors(), PooledVectors()
    measure(network, images.train.plain(BANK), bank)
    measure(network, images.val.plain(ASKED), asked)
    return knn_right(bank.labelled, asked.labelled, classes=len(images.classes))


def known_vectors(network: FeatureSource, bank: Loader, *, device: torch.device | str) -> Labelled:
    """What a network says of the labelled images among which neighbours are looked for."""
    vectors = PooledVectors()
    for batch in bank:
        vectors.update(network, batch.to(device))
    return vectors.labelled


def neighbour_logits(pooled: Float[Tensor, "B D"], bank: Labelled, *, classes: int) -> Float[Tensor, "B {classes}"]:
    """(B, K) logarithms of the nearest neighbours' votes."""
    votes = neighbour_votes(pooled, bank, classes=classes)
    return votes.clamp(min=torch.finfo(votes.dtype).tiny).log()


def neighbours_right(
    network: FeatureSource, images: ImageData, *, device: torch.device | str, held_out: Loader | None = None
) -> np.ndarray:
    """(n,) booleans: for which validation images (or others held out) the nearest training images vote right.

    Args:
        network: in eval mode, on `device`.
        images: labelled.
        device: where the network is.
        held_out: images of the same classes to ask about, instead of the validation images.
    """
    bank = known_vectors(network, images.train.plain(LARGEST_BANK), device=device)
    return knn_right(bank, known_vectors(network, held_out or images.val, device=device), classes=len(images.classes))
