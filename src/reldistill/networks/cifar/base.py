"""What the small CIFAR networks share: timm's classifier interface, and weights of other codebases."""

from __future__ import annotations

import abc
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn


class CifarNet(nn.Module, abc.ABC):
    """A network for 32×32 images whose last map is averaged over space, so that other input sizes work too.

    Subclasses write `forward_features` and name their stages `layer1`, `layer2`, … in the order of execution; what a
    stage returns is the map that distillation methods tap.

    Args:
        num_features: D, channels of the last map, which the classifier `fc` sees after average pooling.
        num_classes: K; 0 leaves out the classifier.
        stages: (module name, channels, stride) of every stage, for timm's `feature_info`.
    """

    # (pattern, replacement) pairs that turn the parameter names of the usual KD codebases into ours.
    literature_names: tuple[tuple[str, str], ...] = ()
    # Stage → the normalised map in front of the ReLU that follows it, where a module returns it.
    before_relu: Mapping[str, str] = MappingProxyType({})

    def __init__(self, *, num_features: int, num_classes: int, stages: Sequence[tuple[str, int, int]]) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_classes = num_classes
        self.feature_info = [{"module": name, "num_chs": width, "reduction": stride} for name, width, stride in stages]

    def add_classifier(self) -> None:
        """Make `fc`; subclasses call it last, so that modules stand in the order of execution."""
        self.fc: nn.Module = nn.Linear(self.num_features, self.num_classes) if self.num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The layer that outputs the logits."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one of `num_classes` outputs, or by the identity for 0."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool: expected 'avg', the only pooling of these networks, got {global_pool!r}")
        self.num_classes = num_classes
        like = next(self.parameters())
        self.add_classifier()
        self.fc.to(like.device, like.dtype)

    @abc.abstractmethod
    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → the last map, (B, D, h, w)."""

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, D, h, w) → logits (B, K), or the pooled vector (B, D) with `pre_logits`."""
        pooled = features.mean(dim=(2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → logits (B, K)."""
        return self.forward_head(self.forward_features(images))

    def rename_weights(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A state dict with the parameter names of the usual KD codebases, under our names; ours pass unchanged."""
        renamed = {}
        for key, value in state.items():
            for pattern, replacement in self.literature_names:
                key = re.sub(pattern, replacement, key)
            renamed[key] = value
        return renamed


def init_he(module: nn.Module, *, classifier_std: float | None = None) -> None:
    """He et al.'s normal initialisation by fan-out for every convolution.

    Args:
        module: whose layers are initialised, in place.
        classifier_std: standard deviation of the linear layers' weights, with zero bias; None keeps torch's default.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear) and classifier_std is not None:
            nn.init.normal_(layer.weight, std=classifier_std)
            nn.init.zeros_(layer.bias)
