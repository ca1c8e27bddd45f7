"""CRD: an image's two representations belong together, those of images of other classes don't."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.relations.across_ranks import gather_batch, mean_over_batch, share_of_rank, shared_seed
from reldistill.relations.precision import full_precision

Contrast = Literal["classes", "instances"]
"""Whether negatives are images of other classes, or all other images."""

_NO_LABEL = -1


class CRD(nn.Module):
    """Pulls the student's and the teacher's representation of an image together, those of other classes apart.

    With g^S, g^T linear maps to the unit sphere, learned with the student, and a bank that remembers both for every
    training image:

        L = L(g^S(x^S), bank^T) + L(g^T(x^T), bank^S)
        L(a, bank) = mean over samples i of [−log h(a_i, bank_i) − Σ_{k negatives} log(1 − h(a_i, bank_k))]
        h(a, b) = p / (p + K),   p = exp(⟨a, b⟩ / τ) / Z,   Z = mean of exp(⟨a, b⟩ / τ) in the first step
        bank_i ← unit(m · bank_i + (1 − m) · g(x_i)) after the step's value

    Yonglong Tian, Dilip Krishnan, Phillip Isola: Contrastive Representation Distillation. ICLR 2020, arXiv 1910.10699.

    Args:
        student_dim: D of the student's vectors.
        teacher_dim: D' of the teacher's.
        images: number of training images, n. It is the bank's size, and every index lies below it.
        dim: of the sphere's space.
        negatives: K, at most n − 1: fewer images have fewer.
        temperature: τ, above 0.
        momentum: m, in [0, 1).
        contrast: `classes` for negatives of other classes; `instances` for all other images, which takes no labels.

    Call with student (B, D), teacher (B, D') without gradient, `labels` and `indices` (B,), the images' classes (which
    `instances` takes no notice of) and places in the training data. Returns a scalar, above 0. A call in training mode
    writes to the bank; all ranks' banks stay the same, and hold the samples of all.

    Raises:
        ValueError: shapes, sizes or settings are not as above, or an index is outside the bank.

    Invariances: the order of the samples in a batch, except for the random negatives; a positive scale of either
    network's vectors while the linear maps' biases are 0.

    Differences from the paper: negatives are drawn with replacement, from all images of other classes, also before the
    bank has seen them (an image whose class is not known yet counts as another). The bank's rows start as random unit
    vectors, where the authors' code draws them from a cube. Without negatives, when all images are of one class, only
    the first term is left.

    Example:
        >>> import torch
        >>> loss = CRD(student_dim=16, teacher_dim=32, images=100)
        >>> labels, indices = torch.tensor([0, 1, 2, 0]), torch.tensor([7, 11, 13, 17])
        >>> loss(torch.randn(4, 16), torch.randn(4, 32), labels=labels, indices=indices).shape
        torch.Size([])
    """

    needs: tuple[str, ...] = ("labels", "indices")
    student_bank: Float[Tensor, "n dim"]
    teacher_bank: Float[Tensor, "n dim"]
    bank_labels: Int64[Tensor, "n"]
    log_scales: Float[Tensor, "2"]

    def __init__(
        self,
        *,
        student_dim: int,
        teacher_dim: int,
        images: int,
        dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        contrast: Contrast = "classes",
    ) -> None:
        super().__init__()
        if images < 2:
            raise ValueError(f"images must be at least 2, got {images}")
        if dim < 1 or negatives < 1:
            raise ValueError(f"dim and negatives must be at least 1, got {dim} and {negatives}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if contrast not in get_args(Contrast):
            raise ValueError(f"contrast must be one of {', '.join(get_args(Contrast))}, got {contrast!r}")
        if contrast == "instances":
            self.needs = ("indices",)
        self.contrast = contrast
        self.images = images
        self.negatives = min(negatives, images - 1)
        self.temperature = temperature
        self.momentum = momentum
        self.student_embedding = nn.Linear(student_dim, dim)
        self.teacher_embedding = nn.Linear(teacher_dim, dim)
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, F.normalize(torch.randn(images, dim), dim=1))
        self.register_buffer("bank_labels", torch.full((images,), _NO_LABEL))
        # log Z of both directions; that of 0 until the first step has set them.
        self.register_buffer("log_scales", torch.full((2,), -math.inf))

    @full_precision
    def forward(
        self,
        student: Float[Tensor, "B D"],
        teacher: Float[Tensor, "B D_t"],
        *,
        labels: Int64[Tensor, "B"] | None = None,
        indices: Int64[Tensor, "B"],
    ) -> Float[Tensor, ""]:
        """Scalar, for vectors (B, D) and (B, D'), and the images' classes and indices (B,)."""
        if self.contrast == "instances":
            labels = indices  # every image is a class of its own
        elif labels is None:
            raise ValueError("labels: crd contrasts classes: give them, or take contrast='instances'")
        self._check(student, teacher, labels=labels, indices=indices)
        ours = F.normalize(self.student_embedding(student), dim=1)
        theirs = F.normalize(self.teacher_embedding(teacher.detach()), dim=1)
        with torch.no_grad():
            everyones = gather_batch(indices)
            bank_labels = self.bank_labels.index_copy(0, everyones, gather_batch(labels))
            compared = torch.cat([indices[:, None], self._draw(labels, bank_labels)], dim=1)
        # All similarities at once and then a choice: no (B, K, dim) copy of the bank's rows.
        logits = [
            (embedding @ bank.T).gather(1, compared) / self.temperature
            for embedding, bank in ((ours, self.teacher_bank), (theirs, self.student_bank))
        ]
        log_scales = self._log_scales(logits)
        loss = self._contrast(logits[0], log_scales[0]) + self._contrast(logits[1], log_scales[1])
        if self.training:
            self._remember(everyones, ours, theirs)
            self.bank_labels, self.log_scales = bank_labels, log_scales
        return loss

    def _contrast(self, logits: Float[Tensor, "B choices"], log_scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Of (B, 1 + K), the positive first."""
        # log p − log K, in which −log h = softplus(−x) and −log(1 − h) = softplus(x) never overflow.
        odds = logits - log_scale - math.log(max(logits.shape[1] - 1, 1))
        return (F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(dim=1)).mean()

    @torch.no_grad()
    def _log_scales(self, logits: list[Float[Tensor, "B choices"]]) -> Float[Tensor, "2"]:
        largest = 1 / self.temperature  # of unit vectors, so that the exponentials can't overflow
        first = [mean_over_batch((one - largest).exp().mean(dim=1)).log() + largest for one in logits]
        return torch.where(self.log_scales.isneginf(), torch.stack(first), self.log_scales)

    @torch.no_grad()
    @torch.compiler.disable
    def _draw(self, labels: Int64[Tensor, "B"], bank_labels: Int64[Tensor, "n"]) -> Int64[Tensor, "B K"]:
        """(B, K) indices of images of other classes, the same whether one process draws them or several."""
        everyones = gather_batch(labels)
        order = bank_labels.argsort(stable=True)
        ordered = bank_labels[order]
        start, end = torch.searchsorted(ordered, everyones), torch.searchsorted(ordered, everyones, right=True)
        others = self.images - (end - start)
        generator = torch.Generator(labels.device).manual_seed(shared_seed())
        size = (len(everyones), self.negatives if int(others.min()) else 0)
        chance = torch.rand(size, generator=generator, device=labels.device, dtype=torch.float64)
        place = (chance * others[:, None]).long()
        # In the order of classes the images of the sample's own class are a run of neighbours, which is skipped.
        place += (place >= start[:, None]) * (end - start)[:, None]
        return share_of_rank(order[place])

    @torch.no_grad()
    def _remember(
        self, indices: Int64[Tensor, "everyone"], ours: Float[Tensor, "B dim"], theirs: Float[Tensor, "B dim"]
    ) -> None:
        for name, embedding in (("student_bank", ours), ("teacher_bank", theirs)):
            bank = getattr(self, name)
            mixed = self.momentum * bank[indices] + (1 - self.momentum) * gather_batch(embedding)
            # A new tensor, not a change in place: the backward pass still needs the old rows.
            setattr(self, name, bank.index_copy(0, indices, F.normalize(mixed, dim=1)))

    def _check(self, student: Tensor, teacher: Tensor, *, labels: Tensor, indices: Tensor) -> None:
        check_axes(student, "B D", name="student", D=self.student_embedding.in_features)
        check_axes(teacher, "B D", name="teacher", D=self.teacher_embedding.in_features)
        check_same_batch(student, teacher)
        check_axes(labels, "B", name="labels", B=len(student))
        check_axes(indices, "B", name="indices", B=len(student))
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < self.images:
            raise ValueError(f"indices: expected 0 to {self.images - 1}, one for each of the bank's images")
