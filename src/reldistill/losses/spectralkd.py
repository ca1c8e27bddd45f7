"""SpectralKD: the maps of two networks, frequency by frequency."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.relations.precision import full_precision
from reldistill.relations.tokens import average_pool, on_common_grid


@full_precision
def half_spectrum(feature_map: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H frequencies 2"]:
    """(B, C, H, W) → (B, C, H, W // 2 + 1, 2): real and imaginary parts of each channel's orthonormal 2-D transform.

    The other half of a real map's spectrum is the conjugate of this one.
    """
    return torch.view_as_real(torch.fft.rfft2(feature_map, norm="ortho"))


def spectralkd_loss(
    student: Sequence[Float[Tensor, "B _C _H _W"]], teacher: Sequence[Float[Tensor, "B _C _H _W"]]
) -> Float[Tensor, ""]:
    """Pulls the spectra of the student's maps to the teacher's, with no parameters in between.

        L = mean over n pairs of maps of mean over all numbers of (𝓕(F^S) − 𝓕(P F^T))²

    𝓕 is the half spectrum of each channel, real and imaginary parts as numbers, P averages neighbouring channels until
    there are as many as the student has.

    Huiyuan Tian, Bonan Xu, Shijian Li, Gang Pan: SpectralKD: A Unified Framework for Interpreting and Distilling Vision
    Transformers via Spectral Analysis. arXiv 2412.19055, 2024.

    Args:
        student: n maps (B, C, H, W), or patch tokens laid out on their grids.
        teacher: n maps (B, C', H', W'), taken without gradient.

    Returns:
        Scalar, at least 0, and 0 where the maps agree.

    Raises:
        ValueError: the numbers of maps or of samples differ, or a map has other axes.

    Invariances:
        - the order of the samples;
        - a common cyclic shift of the positions, and a common mirror image of the maps.

    Differences from the paper: on grids of different size maps are average-pooled to the coarser one, and a student
    with more channels than the teacher has its own averaged [ours].

    By Parseval's theorem an orthonormal transform keeps sums of squares: over the whole spectrum this would be the
    plain mean square of F^S − P F^T. The half spectrum counts the frequencies that have no horizontal part, and with an
    even width the highest one, twice as much as the others.

    Example:
        >>> import torch
        >>> maps = [torch.randn(2, 4, 6, 6), torch.randn(2, 4, 3, 3)]
        >>> spectralkd_loss(maps, maps).item()
        0.0
    """
    if len(student) != len(teacher) or not student:
        raise ValueError(f"student and teacher must hold equally many maps: {len(student)} and {len(teacher)}")
    apart = []
    for ours, theirs in zip(student, teacher, strict=True):
        check_axes(ours, "B C H W", name="student")
        check_axes(theirs, "B C H W", name="teacher")
        check_same_batch(ours, theirs)
        apart.append(_apart(ours, theirs.detach()))
    return torch.stack(apart).mean()


@full_precision
def _apart(student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C_t H_t W_t"]) -> Float[Tensor, ""]:
    channels = min(student.shape[1], teacher.shape[1])
    ours, theirs = (_fewer_channels(side, channels) for side in on_common_grid(student, teacher))
    return F.mse_loss(half_spectrum(ours), half_spectrum(theirs))


def _fewer_channels(feature_map: Float[Tensor, "B _C H W"], channels: int) -> Float[Tensor, "B {channels} H W"]:
    if feature_map.shape[1] == channels:
        return feature_map
    lines = feature_map.flatten(2).unsqueeze(1)
    return average_pool(lines, (channels, lines.shape[3])).squeeze(1).unflatten(2, feature_map.shape[2:])


class SpectralKD(nn.Module):
    """Pulls the spectra of the student's maps to the teacher's: see `spectralkd_loss`.

    Example:
        >>> import torch
        >>> SpectralKD()([torch.randn(2, 4, 6, 6)], [torch.randn(2, 7, 3, 3)]).shape
        torch.Size([])
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(
        self, student: Sequence[Float[Tensor, "B _C _H _W"]], teacher: Sequence[Float[Tensor, "B _C _H _W"]]
    ) -> Float[Tensor, ""]:
        """Scalar, for as many maps (B, C, H, W) of the one as of the other."""
        return spectralkd_loss(student, teacher)
