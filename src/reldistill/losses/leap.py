"""LEAP: the teacher's blocks one after the other, each until the student has understood it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_parts, check_same_batch
from reldistill.losses.fitnets import FitNets, fitnets_loss
from reldistill.relations.across_ranks import gather_batch
from reldistill.relations.precision import as_float, full_precision

Start = Literal["best", "first"]
PARTS = ("patches", "class")
_NOT_YET = -1


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
    """Applies a feature loss to one block of a teacher ViT, and moves on to the next, deeper one when it is understood.

        L = ℓ(F^S, F^T_b) + λ_class ℓ(x^S, x^T_b)
        b = the block of largest CKA in the first batch,   b ← b + 1 when CKA ≥ threshold, or after the longest stay
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
        start: `best`, or `first` to begin with the first block.
        relative: divide ℓ by the teacher's mean square.
        class_token: whether there is the second part, between a vector of the student and the teacher's class token.
        class_weight: λ_class.
        loss: ℓ of the patches, any loss on two maps of one shape; by default the mean squared difference. It belongs to
            this one: what it learns or remembers is trained and saved with it.

    Call with the student's map (B, C, H, W), shaped like the teacher's by one adapter for all blocks, with the map of
    the teacher's block b, and `progress`, the fraction of training done; with `class_token`, each is a pair of such a
    map and a vector (B, C). While `chosen()` is None, in the first call, give the tuple of all blocks in place of one.
    Returns L. A call in training mode may move on to the next block; the block, the CKA and when the block began are in
    the state dict. All ranks see the same CKA.

    Raises:
        ValueError: shapes or settings are not as above.

    Invariances: those of ℓ; the order of the samples.

    Differences from the paper: a stay is a fraction of training, 1/20, where the authors' code has 5 of 100 epochs. The
    learning rate does not start again with each block. A student without a class token has its pooled vector compared
    with the teacher's. As in the authors' code, the block is looked at after every batch, the threshold is 0.8 (0.85
    for a tenth of ImageNet's classes) and the class token weighs 0.05.

    Example:
        >>> import torch
        >>> loss, blocks = LEAP(layers=12), tuple(torch.randn(12, 4, 8, 7, 7))
        >>> value = loss(blocks[5], blocks, progress=0.0)  # the fifth is understood at once
        >>> loss.chosen()
        6
        >>> for step in range(3):
        ...     value = loss(blocks[loss.chosen()], blocks[loss.chosen()], progress=0.0)
        >>> loss.chosen()
        9
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
        start: Start = "best",
        relative: bool = False,
        class_token: bool = False,
        class_weight: float = 0.05,
        loss: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}")
        for name, value in (("threshold", threshold), ("smoothing", smoothing), ("longest_stay", longest_stay)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value}")
        if start not in get_args(Start):
            raise ValueError(f"start must be one of {', '.join(get_args(Start))}, got {start!r}")
        self.layers = layers
        self.threshold = threshold
        self.smoothing = smoothing
        self.longest_stay = longest_stay
        self.relative = relative
        self.weights = {"patches": 1.0, **({"class": class_weight} if class_token else {})}
        self.loss = FitNets(relative=relative) if loss is None else loss
        self.register_buffer("block", torch.tensor(_NOT_YET if start == "best" else 0))
        self.register_buffer("alignment", torch.zeros((), dtype=torch.float32))
        self.register_buffer("begun", torch.zeros((), dtype=torch.float32))

    def chosen(self) -> int | None:
        """The number of the block that the next call is about, from 0; None where it is still to be found."""
        block = int(self.block)
        return None if block == _NOT_YET else block

    def forward(self, student: Any, teacher: Any, *, progress: float = 0.0) -> Float[Tensor, ""]:
        """Scalar, for maps (B, C, H, W) of one shape, or pairs of a map and a vector."""
        parts = self.parts(student, teacher, progress=progress)
        return sum((self.weights[name] * value for name, value in parts.items()), parts["patches"].new_zeros(()))

    def parts(
        self, student: Any, teacher: Any, *, names: Collection[str] | None = None, progress: float = 0.0
    ) -> dict[str, Float[Tensor, ""]]:
        """`patches` and, with a class token, `class`, unweighted; `names` says which."""
        names = tuple(self.weights) if names is None else names
        check_parts(names, tuple(self.weights))
        ours = self._sides(student, "student")
        block = self.chosen()
        if block is None:
            blocks = [self._sides(one, "teacher") for one in teacher]
            if len(blocks) != self.layers:
                raise ValueError(
                    f"teacher: expected the first call to have all {self.layers} blocks, got {len(blocks)}"
                )
            block = self._best(ours[0].detach(), [one[0] for one in blocks])
            theirs = blocks[block]
        else:
            theirs = self._sides(teacher, "teacher")
        check_same_batch(ours[0], theirs[0])
        found: dict[str, Tensor] = {}
        if "patches" in names:
            found["patches"] = self.loss(ours[0], theirs[0])
        if "class" in names:
            vectors = (one.flatten(1) for one in (ours[1], theirs[1]))
            found["class"] = fitnets_loss(*vectors, relative=self.relative)
        if self.training:
            if self.chosen() is None:
                self.block = torch.full_like(self.block, block)
                self.begun = torch.full_like(self.begun, progress)
            if block < self.layers - 1:
                self._observe(ours[0].detach(), theirs[0].detach(), progress)
        return found

    def _sides(self, side: Any, name: str) -> Sequence[Tensor]:
        """The map, and the vector where there is one."""
        sides = [side] if isinstance(side, Tensor) else list(side)
        if len(sides) != len(self.weights):
            raise ValueError(f"{name}: expected {' and '.join(self.weights)}, got {len(sides)} tensors")
        check_axes(sides[0], "B C H W", name=name)
        return sides

    @torch.no_grad()
    @full_precision
    def _best(self, student: Float[Tensor, "B C H W"], blocks: Sequence[Float[Tensor, "B C H W"]]) -> int:
        tokens = _tokens(student)
        return int(torch.stack([linear_cka(tokens, _tokens(one.detach())) for one in blocks]).argmax())

    @torch.no_grad()
    @full_precision
    def _observe(self, student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"], progress: float) -> None:
        alignment = self.alignment + self.smoothing * (linear_cka(_tokens(student), _tokens(teacher)) - self.alignment)
        moves = (alignment >= self.threshold) | (progress - self.begun >= self.longest_stay)
        self.block = self.block + moves
        self.alignment = (alignment * ~moves).to(self.alignment.dtype)
        self.begun = torch.where(moves, torch.full_like(self.begun, progress), self.begun)


def _tokens(feature_map: Float[Tensor, "B C H W"]) -> Float[Tensor, "everyone C"]:
    """Those of all ranks."""
    return gather_batch(as_float(feature_map).flatten(2).transpose(1, 2)).flatten(0, 1)
