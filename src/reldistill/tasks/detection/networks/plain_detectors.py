"""Detectors made of torchvision (and timm) alone. This file needs no other: it can go along with a trained detector.

    detector = make_detector("retinanet_resnet18_fpn", num_outputs=81, min_size=320, max_size=533)
    detector.load_state_dict(torch.load("weights.pt"))

Names are torchvision's own, and `{retinanet|fasterrcnn|fcos}_BACKBONE_fpn` with a classification network of torchvision
or, where torchvision has none of that name, of timm.
"""

from __future__ import annotations

import inspect
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

Norm = Literal["batch", "frozen", "group"]

OWN_NAMES = tuple(
    name for name in torchvision.models.list_models(module=detection) if not re.match("maskrcnn|keypointrcnn", name)
)
"""What torchvision itself calls its detectors."""

FIXED_SIZE = tuple(name for name in OWN_NAMES if name.startswith("ssd"))
"""Those of them that squeeze every image to one size."""

FAMILIES: dict[str, type[nn.Module]] = {
    "retinanet": detection.RetinaNet,
    "fasterrcnn": detection.FasterRCNN,
    "fcos": detection.FCOS,
}
"""The families that are made with any backbone."""

_NAME = re.compile(rf"(?P<family>{'|'.join(FAMILIES)})_(?P<backbone>.+)_fpn")
_STRIDES = {"retinanet": (8, 16, 32), "fcos": (8, 16, 32), "fasterrcnn": (4, 8, 16, 32)}
_SIDE = 128


def split_name(name: str) -> tuple[str, str] | None:
    """Family and backbone of a name such as `fcos_mobilenet_v2_fpn`; None where it is not of that form."""
    found = _NAME.fullmatch(name)
    return (found["family"], found["backbone"]) if found else None


def names_detector(name: str) -> bool:
    """Whether `make_detector` would take the name, if there is such a backbone."""
    return name in OWN_NAMES or split_name(name) is not None


def make_detector(
    name: str, *, num_outputs: int, pretrained_backbone: bool = False, norm: Norm | None = None, **settings: Any
) -> nn.Module:
    """A detector with random weights, or with the backbone's published ones.

    Args:
        name: one of `OWN_NAMES`, or of the form `{retinanet|fasterrcnn|fcos}_BACKBONE_fpn`.
        num_outputs: number of class outputs, the first of which stands for the background.
        pretrained_backbone: start from the backbone's published classification weights.
        norm: the backbone's normalisation: `batch`; `frozen`, as it is; or `group`, for training from scratch by few
            images per step. By default `frozen` for published weights and `batch` else.
        **settings: of torchvision's class (`min_size`, `max_size`, `score_thresh`, …); `norm_eps`, of the backbone's
            batch normalisation; and for the form with any backbone those of `with_any_backbone`.

    Raises:
        ValueError: no such detector, or a setting that it does not have.
    """
    if norm not in (None, *get_args(Norm)):
        raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}, got {norm!r}")
    norm = norm or ("frozen" if pretrained_backbone else "batch")
    epsilon = settings.pop("norm_eps", None)
    _check_settings(name, settings)
    parts = split_name(name)
    if name in OWN_NAMES:
        if norm == "group":
            raise ValueError("norm 'group' is for names of the form FAMILY_BACKBONE_fpn that torchvision lacks")
        weights = "DEFAULT" if pretrained_backbone else None
        network = torchvision.models.get_model(
            name, weights=None, weights_backbone=weights, num_classes=num_outputs, **settings
        )
    elif parts is not None:
        network = with_any_backbone(
            *parts, num_outputs=num_outputs, pretrained_backbone=pretrained_backbone, norm=norm, **settings
        )
    else:
        raise ValueError(
            f"no such detector: choose one of {', '.join(OWN_NAMES)}, or {'|'.join(FAMILIES)}_BACKBONE_fpn"
        )
    body = getattr(network.backbone, "body", network.backbone)
    if name not in FIXED_SIZE:
        _exchange_norms(body, norm)
    if isinstance(network, detection.FCOS):
        # Distances behind a ReLU: started around 0, all of them may end below it, where no gradient leads back.
        nn.init.ones_(network.head.regression_head.bbox_reg.bias)
    for module in body.modules():
        if epsilon is not None and isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.eps = epsilon
    return network


