"""How much an accuracy, or a difference of two, may owe to the choice of validation images.

Everything here is about one trained network (or two) and another draw of images of the same kind. None of it covers the
other source of chance, the seed: a second run from another seed differs by more or less than these intervals say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Difference:
    """Score of one network minus another's on the same images, in percentage points, with its 95 % interval.

    Args:
        points: the difference.
        low: lower end of the interval.
        high: upper end of the interval.
        images: how many validation images.
        paired: whether it is known what each network made of each image.
        p_value: of the exact McNemar test, of paired accuracies.
    """

    points: float
    low: float
    high: float
    images: int
    paired: bool
    p_value: float | None = None

    @property
    def margin(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    @property
    def resolved(self) -> bool:
        """Whether the images separate the two: 0 lies outside the interval and, where paired, p < 0.05."""
        return (self.low > 0 or self.high < 0) and (self.p_value is None or self.p_value < 0.05)


def wilson_interval(hits: int, images: int) -> tuple[float, float]:
    """95 % interval of an accuracy, in percent, by Wilson's score (JASA 22, 1927).

    >>> [round(end, 2) for end in wilson_interval(81, 263)]
    [25.53, 36.62]
    """
    share, z2 = hits / images, Z95**2 / images
    centre = (share + z2 / 2) / (1 + z2)
    half = Z95 * math.sqrt(share * (1 - share) / images + z2 / (4 * images)) / (1 + z2)
    low = 0.0 if hits == 0 else centre - half  # exactly, where rounding would leave 1e-17
    high = 1.0 if hits == images else centre + half
    return 100 * low, 100 * high


def unpaired_difference(hits: int, other_hits: int, images: int) -> Difference:
    """Difference of two accuracies when only the two counts are known: Newcombe's hybrid score interval.

    The two networks are treated as if each had seen its own draw of images (Stat. Med. 17, 1998, 873, method 10):
    the normal approximation p ± 1.96·√(p(1-p)/n + q(1-q)/n), with the variances taken at the ends of the Wilson
    intervals, so that it does not claim certainty at 100 %. On the same images two networks tend to fail together,
    so it is conservative: wider than the paired interval.
    """
    (low, high), (other_low, other_high) = wilson_interval(hits, images), wilson_interval(other_hits, images)
    accuracy, other = 100 * hits / images, 100 * other_hits / images
    return Difference(
        points=accuracy - other,
        low=accuracy - other - math.hypot(accuracy - low, other_high - other),
        high=accuracy - other + math.hypot(high - accuracy, other - other_low),
        images=images,
        paired=False,
    )


def paired_difference(only_this: int, only_other: int, images: int) -> Difference:
    """Difference of two accuracies on the same images: Tango's score interval and the exact McNemar test.

    Args:
        only_this: images that this network got right and the other wrong.
        only_other: images that the other network got right and this one wrong.
        images: all images.

    The interval holds every difference d that the score test (Tango, Stat. Med. 17, 1998, 891) does not reject at 5 %;
    at d = 0 that test is McNemar's.
    """

    def score(d: float) -> float:
        b = -only_this - only_other + (2 * images - only_this + only_other) * d
        c = -only_other * d * (1 - d)
        q = (math.sqrt(max(b * b - 8 * images * c, 0.0)) - b) / (4 * images)  # likeliest share of `only_other`, given d
        variance = images * (2 * q + d * (1 - d))
        excess = only_this - only_other - images * d
        return excess / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, excess) if excess else 0.0

    observed = (only_this - only_other) / images
    return Difference(
        points=100 * observed,
        low=100 * _crossing(lambda d: score(d) - Z95, -1.0, observed),
        high=100 * _crossing(lambda d: score(d) + Z95, observed, 1.0),
        images=images,
        paired=True,
        p_value=mcnemar_p_value(only_this, only_other),
    )


def mcnemar_p_value(only_this: int, only_other: int) -> float:
    """Exact two-sided McNemar test: a fair coin for each image on which the two networks disagree.

    >>> mcnemar_p_value(0, 5)
    0.0625
    """
    flips, tail, term = only_this + only_other, 0, 1
    for heads in range(min(only_this, only_other) + 1):
        tail += term
        term = term * (flips - heads) // (heads + 1)
    return min(1.0, 2 * tail / 2**flips)


def _crossing(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses 0 between `low` and `high`, to the last bit of 60 bisections."""
    for _ in range(60):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
