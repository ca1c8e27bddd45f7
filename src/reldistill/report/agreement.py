"""How alike two networks relate the same images to each other: the correlation of their similarities."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64, Int64


def similarities(vectors: Float[np.ndarray, "n D"]) -> Float64[np.ndarray, "n n"]:
    """(n, n) cosine similarities of vectors from which their mean was taken; 0 for one that equals the mean."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    size = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.where(size > 1e-12 * max(float(size.max(initial=0.0)), 1e-300), size, np.inf)
    return unit @ unit.T


def agreement(
    student: Float[np.ndarray, "n n"],
    teacher: Float[np.ndarray, "n n"],
    times: Int64[np.ndarray, "draws n"] | None = None,
) -> Float64[np.ndarray, "draws"]:
    """Percent: Pearson's correlation of the two networks' similarities over all pairs of different images.

    100 means that the student relates the images as the teacher does; 100 less this is the relation gap. It is the
    representational similarity analysis of Kriegeskorte, Mur, Bandettini 2008 (doi 10.3389/neuro.06.004.2008).

    Args:
        student: (n, n), as `similarities` gives them.
        teacher: (n, n) of the same images.
        times: how often each image comes in each draw, as `draws.draws` has it; None for once each. Two copies of one
            image are no pair.

    Returns:
        (draws,), one value without `times`; 0 where either network makes no difference between pairs.
    """
    weights = np.ones((1, len(student))) if times is None else times.astype(np.float64)

    def total(values: np.ndarray) -> np.ndarray:
        off = values - np.diag(np.diag(values))
        return ((weights @ off) * weights).sum(axis=1)

    pairs = np.maximum(total(np.ones_like(student)), 1.0)  # a draw may hold one image alone
    means = [total(values) / pairs for values in (student, teacher)]
    product = total(student * teacher) / pairs - means[0] * means[1]
    spread = [np.maximum(total(v * v) / pairs - m * m, 0.0) for v, m in zip((student, teacher), means, strict=True)]
    scale = np.sqrt(spread[0] * spread[1])
    return 100 * np.divide(product, scale, out=np.zeros_like(product), where=scale > 1e-12)