def with_any_backbone(
    family: str,
    backbone: str,
    *,
    num_outputs: int,
    pretrained_backbone: bool = False,
    norm: Norm = "batch",
    fpn_channels: int = 256,
    anchor_sizes: Sequence[int] | None = None,
    trainable_backbone_layers: int | None = None,
    **settings: Any,
) -> nn.Module:
    """A detector of one of the families on any backbone under a feature pyramid.

    Args:
        family: `retinanet` and `fcos` see pyramid levels of strides 8 to 128, `fasterrcnn` of 4 to 64.
        backbone: name of a classification network of torchvision, else of timm.
        num_outputs: number of class outputs.
        pretrained_backbone: start from the backbone's published weights.
        norm: of the backbone.
        fpn_channels: width of the pyramid.
        anchor_sizes: side of the anchors of each of the five levels, in pixels; 32, 64, …, 512 by default.
        trainable_backbone_layers: how many of a torchvision backbone's five stages are trained, counted from the last:
            3 with published weights and 5 else.
        **settings: of torchvision's class.
    """
    makes_sizes = family != "fcos"
    if anchor_sizes is not None and (not makes_sizes or len(anchor_sizes) != 5):
        raise ValueError("anchor_sizes are five numbers, for retinanet and fasterrcnn; fcos has no anchors")
    extra = LastLevelMaxPool() if family == "fasterrcnn" else LastLevelP6P7(fpn_channels, fpn_channels)
    pyramid: nn.Module
    if backbone in torchvision.models.list_models(module=torchvision.models):
        trained = (3 if pretrained_backbone else 5) if trainable_backbone_layers is None else trainable_backbone_layers
        pyramid = _torchvision_pyramid(
            backbone,
            strides=_STRIDES[family],
            channels=fpn_channels,
            extra=extra,
            norm=norm,
            pretrained=pretrained_backbone,
            trained=trained,
        )
    else:
        if norm == "group" or trainable_backbone_layers is not None:
            raise ValueError("norm 'group' and trainable_backbone_layers are for torchvision's backbones")
        pyramid = TimmPyramid(
            backbone,
            strides=_STRIDES[family],
            channels=fpn_channels,
            extra=extra,
            pretrained=pretrained_backbone,
        )
        settings = {"image_mean": list(pyramid.mean), "image_std": list(pyramid.std), **settings}
    sizes = tuple(anchor_sizes or (32, 64, 128, 256, 512))
    ratios = ((0.5, 1.0, 2.0),) * 5
    if family == "fcos":
        return detection.FCOS(pyramid, num_outputs, **settings)
    if family == "retinanet":
        # as the paper has it: three sizes per level, a third of an octave apart
        thirds = tuple(tuple(int(size * 2 ** (third / 3)) for third in range(3)) for size in sizes)
        return detection.RetinaNet(pyramid, num_outputs, anchor_generator=AnchorGenerator(thirds, ratios), **settings)
    single = tuple((size,) for size in sizes)
    return detection.FasterRCNN(pyramid, num_outputs, rpn_anchor_generator=AnchorGenerator(single, ratios), **settings)


def _check_settings(name: str, settings: Iterable[str]) -> None:
    """ValueError for a setting that torchvision would swallow."""
    kind = next((kind for family, kind in FAMILIES.items() if name.startswith(family)), None)
    if kind is None:
        return
    known = [*inspect.signature(kind).parameters, *inspect.signature(with_any_backbone).parameters]
    known += ["size_divisible", "_skip_resize"]
    for setting in settings:
        if setting not in known or setting in ("self", "kwargs", "settings", "family", "backbone"):
            raise ValueError(f"{name} has no setting {setting!r}")


