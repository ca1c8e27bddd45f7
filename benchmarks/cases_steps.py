"""What the relations add to whole training steps."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.cases import Case, device
from benchmarks.pieces import seconds_alone
from benchmarks.steps import DetectorPair, Pair, autocast, training_step
from reldistill.step.term import value_at

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
            for method, pair in (("serkd", DEIT_GPU), ("serkd", RESNET_GPU), ("sekd", CIFAR_GPU))
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
        alone, teacher = training_step(pair.distiller("none"), batch), compared.teachers["teacher"]
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
        pieces=functools.partial(_pieces, pair, method) if type(pair) is Pair else None,
    )


def _pieces(pair: Pair, method: str) -> dict[str, float]:
    """Its losses on the maps of a step, forward and backward; and what no form of sekd does without."""
    distiller, batch = pair.distiller(method), pair.batch()
    alone, small = "the losses of all levels alone", "of two images, which is what does not grow with them"
    products = "no more than the products of their channels, in float32"
    look = "no more than one look at each map and one gradient written"
    found = dict.fromkeys((alone, small, products, look) if method == "sekd" else (alone, small), 0.0)
    for term in distiller.terms:
        if term.name not in (method, "feature"):
            continue
        with torch.no_grad(), autocast():
            said = value_at(distiller.student(batch.images, levels=term.student_places), term.student)
            if term.adapter is not None:
                said = distiller.adapters[term.adapter.replace(".", "/")](said)
            teacher = value_at(distiller.teachers["teacher"](batch.images, levels=term.teacher_places), term.teacher)
        for name, images in ((alone, pair.batch_size), (small, 2)):
            leaf = said[:images].clone().requires_grad_()
            found[name] += seconds_alone(functools.partial(_loss_of, term.loss, leaf, teacher[:images]))
        if method == "sekd":
            found[products] += seconds_alone(functools.partial(_products_of, said, teacher))
            found[look] += seconds_alone(functools.partial(_one_look_at, said, teacher))
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
