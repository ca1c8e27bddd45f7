"""Many small operations on a GPU as one: recorded as a CUDA graph, and replayed for inputs of the same shapes.

Between the maps of a small network, or a few hundred tokens, it takes many times longer to start the operations one by
one than to compute them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_RECORD_AT = 3
"""The call that is recorded: what comes once or twice, as images of many sizes do, is not worth it."""
_MOST = 32
"""Recordings of one function."""
_SHARE = 1 / 50
"""Of the GPU's memory: a recording whose inputs and results are larger, with what is computed between, is not made."""
_COPIES = 8
"""How many times the inputs' numbers, in float32, that is taken to be."""


class Replayed:
    """A function of tensors and settings → a tuple of tensors, replayed on a GPU.

    Args:
        function: of a tensor and more; it never waits for the device, draws nothing at random, and returns tensors of
            its own.

    Results are copies, so that the next call leaves them as they are. Elsewhere than on a GPU, inside of another
    recording, and where a recording cannot be made, the function is called as it is.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self.function = function
        self._calls: dict[Any, int] = {}
        self._recordings: dict[Any, _Recording | None] = {}
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        """What the function returns."""
        device = arguments[0].device
        if device.type != "cuda":
            return self.function(*arguments)
        # A graph is recorded and replayed on the current GPU, whichever the tensors are on.
        with torch.cuda.device(device):
            if torch.cuda.is_current_stream_capturing():
                return self.function(*arguments)
            # What a recording reads is written just before: two threads must not mix.
            with self._lock:
                recording = self._recording(arguments)
                if recording is not None:
                    return recording(arguments)
        return self.function(*arguments)

    def _recording(self, arguments: tuple[Any, ...]) -> _Recording | None:
        key = (*map(_signature, arguments), *_modes())
        if key not in self._recordings:
            calls = self._calls[key] = self._calls.get(key, 0) + 1
            if calls < _RECORD_AT or len(self._recordings) >= _MOST or _is_large(arguments):
                return None
            try:
                self._recordings[key] = _Recording(self.function, arguments)
            except RuntimeError:  # no memory left for it, say: what follows runs as before
                self._recordings[key] = None
        return self._recordings[key]


class _Recording:
    def __init__(self, function: Callable[..., tuple[Tensor, ...]], arguments: tuple[Any, ...]) -> None:
        mine = [a.detach().clone() if isinstance(a, Tensor) else a for a in arguments]
        self.inputs = _tensors(mine)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads, such as a loader's, may use the GPU meanwhile.
        with torch.cuda.graph(self.graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
            self.outputs = tuple(function(*mine))

    def __call__(self, arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
        torch._foreach_copy_(self.inputs, _tensors(arguments))
        self.graph.replay()
        copies = [torch.empty_like(output) for output in self.outputs]
        torch._foreach_copy_(copies, list(self.outputs))
        return tuple(copies)


def _tensors(arguments: Any) -> list[Tensor]:
    return [argument for argument in arguments if isinstance(argument, Tensor)]


def _is_large(arguments: tuple[Any, ...]) -> bool:
    memory = _COPIES * 4 * sum(tensor.numel() for tensor in _tensors(arguments))
    return memory > _SHARE * torch.cuda.get_device_properties(arguments[0].device).total_memory


def _signature(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.shape, argument.stride(), argument.dtype, argument.device
    return argument


def _modes() -> tuple[Any, ...]:
    """What else the function's operations go by, and the stream on which a recording's inputs are written."""
    stream = torch.cuda.current_stream().cuda_stream
    return torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(), stream
