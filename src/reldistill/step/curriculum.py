"""How a term's weight changes over the course of training."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Curriculum(Protocol):
    """Progress of training in [0, 1] → factor on a term's weights."""

    def __call__(self, progress: float) -> float:
        """The factor at that progress."""
        ...


class WarmUp:
    """The factor rises linearly from 0 to 1 over the first part of training.

    Args:
        over: fraction of training, in (0, 1].

    >>> [WarmUp(over=0.2)(progress) for progress in (0.0, 0.1, 0.2, 1.0)]
    [0.0, 0.5, 1.0, 1.0]
    """

    def __init__(self, *, over: float) -> None:
        if not 0.0 < over <= 1.0:
            raise ValueError(f"over: expected a fraction of training in (0, 1], got {over}")
        self.over = over

    def __call__(self, progress: float) -> float:
        """The factor at that progress."""
        return min(progress / self.over, 1.0)
