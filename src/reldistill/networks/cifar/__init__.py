"""The small networks that distillation papers compare on CIFAR, registered with timm.

After `import reldistill.networks.cifar`, `timm.create_model("resnet20", num_classes=100)` finds them. Structure and
parameter counts are those of the distillation literature since CRD (Tian et al., ICLR 2020). A name that timm already
has, such as its ImageNet `resnet50`, is never taken over: ours is then registered as `resnet50_cifar`.
"""

from __future__ import annotations

from typing import Any

from timm.models import is_model, register_model
from timm.models._builder import build_model_with_cfg
from torch import nn

from reldistill.networks.cifar.base import CifarNet
from reldistill.networks.cifar.mobile import MobileNetV2, ShuffleNetV1, ShuffleNetV2
from reldistill.networks.cifar.resnet import CifarBottleneckResNet, CifarResNet, WideResNet
from reldistill.networks.cifar.vgg import CifarVGG

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

NETWORKS: dict[str, tuple[type[CifarNet], dict[str, Any]]] = {
    **{f"resnet{depth}": (CifarResNet, {"depth": depth}) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": (CifarResNet, {"depth": depth, "widths": (32, 64, 128, 256)}) for depth in (8, 32)},
    "resnet50": (CifarBottleneckResNet, {"blocks": (3, 4, 6, 3)}),
    **{f"wrn_{depth}_{k}": (WideResNet, {"depth": depth, "widen": k}) for depth in (16, 40) for k in (1, 2)},
    **{f"vgg{depth}": (CifarVGG, {"depth": depth}) for depth in (8, 11, 13, 16, 19)},
    "mobilenetv2_half": (MobileNetV2, {"width": 0.5}),
    "shufflenetv1": (ShuffleNetV1, {}),
    "shufflenetv2": (ShuffleNetV2, {}),
}
"""The literature's name → class and the settings that the name stands for."""

# timm looks for this name in the module that registers a network.
default_cfgs: dict[str, dict[str, Any]] = {}


def _register(name: str) -> str:
    network, settings = NETWORKS[name]
    registered = f"{name}_cifar" if is_model(name) else name

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(network, registered, pretrained, **settings, **kwargs)

    create.__name__ = create.__qualname__ = registered
    create.__doc__ = f"{network.__name__} with {settings}, for timm.create_model."
    default_cfgs[registered] = {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "mean": MEAN,
        "std": STD,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "first_conv": "conv1.0" if network is MobileNetV2 else "layer1.0" if network is CifarVGG else "conv1",
        "classifier": "fc",
    }
    # timm lists registered names in __all__, so they have to exist here.
    globals()[registered] = register_model(create)
    return registered


REGISTERED: dict[str, str] = {name: _register(name) for name in NETWORKS}
"""The literature's name → the name in timm."""
