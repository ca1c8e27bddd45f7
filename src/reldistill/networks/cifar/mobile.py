"""Light networks in their CIFAR forms.

MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381), ShuffleNet (Zhang et al. 2018, 1707.01083) and ShuffleNetV2
(Ma et al. 2018, 1807.11164).
"""

from __future__ import annotations

from torch import Tensor, cat, nn
from torch.nn import functional as F

from reldistill.networks.cifar.base import CifarNet, init_he


def _conv1(channels_in: int, channels: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, 1, groups=groups, bias=False)


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow without a ReLU; the input is added where the shape is kept."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.keeps_shape = stride == 1 and channels_in == channels
        self.conv = nn.Sequential(
            _conv1(channels_in, wide), nn.BatchNorm2d(wide), nn.ReLU(),
            _depthwise(wide, stride), nn.BatchNorm2d(wide), nn.ReLU(),
            _conv1(wide, channels), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H', W')."""
        out = self.conv(x)
        return x + out if self.keeps_shape else out


# Runs of equal blocks, by stage: (expansion, channels at full width, blocks, stride of the first block). The strides
# are those that the distillation literature takes for 32×32 images; the stem halves them once more.
_MOBILE_STAGES = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)
_MOBILE_LAST = 1280


def _mobile_literature_names() -> tuple[tuple[str, str], ...]:
    names, run = [(r"^classifier\.0\.", "fc.")], 0
    for stage, runs in enumerate(_MOBILE_STAGES, start=1):
        position = 0
        for _, _, blocks, _ in runs:
            for i in range(blocks):
                names.append((rf"^blocks\.{run}\.{i}\.", f"layer{stage}.{position}."))
                position += 1
            run += 1
    return tuple(names)


class MobileNetV2(CifarNet):
    """MobileNetV2 with expansion 6 in four stages that end where the stride changes.

    A stage's map is the linear output of its last block.

    Args:
        width: factor for the channels of every block; the last 1×1 convolution keeps its 1280.
        num_classes: K.
        in_chans: channels of the images.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential
    literature_names = _mobile_literature_names()

    def __init__(self, width: float, num_classes: int = 10, in_chans: int = 3) -> None:
        stages = [(f"layer{i + 1}", int(runs[-1][1] * width), 2 ** (i + 1)) for i, runs in enumerate(_MOBILE_STAGES)]
        super().__init__(num_features=_MOBILE_LAST, num_classes=num_classes, stages=stages)
        channels_in = int(32 * width)
        stem = nn.Conv2d(in_chans, channels_in, 3, 2, 1, bias=False)
        self.conv1 = nn.Sequential(stem, nn.BatchNorm2d(channels_in), nn.ReLU())
        for i, runs in enumerate(_MOBILE_STAGES):
            layers = []
            for expansion, full, blocks, stride in runs:
                channels = int(full * width)
                for j in range(blocks):
                    layers.append(InvertedResidual(channels_in, channels, stride if j == 0 else 1, expansion))
                    channels_in = channels
            self.add_module(f"layer{i + 1}", nn.Sequential(*layers))
        self.conv2 = nn.Sequential(_conv1(channels_in, _MOBILE_LAST), nn.BatchNorm2d(_MOBILE_LAST), nn.ReLU())
        self.add_classifier()
        init_he(self, classifier_std=0.01)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 1280, H/16, W/16)."""
        x = self.layer2(self.layer1(self.conv1(images)))
        return self.conv2(self.layer4(self.layer3(x)))


class ShuffleUnit(nn.Module):
    """ShuffleNet's unit: grouped 1×1, channel shuffle, depthwise 3×3, grouped 1×1.

    With stride 2 the averaged input is concatenated (so `channels` counts only the new ones), else it is added.
    """

    def __init__(self, channels_in: int, channels: int, *, stride: int, groups: int, groups_in: int) -> None:
        super().__init__()
        mid = channels // 4
        self.stride = stride
        self.conv1 = _conv1(channels_in, mid, groups_in)
        self.bn1 = nn.BatchNorm2d(mid)
        self.shuffle = nn.ChannelShuffle(groups_in)
        self.conv2 = _depthwise(mid, stride)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = _conv1(mid, channels, groups)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H', W') after the ReLU."""
        out = self.shuffle(F.relu(self.bn1(self.conv1(x))))
        # The literature's CIFAR form rectifies after the depthwise convolution, unlike the paper.
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(cat((out, F.avg_pool2d(x, 3, 2, 1)), 1) if self.stride == 2 else out + x)


