"""Pictures of methods on class scores."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.pictures import frame, networks
from benchmarks.pictures.frame import STUDENT, TEACHER
from reldistill.report import plots

ROLES = ("student", "teacher")


def kd(path: Path) -> None:
    """The cat's most likely classes, sharp and softened."""
    drawn, axes = frame.figure(1, 3, height=2.3, width_ratios=[1, 1.35, 1.35])
    frame.photograph(axes[0, 0], networks.small("cat"))
    said = {role: networks.logits(role)[networks.place("cat")] for role in ROLES}
    top = said["teacher"].topk(6).indices
    names = [networks.class_name(int(i)) for i in top]
    for ax, temperature in zip(axes[0, 1:], (1, 4), strict=True):
        softened = {role: (z / temperature).softmax(0)[top].numpy() for role, z in said.items()}
        frame.bars(ax, names if temperature == 1 else [""] * 6, softened, f"probability, temperature {temperature}")
    axes[0, 1].legend(loc="lower right")
    frame.write(drawn, path, title="Class probabilities of student and teacher for a cat, at temperatures 1 and 4")


def dkd(path: Path) -> None:
    """The same scores in the two parts that the method weighs by themselves."""
    drawn, axes = frame.figure(1, 3, height=2.3, width_ratios=[1, 1.35, 1.35])
    frame.photograph(axes[0, 0], networks.small("cat"))
    scores = {role: networks.logits(role)[networks.place("cat")] for role in ROLES}
    true = int(scores["teacher"].argmax())
    target = {role: z.softmax(0)[true] for role, z in scores.items()}
    frame.bars(
        axes[0, 1],
        [networks.class_name(true), "all others"],
        {role: torch.stack([p, 1 - p]).numpy() for role, p in target.items()},
        "target",
    )
    others = {role: z.index_fill(0, torch.tensor(true), -torch.inf).softmax(0) for role, z in scores.items()}
    top = others["teacher"].topk(6).indices
    names = [networks.class_name(int(i)) for i in top]
    frame.bars(axes[0, 2], names, {role: p[top].numpy() for role, p in others.items()}, "others among themselves")
    axes[0, 2].legend(loc="lower right")
    frame.write(drawn, path, title="The probability of the true class, and those of the others among themselves")


def logit_std(path: Path) -> None:
    """Logits of a digit as they are and as z-scores."""
    drawn, axes = frame.figure(1, 2, height=2.2)
    said = {role: networks.scans(role).logits[20] for role in ROLES}
    shown = {"logits": said, "z-scores": {role: _standardised(z) for role, z in said.items()}}
    for ax, (title, values) in zip(axes[0], shown.items(), strict=True):
        for role, shift in zip(ROLES, (-0.2, 0.2), strict=True):
            colour = STUDENT if role == "student" else TEACHER
            ax.bar(torch.arange(10).numpy() + shift, values[role].numpy(), width=0.36, color=colour, label=role)
        ax.set_xticks(range(10))
        ax.set_title(f"{title} of a scan of the digit {int(networks.scans('teacher').labels[20])}")
    axes[0, 0].legend(loc="upper right")
    frame.write(drawn, path, title="Logits of student and teacher, as they are and standardised")


def _standardised(z: Tensor) -> Tensor:
    return (z - z.mean()) / z.std(correction=0)


def dist(path: Path) -> None:
    """Probabilities of both networks, of a sample over the classes and of a class over the samples."""
    drawn, axes = frame.figure(1, 2, height=2.9)
    student, teacher = ((networks.scans(role).logits / 4).softmax(1) for role in ROLES)
    drawn_pairs = {
        "inter: one sample, a point a class": (student[33], teacher[33]),
        "intra: the class 3, a point a sample": (student[:, 3], teacher[:, 3]),
    }
    for ax, (title, (ours, theirs)) in zip(axes[0], drawn_pairs.items(), strict=True):
        ax.scatter(theirs.numpy(), ours.numpy(), s=16, color=STUDENT, linewidths=0)
        ax.set(xlabel="teacher's probability", ylabel="student's probability")
        correlation = torch.corrcoef(torch.stack([ours, theirs]))[0, 1]
        ax.set_title(f"{title}: ρ = {correlation:.2f}")
    frame.write(drawn, path, title="Correlation of class probabilities within a sample and within a class")


def deit_hard(path: Path) -> None:
    """What the teacher decides of four photographs."""
    drawn, axes = frame.figure(2, 4, height=3.2, height_ratios=[1.6, 1])
    for column, name in enumerate(("cat", "temple", "coffee", "rocket")):
        frame.photograph(axes[0, column], networks.small(name))
        probabilities = networks.logits("teacher")[networks.place(name)].softmax(0)
        values, top = probabilities.topk(3)
        ax = axes[1, column]
        names = [networks.class_name(int(i)) for i in top]
        chosen = [plots.SERIES[0], plots.QUIET, plots.QUIET]
        frame.labelled_bars(ax, names, {"teacher": values.numpy()}, {"teacher": chosen})
        ax.set_xlim(0, 1)
    axes[1, 0].set_title("teacher's probabilities")
    frame.write(drawn, path, title="Four photographs, the teacher's probabilities and the class that it chooses")


