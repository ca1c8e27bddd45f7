"""Pictures of methods on the relations between the samples of a batch."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.pictures import frame, networks
from benchmarks.pictures.frame import STUDENT, TEACHER
from reldistill.core.types import Batch
from reldistill.losses import CRD
from reldistill.losses.leap import linear_cka
from reldistill.methods.views import strong_view
from reldistill.report import plots

ROLES = ("student", "teacher")


def rkd(path: Path) -> None:
    """Distances between the samples, and all angles."""
    points = [networks.scans(role).pooled for role in ROLES]
    distances = [one / one[one > 0].mean() for one in (torch.cdist(x, x) for x in points)]
    drawn, axes = frame.pair_of_matrices(*(one.numpy() for one in distances), extra=1)
    ax = axes[0, 3]
    for role, x in zip(ROLES, points, strict=True):
        cosines = _angles(x[::2])
        colour = STUDENT if role == "student" else TEACHER
        ax.hist(cosines.numpy(), bins=40, range=(-1, 1), density=True, histtype="step", color=colour, label=role)
    ax.set(xlabel="cosine", yticks=[])
    ax.set_title("angles of all triples")
    ax.legend(loc="upper left", fontsize=7)
    frame.write(drawn, path, title="Distances between the samples of a batch in student and teacher, and their angles")


def _angles(points: Tensor) -> Tensor:
    count = len(points)
    ways = functional.normalize(points[:, None] - points[None], dim=2)  # from the second to the first
    cosines = torch.einsum("ijd,kjd->ijk", ways, ways)
    i, j, k = torch.meshgrid(*[torch.arange(count)] * 3, indexing="ij")
    return cosines[(i != j) & (j != k) & (i != k)]


def sp(path: Path) -> None:
    """Similarities of the flattened maps, each row at unit length."""
    flat = [networks.scans(role).maps.flatten(1) for role in ROLES]
    drawn, _ = frame.pair_of_matrices(*(functional.normalize(x @ x.T, dim=1).numpy() for x in flat))
    frame.write(drawn, path, title="Similarities between the samples of a batch in student and teacher")


def cc(path: Path) -> None:
    """Kernel correlations."""
    sharpness, order = 0.4, 2
    found = []
    for role in ROLES:
        unit = functional.normalize(networks.scans(role).pooled, dim=1)
        cosine = unit @ unit.T
        terms = [(2 * sharpness) ** p / math.factorial(p) * cosine**p for p in range(order + 1)]
        found.append((math.exp(-2 * sharpness) * torch.stack(terms).sum(0)).numpy())
    drawn, _ = frame.pair_of_matrices(*found)
    frame.write(drawn, path, title="Kernel correlations between the samples of a batch in student and teacher")


def pkt(path: Path) -> None:
    """Of each sample, the probabilities of its neighbours."""
    found = []
    for role in ROLES:
        unit = functional.normalize(networks.scans(role).pooled, dim=1)
        kernel = (1 + unit @ unit.T) / 2
        found.append((kernel / kernel.sum(dim=1, keepdim=True)).numpy())
    drawn, _ = frame.pair_of_matrices(*found)
    frame.write(drawn, path, title="Probabilities of being neighbours in student and teacher")


def crd(path: Path) -> None:
    """How near points of student and teacher lie once the maps to the sphere are learned."""
    scans, classes = networks.digits()
    with torch.no_grad():
        vectors = [networks.readers()[role](scans[:1200], pooled=True).pooled for role in ROLES]
    student, teacher = (x for x in vectors if x is not None)
    torch.manual_seed(0)
    loss = CRD(student_dim=student.shape[1], teacher_dim=teacher.shape[1], images=1200, dim=64, negatives=512)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.003)
    drawn, axes = frame.figure(1, 2, height=2.3, sharey=True)
    for ax, title in zip(axes[0], ("at the start", "after 20 epochs"), strict=True):
        if title != "at the start":
            for _ in range(20):
                for batch in torch.randperm(1200).split(60):
                    optimizer.zero_grad()
                    loss(student[batch], teacher[batch], labels=classes[batch], indices=batch).backward()
                    optimizer.step()
        with torch.no_grad():
            ours = functional.normalize(loss.student_embedding(student), dim=1)
            theirs = functional.normalize(loss.teacher_embedding(teacher), dim=1)
            cosine = ours @ theirs.T
        alike = classes[:1200, None] == classes[None, :1200]
        own = torch.eye(1200, dtype=torch.bool)
        groups = {"the same image": own, "the same class": alike & ~own, "another class": ~alike}
        for (name, mask), colour in zip(groups.items(), (STUDENT, plots.SERIES[0], TEACHER), strict=True):
            bins = torch.linspace(-1, 1, 60)
            share, _ = torch.histogram(cosine[mask], bins=bins)
            ax.stairs((share / share.sum()).numpy(), bins.numpy(), color=colour, label=name, linewidth=1.4)
        ax.set(xlabel="cosine of a student's and a teacher's point", yticks=[])
        ax.set_title(title)
    axes[0, 0].legend(loc="upper left")
    frame.write(drawn, path, title="Cosines between points of student and teacher, of the same and of other images")


def vrm(path: Path) -> None:
    """Edges between scans and their second views."""
    everything, classes = networks.digits()
    chosen = torch.cat([(classes[1200:] == k).nonzero()[:6, 0] + 1200 for k in range(10)])
    batch, readers = Batch(everything[chosen].contiguous()), networks.readers()
    sides = []
    torch.manual_seed(0)
    with torch.no_grad():
        again = strong_view(batch)
        for role in ROLES:
            said = [readers[role](view).logits for view in (batch.images, again)]
            sides.append([view - view.mean(dim=1, keepdim=True) for view in said])
    edges = [functional.normalize(one[:, None] - other, dim=2) for one, other in sides]
    apart = (edges[0] - edges[1]).square().sum(dim=2) / 2
    entropies = [-(view.softmax(1) * view.log_softmax(1)).sum(1) for view in sides[0]]
    joint = entropies[0][:, None] + entropies[1]
    kept = joint <= joint.flatten().quantile(0.9)
    drawn, axes = frame.figure(1, 4, height=2.1)
    frame.photograph(axes[0, 0], _sheet(batch.images[::6]), "images")
    frame.photograph(axes[0, 1], _sheet(again[::6]), "second views")
    frame.heat(axes[0, 2], joint.numpy(), "entropy of both ends")
    frame.heat(axes[0, 3], apart.masked_fill(~kept, torch.nan).numpy(), "1 − cosine", limit=1)
    frame.write(
        drawn, path, title="Edges between images and second views: the student's entropy, distance, what is kept"
    )


def _sheet(images: Tensor) -> np.ndarray:
    """(n, 3, S, S) → three columns of images, uint8."""
    cells = (images[:9] * 255).round().to(torch.uint8).unflatten(0, (3, 3))
    return cells.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).numpy()


def leap(path: Path) -> None:
    """How well the blocks of a small transformer agree with each other."""
    teacher = networks.reader("vit_tiny_patch16_224", epochs=12, patch_size=4, embed_dim=96, depth=8, num_heads=3)
    blocks = tuple(f"blocks.{i}" for i in range(8))
    with torch.no_grad():
        levels = teacher(networks.digits()[0][1200:], levels=blocks, logits=False).levels
    tokens = [_tokens(levels[block]) for block in blocks]
    agreement = torch.tensor([[linear_cka(one, other) for other in tokens] for one in tokens])
    drawn, axes = frame.figure(1, 2, height=2.7, width_ratios=[1, 1.5])
    frame.heat(axes[0, 0], agreement.numpy(), "CKA of each block with each", limit=1)
    axes[0, 0].set(xticks=range(8), yticks=range(8))
    ax = axes[0, 1]
    ax.plot(range(1, 8), agreement.diagonal(1).numpy(), color=TEACHER, marker="o", markersize=3, label="the one before")
    ax.plot(range(1, 8), agreement[0, 1:].numpy(), color=STUDENT, marker="o", markersize=3, label="the first")
    ax.axhline(0.8, color=plots.QUIET, linewidth=0.8)
    ax.set(ylim=(0, 1.03), xticks=range(1, 8), xlabel="block")
    ax.set_title("CKA of a block with")
    ax.legend(loc="lower left")
    frame.write(drawn, path, title="Agreement between the blocks of a transformer")


def _tokens(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) → (B·H·W, C)."""
    return feature_map.movedim(1, -1).flatten(0, 2)


PICTURES = {one.__name__: one for one in (rkd, sp, cc, pkt, crd, vrm, leap)}
