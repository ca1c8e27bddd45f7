"""Random tensors, rotations and orders by seed, for tests of losses."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

SEEDS = st.integers(0, 2**31)
few = settings(max_examples=15, deadline=None)
which_network = st.sampled_from([0, 1])


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*sizes: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    """A float64 tensor of normal random numbers for each size."""
    generator = _generator(seed)
    return [scale * torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


def rotation(dim: int, seed: int) -> Tensor:
    """A rotation or reflection, (dim, dim)."""
    return torch.linalg.qr(torch.randn(dim, dim, generator=_generator(seed), dtype=torch.float64))[0]


def order(count: int, seed: int) -> Tensor:
    """A permutation."""
    return torch.randperm(count, generator=_generator(seed))


def scales(count: int, seed: int) -> Tensor:
    """Positive numbers from about 0.01 to 100."""
    return (1.5 * torch.randn(count, generator=_generator(seed), dtype=torch.float64)).exp()


def signs(count: int, seed: int) -> Tensor:
    """1 or −1 for each."""
    return torch.randn(count, generator=_generator(seed), dtype=torch.float64).sign()


def same(found: Tensor, expected: Tensor, *, tolerance: float = 1e-7) -> None:
    """Assert that two values agree."""
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-10)
