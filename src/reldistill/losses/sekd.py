"""SEKD: distillation through the channels relational graph and its spectral embedding."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_parts, check_same_batch
from reldistill.losses._settings import Settings, takes
from reldistill.relations.across_ranks import mean_over_batch
from reldistill.relations.attention import Scale, map_attention, relational_attention
from reldistill.relations.channel_graph import channel_adjacency, split_channels, unit_channels
from reldistill.relations.kernels import switch
from reldistill.relations.kernels.channel_differences import channel_differences
from reldistill.relations.kernels.tracked_subspaces import TrackedSubspaces
from reldistill.relations.normalised_graph import Weights
from reldistill.relations.precision import as_float, full_precision
from reldistill.relations.spectrum import Alignment, spectral_distance
from reldistill.relations.subspaces import embedding_distance

PARTS = ("vertex", "edge", "spectral")


@dataclass(frozen=True)
class SEKDSettings(Settings):
    """What `SEKD` and `sekd_loss` can be told, each a keyword of theirs.

    Args:
        attention: weigh L_V by spatial × channel attention and L_E by relational attention; else all weights are 1.
        attention_temperature: τ of the three softmaxes.
        attention_scale: `relative` or `raw` magnitudes, see `relations.attention`.
        vertex: `unit`, channels as vectors of length 1; `raw` takes the maps as they are, averaged over all entries.
        groups: the channels are cut into this many runs of neighbours, a graph for each; parts are means over them.
        scope: the graph whose spectrum is compared: `batch` averages the adjacency over the images (of all ranks),
            `sample` takes each image's own. Edges are always compared image by image.
        rank: k, clamped to C/groups − 1.
        alignment: of the spectra: `subspace`, 1 − tr(P_T P_S) / k; `procrustes` 1 − ‖U_Tᵀ U_S‖_* / k, the mean squared
            distance of the embeddings after the best rotation; `heat` ‖exp(−t 𝓛_S) − exp(−t 𝓛_T)‖² / C. All lie in
            [0, 1].
        heat_time: t.
        graph_weights: W = max(A, 0) for `positive`, (1 + A) / 2 for `shifted`.
        vertex_weight: α, at least 0.
        edge_weight: β, at least 0.
        spectral_weight: γ, at least 0.

    Raises:
        ValueError: a setting is not one of the above.
    """

    attention: bool = True
    attention_temperature: float = 1.0
    attention_scale: Scale = "relative"
    vertex: Literal["unit", "raw"] = "unit"
    groups: int = 1
    scope: Literal["batch", "sample"] = "batch"
    rank: int = 8
    alignment: Alignment = "subspace"
    heat_time: float = 1.0
    graph_weights: Weights = "positive"
    vertex_weight: float = 1.0
    edge_weight: float = 1.0
    spectral_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above(0, "attention_temperature", "heat_time")
        self.check_at_least(1, "groups", "rank")
        self.check_at_least(0, "vertex_weight", "edge_weight", "spectral_weight")


def vertex_part(
    student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"], settings: SEKDSettings
) -> Float[Tensor, ""]:
    """L_V: mean over images and channels of Σ_hw a_hw a_c (v^S/‖v^S‖ − v^T/‖v^T‖)²_hw, v_c = vec(F_c)."""
    unit = settings.vertex == "unit"
    ours, theirs = (unit_channels(maps) if unit else maps.flatten(2) for maps in (student, teacher))
    squares = (ours - theirs).square()
    if settings.attention:
        temperature, scale = settings.attention_temperature, settings.attention_scale
        spatial, channel = map_attention(teacher.flatten(2), temperature=temperature, scale=scale)
        squares = spatial.unsqueeze(1) * channel.unsqueeze(2) * squares
    return squares.sum(dim=2).mean() if unit else squares.mean()


def edge_part(
    student: Float[Tensor, "B G C C"], teacher: Float[Tensor, "B G C C"], settings: SEKDSettings
) -> Float[Tensor, ""]:
    """L_E: mean over images and groups of Σ_ij R_ij (A^T_ij − A^S_ij)² / C², by adjacencies."""
    squares = (teacher - student).square()
    if settings.attention:
        squares = relational_attention(teacher, temperature=settings.attention_temperature) * squares
    return squares.mean()


def spectral_part(
    student: Float[Tensor, "B G C C"], teacher: Float[Tensor, "B G C C"], settings: SEKDSettings
) -> Float[Tensor, ""]:
    """L_S = 1 − tr(P_T P_S) / k, or another alignment: of the images' mean adjacencies, or the mean over the images."""
    if settings.scope == "batch":
        student, teacher = mean_over_batch(student), mean_over_batch(teacher)
    return spectral_distance(
        student,
        teacher,
        alignment=settings.alignment,
        rank=settings.rank,
        weights=settings.graph_weights,
        time=settings.heat_time,
    ).mean()


