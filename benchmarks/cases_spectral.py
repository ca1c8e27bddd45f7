"""SEKD against its textbook form: the spectra of large graphs over consecutive training steps, of small ones by image,
and the whole loss of a level.

The graphs are those of real networks in training: a torchvision ResNet's last stage on CIFAR-10 as JPEG files where
RELDISTILL_DATA names a folder with `cifar10-jpeg.zip`, else on scikit-learn's digits.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cases import Case, device
from benchmarks.pieces import seconds_by_operator
from benchmarks.reference import sekd, spectral
from reldistill.losses.sekd import SEKD
from reldistill.relations.channel_graph import channel_adjacency
from reldistill.relations.kernels.tracked_subspaces import TrackedSubspaces
from reldistill.relations.spectrum import spectral_distance
from reldistill.relations.subspaces import embedding_distance


def cases(quick: bool) -> list[Case]:
    """All of them; `quick` on sizes that take no time."""
    found = []
    for images in ("the same images", "new images"):
        if quick:
            # Fewer images, or maps of one cell, give repeated eigenvalues around k: then no projector is the right one.
            found.append(_consecutive("resnet18", images, batch_size=16, size=64, steps=3, rank=16))
        else:
            found.append(_consecutive("resnet18", images, batch_size=64, size=64, steps=8, rank=32))
            found.append(_consecutive("resnet50", images, batch_size=32, size=64, steps=4, rank=32))
    found.append(_by_image(4 if quick else 32))
    shapes = [(4, 16, 8, 8)] if quick else [(128, 16, 32, 32), (128, 32, 16, 16), (128, 64, 8, 8)]
    return found + [_level(*shape) for shape in shapes]


def _consecutive(network: str, images: str, *, batch_size: int, size: int, steps: int, rank: int) -> Case:
    """The projector loss, each call on the graphs of the next training step (there and back again)."""
    channels = {"resnet18": 512, "resnet50": 2048}[network]

    @functools.cache
    def graphs() -> list[tuple[Tensor, Tensor]]:
        return _recorded(network, batch_size=batch_size, size=size, steps=steps, new_images=images == "new images")

    tracked = TrackedSubspaces(rank=rank, weights="positive").to(device())

    def ours(student: Tensor, teacher: Tensor) -> Tensor:
        return embedding_distance(*tracked(student[None], teacher[None]), alignment="subspace").mean()

    @functools.cache
    def error() -> float:
        found = []
        with torch.no_grad():
            for pair in graphs():
                embeddings = tracked(*(graph.detach()[None] for graph in pair))
                for graph, embedding in zip(pair, embeddings, strict=True):
                    wide, exact = embedding[0].double(), spectral.projector(graph.double(), rank=rank)
                    # where eigenvalues around k agree to float32's rounding, eigh in float32 is off as well
                    least = (spectral.projector(graph, rank=rank).double() - exact).norm().item()
                    found.append(max((wide @ wide.mT - exact).norm().item() - least, 0.0))
        # The first call had nothing to start from.
        return max(found[2:])

    return Case(
        "spectral projector, consecutive steps",
        f"C={channels}, k={rank}, {images} at every step",
        ours=_on_the_next(graphs, ours),
        textbook=_on_the_next(graphs, functools.partial(spectral.projector_loss, rank=rank)),
        goal=10.0,
        agreement=error,
        tolerance=1e-3,
        note="agreement: ‖P − P̂‖ (Frobenius) against eigh in float64, beyond that of eigh in float32; networks at the "
        "start of training, whose low eigenvectors turn so far from step to step that a warm start saves little",
        prepare=graphs,
        pieces=functools.partial(seconds_by_operator, _on_the_next(graphs, ours), _kind_of_operator(channels)),
    )


def _kind_of_operator(channels: int) -> Callable[[str, Sequence[Sequence[int]]], str]:
    """What an operator is called in the pieces of a call on graphs of so many channels."""

    def name(operator: str, shapes: Sequence[Sequence[int]]) -> str:
        if operator in ("aten::bmm", "aten::mm", "aten::baddbmm", "aten::addmm"):
            graph = any(list(shape[-2:]) == [channels, channels] for shape in shapes)
            return "products of a graph with vectors" if graph else ""
        solvers = {"aten::linalg_qr": "orthonormal bases", "aten::_linalg_eigh": "eigenproblems"}
        return solvers.get(operator, "")

    return name


def _on_the_next(
    graphs: Callable[[], list[tuple[Tensor, Tensor]]], loss: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[], Tensor]:
    @functools.cache
    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.cycle([*graphs(), *graphs()[-2:0:-1]])

    def call() -> Tensor:
        student, teacher = next(pairs())
        return _forward_and_backward(loss, student, teacher)

    return call


def _forward_and_backward(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> Tensor:
    student.grad = None
    value = loss(student, teacher)
    value.backward()
    return value.detach()


def _recorded(network: str, *, batch_size: int, size: int, steps: int, new_images: bool) -> list[tuple[Tensor, Tensor]]:
    """Mean adjacencies of the last stage over training steps of the student; the teacher has other weights."""
    images, labels = _images(batch_size * (steps if new_images else 1), size)
    made: list[nn.Module] = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(getattr(torchvision.models, network)(num_classes=10).to(device()))
    maps: dict[int, Tensor] = {}
    for index, module in enumerate(made):
        module.layer4.register_forward_hook(lambda _m, _i, out, index=index: maps.__setitem__(index, out.detach()))
    student, teacher = made
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    recorded = []
    for step in range(steps):
        at = slice(step * batch_size, (step + 1) * batch_size) if new_images else slice(None)
        loss = functional.cross_entropy(student(images[at]), labels[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            teacher(images[at])
        graph, other = (channel_adjacency(maps[index]).mean(dim=0) for index in (0, 1))
        recorded.append((graph.requires_grad_(), other))
    return recorded


def _images(count: int, size: int) -> tuple[Tensor, Tensor]:
    archive = Path(os.environ.get("RELDISTILL_DATA", ".")) / "cifar10-jpeg.zip"
    if archive.is_file():
        images, labels = _from_archive(archive, count)
    else:
        from sklearn.datasets import load_digits

        digits = load_digits()
        index = torch.arange(count) % len(digits.target)
        images = torch.from_numpy(digits.images).float()[index, None].expand(-1, 3, -1, -1) / 16
        labels = torch.from_numpy(digits.target)[index]
    images = functional.interpolate((images - 0.45) / 0.25, (size, size), mode="bilinear")
    return images.to(device()), labels.to(device())


def _from_archive(archive: Path, count: int) -> tuple[Tensor, Tensor]:
    import zipfile

    from torchvision.io import ImageReadMode, decode_image

    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if name.startswith("train/") and name.endswith(".jpg"))
        classes = sorted({name.split("/")[1] for name in names})
        names = names[:: max(1, len(names) // count)][:count]
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
        names = [names[i] for i in order]
        read = [torch.frombuffer(bytearray(opened.read(name)), dtype=torch.uint8) for name in names]
    images = torch.stack([decode_image(data, ImageReadMode.RGB) for data in read]).float() / 255
    return images, torch.tensor([classes.index(name.split("/")[1]) for name in names])


def _maps(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(shape, generator=generator).relu().to(device()) for _ in range(2))
    return student.requires_grad_(), teacher


def _by_image(batch_size: int) -> Case:
    @functools.cache
    def graphs() -> tuple[Tensor, Tensor]:
        student, teacher = (x.detach().flatten(2) for x in _maps(batch_size, 64, 8, 8))
        graph, other = (functional.normalize(x, dim=2) for x in (student, teacher))
        return (graph @ graph.mT).requires_grad_(), other @ other.mT

    def ours(student: Tensor, teacher: Tensor) -> Tensor:
        return spectral_distance(student, teacher, alignment="subspace", rank=8).mean()

    textbook = functools.partial(spectral.projector_loss, rank=8)
    return Case(
        "spectral projector, each image's own",
        f"B={batch_size}, C=64, k=8",
        ours=lambda: _forward_and_backward(ours, *graphs()),
        textbook=lambda: _forward_and_backward(textbook, *graphs()),
        goal=2.0,
        note="eigh of many small matrices, which LAPACK does one by one, is most of the time of both forms",
        prepare=graphs,
        pieces=functools.partial(
            seconds_by_operator, lambda: _forward_and_backward(ours, *graphs()), _kind_of_operator(0)
        ),
    )


def _level(*shape: int) -> Case:
    maps = functools.cache(lambda: _maps(*shape))
    loss = SEKD()
    return Case(
        "sekd of a level",
        f"B={shape[0]}, C={shape[1]}, {shape[2]}×{shape[3]}",
        ours=lambda: _forward_and_backward(loss, *maps()),
        textbook=lambda: _forward_and_backward(sekd.sekd_loss, *maps()),
        goal=1.0,
        note="random maps: around k the eigenvalues of their mean graphs are 3e-5 to 6e-4 apart, so that in float32 "
        "two ways to the same projector differ",
        prepare=maps,
    )
