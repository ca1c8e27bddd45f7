"""A second view of the images of a batch, for losses that compare two."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from reldistill.core.types import Batch
from reldistill.data.augment import DRAWS, Augment, augment_batch
from reldistill.relations.across_ranks import gather_batch, share_of_rank, shared_seed

# Not mirrored: whether that leaves an image what it is, only its data set knows.
STRONG = Augment("strong", crop=True, flip=False, strong=True)


def strong_view(batch: Batch) -> Float[Tensor, "B 3 S S"]:
    """The images shifted, in other colours and a part of them erased, as `--augment strong` has it.

    What is drawn follows from one number of torch's generator on the CPU, which a run seeds at every step, and an
    image's place in the batch of all ranks: a resumed run and any number of processes see the same.
    """
    everyone = len(gather_batch(batch.images.new_zeros(len(batch), 1)))
    generator = torch.Generator().manual_seed(shared_seed())
    draws = share_of_rank(torch.rand(everyone, DRAWS, generator=generator)).to(batch.images.device)
    pixels = (batch.images.detach().movedim(1, -1) * 255).round().to(torch.uint8).contiguous()
    return augment_batch(pixels, draws, STRONG).to(batch.images.dtype)
