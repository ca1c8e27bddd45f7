"""What the time of a call consists of."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence

from torch.profiler import ProfilerActivity, profile

from benchmarks.steps import seconds_of

REST = "all else"
_CALLS = 10


def seconds_by_operator(
    function: Callable[[], object], name_of: Callable[[str, Sequence[Sequence[int]]], str]
) -> dict[str, float]:
    """Piece → seconds a call, most first, by PyTorch's profiler on the CPU; how often it is done stands in brackets.

    Args:
        function: is called a few times.
        name_of: (operator, shapes of its inputs) → the piece that it belongs to; empty for all else.
    """
    function()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as taken:
        for _ in range(_CALLS):
            function()
    seconds: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for event in taken.key_averages(group_by_input_shape=True):
        piece = name_of(event.key, event.input_shapes)
        seconds[piece] += event.self_cpu_time_total * 1e-6 / _CALLS
        counts[piece] += event.count
    rest = seconds.pop("")
    most_first = sorted(seconds.items(), key=lambda item: -item[1])
    return {f"{piece} ({counts[piece] / _CALLS:.0f})": took for piece, took in most_first} | {REST: rest}


def seconds_alone(function: Callable[[], object]) -> float:
    """Median seconds of a call."""
    function()
    return statistics.median(seconds_of(function) for _ in range(_CALLS))
