"""Scores under another draw of images: which draws, and what interval they give."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from jaxtyping import Float64, Int64

from reldistill.report.intervals import Z95

DRAWS = 500


def draws(images: int, *, count: int = DRAWS, seed: int = 0) -> Int64[np.ndarray, "{count} {images}"]:
    """(count, images) how often each image comes when as many are drawn with replacement."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=count)


def interval_of_draws(values: Float64[np.ndarray, "draws"], *, observed: float) -> tuple[float, float]:
    """95 % interval by the bias-corrected percentiles of what the draws gave.

    Draws of few images hold fewer classes, which moves their APs away from that of all images.
    Efron, Tibshirani: An Introduction to the Bootstrap, 1993, section 14.3, without acceleration.

    Args:
        values: (draws,); nan where a draw says nothing.
        observed: the value on the images themselves.
    """
    values = values[np.isfinite(values)]
    below = (np.sum(values < observed) + 0.5 * np.sum(values == observed)) / len(values)
    shift = NormalDist().inv_cdf(min(max(float(below), 0.5 / len(values)), 1 - 0.5 / len(values)))
    ends = [NormalDist().cdf(2 * shift + z) for z in (-Z95, Z95)]
    low, high = np.quantile(values, ends)
    return float(low), float(high)


def spread(count: int, limit: int) -> np.ndarray:
    """At most `limit` of `count` positions, evenly spread."""
    return np.linspace(0, count - 1, min(count, limit)).astype(np.int64)


def means(values: np.ndarray) -> Float64[np.ndarray, "draws"]:
    """(draws,) percent: the mean of each image's value, in [0, 1], over draws of the images."""
    return draws(len(values)) @ values.astype(np.float64) * (100 / len(values))
