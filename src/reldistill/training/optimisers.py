"""Optimiser and learning rate; the rate is a function of progress alone, so there is nothing to restore but a count."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import nn

from reldistill.training.defaults import OptimizerName

Schedule = Literal["one-cycle", "cosine", "step", "constant"]


def make_optimizer(
    modules: Sequence[nn.Module], *, optimizer: OptimizerName, lr: float, weight_decay: float, nesterov: bool = True
) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, or AdamW that does not decay biases, norms and what a network wants left alone.

    A network names them by timm's `no_weight_decay()`: the names of its position embeddings and class tokens.

    Args:
        modules: whose trainable parameters are optimised, in order.
        optimizer: its name.
        lr: peak learning rate.
        weight_decay: of the weights.
        nesterov: whether SGD's momentum is Nesterov's.
    """
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    if optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay, nesterov=nesterov)
    asked = {id(p) for m in modules for p in _left_alone(m)}
    free = [p.ndim <= 1 or id(p) in asked for p in parameters]
    groups = [
        {
            "params": [p for p, is_free in zip(parameters, free, strict=True) if not is_free],
            "weight_decay": weight_decay,
        },
        {"params": [p for p, is_free in zip(parameters, free, strict=True) if is_free], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr)


def _left_alone(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that the networks inside a module ask not to be decayed."""
    for part in module.modules():
        if callable(names := getattr(part, "no_weight_decay", None)):
            own = dict(part.named_parameters())
            yield from (own[name] for name in names() if name in own)


def lr_factor(
    progress: float,
    *,
    schedule: Schedule,
    warm_up: float | None = None,
    milestones: Sequence[float] = (0.625, 0.75, 0.875),
) -> float:
    """Learning rate as a share of its peak, at a progress in [0, 1].

    Args:
        progress: fraction of training done.
        schedule: its course.
        warm_up: fraction of training over which it rises; by default 0.3 (one-cycle), 0.05 (others).
        milestones: where `step` goes down to a tenth.

    >>> [round(lr_factor(p, schedule="one-cycle"), 3) for p in (0.0, 0.3, 1.0)]
    [0.04, 1.0, 0.0]
    """
    rise = (0.3 if schedule == "one-cycle" else 0.05) if warm_up is None else warm_up
    if schedule == "one-cycle":
        if progress < rise:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * progress / rise)) / 2
        return (1 + math.cos(math.pi * (progress - rise) / max(1 - rise, 1e-9))) / 2
    if progress < rise:
        return max(progress / rise, 0.01)
    if schedule == "cosine":
        return (1 + math.cos(math.pi * (progress - rise) / max(1 - rise, 1e-9))) / 2
    if schedule == "step":
        return 0.1 ** sum(progress >= mark for mark in milestones)
    return 1.0
