"""How much a difference of two methods may owe to chance, when each ran with the same seeds on the same test images.

Two things are left to chance: the seed (initial weights, order, augmentation) and the draw of test images. Student's t
over the seeds' differences sees the first, and takes the images as they are. The bootstrap sees both, but a resample
of few seeds spreads less than the seeds do. The interval that is reported reaches as far as the farther of the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtrit

from reldistill.report.intervals import paired_difference

DRAWS = 10_000
METHOD = (
    "Difference of two methods: for each seed, test score of the one minus that of the other with the same seed, at "
    "the last epoch; the mean over the seeds is shown. Its 95 % interval reaches as far as the farther of two: "
    "Student's t over the seeds' differences, and a hierarchical bootstrap (10,000 times, draw the seeds with "
    "replacement, and the test images with replacement, the same images for both methods and all seeds; 2.5 % and "
    "97.5 % quantiles of the mean difference). With one seed there is only the draw of images: Tango's paired score "
    "interval, or for an AP 500 draws of the images. A difference is beyond noise where its interval leaves out 0."
)


@dataclass(frozen=True)
class SeedDifference:
    """Score of one method minus another's over the seeds both ran with, in percentage points.

    Args:
        points: mean over the seeds.
        low: lower end of the 95 % interval.
        high: upper end of it.
        by_seed: the difference for each seed.
        images: how many test images.
        over_seeds: Student's t interval over `by_seed`; None with one seed.
        over_images: the hierarchical bootstrap's interval; with one seed the paired score interval, or that of draws.
    """

    points: float
    low: float
    high: float
    by_seed: list[float]
    images: int
    over_seeds: tuple[float, float] | None
    over_images: tuple[float, float]

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def reversed(self) -> SeedDifference:
        """The other method minus the one."""
        return replace(
            self,
            points=-self.points,
            low=-self.high,
            high=-self.low,
            by_seed=[-points for points in self.by_seed],
            over_seeds=self.over_seeds and _mirrored(self.over_seeds),
            over_images=_mirrored(self.over_images),
        )


def _mirrored(span: tuple[float, float]) -> tuple[float, float]:
    return -span[1], -span[0]


def difference_over_seeds(hits: np.ndarray, others: np.ndarray) -> SeedDifference:
    """The difference of two methods.

    Args:
        hits: (seeds, images) booleans: which test images one method got right.
        others: the same of the other, same seeds, same images.

    >>> hits, others = np.array([[1, 1, 0, 1], [1, 1, 1, 0]], bool), np.array([[1, 0, 0, 1], [1, 0, 0, 0]], bool)
    >>> difference_over_seeds(hits, others).by_seed
    [25.0, 50.0]
    """
    change = hits.astype(np.int8) - others.astype(np.int8)
    by_seed = 100 * change.mean(axis=1)
    seeds, images = change.shape
    if seeds == 1:
        between = paired_difference(int((change > 0).sum()), int((change < 0).sum()), images)
        span = between.low, between.high
        return SeedDifference(between.points, *span, by_seed.tolist(), images, None, span)
    over_seeds, over_images = t_interval(by_seed.tolist()), bootstrap_interval(change)
    return SeedDifference(
        points=float(by_seed.mean()),
        low=min(over_seeds[0], over_images[0]),
        high=max(over_seeds[1], over_images[1]),
        by_seed=by_seed.tolist(),
        images=images,
        over_seeds=over_seeds,
        over_images=over_images,
    )


def difference_of_draws(
    scores: Sequence[float], others: Sequence[float], drawn: np.ndarray, others_drawn: np.ndarray, *, images: int
) -> SeedDifference:
    """The same of a score that is no share of right images, such as an average precision.

    Args:
        scores: (seeds,) of one method on the test images.
        others: (seeds,) of the other.
        drawn: (seeds, draws) of the one on draws of the test images, the same draws for all.
        others_drawn: (seeds, draws) of the other.
        images: how many test images.
    """
    by_seed = [score - other for score, other in zip(scores, others, strict=True)]
    change = drawn - others_drawn
    seeds, count = change.shape
    chosen = np.random.default_rng(0).integers(seeds, size=(seeds, count))
    low, high = np.nanquantile(np.take_along_axis(change, chosen, axis=0).mean(axis=0), [0.025, 0.975])
    over_images = float(low), float(high)
    over_seeds = t_interval(by_seed) if seeds > 1 else None
    spans = [over_images, *([over_seeds] if over_seeds else [])]
    return SeedDifference(
        points=float(np.mean(by_seed)),
        low=min(span[0] for span in spans),
        high=max(span[1] for span in spans),
        by_seed=by_seed,
        images=images,
        over_seeds=over_seeds,
        over_images=over_images,
    )


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of two or more values.

    >>> [round(end, 3) for end in t_interval([1.0, 2.0, 3.0])]
    [-0.484, 4.484]
    """
    mean, count = float(np.mean(values)), len(values)
    half = float(stdtrit(count - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return mean - half, mean + half


def bootstrap_interval(change: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95 % interval, in points, of the mean of (seeds, images) differences in -1, 0, 1: both axes resampled.

    Images that differ alike under all seeds are interchangeable, so it is enough to draw how often each pattern of
    differences comes up. The draws are those of the better method's lead, so that the interval of the opposite
    difference is the mirrored one.
    """
    if change.sum() < 0:
        return _mirrored(bootstrap_interval(-change, draws=draws, seed=seed))
    random = np.random.default_rng(seed)
    seeds, images = change.shape
    patterns, counts = np.unique(change, axis=1, return_counts=True)
    drawn = random.multinomial(images, counts / images, size=draws)
    by_seed = 100 * (drawn @ patterns.T) / images
    chosen = random.integers(seeds, size=(draws, seeds))
    means = np.take_along_axis(by_seed, chosen, axis=1).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation over seeds where there are two or more."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
