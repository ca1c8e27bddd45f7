"""Reproductions by name: each a plain typed function whose docstring says command, cost and expected score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reldistill.recipes.cifar import cifar10_resnet20, cifar100
from reldistill.recipes.detection import coco_detector, voc_detector
from reldistill.recipes.imagenet import imagenet_deit_tiny, imagenet_resnet18

RECIPES: dict[str, Callable[..., Any]] = {
    "cifar10-resnet20": cifar10_resnet20,
    "cifar100": cifar100,
    "coco-detector": coco_detector,
    "imagenet-deit-tiny": imagenet_deit_tiny,
    "imagenet-resnet18": imagenet_resnet18,
    "voc-detector": voc_detector,
}
