"""LEAP: the teacher's blocks one after the other, each until the student has understood it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.losses.fitnets import FitNets
from reldistill.relations.across_ranks import gather_batch
from reldistill.relations.precision import as_float, full_precision


def linear_cka(student: Float[Tensor, "N D"], teacher: Float[Tensor, "N D_t"]) -> Float[Tensor, ""]:
    """Linear CKA of two sets of vectors (N, D) and (N, D'): ‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖) of the centred ones, in [0, 1].

    It is 0 where either set is a single point.
    """
    ours, theirs = ((x / x.abs().amax().clamp_min(1e-30)) for x in (student, teacher))
    ours, theirs = ours - ours.mean(dim=0), theirs - theirs.mean(dim=0)
    scale = torch.linalg.matrix_norm(ours.T @ ours) * torch.linalg.matrix_norm(theirs.T @ theirs)
    alike = (ours.T @ theirs).square().sum()
    return torch.where(scale > 0, alike / scale.masked_fill(scale == 0, 1.0), 0.0).clamp(0.0, 1.0)


class LEAP(nn.Module):
    """Applies a feature loss to one block of a teacher ViT, and goes on to the next, deeper one when it is understood.

        L = ℓ(F^S, F^T_b),   b ← b + 1 when CKA ≥ threshold, or after the longest stay
        CKA ← (1 − a) CKA + a · linear CKA of the patch tokens of F^S and F^T_b over the batch

    Jiaqi Zhang, Ashton Lee, Anthony Wong, John Zou, Sami BuGhanem, Randall Balestriero: LEAP: Layer-skipping Efficiency
    via Adaptive Progression for Vision Transformer Distillation. arXiv 2606.19483, 2026.

    The teacher needs to run no further than block b. Where a Term is given all blocks as its teacher's places, it asks
    `chosen()` for the one to look at.

    Args:
        layers: number of the teacher's blocks.
        threshold: of the CKA, in (0, 1].
        smoothing: a, in (0, 1]; 1 takes the batch's own CKA.
        longest_stay: fraction of training after which the next block begins in any case.
        loss: ℓ, any loss on two maps of one shape; by default the mean squared difference over the teacher's mean
            square. It belongs to this one: what it learns or remembers is trained and saved with it.

    Call with the student's map (B, C, H, W), shaped like the teacher's by one adapter for all blocks, with the map of
    the teacher's block b, and `progress`, the fraction of training done. Returns ℓ. A call in training mode may move on
    to the next block; the block, the CKA and when the block began are in the state dict. All ranks see the same CKA.

    Raises:
        ValueError: shapes or settings are not as above.

    Invariances: those of ℓ; the order of the samples.

    Differences from the paper: the step from block to block is looked at after every batch, a stay is a fraction of
    training, 1/20, instead of 5 of 100 epochs, and ℓ is relative to the teacher's size. The learning rate does not
    start again with each block. The threshold is that of the authors' ImageNet runs, 0.8.

    Example:
        >>> import torch
        >>> loss, blocks = LEAP(layers=12), torch.randn(12, 4, 8, 7, 7)
        >>> for step in range(3):
        ...     value = loss(blocks[loss.chosen()], blocks[loss.chosen()], progress=0.0)
        >>> loss.chosen()
        3
    """

    needs = ("progress",)
    block: Int64[Tensor, ""]
    alignment: Float[Tensor, ""]
    begun: Float[Tensor, ""]

    def __init__(
        self,
        *,
        layers: int,
        threshold: float = 0.8,
        smoothing: float = 1.0,
        longest_stay: float = 0.05,
        loss: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        for name, value in (("threshold", threshold), ("smoothing", smoothing), ("longest_stay", longest_stay)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {value}")
        self.layers = layers
        self.threshold = threshold
        self.smoothing = smoothing
        self.longest_stay = longest_stay
        self.loss = FitNets(relative=True) if loss is None else loss
        self.register_buffer("block", torch.zeros((), dtype=torch.int64))
        self.register_buffer("alignment", torch.zeros((), dtype=torch.float32))
        self.register_buffer("begun", torch.zeros((), dtype=torch.float32))

    def chosen(self) -> int:
        """The number of the block that the next call is about, from 0."""
        return int(self.block)

    def forward(
        self, student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"], *, progress: float = 0.0
    ) -> Float[Tensor, ""]:
        """Scalar, for maps (B, C, H, W) of one shape."""
        check_axes(student, "B C H W", name="student")
        check_same_batch(student, teacher)
        value: Tensor = self.loss(student, teacher)
        if self.training and self.chosen() < self.layers - 1:
            self._observe(student.detach(), teacher.detach(), progress)
        return value

    @torch.no_grad()
    @full_precision
    def _observe(self, student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"], progress: float) -> None:
        ours, theirs = (
            gather_batch(as_float(one).flatten(2).transpose(1, 2)).flatten(0, 1) for one in (student, teacher)
        )
        alignment = self.alignment + self.smoothing * (linear_cka(ours, theirs) - self.alignment)
        moves = (alignment >= self.threshold) | (progress - self.begun >= self.longest_stay)
        self.block = self.block + moves
        self.alignment = (alignment * ~moves).to(self.alignment.dtype)
        self.begun = torch.where(moves, torch.full_like(self.begun, progress), self.begun)