class TimmPyramid(nn.Module):
    """A network of timm under torchvision's feature pyramid.

    Args:
        backbone: its name.
        strides: pixels per cell of the maps that the pyramid is built on.
        channels: width of the pyramid.
        extra: what adds levels on top.
        pretrained: whether with the published weights.

    Raises:
        ValueError: timm has no such network, or it has no maps of these strides.
    """

    def __init__(
        self, backbone: str, *, strides: Sequence[int], channels: int, extra: ExtraFPNBlock, pretrained: bool = False
    ) -> None:
        super().__init__()
        import timm

        if not timm.is_model(backbone):
            raise ValueError(f"neither torchvision nor timm has a backbone {backbone!r}")
        body: Any = timm.create_model(backbone, features_only=True, pretrained=pretrained)
        self.body, config = body, body.pretrained_cfg
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        found = {stride: index for index, stride in enumerate(body.feature_info.reduction())}
        if not set(strides) <= set(found):
            raise ValueError(f"{backbone} has no maps of {', '.join(map(str, strides))} pixels per cell: {[*found]}")
        self.indices = [found[stride] for stride in strides]
        widths = body.feature_info.channels()
        self.fpn = FeaturePyramidNetwork([widths[i] for i in self.indices], channels, extra_blocks=extra)
        self.out_channels = channels
        self.channels_last = str(getattr(body, "output_fmt", "")).endswith("NHWC")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) → level → map, from fine to coarse."""
        maps = self.body(images)
        chosen = [maps[index] for index in self.indices]
        if self.channels_last:
            chosen = [one.permute(0, 3, 1, 2) for one in chosen]
        return self.fpn(OrderedDict((str(place), one) for place, one in enumerate(chosen)))


def _torchvision_pyramid(
    backbone: str,
    *,
    strides: Sequence[int],
    channels: int,
    extra: ExtraFPNBlock,
    norm: Norm,
    pretrained: bool,
    trained: int,
) -> BackboneWithFPN:
    """A classification network of torchvision under its feature pyramid."""
    layer: dict[str, Callable[..., nn.Module]] = {"norm_layer": _group_norm} if norm == "group" else {}
    network = torchvision.models.get_model(backbone, weights="DEFAULT" if pretrained else None, **layer)
    features = getattr(network, "features", None)
    features = features if isinstance(features, nn.Sequential) else network
    stride_of, last = _stages(features)
    if not set(strides) <= last.keys():
        raise ValueError(f"{backbone} is not a chain of layers with maps at strides {', '.join(map(str, strides))}")
    if not 0 <= trained <= 5:
        raise ValueError(f"trainable_backbone_layers must be in 0 … 5, got {trained}")
    for name, child in features.named_children():
        child.requires_grad_(trained == 5 or stride_of.get(name, 32) > 2 ** (5 - trained))
    returned = {last[stride][0]: str(place) for place, stride in enumerate(strides)}
    widths = [last[stride][1] for stride in strides]
    return BackboneWithFPN(features, returned, widths, channels, extra_blocks=extra)


@torch.no_grad()
def _stages(features: nn.Module) -> tuple[dict[str, int], dict[int, tuple[str, int]]]:
    """Child → pixels per cell of its output; pixels per cell → (the last such child, its channels)."""
    maps = torch.zeros(1, 3, _SIDE, _SIDE)
    stride_of: dict[str, int] = {}
    last: dict[int, tuple[str, int]] = {}
    modes = {module: module.training for module in features.modules()}
    features.eval()
    for name, child in features.named_children():
        try:
            maps = child(maps)
        except (AssertionError, RuntimeError, TypeError, ValueError):
            break
        if not isinstance(maps, Tensor) or maps.ndim != 4 or maps.shape[2] != maps.shape[3] or maps.shape[2] < 2:
            break
        stride_of[name] = _SIDE // maps.shape[2]
        last[stride_of[name]] = (name, maps.shape[1])
    for module, training in modes.items():
        module.training = training
    return stride_of, last


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels)


def _exchange_norms(module: nn.Module, norm: Norm) -> None:
    """Put frozen batch normalisation for the trained one, or the other way round, with what it has learnt."""
    for name, child in module.named_children():
        fresh: nn.Module
        if norm == "frozen" and isinstance(child, nn.BatchNorm2d):
            if type(child) is not nn.BatchNorm2d:  # timm's, which have their activation inside
                from timm.layers import freeze_batch_norm_2d

                fresh = freeze_batch_norm_2d(child)
            else:
                fresh = FrozenBatchNorm2d(child.num_features, eps=child.eps)
                fresh.load_state_dict(child.state_dict())
        elif norm == "batch" and isinstance(child, FrozenBatchNorm2d):
            fresh = nn.BatchNorm2d(len(child.weight), eps=child.eps)
            fresh.load_state_dict(child.state_dict(), strict=False)
        else:
            _exchange_norms(child, norm)
            continue
        setattr(module, name, fresh)
