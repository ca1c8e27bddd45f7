"""VGG for CIFAR.

The convolutions of Simonyan & Zisserman 2015 (arXiv 1409.1556) with batch normalisation and one linear layer.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from reldistill.networks.cifar.base import CifarNet, init_he

_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_POOL_AGAIN_FROM = 64


class CifarVGG(CifarNet):
    """Five stages of 3×3 convolutions, max pooling between them.

    As in the distillation literature the fourth pooling is left out for images below 64×64, so that the last map of
    a 32×32 image is 4×4.

    Args:
        depth: 8, 11, 13, 16 or 19.
        num_classes: K.
        in_chans: channels of the images.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential
    layer5: nn.Sequential
    literature_names = (
        *((rf"^block{i}\.", f"layer{i + 1}.") for i in range(5)),
        (r"^classifier\.", "fc."),
    )

    def __init__(self, depth: int, num_classes: int = 10, in_chans: int = 3) -> None:
        stages = [(f"layer{i + 1}", width, 2 ** min(i, 3)) for i, width in enumerate(_WIDTHS)]
        super().__init__(num_features=_WIDTHS[-1], num_classes=num_classes, stages=stages)
        channels = (in_chans, *_WIDTHS)
        for i, convolutions in enumerate(_CONVOLUTIONS[depth]):
            self.add_module(f"layer{i + 1}", self._stage(channels[i], channels[i + 1], convolutions))
        self.add_classifier()
        init_he(self, classifier_std=0.01)

    @staticmethod
    def _stage(channels_in: int, channels: int, convolutions: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for i in range(convolutions):
            conv = nn.Conv2d(channels_in if i == 0 else channels, channels, 3, padding=1)
            layers += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, D, H/8, W/8), or H/16, W/16 for images from 64×64."""
        x = self.layer1(images)
        x = self.layer2(F.max_pool2d(x, 2))
        x = self.layer3(F.max_pool2d(x, 2))
        x = self.layer4(F.max_pool2d(x, 2))
        return self.layer5(F.max_pool2d(x, 2) if images.shape[2] >= _POOL_AGAIN_FROM else x)