class ShuffleNetV1(CifarNet):
    """ShuffleNet 1× with three groups, its stem a 1×1 convolution without pooling, each stage halving the map.

    Args:
        num_classes: K.
        in_chans: channels of the images.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    literature_names = ((r"^linear\.", "fc."),)

    def __init__(self, num_classes: int = 10, in_chans: int = 3) -> None:
        widths, blocks, groups, stem = (240, 480, 960), (4, 8, 4), 3, 24
        stages = [(f"layer{i + 1}", width, 2 ** (i + 1)) for i, width in enumerate(widths)]
        super().__init__(num_features=widths[-1], num_classes=num_classes, stages=stages)
        self.conv1 = _conv1(in_chans, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        channels_in = stem
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            # The stem's few channels are not worth grouping (ShuffleNet, §3.2).
            groups_in = 1 if i == 0 else groups
            first = ShuffleUnit(channels_in, width - channels_in, stride=2, groups=groups, groups_in=groups_in)
            rest = (ShuffleUnit(width, width, stride=1, groups=groups, groups_in=groups) for _ in range(count - 1))
            self.add_module(f"layer{i + 1}", nn.Sequential(first, *rest))
            channels_in = width
        self.add_classifier()

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 960, H/8, W/8)."""
        x = F.relu(self.bn1(self.conv1(images)))
        return self.layer3(self.layer2(self.layer1(x)))


class SplitUnit(nn.Module):
    """ShuffleNetV2's basic unit: half of the channels pass untouched, then both halves are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = _conv1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = _depthwise(half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _conv1(half, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W), every part rectified."""
        kept, out = x.chunk(2, dim=1)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(out)))))
        out = F.relu(self.bn3(self.conv3(out)))
        return self.shuffle(cat((kept, out), 1))


class DownUnit(nn.Module):
    """ShuffleNetV2's unit with stride 2: two branches that both see all channels."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = _depthwise(channels_in, 2)
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv2 = _conv1(channels_in, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _conv1(channels_in, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = _depthwise(half, 2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = _conv1(half, half)
        self.bn5 = nn.BatchNorm2d(half)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H/2, W/2) after the ReLU."""
        short = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        long = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        return self.shuffle(cat((short, F.relu(self.bn5(self.conv5(long)))), 1))


class ShuffleNetV2(CifarNet):
    """ShuffleNetV2 1×, its stem a 1×1 convolution without pooling, each stage halving the map.

    Args:
        num_classes: K.
        in_chans: channels of the images.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    literature_names = ((r"^linear\.", "fc."),)

    def __init__(self, num_classes: int = 10, in_chans: int = 3) -> None:
        widths, blocks, stem, last = (116, 232, 464), (4, 8, 4), 24, 1024
        stages = [(f"layer{i + 1}", width, 2 ** (i + 1)) for i, width in enumerate(widths)]
        super().__init__(num_features=last, num_classes=num_classes, stages=stages)
        self.conv1 = _conv1(in_chans, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        channels_in = stem
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            rest = (SplitUnit(width) for _ in range(count - 1))
            self.add_module(f"layer{i + 1}", nn.Sequential(DownUnit(channels_in, width), *rest))
            channels_in = width
        self.conv2 = _conv1(channels_in, last)
        self.bn2 = nn.BatchNorm2d(last)
        self.add_classifier()

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 1024, H/8, W/8)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return F.relu(self.bn2(self.conv2(x)))
