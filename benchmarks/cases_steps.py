"""What the relations add to whole training steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import Case, device
from benchmarks.pieces import seconds_alone
from benchmarks.steps import DetectorPair, Pair, autocast, training_step

DEIT = Pair("deit_small_patch16_224", "deit_tiny_patch16_224", 32, 224, 1000)
CIFAR = Pair("resnet56", "resnet20", 128, 32, 10)
DEIT_GPU = Pair("deit_small_patch16_224", "deit_tiny_patch16_224", 256, 224, 1000)
CIFAR_GPU = Pair("resnet56", "resnet20", 256, 32, 10)
RESNET_GPU = Pair("resnet50", "resnet18", 256, 224, 1000)
QUICK = Pair("resnet14", "resnet8", 4, 32, 10)
COCO = DetectorPair("retinanet_resnet50_fpn", "retinanet_resnet18_fpn", 4, 256, 80)
COCO_GPU = DetectorPair("retinanet_resnet50_fpn", "retinanet_resnet18_fpn", 8, 800, 80)
QUICK_BOXES = DetectorPair("retinanet_resnet18_fpn", "retinanet_mobilenet_v3_small_fpn", 2, 64, 3)


def cases(quick: bool) -> list[Case]:
    """Of serkd and sekd over kd; on a GPU, and of detectors, over the teacher's forward pass and the student's step."""
    found = [
        _over("kd", "serkd", QUICK if quick else DEIT, goal=1.03),
        _over("kd", "sekd", QUICK if quick else CIFAR, goal=1.05),
    ]
    boxes = QUICK_BOXES if quick else COCO_GPU if device().type == "cuda" else COCO
    found.append(_over("", "sekd", boxes, goal=1.10))
    if device().type == "cuda" and not quick:
        found += [
            _over("", method, pair, goal=1.03)
            for method, pair in (("serkd", DEIT_GPU), ("serkd", RESNET_GPU), ("sekd", RESNET_GPU), ("sekd", CIFAR_GPU))
        ]
    return found


def _over(base: str, method: str, pair: Pair, *, goal: float) -> Case:
    """`base` is a method, or empty for the student's step alone and the teacher's forward pass."""

    @functools.cache
    def steps() -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
        batch = pair.batch()
        compared = pair.distiller(method)
        ours = training_step(compared, batch)
        if base:
            return ours, training_step(pair.distiller(base), batch)
        alone, teacher = training_step(pair.distiller("none"), batch), compared.teacher
        assert teacher is not None

        def networks_alone() -> Tensor:
            with torch.no_grad(), autocast():
                teacher(batch.images)
            return alone()

        return ours, networks_alone

    return Case(
        f"whole step, {method} over {base or 'the networks alone'}",
        f"{pair.student} from {pair.teacher}, B={pair.batch_size} of {'×'.join(map(str, pair.frame))}",
        ours=lambda: steps()[0](),
        textbook=lambda: steps()[1](),
        goal=goal,
        measure="costs",
        compares_values=False,
        prepare=steps,
        pieces=functools.partial(_pieces_of_sekd, pair) if method == "sekd" and type(pair) is Pair else None,
    )


def _pieces_of_sekd(pair: Pair) -> dict[str, float]:
    """Its loss on the maps of a step, forward and backward; and what no form of it does without."""
    distiller, batch = pair.distiller("sekd"), pair.batch()
    found = dict.fromkeys(
        (
            "the losses of all levels alone",
            "of two images, which is what does not grow with them",
            "no more than the products of their channels, in float32",
            "no more than one look at each map and one gradient written",
        ),
        0.0,
    )
    assert distiller.teacher is not None
    for term in distiller.terms:
        if term.name != "sekd":
            continue
        with torch.no_grad(), autocast():
            said = distiller.student(batch.images, levels=term.student_places).levels[term.student]
            teacher = distiller.teacher(batch.images, levels=term.teacher_places).levels[term.teacher]
        forms: list[tuple[Any, ...]] = [
            (_loss_of, term.loss, said[:images].clone().requires_grad_(), teacher[:images])
            for images in (pair.batch_size, 2)
        ]
        forms += [(form, said, teacher) for form in (_products_of, _one_look_at)]
        for name, (function, *given) in zip(found, forms, strict=True):
            found[name] += seconds_alone(functools.partial(function, *given))
    return found


def _loss_of(loss: nn.Module, student: Tensor, teacher: Tensor) -> None:
    loss(student, teacher).backward()
    student.grad = None


def _products_of(student: Tensor, teacher: Tensor) -> Tensor:
    ours, theirs = (maps.float().flatten(2) for maps in (student, teacher))
    graph = torch.bmm(ours, ours.mT) - torch.bmm(theirs, theirs.mT)
    return torch.bmm(graph, ours)


def _one_look_at(student: Tensor, teacher: Tensor) -> Tensor:
    difference = student.float() - teacher.float()
    difference.square().sum()
    return difference.to(student.dtype)
