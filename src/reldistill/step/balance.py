"""Weights found while training: every part's pull on the student is kept at a stated share of the task's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Balance(nn.Module):
    """Scales every part so that its gradient has a share of the task's, on the parameters that both reach.

        factor = share · ‖∂L_task/∂θ‖ / ‖∂L_part/∂θ‖,   θ the student's parameters that task and part both depend on

    The norms are measured every few steps, by one backward pass for each part, and the factors move a part of the
    way to what was found, in the logarithm. A part's weight keeps its meaning as a multiple of the share.

    Args:
        names: the parts, as a Distiller names them.
        share: of the task's gradient.
        every: steps between two measurements.
        smoothing: how much of a factor is kept when it is measured again, in [0, 1).
    """

    def __init__(self, names: Sequence[str], *, share: float, every: int = 50, smoothing: float = 0.5) -> None:
        super().__init__()
        if not share > 0:
            raise ValueError(f"share must be above 0, got {share}")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
        self.names = tuple(names)
        self.share, self.every, self.smoothing = share, every, smoothing
        self.factors: dict[str, float] = {}  # of the parts that were measured
        self.steps = 0

    def get_extra_state(self) -> Tensor:
        """Steps and factors (0 for those not measured yet), for a checkpoint."""
        return torch.tensor([self.steps, *(self.factors.get(name, 0.0) for name in self.names)], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Continue from a checkpoint."""
        steps, *factors = state.tolist()
        self.steps = int(steps)
        self.factors = {name: factor for name, factor in zip(self.names, factors, strict=True) if factor}

    def forward(
        self, task: Tensor, parts: Mapping[str, Tensor], *, scales: Mapping[str, float], parameters: Iterable[Tensor]
    ) -> dict[str, Tensor]:
        """The parts times their factors; a training step is counted, and measured on where it is time.

        Args:
            task: the task's loss.
            parts: name → weighted scalar.
            scales: name → the weight, curriculum included, that is in the part already.
            parameters: the student's.
        """
        if self.training and torch.is_grad_enabled():
            if self.steps % self.every == 0 or not parts.keys() <= self.factors.keys():
                self._measure(task, parts, scales, [p for p in parameters if p.requires_grad])
            self.steps += 1
        return {name: value * self.factors.get(name, self.share) for name, value in parts.items()}

    def _measure(
        self, task: Tensor, parts: Mapping[str, Tensor], scales: Mapping[str, float], parameters: Sequence[Tensor]
    ) -> None:
        wanted = _gradients(task, parameters)
        for name, part in parts.items():
            gradients = _gradients(part, parameters)
            both = [i for i in range(len(parameters)) if wanted[i] is not None and gradients[i] is not None]
            ours, theirs = (float(_norm([of[i] for i in both])) for of in (gradients, wanted))
            found = self.share * scales[name] * theirs / ours if ours > 0 else 0.0
            if found > 0 and math.isfinite(found):
                before = self.factors.get(name, found)
                self.factors[name] = math.exp(
                    self.smoothing * math.log(before) + (1 - self.smoothing) * math.log(found)
                )


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Of one loss by each parameter, None where it does not depend on it; the mean over all ranks."""
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    if dist.is_available() and dist.is_initialized():
        for gradient in gradients:
            if gradient is not None:
                dist.all_reduce(gradient)
                gradient /= dist.get_world_size()
    return list(gradients)


def _norm(gradients: Sequence[Tensor | None]) -> Tensor:
    """Euclidean norm of all of them together."""
    norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
    return torch.stack(norms).norm() if norms else torch.zeros(())
