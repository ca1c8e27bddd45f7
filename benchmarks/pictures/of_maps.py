"""Pictures of methods on maps: where, which channels, which patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.pictures import frame, networks
from benchmarks.pictures.frame import STUDENT, TEACHER
from reldistill.losses import MGD
from reldistill.losses.ofd import margins
from reldistill.losses.spectralkd import half_spectrum
from reldistill.relations.attention import map_attention
from reldistill.relations.channel_graph import channel_adjacency
from reldistill.relations.spectrum import laplacian_eigenvalues
from reldistill.relations.superpixels import superpixel_grid, superpixels_and_assignment
from reldistill.relations.tokens import average_pool
from reldistill.report.run.relations_file import spectral_order

ROLES = ("student", "teacher")


def _sides(name: str) -> tuple[Tensor, Tensor]:
    """Student's map through a 1×1 convolution and teacher's, (C, H, W) of a photograph."""
    row = networks.place(name)
    return networks.adapted()[row], networks.maps("teacher", 16)[row]


def _liveliest(feature_map: Tensor, count: int) -> list[int]:
    """The channels that vary most over the image, compared with what they are over all images."""
    spread = networks.maps("teacher", 16).std(dim=(0, 2, 3))
    found: list[int] = (feature_map.amax(dim=(1, 2)) / spread).topk(count).indices.tolist()
    return found


def _superpixels(role: str) -> np.ndarray:
    """(n, h, w): the superpixel of every token."""
    feature_map = networks.maps(role, 16)
    grid = superpixel_grid((feature_map.shape[2], feature_map.shape[3]), cell=4)
    _, assignment = superpixels_and_assignment(feature_map, grid=grid)
    assert assignment is not None
    return assignment.labels().numpy()


def serkd(path: Path) -> None:
    """The superpixels of both networks over the photographs."""
    names = list(networks.photographs())
    drawn, axes = frame.figure(2, len(names), height=3.15)
    for row, role in enumerate(("teacher", "student")):
        labels = _superpixels(role)
        for column, name in enumerate(names):
            frame.regions(axes[row, column], networks.small(name), labels[networks.place(name)])
        axes[row, 0].set_title(role)
    frame.write(drawn, path, title="Superpixels of teacher and student over five photographs")


def sekd(path: Path) -> None:
    """The channel graphs of a level and their spectra."""
    found = {role: _adjacency(role) for role in ROLES}
    order = spectral_order(found["teacher"].numpy())
    drawn, axes = frame.pair_of_matrices(
        *(found[role].numpy()[np.ix_(order, order)] for role in ROLES), signed=True, extra=1
    )
    ax = axes[0, 3]
    for role, colour in zip(ROLES, (STUDENT, TEACHER), strict=True):
        values = laplacian_eigenvalues(found[role]).numpy()
        ax.plot((np.arange(len(values)) + 0.5) / len(values), values, color=colour, label=role)
    ax.set(xlabel="place among the eigenvalues", xlim=(0, 1))
    ax.set_title("spectrum")
    ax.legend(loc="lower right", fontsize=7)
    frame.write(drawn, path, title="The channel graph of a level in student and teacher, and both spectra")


def _adjacency(role: str) -> Tensor:
    feature_map = networks.adapted() if role == "student" else networks.maps("teacher", 16)
    return channel_adjacency(feature_map).mean(dim=0)


def fitnets(path: Path) -> None:
    """A channel in both networks, and how far apart they are over all channels."""
    drawn, axes = frame.figure(1, 4, height=1.95)
    student, teacher = _sides("coffee")
    (channel,) = _liveliest(teacher, 1)
    most = float(teacher[channel].abs().max())
    frame.photograph(axes[0, 0], networks.small("coffee"))
    frame.heat(axes[0, 1], student[channel].numpy(), "student, a channel", limit=most, signed=True)
    frame.heat(axes[0, 2], teacher[channel].numpy(), "teacher, the same", limit=most, signed=True)
    frame.heat(axes[0, 3], (student - teacher).square().mean(0).numpy(), "squared difference")
    frame.write(drawn, path, title="A channel of student and teacher, and the squared difference over all channels")


def at(path: Path) -> None:
    """Where both networks are active, on three levels."""
    drawn, axes = frame.figure(2, 4, height=3.95)
    image = networks.small("coffee")
    for row, role in enumerate(("teacher", "student")):
        frame.photograph(axes[row, 0], image, role)
        for column, stride in enumerate(networks.LEVELS, start=1):
            activity = networks.maps(role, stride)[networks.place("coffee")].square().mean(0)
            title = f"a cell for {stride} pixels" if row == 0 else ""
            frame.over(axes[row, column], image, (activity / activity.norm()).numpy(), title)
    frame.write(drawn, path, title="Where teacher and student are active over a photograph, on three levels")


def cwd(path: Path) -> None:
    """Four channels as distributions over the positions."""
    drawn, axes = frame.figure(2, 5, height=3.15)
    image = networks.small("temple")
    sides = dict(zip(ROLES, _sides("temple"), strict=True))
    channels = _liveliest(sides["teacher"], 4)
    for row, role in enumerate(("teacher", "student")):
        frame.photograph(axes[row, 0], image, role)
        for column, channel in enumerate(channels, start=1):
            share = (sides[role][channel] / 4).flatten().softmax(0).unflatten(0, sides[role].shape[1:]).numpy()
            title = f"channel {channel}" if row == 0 else ""
            frame.over(axes[row, column], image, share, title, limit=float(np.sort(share.ravel())[-10]))
    frame.write(drawn, path, title="Where four channels of teacher and student respond over a photograph")


def ickd(path: Path) -> None:
    """Inner products between the channels of an image."""
    found = []
    for side in _sides("cat"):
        flat = side.flatten(1)
        found.append(functional.normalize(flat @ flat.T, dim=1).numpy())
    order = spectral_order(_adjacency("teacher").numpy())
    drawn, _ = frame.pair_of_matrices(*(one[np.ix_(order, order)] for one in found), signed=True)
    frame.write(drawn, path, title="Correlations between the channels of an image in student and teacher")


def patch_kl(path: Path) -> None:
    """What three patches take for their like."""
    drawn, axes = frame.figure(2, 4, height=3.95)
    image, row_of = networks.small("cat"), networks.place("cat")
    patches = {"ear": (3, 9), "fur": (12, 10), "background": (2, 1)}
    for row, role in enumerate(("teacher", "student")):
        tokens = functional.normalize(networks.maps(role, 16)[row_of].flatten(1).T, dim=1)
        frame.photograph(axes[row, 0], image, role)
        for column, (name, (y, x)) in enumerate(patches.items(), start=1):
            like = (tokens @ tokens[16 * y + x] / 0.07).softmax(0).unflatten(0, (16, 16)).numpy()
            ax = axes[row, column]
            frame.over(ax, image, like, name if row == 0 else "", limit=float(np.sort(like.ravel())[-8]))
            ax.scatter(10 * (x + 0.5), 10 * (y + 0.5), s=42, facecolors="none", edgecolors="#ffffff", linewidths=1.4)
    frame.write(drawn, path, title="Which patches of a photograph resemble the circled one, for teacher and student")


def features(path: Path) -> None:
    """Where the student's patches point another way than the teacher's."""
    drawn, axes = frame.figure(1, 4, height=2.1)
    for column, name in enumerate(("cat", "coffee")):
        row = networks.place(name)
        student, teacher = (
            functional.normalize(side, dim=0) for side in (networks.adapted()[row], networks.maps("teacher", 16)[row])
        )
        apart = 1 - (student * teacher).sum(0)
        frame.photograph(axes[0, 2 * column], networks.small(name))
        frame.over(axes[0, 2 * column + 1], networks.small(name), apart.numpy(), f"1 − cosine: {apart.mean():.2f}")
    frame.write(drawn, path, title="How far the student's patches point from the teacher's, over two photographs")


def spectralkd(path: Path) -> None:
    """Spectra, and how the loss counts their columns."""
    row = networks.place("cat")
    student, teacher = (networks.maps(role, 16)[row : row + 1] for role in ROLES)
    teacher = average_pool(teacher.flatten(2)[None], (student.shape[1], teacher.shape[2] * teacher.shape[3]))
    teacher = teacher[0].unflatten(2, student.shape[2:])
    spectra = [half_spectrum(side)[0].square().sum(-1).mean(0) for side in (student, teacher)]
    drawn, axes = frame.figure(1, 4, height=2.1, width_ratios=[1, 0.6, 0.6, 1.3])
    frame.photograph(axes[0, 0], networks.small("cat"))
    most = float(max(one.log10().max() for one in spectra))
    for ax, name, power in ((axes[0, 1], "teacher", spectra[1]), (axes[0, 2], "student", spectra[0])):
        shifted = torch.fft.fftshift(power, dim=0).log10()
        frame.heat(ax, (shifted - most + 5).clamp_min(0).numpy(), name, limit=5)
    gap = half_spectrum(student - teacher)[0].square().sum(dim=(0, 1, 3))
    twins = torch.full_like(gap, 2.0)
    twins[[0, -1]] = 1.0
    ax = axes[0, 3]
    for shares, name, colour, shift in ((gap, "this loss", STUDENT, -0.2), (gap * twins, "plain square", TEACHER, 0.2)):
        ax.bar(np.arange(len(gap)) + shift, (shares / shares.sum()).numpy(), width=0.4, color=colour, label=name)
    ax.set(xlabel="horizontal frequency", xticks=range(len(gap)))
    ax.set_title("a column's share")
    ax.legend(loc="upper right")
    frame.write(drawn, path, title="Spectra of a map in teacher and student, and the share of each column in the loss")


def reviewkd(path: Path) -> None:
    """A map on the pyramid of sizes on which it is compared."""
    drawn, axes = frame.figure(2, 5, height=3.15)
    sides = dict(zip(ROLES, _sides("coffee"), strict=True))
    for row, role in enumerate(("teacher", "student")):
        frame.photograph(axes[row, 0], networks.small("coffee"), role)
        for column, size in enumerate((16, 4, 2, 1), start=1):
            pooled = functional.adaptive_avg_pool2d(sides[role], size)
            most = float(functional.adaptive_avg_pool2d(sides["teacher"], size).norm(dim=0).max())
            title = f"{size}×{size}" if row == 0 else ""
            frame.heat(axes[row, column], pooled.norm(dim=0).numpy(), title, limit=most)
    frame.write(drawn, path, title="The map of teacher and student, as it is and pooled to 4×4, 2×2 and 1×1")


def vid(path: Path) -> None:
    """A channel, its prediction, and how much of each channel cannot be predicted."""
    drawn, axes = frame.figure(1, 4, height=2.0, width_ratios=[1, 1, 1, 1.4])
    student, teacher = _sides("temple")
    (channel,) = _liveliest(teacher, 1)
    most = float(teacher[channel].abs().max())
    frame.photograph(axes[0, 0], networks.small("temple"))
    frame.heat(axes[0, 1], teacher[channel].numpy(), "teacher, a channel", limit=most, signed=True)
    frame.heat(axes[0, 2], student[channel].numpy(), "predicted", limit=most, signed=True)
    everything = networks.maps("teacher", 16)
    left = (networks.adapted() - everything).square().mean(dim=(0, 2, 3)) / everything.var(dim=(0, 2, 3))
    ax = axes[0, 3]
    ax.plot(left.sort().values.numpy(), color=STUDENT)
    ax.set(xlabel="channels", ylabel="share of the variance", ylim=(0, None))
    ax.set_title("variance of the prediction")
    frame.write(drawn, path, title="A channel of the teacher, its prediction, and the variances of all channels")


def ofd(path: Path) -> None:
    """A channel, its margin, and what the student is asked for."""
    drawn, axes = frame.figure(1, 4, height=2.0, width_ratios=[1, 1, 1, 1.4])
    everything = networks.maps("teacher", 16)
    teacher = everything[networks.place("cat")]
    (channel,) = _liveliest(teacher, 1)
    margin = float(margins(everything)[channel])
    most = float(teacher[channel].abs().max())
    frame.photograph(axes[0, 0], networks.small("cat"))
    frame.heat(axes[0, 1], teacher[channel].numpy(), "teacher, a channel", limit=most, signed=True)
    frame.heat(axes[0, 2], teacher[channel].clamp(min=margin).numpy(), "cut at the margin", limit=most, signed=True)
    ax = axes[0, 3]
    ax.hist(everything[:, channel].flatten().numpy(), bins=50, color=TEACHER)
    ax.axvline(margin, color=STUDENT, linewidth=1.4, label="margin")
    ax.set(xlabel="response", yticks=[])
    ax.set_title("its responses")
    ax.legend(loc="upper right", fontsize=7)
    frame.write(drawn, path, title="A channel of the teacher, as it is and cut at the margin of its negative responses")


def mgd(path: Path) -> None:
    """A masked map of the student, and what two convolutions make of it."""
    torch.manual_seed(0)
    student, teacher = networks.adapted(), networks.maps("teacher", 16)
    scale = teacher.std()
    loss = MGD(channels=teacher.shape[1])
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.002)
    for _ in range(300):
        optimizer.zero_grad()
        (loss(student / scale, teacher / scale) / teacher[0].numel()).backward()
        optimizer.step()
    row = networks.place("coffee")
    kept = (torch.rand(16, 16) >= 0.5).float()
    with torch.no_grad():
        generated = loss.generation((student[row] / scale * kept)[None])[0] * scale
    (channel,) = _liveliest(teacher[row], 1)
    most = float(teacher[row, channel].abs().max())
    drawn, axes = frame.figure(1, 4, height=1.95)
    frame.photograph(axes[0, 0], networks.small("coffee"))
    shown = {
        "student, masked": student[row, channel] * kept,
        "generated": generated[channel],
        "teacher": teacher[row, channel],
    }
    for ax, (title, values) in zip(axes[0, 1:], shown.items(), strict=True):
        frame.heat(ax, values.numpy(), title, limit=most, signed=True)
    frame.write(
        drawn, path, title="The student's map with half of it masked, what is made of it, and the teacher's map"
    )


def pkd(path: Path) -> None:
    """A channel of both networks on scales of their own, and the correlations of all."""
    drawn, axes = frame.figure(1, 4, height=2.0, width_ratios=[1, 1, 1, 1.4])
    student, teacher = (
        (side - side.mean(dim=(0, 2, 3), keepdim=True)) / side.std(dim=(0, 2, 3), keepdim=True)
        for side in (networks.adapted(), networks.maps("teacher", 16))
    )
    row = networks.place("rocket")
    (channel,) = _liveliest(networks.maps("teacher", 16)[row], 1)
    frame.photograph(axes[0, 0], networks.small("rocket"))
    frame.heat(axes[0, 1], student[row, channel].numpy(), "student, standardised", limit=3, signed=True)
    frame.heat(axes[0, 2], teacher[row, channel].numpy(), "teacher, standardised", limit=3, signed=True)
    correlations = (student * teacher).mean(dim=(0, 2, 3))
    ax = axes[0, 3]
    ax.hist(correlations.numpy(), bins=30, color=TEACHER)
    ax.axvline(float(correlations[channel]), color=STUDENT, linewidth=1.4, label="the one shown")
    ax.set(xlabel="correlation with the teacher's channel", yticks=[])
    ax.set_title("all channels")
    ax.legend(loc="upper right", fontsize=7)
    frame.write(
        drawn, path, title="A channel of student and teacher, standardised, and the correlations of all channels"
    )


def fgd(path: Path) -> None:
    """The weights of the cells inside and outside of a labelled box."""
    drawn, axes = frame.figure(1, 4, height=2.0)
    image = networks.small("cat")
    left, top, right, bottom = 0.23, 0.05, 0.83, 0.80
    teacher = networks.maps("teacher", 16)[networks.place("cat")]
    attention, _ = map_attention(teacher.flatten(1)[None], temperature=0.5)
    attention = attention.unflatten(1, (16, 16))[0]
    centres = (torch.arange(16) + 0.5) / 16
    inside = ((centres > top) & (centres < bottom))[:, None] & ((centres > left) & (centres < right))[None]
    frame.photograph(axes[0, 0], image, "a labelled box")
    frame.over(axes[0, 1], image, attention.numpy(), "teacher's attention")
    for ax, mask, title in ((axes[0, 2], inside, "foreground"), (axes[0, 3], ~inside, "background")):
        frame.over(ax, image, (attention * mask / mask.sum()).numpy(), f"weights of the {title}")
    for ax in axes[0]:
        x, y = ([160 * v for v in (left, right, right, left, left)], [160 * v for v in (top, top, bottom, bottom, top)])
        ax.plot(x, y, color="#ffffff", linewidth=1.2)
    frame.write(
        drawn, path, title="A labelled box, the teacher's attention, and the weights inside and outside of the box"
    )


PICTURES = {
    one.__name__: one
    for one in (serkd, sekd, fitnets, at, cwd, ickd, patch_kl, features, spectralkd, reviewkd, vid, ofd, mgd, pkd, fgd)
}


def opening(path: Path, *, scheme: frame.Scheme) -> None:
    """For the README: superpixels of both networks, and the channel graph."""
    drawn, axes = frame.figure(2, 5, height=3.15)
    for row, role in enumerate(("teacher", "student")):
        labels, adjacency = _superpixels(role), _adjacency(role).numpy()
        for column, name in enumerate(("cat", "temple", "coffee", "flower")):
            frame.regions(axes[row, column], networks.small(name), labels[networks.place(name)])
        axes[row, 0].set_title(f"{role}: what it takes for one thing")
        order = spectral_order(_adjacency("teacher").numpy())
        frame.heat(axes[row, 4], adjacency[np.ix_(order, order)], "its channels' graph", limit=0.6, signed=True)
    frame.write(drawn, path, title="Superpixels and channel graphs of a teacher and a student", scheme=scheme)
