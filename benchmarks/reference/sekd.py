"""SEKD as its equations read: unit maps, adjacencies and attention one after the other, and autograd through all."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.reference.spectral import projector_loss


def sekd_loss(student: Tensor, teacher: Tensor, *, rank: int = 8) -> Tensor:
    """L_V + L_E + L_S of maps (B, C, H, W), with attention at temperature 1 and one graph for the batch."""
    student, teacher = student.float(), teacher.detach().float()
    channels, positions = teacher.shape[1], teacher.shape[2] * teacher.shape[3]
    magnitude = teacher.abs().flatten(2)
    magnitude = magnitude / magnitude.mean(dim=(1, 2), keepdim=True)
    spatial = positions * torch.softmax(magnitude.mean(dim=1, keepdim=True), dim=2)
    channel = channels * torch.softmax(magnitude.mean(dim=2, keepdim=True), dim=1)
    ours, theirs = (functional.normalize(x.flatten(2), dim=2, eps=1e-30) for x in (student, teacher))
    vertex = (spatial * channel * (ours - theirs).square()).sum(dim=2).mean()
    graphs = [x @ x.mT for x in (ours, theirs)]
    relation = channels * torch.softmax(graphs[1], dim=2)
    edge = (relation * (graphs[0] - graphs[1]).square()).mean()
    return vertex + edge + projector_loss(graphs[0].mean(dim=0), graphs[1].mean(dim=0), rank=rank)
