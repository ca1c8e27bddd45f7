"""FGD: the teacher's map, objects and background apart, weighed by its attention; and how positions relate."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_parts, check_same_batch, check_temperature
from reldistill.relations.precision import as_float, full_precision

PARTS = ("foreground", "background", "attention", "global")


class FGD(nn.Module):
    """Pulls the student's map to the teacher's inside and outside of the objects, its attention, and its relations.

        L = α L_fg + β L_bg + γ L_at + λ L_global,   each a mean over the images
        L_fg = Σ_ij S_ij A^S_ij Σ_c A^C_c (t − s)²_cij inside the boxes, S_ij = 1 / cells of the smallest box there
        L_bg = the same outside of them, S_ij = 1 / cells outside
        A^S = HW softmax over positions of (mean_c |t_c| / τ),   A^C = C softmax over channels of (mean_ij |t_ij| / τ)
        L_at = Σ |A^S(t) − A^S(s)| + Σ |A^C(t) − A^C(s)|
        L_global = Σ (R_t(t) − R_s(s))²,   R(f) = f + W₂ ReLU(LN(W₁ Σ_ij softmax(W₀ f)_ij f_ij))

    Zhendong Yang, Zhe Li, Xiaohu Jiang, Yuan Gong, Zehuan Yuan, Danpei Zhao, Chun Yuan: Focal and Global Knowledge
    Distillation for Detectors. CVPR 2022, arXiv 2111.11837.

    Args:
        channels: C of the maps.
        temperature: τ, above 0.
        foreground_weight: α.
        background_weight: β.
        attention_weight: γ.
        global_weight: λ. R_t and R_s have weights of their own, which are learnt, and begin as the identity.

    Call with student s and teacher t (B, C, H, W) of one shape, t being taken without gradient, and with `boxes`
    (B, n, 4): left, top, right, bottom of each image's objects as fractions of the map's width and height; those
    without an area stand for none. A box covers every cell that it touches. Returns a scalar, at least 0; a part whose
    weight is 0 is not computed.

    Raises:
        ValueError: the shapes differ (an adapter has to match them first), C is not `channels`, the boxes are not
            (B, n, 4), or a setting is out of range.

    Invariances: the order of the samples; the order of an image's boxes; for all parts but `global`, a common
    permutation of the channels.

    Differences from the paper: the authors' code gives a box one more row and column of cells at its end.

    Example:
        >>> import torch
        >>> boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5]]])
        >>> loss = FGD(channels=8)
        >>> sorted(loss.parts(torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4), boxes=boxes))
        ['attention', 'background', 'foreground', 'global']
    """

    needs = ("boxes",)

    def __init__(
        self,
        *,
        channels: int,
        temperature: float = 0.5,
        foreground_weight: float = 1e-3,
        background_weight: float = 5e-4,
        attention_weight: float = 5e-4,
        global_weight: float = 5e-6,
    ) -> None:
        super().__init__()
        if channels < 2:
            raise ValueError(f"channels must be at least 2, got {channels}")
        check_temperature(temperature)
        self.channels = channels
        self.temperature = temperature
        self.weights = dict(
            zip(PARTS, (foreground_weight, background_weight, attention_weight, global_weight), strict=True)
        )
        self.student_relations = _GlobalContext(channels)
        self.teacher_relations = _GlobalContext(channels)

    def forward(
        self, student: Float[Tensor, "B C H W"], teacher: Float[Tensor, "B C H W"], *, boxes: Float[Tensor, "B n 4"]
    ) -> Float[Tensor, ""]:
        """Σ weight · part, a scalar."""
        names = [name for name, weight in self.weights.items() if weight]
        nothing = as_float(student[:0]).sum()  # keeps the result differentiable when every weight is 0
        parts = self.parts(student, teacher, boxes=boxes, names=names)
        return sum((self.weights[name] * part for name, part in parts.items()), start=nothing)

    @full_precision
    def parts(
        self,
        student: Float[Tensor, "B C H W"],
        teacher: Float[Tensor, "B C H W"],
        *,
        boxes: Float[Tensor, "B n 4"],
        names: Collection[str] = PARTS,
    ) -> dict[str, Float[Tensor, ""]]:
        """The parts asked for, by name, unweighted."""
        check_parts(names, PARTS)
        check_axes(student, "B C H W", name="student", C=self.channels)
        check_same_batch(student, teacher)
        check_axes(teacher, "B C H W", name="teacher", C=self.channels, H=student.shape[2], W=student.shape[3])
        check_axes(boxes, "B n sides", name="boxes", B=len(student), sides=4)
        teacher = teacher.detach()
        spatial, channel = self._attention(teacher)
        found: dict[str, Tensor] = {}
        if "foreground" in names or "background" in names:
            error = spatial * torch.einsum("bchw,bc->bhw", (teacher - student).square(), channel)
            inside, outside = _shares(boxes.to(student.dtype), student.shape[2], student.shape[3])
            found["foreground"] = (error * inside).sum(dim=(1, 2)).mean()
            found["background"] = (error * outside).sum(dim=(1, 2)).mean()
        if "attention" in names:
            ours = self._attention(student)
            apart = (spatial - ours[0]).abs().sum(dim=(1, 2)) + (channel - ours[1]).abs().sum(dim=1)
            found["attention"] = apart.mean()
        if "global" in names:
            apart = (self.teacher_relations(teacher) - self.student_relations(student)).square()
            found["global"] = apart.sum(dim=(1, 2, 3)).mean()
        return {name: found[name] for name in PARTS if name in names}

    def _attention(self, maps: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B H W"], Float[Tensor, "B C"]]:
        """Weights of mean 1, over the positions (B, H, W) and over the channels (B, C)."""
        magnitude = maps.abs()
        spatial = (magnitude.mean(dim=1).flatten(1) / self.temperature).softmax(dim=1)
        channel = (magnitude.mean(dim=(2, 3)) / self.temperature).softmax(dim=1)
        return spatial.view_as(maps[:, 0]) * spatial.shape[1], channel * channel.shape[1]


class _GlobalContext(nn.Module):
    """A map with what one attended position's worth of all others adds to every one of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attend = nn.Conv2d(channels, 1, 1)
        self.transform = nn.Sequential(
            nn.Linear(channels, channels // 2),
            nn.LayerNorm(channels // 2),
            nn.ReLU(),
            nn.Linear(channels // 2, channels),
        )
        nn.init.zeros_(self.transform[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.transform[-1].bias)  # type: ignore[arg-type]

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """(B, C, H, W) → the same."""
        attention = self.attend(maps).flatten(1).softmax(dim=1)
        context = torch.einsum("bcp,bp->bc", maps.flatten(2), attention)
        return maps + self.transform(context)[:, :, None, None]


def _shares(
    boxes: Float[Tensor, "B n 4"], height: int, width: int
) -> tuple[Float[Tensor, "B {height} {width}"], Float[Tensor, "B {height} {width}"]]:
    """(B, H, W) twice: for a cell in a box, 1 / cells of the smallest one there; for others, 1 / cells in no box."""
    sides = boxes.new_tensor([width, height])
    first = (boxes[..., :2] * sides).floor().clamp(min=0)
    last = torch.minimum((boxes[..., 2:] * sides).ceil(), sides)
    cells = (last - first).clamp(min=0).prod(dim=2) * (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
    columns = torch.arange(width, device=boxes.device)
    rows = torch.arange(height, device=boxes.device)
    across = (columns >= first[..., :1]) & (columns < last[..., :1])
    down = (rows >= first[..., 1:]) & (rows < last[..., 1:])
    covered = (down[..., :, None] & across[..., None, :]) & (cells > 0)[..., None, None]
    share = torch.where(covered, (1 / cells.clamp(min=1))[..., None, None], 0.0)
    nowhere = share.new_zeros(len(boxes), 1, height, width)
    inside = torch.cat([share, nowhere], dim=1).amax(dim=1)
    free = (inside == 0).to(boxes.dtype)
    return inside, free / free.sum(dim=(1, 2), keepdim=True).clamp(min=1)