def deit_soft(path: Path) -> None:
    """What the teacher says of four photographs, softened."""
    drawn, axes = frame.figure(2, 4, height=3.2, height_ratios=[1.6, 1])
    for column, name in enumerate(("cat", "temple", "coffee", "rocket")):
        frame.photograph(axes[0, column], networks.small(name))
        said = {role: (networks.logits(role)[networks.place(name)] / 3).softmax(0) for role in ROLES}
        top = said["teacher"].topk(3).indices
        ax = axes[1, column]
        names = [networks.class_name(int(i)) for i in top]
        colours = {"student": STUDENT, "teacher": TEACHER}
        frame.labelled_bars(ax, names, {role: p[top].numpy() for role, p in said.items()}, colours)
    axes[1, 3].legend(loc="lower right", bbox_to_anchor=(1.05, 0.98), ncols=2, fontsize=7, handlelength=1)
    axes[1, 0].set_title("at temperature 3")
    frame.write(drawn, path, title="Four photographs and the softened class probabilities of student and teacher")


def cskd(path: Path) -> None:
    """The class that the teacher sees at each place, on its own and drawn to the whole image."""
    with torch.no_grad():
        dense = networks.lite("teacher")(networks.images(), dense=True).dense
    assert dense is not None
    drawn, axes = frame.figure(1, 5, height=1.9, width_ratios=[1, 1, 1, 1, 0.8])
    of_each = dense[networks.place("temple")]
    whole = of_each.mean(dim=(1, 2), keepdim=True)
    frame.photograph(axes[0, 0], networks.small("temple"))
    chosen = {rho: ((1 - rho) * of_each + rho * whole).argmax(dim=0) for rho in (0.0, 0.5, 0.8)}
    counts = torch.bincount(torch.cat([one.flatten() for one in chosen.values()]))
    common = counts.argsort(descending=True)[:7].tolist()
    colours = [*plots.SERIES[:7], plots.RULE]
    for ax, (rho, classes) in zip(axes[0, 1:4], chosen.items(), strict=True):
        for row in range(classes.shape[0]):
            for column in range(classes.shape[1]):
                index = int(classes[row, column])
                colour = colours[common.index(index)] if index in common else plots.RULE
                ax.fill([column, column + 1, column + 1, column], [row, row, row + 1, row + 1], color=colour, lw=0)
        ax.set(xlim=(0, classes.shape[1]), ylim=(classes.shape[0], 0), aspect="equal")
        frame.bare(ax, f"progress {rho:g}")
    key = axes[0, 4]
    for row, (index, colour) in enumerate(zip([*common, None], colours, strict=True)):
        key.scatter(0, row, s=22, marker="s", color=colour, linewidths=0)
        key.text(0.25, row, "another" if index is None else networks.class_name(index), va="center", fontsize=7.5)
    key.set(xlim=(-0.2, 3), ylim=(7.6, -0.6))
    frame.bare(key)
    frame.write(drawn, path, title="The classes that the teacher sees at each place of a photograph")


def simkd(path: Path) -> None:
    """Three students of the same scans: alone, and with the teacher's classifier."""
    scans, classes = networks.digits()
    networks_of = {
        "alone": networks.reader("resnet8", epochs=8).network,
        "by SimKD": networks.distilled("simkd", epochs=8),
        "teacher": networks.readers()["teacher"].network,
    }
    with torch.no_grad():
        said = {who: network(scans[1200:]) for who, network in networks_of.items()}
    unsure = int(said["teacher"].softmax(1).amax(1).argmin())
    drawn, axes = frame.figure(1, 4, height=1.9, width_ratios=[0.8, 1, 1, 1])
    axes[0, 0].imshow(1 - scans[1200 + unsure][0].numpy(), cmap="gray", interpolation="nearest")
    frame.bare(axes[0, 0], f"a {int(classes[1200 + unsure])}")
    for ax, (who, z), colour in zip(axes[0, 1:], said.items(), (plots.SERIES[0], STUDENT, TEACHER), strict=True):
        ax.bar(range(10), z[unsure].softmax(0).numpy(), color=colour)
        ax.set(xticks=range(10), ylim=(0, 1))
        ax.set_title(who)
    frame.write(
        drawn, path, title="Class probabilities of a student alone, with the teacher's classifier, of the teacher"
    )


PICTURES = {one.__name__: one for one in (kd, dkd, logit_std, dist, deit_hard, deit_soft, cskd, simkd)}
