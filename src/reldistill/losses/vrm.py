"""VRM: how the class scores of two views of a batch differ from sample to sample, and from class to class."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from reldistill.core.checks import check_axes, check_parts, check_same_batch
from reldistill.losses.kd import KD
from reldistill.relations.across_ranks import gather_batch
from reldistill.relations.precision import COINCIDENT_ROUNDINGS, full_precision

PARTS = ("sample", "class", "instance")
Views = Sequence[Float[Tensor, "B K"]]


def vrm_loss(
    student: Views,
    teacher: Views,
    *,
    keep: float = 0.9,
    temperature: float = 4.0,
    sample_weight: float = 25.0,
    class_weight: float = 25.0,
    instance_weight: float = 0.0,
) -> Float[Tensor, ""]:
    """Pulls the directions in which class scores differ, between samples and between classes, to the teacher's.

        L = λ_sample L_sample + λ_class L_class + λ_instance L_instance
        L_sample = mean over kept i, j of 1 − cos(z^S_i − z'^S_j, z^T_i − z'^T_j)
        L_class = mean over classes a, b of 1 − cos(z^S_·a − z'^S_·b, z^T_·a − z'^T_·b)
        kept: the pairs of least H(p^S_i) + H(p'^S_j),   H the entropy,   p = softmax z

    z_i are the logits of an image, less their mean, z'_i those of its second, strongly changed view; z_·a are a class's
    logits over the batch. 1 − cos is half the squared distance of the two edges at unit length. L_instance, without
    weight by default, is kd on both views: a control without relations.

    Weijia Zhang, Fei Xie, Weidong Cai, Chao Ma: VRM: Knowledge Distillation via Virtual Relation Matching. ICCV 2025,
    arXiv 2502.20760.

    Args:
        student: the logits of the images and of their second views, (B, K) each. The samples of all ranks are taken
            together.
        teacher: the same of the teacher, on the same views, taken without gradient.
        keep: the share of the edges between samples that is kept, in (0, 1].
        temperature: of L_instance.
        sample_weight: λ_sample.
        class_weight: λ_class.
        instance_weight: λ_instance.

    Returns:
        Scalar, at least 0, and 0 where the logits agree. An edge of length 0 adds nothing.

    Raises:
        ValueError: there are not two views of (B, K) each, or a setting is not as above.

    Invariances:
        - the order of the samples, a common permutation of the classes;
        - a constant added to all logits of a sample, of either network;
        - L_sample and L_class: a positive scale of all logits of the teacher.

    Differences from the paper: this project knows it from its abstract and from summaries, and decides what these leave
    open [ours]: edges are those between one image and the second view of the same or another image, so that none occurs
    twice; the unreliable ones are a fixed share, of the edges between samples only, as classes have no entropy; edges
    are compared by their cosine; logits are taken less their mean; the weights.

    Example:
        >>> import torch
        >>> views = torch.randn(8, 10), torch.randn(8, 10)
        >>> abs(round(vrm_loss(views, [3 * view for view in views]).item(), 5))
        0.0
    """
    weights = {"sample_weight": sample_weight, "class_weight": class_weight, "instance_weight": instance_weight}
    return VRM(keep=keep, temperature=temperature, **weights)(student, teacher)


class VRM(nn.Module):
    """Pulls the directions in which class scores differ to the teacher's: see `vrm_loss`.

    Args:
        keep: the share of the edges between samples that is kept.
        temperature: of the part `instance`.
        sample_weight: λ_sample, of the part `sample`.
        class_weight: λ_class, of the part `class`.
        instance_weight: λ_instance, of the part `instance`.

    Example:
        >>> import torch
        >>> views = torch.randn(8, 10), torch.randn(8, 10)
        >>> list(VRM().parts(views, views))
        ['sample', 'class', 'instance']
    """

    two_views = True

    def __init__(
        self,
        *,
        keep: float = 0.9,
        temperature: float = 4.0,
        sample_weight: float = 25.0,
        class_weight: float = 25.0,
        instance_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < keep <= 1:
            raise ValueError(f"keep must be in (0, 1], got {keep}")
        self.keep = keep
        self.instance = KD(temperature=temperature)
        self.weights = {"sample": sample_weight, "class": class_weight, "instance": instance_weight}

    def forward(self, student: Views, teacher: Views) -> Float[Tensor, ""]:
        """Scalar, the weighted sum of the parts, for two views (B, K) of each network."""
        names = [name for name, weight in self.weights.items() if weight] or ["sample"]
        parts = self.parts(student, teacher, names=names)
        return torch.stack([self.weights[name] * value for name, value in parts.items()]).sum()

    def parts(self, student: Views, teacher: Views, *, names: Collection[str] = PARTS) -> dict[str, Float[Tensor, ""]]:
        """`sample`, `class` and `instance`, unweighted; `names` says which."""
        check_parts(names, PARTS)
        if len(student) != 2 or len(teacher) != 2:
            raise ValueError(f"student and teacher must have two views each: {len(student)} and {len(teacher)}")
        for name, views in (("student", student), ("teacher", teacher)):
            for view in views:
                check_axes(view, "B K", name=name, K=student[0].shape[1])
                check_same_batch(student[0], view)
        found = _relations(*student, *(view.detach() for view in teacher), keep=self.keep, names=names)
        if "instance" in names:
            found["instance"] = self.instance(torch.cat(list(student)), torch.cat(list(teacher)))
        return {name: found[name] for name in PARTS if name in names}


@full_precision
def _relations(
    student: Float[Tensor, "local K"],
    student_again: Float[Tensor, "local K"],
    teacher: Float[Tensor, "local K"],
    teacher_again: Float[Tensor, "local K"],
    *,
    keep: float,
    names: Collection[str],
) -> dict[str, Float[Tensor, ""]]:
    views = [gather_batch(view) for view in (student, student_again, teacher, teacher_again)]
    ours, ours_again, theirs, theirs_again = (view - view.mean(dim=1, keepdim=True) for view in views)
    found = {}
    if "sample" in names:
        kept = _reliable(ours.detach(), ours_again.detach(), keep=keep)
        found["sample"] = (_edges_apart(ours, ours_again, theirs, theirs_again) * kept).sum() / kept.sum()
    if "class" in names:
        found["class"] = _edges_apart(ours.T, ours_again.T, theirs.T, theirs_again.T).mean()
    return found


def _reliable(one: Float[Tensor, "B K"], other: Float[Tensor, "B K"], *, keep: float) -> Bool[Tensor, "B B"]:
    """Which pairs of predictions are surest of themselves."""
    entropies = [-(view.log_softmax(dim=1) * view.softmax(dim=1)).sum(dim=1) for view in (one, other)]
    joint = entropies[0][:, None] + entropies[1]
    return joint <= joint.flatten().sort().values[math.ceil(keep * joint.numel()) - 1]


def _edges_apart(
    student: Float[Tensor, "n D"],
    student_again: Float[Tensor, "n D"],
    teacher: Float[Tensor, "n D"],
    teacher_again: Float[Tensor, "n D"],
) -> Float[Tensor, "n n"]:
    """1 − cosine between the student's edge from i to j and the teacher's; 0 where either has no length."""
    lengths, live = [], torch.ones((), dtype=torch.bool, device=student.device)
    for one, other in ((student, student_again), (teacher, teacher_again)):
        squares = _products(one, other, one, other)
        size = one.detach().square().sum(dim=1)[:, None] + other.detach().square().sum(dim=1)
        live = live & (squares.detach() > COINCIDENT_ROUNDINGS * torch.finfo(one.dtype).eps * size)
        lengths.append(squares)
    cosines = _products(student, student_again, teacher, teacher_again)
    for squares in lengths:
        cosines = cosines / squares.masked_fill(~live, 1.0).sqrt()
    return (1 - cosines).masked_fill(~live, 0.0)


def _products(
    a: Float[Tensor, "n D"], b: Float[Tensor, "n D"], c: Float[Tensor, "n D"], d: Float[Tensor, "n D"]
) -> Float[Tensor, "n n"]:
    """⟨a_i − b_j, c_i − d_j⟩ for all i, j, without n × n vectors."""
    return (a * c).sum(dim=1)[:, None] + (b * d).sum(dim=1) - a @ d.T - c @ b.T
