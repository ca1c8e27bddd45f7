"""What the time of a call consists of."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.steps import best_device, seconds_of

REST = "all else"
WAITING = "the GPU waits for its next operation"
_CALLS = 10


def seconds_by_operator(
    function: Callable[[], object], name_of: Callable[[str, Sequence[Sequence[int]]], str]
) -> dict[str, float]:
    """Piece → seconds a call, most first, by PyTorch's profiler; how often it is done stands in brackets.

    On a GPU the time that its kernels take, and what is left of the whole.

    Args:
        function: is called a few times.
        name_of: (operator, shapes of its inputs) → the piece that it belongs to; empty for all else.
    """
    whole, on_gpu = seconds_alone(function), best_device().type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities, record_shapes=True) as taken:
        for _ in range(_CALLS):
            function()
    seconds: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for event in taken.key_averages(group_by_input_shape=True):
        piece = name_of(event.key, event.input_shapes)
        # A kernel is an event too, beside the operator that started it.
        own = event.device_type == DeviceType.CPU
        microseconds = event.self_device_time_total * own if on_gpu else event.self_cpu_time_total
        seconds[piece] += microseconds * 1e-6 / _CALLS
        counts[piece] += event.count
    rest = {REST: seconds.pop("")}
    most_first = sorted(seconds.items(), key=lambda item: -item[1])
    if on_gpu:
        rest[WAITING] = max(whole - rest[REST] - sum(took for _, took in most_first), 0.0)
    return {f"{piece} ({counts[piece] / _CALLS:.0f})": took for piece, took in most_first} | rest


def seconds_alone(function: Callable[[], object]) -> float:
    """Median seconds of a call."""
    function()
    return statistics.median(seconds_of(function) for _ in range(_CALLS))