@full_precision
def sekd_parts(
    student: Float[Tensor, "B C H W"],
    teacher: Float[Tensor, "B C H W"],
    settings: SEKDSettings,
    *,
    names: Collection[str] = PARTS,
) -> dict[str, Float[Tensor, ""]]:
    """The parts asked for as their equations read; `SEKD.parts` finds the same in a few passes over the maps."""
    teacher = teacher.detach()
    parts = {}
    if "vertex" in names:
        parts["vertex"] = vertex_part(student, teacher, settings)
    ours, theirs = (channel_adjacency(split_channels(maps, groups=settings.groups)) for maps in (student, teacher))
    if "edge" in names:
        parts["edge"] = edge_part(ours, theirs, settings)
    if "spectral" in names:
        parts["spectral"] = spectral_part(ours, theirs, settings)
    return parts


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
        settings: the fields of `SEKDSettings`, each by keyword.

    Call with student and teacher (B, C, H, W) of one shape. Returns a scalar; a part of weight 0 is not computed.

    Raises:
        ValueError: the shapes differ (an adapter has to match them first), `groups` does not divide C, or a setting is
            not one of those in `SEKDSettings`.

    Results are finite, with finite gradients, for constant and dead channels and for repeated eigenvalues. Second
    derivatives are refused.

    A channel that is like no other (dead in all images, or at most at a right angle to all others) is an isolated
    vertex: it has no row in U and is not counted. Where n ≤ k channels are left, P has the n − 1 eigenvectors that
    there are, and L_S = ‖P_S − P_T‖² / 2k: two networks of dead channels have 0, one of them against a living one ½.
    The embedding jumps where a channel dies, as every relation that does not depend on a channel's scale must. `heat`
    has no embedding: there such a channel is a point that no heat leaves.

    Invariances:
        - spectral: how many channels are dead in both networks, while more than k are not;
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

    @takes(SEKDSettings)
    def __init__(self, *, settings: SEKDSettings) -> None:
        super().__init__()
        self.settings = settings
        self.weights = {
            "vertex": settings.vertex_weight,
            "edge": settings.edge_weight,
            "spectral": settings.spectral_weight,
        }
        followed = settings.scope == "batch" and settings.alignment != "heat"
        self.tracked = TrackedSubspaces(rank=settings.rank, weights=settings.graph_weights) if followed else None

    def forward(self, student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
        """Σ weight · part, a scalar; a part of weight 0 is not computed."""
        names = [name for name, weight in self.weights.items() if weight]
        parts = self.parts(student, teacher, names=names)
        if not parts:
            return as_float(student[:0]).sum()  # 0, and differentiable
        return torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()

    def parts(
        self, student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"], *, names: Collection[str] = PARTS
    ) -> dict[str, Float[Tensor, ""]]:
        """The parts asked for, by name, unweighted; what they share is computed once.

        Args:
            student: (B, C, H, W).
            teacher: (B, C, H, W), taken without gradient.
            names: which of `vertex`, `edge`, `spectral`.

        Returns:
            part name → scalar.
        """
        check_parts(names, PARTS)
        _check_shapes(student, teacher)
        by = self._parts_by_kernels if switch.enabled() else sekd_parts
        return by(student, teacher, self.settings, names=names)

    @property
    def fallbacks(self) -> int:
        """How often a large graph's eigenvectors did not converge, so that a full eigendecomposition was needed."""
        return 0 if self.tracked is None else int(self.tracked.fallbacks)

    def _parts_by_kernels(
        self, student: Tensor, teacher: Tensor, settings: SEKDSettings, *, names: Collection[str]
    ) -> dict[str, Tensor]:
        found = channel_differences(
            student,
            teacher,
            vertex=settings.vertex if "vertex" in names else "none",
            edge="edge" in names,
            graphs=settings.scope if "spectral" in names else "none",
            groups=settings.groups,
            attention=settings.attention,
            temperature=settings.attention_temperature,
            scale=settings.attention_scale,
        )
        parts = {name: getattr(found, name) for name in ("vertex", "edge") if name in names}
        if "spectral" in names:
            # Where the graphs are the batch's, their mean over this process's images is taken already.
            graphs = (found.student[None], found.teacher[None]) if settings.scope == "batch" else found[2:]
            parts["spectral"] = self._spectral_part_by_kernels(*graphs, settings)
        return parts

    def _spectral_part_by_kernels(self, student: Tensor, teacher: Tensor, settings: SEKDSettings) -> Tensor:
        if self.tracked is None or settings.alignment == "heat" or not self.tracked.suits(student):
            return spectral_part(student, teacher, settings)
        embeddings = self.tracked(mean_over_batch(student), mean_over_batch(teacher))
        return embedding_distance(*embeddings, alignment=settings.alignment).mean()


@takes(SEKDSettings)
def sekd_loss(
    student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"], *, settings: SEKDSettings
) -> Float[Tensor, ""]:
    """`SEKD` as a function of maps (B, C, H, W): the weighted sum of its parts. For the settings see `SEKDSettings`.

    >>> import torch
    >>> maps = torch.rand(2, 8, 4, 4)
    >>> sekd_loss(maps, maps).item()
    0.0
    """
    value: Tensor = SEKD(settings=settings)(student, teacher)
    return value


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    check_axes(student, "B C H W", name="student")
    check_axes(teacher, "B C H W", name="teacher")
    check_same_batch(student, teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher differ in (C, H, W): {tuple(student.shape[1:])} in the student, "
            f"{tuple(teacher.shape[1:])} in the teacher; an adapter has to match them first"
        )
