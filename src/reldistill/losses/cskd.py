"""CSKD: every place of the student learns the class that a CNN teacher sees there, later the one it sees at all."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch, check_temperature
from reldistill.losses.deit_hard import deit_hard_loss
from reldistill.losses.kd import kd_loss
from reldistill.relations.precision import full_precision
from reldistill.relations.tokens import on_common_grid

Targets = Literal["hard", "soft"]


@full_precision
def cskd_loss(
    student: Float[Tensor, "B K H W"],
    teacher: Float[Tensor, "B K H_t W_t"],
    *,
    progress: float,
    targets: Targets = "hard",
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Pulls the student's class scores at every place to the teacher's scores there and in the whole image.

        t_p = (1 − progress) z^T_p + progress · mean over places q of z^T_q
        hard: L = mean over samples and places of cross entropy(softmax(z^S_p), argmax_k t_p)
        soft: L = τ² · mean over samples and places of KL(softmax(t_p / τ) ‖ softmax(z^S_p / τ))

    Borui Zhao, Renjie Song, Jiajun Liang: Cumulative Spatial Knowledge Distillation for Vision Transformers. ICCV 2023,
    arXiv 2307.08500.

    Args:
        student: z^S, the student's classifier applied at each place, (B, K, H, W).
        teacher: z^T of the teacher, (B, K, H', W'), taken without gradient. Where the sizes differ, the finer scores
            are averaged to the coarser grid.
        progress: fraction of training done, in [0, 1]: the local scores count first, those of the whole image last.
        targets: `hard` or `soft`.
        temperature: τ of the soft targets, above 0.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: the shapes do not go together, or a setting is not as above.

    Invariances:
        - a constant added to all scores of a place of the student, or to all scores of a sample of the teacher;
        - a positive scale of the teacher's scores, with hard targets;
        - the order of the samples, a common permutation of the classes and, on one grid, of the places.

    Differences from the paper: soft targets are averaged over the places, as hard ones are. A teacher of the coarser
    grid is the paper's case; with the finer one it is the teacher's that is averaged. In use the student classifies as
    always, without the mean over its places.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[[[5.0, 0.0]], [[0.0, 3.0]]]])
        >>> [round(cskd_loss(teacher, teacher, progress=p).item(), 4) for p in (0.0, 1.0)]
        [0.0277, 1.5277]
    """
    _check(targets, temperature)
    check_axes(student, "B K H W", name="student")
    check_axes(teacher, "B K H W", name="teacher", K=student.shape[1])
    check_same_batch(student, teacher)
    teacher = teacher.detach()
    teacher = teacher + progress * (teacher.mean(dim=(2, 3), keepdim=True) - teacher)
    # each place is a sample of its own
    ours, theirs = (side.movedim(1, -1).flatten(0, 2) for side in on_common_grid(student, teacher))
    return deit_hard_loss(ours, theirs) if targets == "hard" else kd_loss(ours, theirs, temperature=temperature)


class CSKD(nn.Module):
    """Pulls the student's class scores at every place to the teacher's: see `cskd_loss`.

    Args:
        targets: `hard` or `soft`.
        temperature: τ of the soft targets, above 0.

    Example:
        >>> import torch
        >>> CSKD()(torch.zeros(2, 10, 4, 4), torch.zeros(2, 10, 2, 2), progress=0.5).shape
        torch.Size([])
    """

    needs = ("progress",)

    def __init__(self, *, targets: Targets = "hard", temperature: float = 1.0) -> None:
        super().__init__()
        _check(targets, temperature)
        self.targets: Targets = targets
        self.temperature = temperature

    def forward(
        self, student: Float[Tensor, "B K H W"], teacher: Float[Tensor, "B K H_t W_t"], *, progress: float = 0.0
    ) -> Float[Tensor, ""]:
        """Scalar, for class scores (B, K, H, W) of both networks."""
        return cskd_loss(student, teacher, progress=progress, targets=self.targets, temperature=self.temperature)


def _check(targets: str, temperature: float) -> None:
    check_temperature(temperature)
    if targets not in ("hard", "soft"):
        raise ValueError(f"targets must be 'hard' or 'soft', got {targets!r}")
