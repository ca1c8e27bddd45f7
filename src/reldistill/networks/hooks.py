"""What looking inside a network takes: temporary eval mode, temporary hooks, the output tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in eval mode, each module put back into its own mode afterwards."""
    modes = {m: m.training for m in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def hooked(hooks: Sequence[tuple[nn.Module, Callable[..., None]]]) -> Iterator[None]:
    """Forward hooks that are removed afterwards."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def input_into(found: list[Tensor]) -> Callable[..., None]:
    """A hook that keeps what a module was given."""

    def hook(_module: nn.Module, inputs: Any, _output: Any) -> None:
        found.append(inputs[0])

    return hook


def first_tensor(output: Any) -> Any:
    """The tensor that a network returns, alone or first in a tuple or dict (or there as `logits` or `out`)."""
    if isinstance(output, dict):
        for key in ("logits", "out"):
            if key in output:
                return output[key]
        return next(iter(output.values()), None)
    if isinstance(output, (tuple, list)):
        return first_tensor(output[0]) if output else None
    return output


def first_float(network: nn.Module, *, default: Tensor | None = None) -> Tensor:
    """A tensor that has the network's device and precision: its first floating-point parameter, or the default."""
    found = next((p for p in network.parameters() if p.is_floating_point()), default)
    return torch.empty(0) if found is None else found
