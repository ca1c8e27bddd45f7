"""SimKD's student: its own backbone, a projector, and the teacher's classifier, which stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from reldistill.core.checks import UserError
from reldistill.core.types import LevelInfo
from reldistill.networks.classifier import is_linear
from reldistill.networks.extract import Extractor
from reldistill.networks.headless import take_out_classifier


class ReusedHead(nn.Module):
    """A network whose classifier is another one's: backbone, projector, mean over positions, frozen linear layer.

    What comes after the tapped map in the backbone is no longer used: its classifier is taken out, anything else
    (the last norm of some networks) is no longer trained.

    Args:
        network: the student, which loses its classifier.
        image_size: side of the images that it sees.
        level: whose map the projector takes; None for the vector in front of the student's classifier.
        channels: input channels of the reused classifier.
        size: (H, W) of the teacher's map, to which a larger map of the student is averaged; None for vectors.
        num_classes: K.
        bias: whether the reused classifier has one.
        rectified: whether the teacher's map is never negative, so that the projector ends in a ReLU.

    Raises:
        UserError: when the level is not in the network.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        image_size: int,
        level: str | None,
        channels: int,
        size: Sequence[int] | None,
        num_classes: int,
        bias: bool = True,
        rectified: bool = True,
    ) -> None:
        super().__init__()
        like = next(network.parameters())
        whole = Extractor(network)
        whole.survey(image_size)
        width = whole.pooled_size if level is None else whole.level(level, image_size).channels
        take_out_classifier(whole)
        self.backbone = Extractor(network)
        self.backbone.survey(image_size)
        self.level = level
        self.size = None if size is None else (size[0], size[1])
        self.rectified = rectified
        self.projector = (_vector_projector if level is None else _map_projector)(width, channels, rectified=rectified)
        self.head = nn.Linear(channels, num_classes, bias=bias).requires_grad_(False)
        self.to(like.device)
        self._freeze_what_is_unused(image_size)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """(B, 3, H, W) → logits (B, K)."""
        if self.level is None:
            return self.head(self.projector(self.backbone(images).logits))
        # The pass runs to its end, which is near: graph exporters can't follow one that is cut short.
        feature_map = self.backbone(images, levels=(self.level,)).levels[self.level]
        if self.size is not None and feature_map.shape[-2] > self.size[0]:
            feature_map = functional.adaptive_avg_pool2d(feature_map, self.size)
        return self.head(self.projector(feature_map).mean(dim=(2, 3)))

    def described(self) -> dict[str, Any]:
        """What is needed, beside the bare network, to build it again: arguments by name."""
        return {
            "level": self.level,
            "channels": self.head.in_features,
            "size": None if self.size is None else list(self.size),
            "bias": self.head.bias is not None,
            "rectified": self.rectified,
        }

    def _freeze_what_is_unused(self, image_size: int) -> None:
        used = [p for p in self.backbone.parameters() if p.requires_grad]
        modes = {m: m.training for m in self.modules()}
        self.eval()
        with torch.enable_grad():
            value = self(torch.rand(1, 3, image_size, image_size, device=used[0].device)).sum()
            gradients = torch.autograd.grad(value, used, allow_unused=True)
        for module, training in modes.items():
            module.training = training
        for parameter, gradient in zip(used, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)


def reuse_head(student: Extractor, teacher: Extractor, image_size: int) -> Extractor:
    """The student with the teacher's classifier; the student's network is changed and becomes part of it.

    Args:
        student: any network.
        teacher: a network whose logits one linear layer makes.
        image_size: side of the images in a Batch.

    Raises:
        UserError: when the teacher's logits are made otherwise, or the student has a reused classifier already.
    """
    if isinstance(student.network, ReusedHead):
        raise UserError(
            f"simkd: {student.name} has another network's classifier already: start from a plain student, "
            f"with one teacher"
        )
    layer = teacher.classifier(image_size)
    if not is_linear(layer):
        raise UserError(
            f"simkd reuses the teacher's classifier, but no one linear layer makes the logits of {teacher.name}: "
            f"choose another teacher"
        )
    theirs, own = (averaged_level(network, image_size) for network in (teacher, student))
    stages = student.stages(image_size)
    level = own.name if own is not None else stages[-1].name if stages else None
    made = ReusedHead(
        student.network,
        image_size=student.input_size or image_size,
        level=None if theirs is None else level,
        channels=layer.weight.shape[1],
        size=None if theirs is None else (theirs.height, theirs.width),
        num_classes=layer.weight.shape[0],
        bias=layer.bias is not None,
        rectified=teacher.pooled_is_rectified,
    )
    with torch.no_grad():
        made.head.weight.copy_(layer.weight.flatten(1))
        if layer.bias is not None:
            made.head.bias.copy_(layer.bias)
    mean, std = student.mean.flatten().tolist(), student.std.flatten().tolist()
    return Extractor(made, mean=mean, std=std, input_size=student.input_size, name=student.name)


def averaged_level(network: Extractor, image_size: int) -> LevelInfo | None:
    """The level whose mean over positions is the classifier's input.

    None where there is none, as in a transformer that classifies by its class token.
    """
    feed = network.feed(image_size)
    return feed.level if feed is not None and feed.by_mean else None


def _map_projector(width: int, channels: int, *, rectified: bool) -> nn.Sequential:
    inner = max(channels // 2, 1)
    layers: list[nn.Module] = []
    for ins, outs, kernel in ((width, inner, 1), (inner, inner, 3), (inner, channels, 1)):
        layers += [nn.Conv2d(ins, outs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outs), nn.ReLU()]
    return nn.Sequential(*(layers if rectified else layers[:-1]))


def _vector_projector(width: int, channels: int, *, rectified: bool) -> nn.Sequential:
    layers = [nn.Linear(width, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU()]
    return nn.Sequential(*(layers if rectified else layers[:-1]))
