"""Relations between the samples of a batch that is spread over processes.

All functions are the identity (or a plain mean, or draw) in a single process. Gradients of gathering and mean are such
that, after DistributedDataParallel has averaged the parameters' gradients over the ranks, the result equals one
process's on the whole batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor


def shared_seed() -> int:
    """A number drawn from torch's generator on the CPU; all ranks get that of the first."""
    seed = torch.randint(2**62, ())
    if _world_size() > 1:
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        seed = seed.to(device)
        dist.broadcast(seed, src=0)
    return int(seed)


def share_of_rank(whole: Shaped[Tensor, " B *axes"]) -> Shaped[Tensor, " local *axes"]:
    """(B, …) → (B_local, …), the part of a tensor over all samples that belongs to this rank's: undoes a gathering."""
    return whole if _world_size() == 1 else whole.chunk(_world_size())[dist.get_rank()]


def sum_over_ranks(tensor: Shaped[Tensor, "*axes"]) -> Shaped[Tensor, "*axes"]:
    """The sum of all ranks' tensors of one shape, without gradient."""
    total = tensor.clone()
    if _world_size() > 1:
        dist.all_reduce(total)
    return total


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GatherBatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(_world_size())]
        dist.all_gather(parts, local.contiguous())
        ctx.size = local.shape[0]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.narrow(0, dist.get_rank() * ctx.size, ctx.size)


class _MeanOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.contiguous().clone()
        dist.all_reduce(total)
        return total / _world_size()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total / _world_size()


def gather_batch(local: Shaped[Tensor, " local *axes"]) -> Shaped[Tensor, " B *axes"]:
    """(B_local, …) → (B, …), the samples of all ranks in rank order. Every rank must hold equally many."""
    return local if _world_size() == 1 else _GatherBatch.apply(local)


def mean_over_batch(local: Shaped[Tensor, " local *axes"]) -> Shaped[Tensor, "*axes"]:
    """(B_local, …) → (…), the mean over the samples of all ranks. Every rank must hold equally many."""
    mean = local.mean(dim=0)
    return mean if _world_size() == 1 else _MeanOverRanks.apply(mean)
