"""How many channels of trained networks are dead in a whole batch of photographs, at the levels that sekd compares.

    python -m benchmarks.dead_channels --cifar cifar10-jpeg.zip --photographs tiny-imagenet-40.zip \
        --teacher my_resnet.py:resnet56 --teacher-weights resnet56-cifar10jpeg.safetensors \
        --lite tf_efficientnet_lite0.safetensors

prints the table of docs/methods/sekd.md: of the batch's graph, for the whole batch and for a single image on average.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

from reldistill.data.images import load_images
from reldistill.methods.levels import choose_levels
from reldistill.networks.sources import open_network
from reldistill.relations.precision import DEAD

BATCH = 128


def dead(maps: Tensor) -> tuple[int, float]:
    """Of maps (B, C, H, W): channels without activation in the batch, and in an image on average."""
    gone = maps.flatten(2).abs().amax(dim=2) <= DEAD
    return int(gone.all(dim=0).sum()), float(gone.sum(dim=1).float().mean())
