"""Numbers as people read them: one way for the terminal, the page and Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

NONE = "–"


def known(value: float | None) -> bool:
    """Whether there is a finite number to show."""
    return value is not None and math.isfinite(value)


def decimals(images: int) -> int:
    """How many decimals an accuracy in percent deserves: one image of 5,000 or more is below a tenth of a point."""
    return 2 if images >= 5000 else 1


def percent(value: float | None, digits: int = 1) -> str:
    """94.2 (the unit stands in the heading)."""
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else NONE


def span(interval: tuple[float, float] | None, digits: int = 1) -> str:
    """91.3–96.2."""
    return f"{interval[0]:.{digits}f}–{interval[1]:.{digits}f}" if interval else NONE


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign, a real minus, and no sign on what rounds to nothing."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else "−") + text


def count(value: int) -> str:
    """Parameters: 270 k, 11.2 M; below ten thousand in full."""
    if value < 10_000:
        return f"{value:,}"
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e3:.3g} k"


def duration(seconds: float | None) -> str:
    """From microseconds to hours, three figures."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds == 0:
        return "0 s"
    if round(seconds) >= 60:
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= 0.9995 * size:
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds / 1e-6)} µs"


def _three(value: float) -> str:
    """Three figures, zeros kept, so that columns line up: 19.0, 312."""
    return f"{value:#.3g}".rstrip(".")


def times(value: float | None) -> str:
    """A ratio: 1.31×."""
    return f"{value:.2f}×" if value is not None and math.isfinite(value) else NONE


def size(memory: int | None) -> str:
    """Bytes in three figures: 312 MiB, 1.25 GiB."""
    if memory is None:
        return NONE
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if memory >= unit:
            return f"{_three(memory / unit)} {name}"
    return f"{memory / 1024:.0f} KiB"


def large(value: float | None) -> str:
    """Operations: 82.3 M, 1.25 G, 4.1 T."""
    if value is None or not math.isfinite(value):
        return NONE
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * unit:
            return f"{_three(value / unit)} {name}"
    return f"{value:.0f}"


def classes_in_words(classes: Sequence[str]) -> str:
    """How many classes images are labelled with.

    >>> classes_in_words(["cat", "dog"]), classes_in_words([])
    ('2 classes', 'no labels')
    """
    return f"{len(classes)} classes" if classes else "no labels"
