"""One comparison that a benchmark makes: our form of a computation, and what it is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# ratio, and when it meets the goal:
#   faster  time of the textbook form / time of ours                                       ≥ goal
#   costs   time of ours / time of what it is compared with (`textbook`)                   ≤ goal
#   smaller extra peak memory of the textbook form / that of ours, each in a fresh process ≥ goal
#   fits    extra peak memory of ours in MiB, in a fresh process; no textbook form         ≤ goal
Measure = Literal["faster", "costs", "smaller", "fits"]


@dataclass
class Case:
    """One row of the table. Making it is cheap: inputs are made by `prepare`, or when a form is called first.

    Args:
        part: what is measured, in a few words.
        sizes: of its inputs, as the table shows them.
        ours: forward and backward once; the value.
        textbook: the same by the textbook form in `benchmarks.reference`; None where it cannot run.
        goal: what the ratio has to reach.
        agreement: relative difference of ours from the textbook form (or the error that the goal names), a few calls
            of either; None where the two values are comparable as they are.
        tolerance: what the agreement may be at most.
        measure: what `ratio` is and how `goal` bounds it.
        note: a sentence to the row: why the textbook form did not run, what is consecutive, …
        compares_values: whether both forms are to say the same; whole steps of two methods are not.
        prepare: makes the inputs, so that they count neither as time nor as extra memory.
        pieces: what our form spends its time on, or cannot do without, in words → seconds a call; looked at where the
            goal is missed.
    """

    part: str
    sizes: str
    ours: Callable[[], Tensor]
    textbook: Callable[[], Tensor] | None
    goal: float
    agreement: Callable[[], float] | None = None
    tolerance: float = 1e-4
    measure: Measure = "faster"
    note: str = ""
    compares_values: bool = True
    prepare: Callable[[], object] | None = None
    pieces: Callable[[], dict[str, float]] | None = None


def device() -> torch.device:
    """Where the benchmarks run: on the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
