"""SEKD: distillation through the channels relational graph and its spectral embedding."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_same_batch
from reldistill.relations import spectrum
from reldistill.relations.across_ranks import mean_over_batch
from reldistill.relations.attention import Scale
from reldistill.relations.channel_differences import channel_differences
from reldistill.relations.precision import as_float
from reldistill.relations.tracked_subspaces import TrackedSubspaces

PARTS = ("vertex", "edge", "spectral")


class SEKD(nn.Module):
    """Pulls the student's channels, their pairwise similarities and the low spectrum of their graph to the teacher's.

    With v_c = vec(F_c), A_ij = ⟨v_i, v_j⟩ / (‖v_i‖ ‖v_j‖), weights a and R of mean 1 from the teacher's attention, and
    P the projector on the k eigenvectors of 𝓛 = I − D^{−1/2} W D^{−1/2} of smallest eigenvalue after the trivial one:

        L = α L_V + β L_E + γ L_S
        L_V = mean over images and channels of Σ_hw a_hw a_c (v^S/‖v^S‖ − v^T/‖v^T‖)²_hw
        L_E = mean over images of Σ_ij R_ij (A^T_ij − A^S_ij)² / C²
        L_S = 1 − tr(P_T P_S) / k

    Zhiwei Wang, Jun Huang, Longhua Ma, Chengyu Wu, Hongyu Ma: Exploring Graph-based Knowledge: Multi-Level Feature
    Distillation via Channels Relational Graph. arXiv 2405.08547, 2024.

    Args:
        attention: weigh L_V by spatial × channel attention and L_E by relational attention; else all weights are 1.
        attention_temperature: τ of the three softmaxes.
        attention_scale: `relative` or `raw` magnitudes, see `relations.attention`.
        vertex: `unit` as above; `raw` takes the maps as they are, averaged over all entries.
        groups: the channels are cut into so many runs of neighbours, a graph for each; parts are means over them.
        scope: the graph whose spectrum is compared: `batch` averages the adjacency over the images (of all ranks),
            `sample` takes each image's own. Edges are always compared image by image.
        rank: k, clamped to C/groups − 1.
        alignment: of the spectra: `subspace` as above; `procrustes` 1 − ‖U_Tᵀ U_S‖_* / k, the mean squared distance of
            the embeddings after the best rotation; `heat` ‖exp(−t 𝓛_S) − exp(−t 𝓛_T)‖² / C. All lie in [0, 1].
        heat_time: t.
        graph_weights: W = max(A, 0) for `positive`, (1 + A) / 2 for `shifted`.
        vertex_weight: α, at least 0.
        edge_weight: β, at least 0.
        spectral_weight: γ, at least 0.

    Call with student and teacher (B, C, H, W) of one shape. Returns a scalar; a part of weight 0 is not computed.

    Raises:
        ValueError: the shapes differ (an adapter has to match them first), `groups` does not divide C, or a setting is
            not one of the above.

    Results are finite, with finite gradients, for constant and dead channels and for repeated eigenvalues. Second
    derivatives are refused.

    Invariances:
        - edges and spectral: positive scaling of any channel of either network (vertex too, without attention);
        - edges and spectral: a permutation of the positions, of either network;
        - all parts: a common permutation of the channels, with one group; the order of the images;
        - spectral: signs of eigenvectors, and the basis of a repeated eigenvalue.

    Differences from the paper: its text names the parts and the objective; the exact weights, the scale inside the
    attention, comparing subspaces where eigenvectors have no sign, and the defaults are ours.

    >>> import torch
    >>> student, teacher = torch.randn(4, 16, 8, 8), torch.randn(4, 16, 8, 8)
    >>> loss = SEKD(rank=4)
    >>> sorted(loss.parts(student, teacher))
    ['edge', 'spectral', 'vertex']
    >>> loss(teacher, teacher).item()
    0.0
    """

    def __init__(
        self,
        *,
        attention: bool = True,
        attention_temperature: float = 1.0,
        attention_scale: Scale = "relative",
        vertex: Literal["unit", "raw"] = "unit",
        groups: int = 1,
        scope: Literal["batch", "sample"] = "batch",
        rank: int = 8,
        alignment: spectrum.Alignment = "subspace",
        heat_time: float = 1.0,
        graph_weights: spectrum.Weights = "positive",
        vertex_weight: float = 1.0,
        edge_weight: float = 1.0,
        spectral_weight: float = 1.0,
    ) -> None:
        super().__init__()
        for setting, value in (("attention_temperature", attention_temperature), ("heat_time", heat_time)):
            _check_number(setting, value, "above 0", value > 0)
        for setting, value in (("groups", groups), ("rank", rank)):
            _check_number(setting, value, "at least 1", value >= 1)
        weights = {"vertex": vertex_weight, "edge": edge_weight, "spectral": spectral_weight}
        for name, weight in weights.items():
            _check_number(f"{name}_weight", weight, "at least 0", weight >= 0)
        _check_word("vertex", vertex, ("unit", "raw"))
        _check_word("scope", scope, ("batch", "sample"))
        _check_word("alignment", alignment, get_args(spectrum.Alignment))
        _check_word("graph_weights", graph_weights, ("positive", "shifted"))
        _check_word("attention_scale", attention_scale, ("relative", "raw"))
        self.attention = attention
        self.attention_temperature = attention_temperature
        self.attention_scale: Scale = attention_scale
        self.vertex: Literal["unit", "raw"] = vertex
        self.groups = groups
        self.scope: Literal["batch", "sample"] = scope
        self.alignment: spectrum.Alignment = alignment
        self.spectral_loss = partial(
            spectrum.spectral_distance, alignment=alignment, rank=rank, weights=graph_weights, time=heat_time
        )
        tracked = scope == "batch" and alignment != "heat"
        self.tracked = TrackedSubspaces(rank=rank, weights=graph_weights) if tracked else None
        self.weights = weights

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Σ weight · part, a scalar; a part of weight 0 is not computed."""
        names = [name for name, weight in self.weights.items() if weight]
        parts = self.parts(student, teacher, names=names)
        if not parts:
            return as_float(student[:0]).sum()  # 0, and differentiable
        return torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()

    def parts(self, student: Tensor, teacher: Tensor, *, names: Collection[str] = PARTS) -> dict[str, Tensor]:
        """The parts asked for, by name, unweighted; what they share is computed once.

        Args:
            student: (B, C, H, W).
            teacher: (B, C, H, W), taken without gradient.
            names: which of `vertex`, `edge`, `spectral`.

        Returns:
            part name → scalar.
        """
        for name in names:
            _check_word("part", name, PARTS)
        _check_shapes(student, teacher)
        found = channel_differences(
            student,
            teacher,
            vertex=self.vertex if "vertex" in names else "none",
            edge="edge" in names,
            graphs=self.scope if "spectral" in names else "none",
            groups=self.groups,
            attention=self.attention,
            temperature=self.attention_temperature,
            scale=self.attention_scale,
        )
        parts = {name: getattr(found, name) for name in ("vertex", "edge") if name in names}
        if "spectral" in names:
            parts["spectral"] = self._spectral(found.student, found.teacher)
        return parts

    @property
    def fallbacks(self) -> int:
        """How often a large graph's eigenvectors did not converge, so that a full eigendecomposition was needed."""
        return 0 if self.tracked is None else int(self.tracked.fallbacks)

    def _spectral(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.scope == "batch":
            student, teacher = mean_over_batch(student[None]), mean_over_batch(teacher[None])
        if self.tracked is not None and self.tracked.suits(student):
            embeddings = self.tracked(student, teacher)
            return spectrum.embedding_distance(*embeddings, alignment=self.alignment).mean()
        return self.spectral_loss(student, teacher).mean()


def sekd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    attention: bool = True,
    attention_temperature: float = 1.0,
    attention_scale: Scale = "relative",
    vertex: Literal["unit", "raw"] = "unit",
    groups: int = 1,
    scope: Literal["batch", "sample"] = "batch",
    rank: int = 8,
    alignment: spectrum.Alignment = "subspace",
    heat_time: float = 1.0,
    graph_weights: spectrum.Weights = "positive",
    vertex_weight: float = 1.0,
    edge_weight: float = 1.0,
    spectral_weight: float = 1.0,
) -> Tensor:
    """`SEKD` as a function of maps (B, C, H, W): the weighted sum of its parts. The settings are explained there.

    >>> import torch
    >>> maps = torch.rand(2, 8, 4, 4)
    >>> sekd_loss(maps, maps).item()
    0.0
    """
    loss = SEKD(
        attention=attention,
        attention_temperature=attention_temperature,
        attention_scale=attention_scale,
        vertex=vertex,
        groups=groups,
        scope=scope,
        rank=rank,
        alignment=alignment,
        heat_time=heat_time,
        graph_weights=graph_weights,
        vertex_weight=vertex_weight,
        edge_weight=edge_weight,
        spectral_weight=spectral_weight,
    )
    value: Tensor = loss(student, teacher)
    return value


def _check_number(setting: str, value: float, bound: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{setting} must be {bound}, got {value}")


def _check_word(setting: str, word: str, words: Collection[str]) -> None:
    if word not in words:
        raise ValueError(f"{setting} must be one of {', '.join(words)}, got {word!r}")


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    check_axes(student, "B C H W", name="student")
    check_axes(teacher, "B C H W", name="teacher")
    check_same_batch(student, teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher differ in (C, H, W): {tuple(student.shape[1:])} in the student, "
            f"{tuple(teacher.shape[1:])} in the teacher; an adapter has to match them first"
        )
