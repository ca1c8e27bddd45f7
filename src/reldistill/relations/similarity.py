"""Cosines and correlations of vectors, finite where a vector is 0 or constant."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from reldistill.relations.channel_graph import unit_channels
from reldistill.relations.precision import full_precision

# A vector that differs from its mean by no more than this many roundings of its largest entry is constant.
_CONSTANT_ROUNDINGS = 16.0


@full_precision
def unit_vectors(vectors: Float[Tensor, "*axes D"]) -> Float[Tensor, "*axes D"]:
    """(…, D) → (…, D), each of length 1; a vector of 0 stays 0, with gradient 0.

    Example:
        >>> unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    return unit_channels(vectors.unsqueeze(-1))


@full_precision
def unit_deviations(vectors: Float[Tensor, "*axes D"]) -> Float[Tensor, "*axes D"]:
    """(…, D) → (…, D), each minus its mean and of length 1; a constant vector gives 0, with gradient 0.

    The inner product of two of them is Pearson's correlation, √D times one is its z-score.

    Example:
        >>> unit_deviations(torch.tensor([[1.0, 3.0], [0.1, 0.1]]))
        tensor([[-0.7071,  0.7071],
                [ 0.0000,  0.0000]])
    """
    centred = vectors - vectors.mean(dim=-1, keepdim=True)
    noise = _CONSTANT_ROUNDINGS * torch.finfo(vectors.dtype).eps * vectors.detach().abs().amax(dim=-1, keepdim=True)
    constant = centred.detach().abs().amax(dim=-1, keepdim=True) <= noise
    return unit_vectors(centred.masked_fill(constant, 0.0))


@full_precision
def cosines(vectors: Float[Tensor, "*axes N D"]) -> Float[Tensor, "*axes N N"]:
    """(…, N, D) → (…, N, N): the cosine of each pair of vectors, 0 where one of them is 0.

    Example:
        >>> cosines(torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
        tensor([[1.0000, 0.7071],
                [0.7071, 1.0000]])
    """
    unit = unit_vectors(vectors)
    return unit @ unit.mT
