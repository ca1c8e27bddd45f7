"""Eigendecompositions of symmetric matrices where LAPACK would raise, and on the processor that is faster at them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LARGEST_FOR_CPU = 512
"""Up to this size a GPU's matrices are decomposed on the CPU: it took less time on an H200 with 16 cores, or as long,
the way there and back included.
"""


def all_finite(matrix: Float[Tensor, "... n n"]) -> Bool[Tensor, "... 1 1"]:
    """Whether each matrix is finite. LAPACK raises on NaN and infinity; a loss that is not finite says more than that.

    By the sum, which takes a fraction of the time of looking at each entry.
    """
    return torch.isfinite(matrix.detach().sum(dim=(-2, -1), keepdim=True))


@contextlib.contextmanager
def few_threads(matrix: Tensor) -> Iterator[None]:
    """One, where matrices are small: beside a GPU there are often many, and to wake them takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if matrix.shape[-1] <= 128 else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def guarded_eigh(matrix: Float[Tensor, "... n n"]) -> tuple[Float[Tensor, "... n"], Float[Tensor, "... n n"]]:
    """`torch.linalg.eigh` that answers NaN where the matrix is not finite."""
    small = matrix.shape[-1] <= LARGEST_FOR_CPU and not torch.compiler.is_compiling()
    if matrix.device.type != "cpu" and small:
        given = matrix.cpu()
        with few_threads(given):
            values, vectors = guarded_eigh(given)
        return values.to(matrix.device), vectors.to(matrix.device)
    finite = all_finite(matrix)
    values, vectors = torch.linalg.eigh(torch.where(finite, matrix, 0.0))
    return torch.where(finite[..., 0], values, torch.nan), torch.where(finite, vectors, torch.nan)
