"""Residual networks for CIFAR.

He et al. 2016 (arXiv 1512.03385, §4.2) and the wide ones of Zagoruyko & Komodakis 2016 (1605.07146).
"""

from __future__ import annotations

from types import MappingProxyType

from torch import Tensor, nn
from torch.nn import functional as F

from reldistill.networks.cifar.base import CifarNet, init_he


def _conv3(channels_in: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, which is a 1×1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3(channels_in, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H', W') after the ReLU."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.downsample(x))


class BottleneckBlock(nn.Module):
    """A 3×3 convolution between two 1×1 ones, of which the second widens fourfold, and a shortcut."""

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = self.expansion * channels
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != wide:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, 4 C', H', W') after the ReLU."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        return F.relu(out + self.shortcut(x))


class CifarResNet(CifarNet):
    """6n+2 layers in three stages of n residual blocks.

    The distillation literature projects by 1×1 convolutions where He et al. pad with zeros; the ×4 networks double
    the widths and start from 32 channels.

    Args:
        depth: 6n+2.
        widths: channels of the first convolution and of the three stages.
        num_classes: K.
        in_chans: channels of the images.
    """

    def __init__(
        self, depth: int, widths: tuple[int, int, int, int] = (16, 16, 32, 64), num_classes: int = 10, in_chans: int = 3
    ) -> None:
        stages = [(f"layer{i}", widths[i], 2 ** (i - 1)) for i in (1, 2, 3)]
        super().__init__(num_features=widths[3], num_classes=num_classes, stages=stages)
        blocks = (depth - 2) // 6
        self.conv1 = _conv3(in_chans, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = self._stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = self._stage(widths[2], widths[3], blocks, stride=2)
        self.add_classifier()
        init_he(self)

    @staticmethod
    def _stage(channels_in: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
        first = ResidualBlock(channels_in, channels, stride)
        return nn.Sequential(first, *(ResidualBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, D, H/4, W/4)."""
        x = F.relu(self.bn1(self.conv1(images)))
        return self.layer3(self.layer2(self.layer1(x)))


class CifarBottleneckResNet(CifarNet):
    """ImageNet's ResNet of four stages of bottlenecks on 32×32 images: its stem a 3×3 convolution without pooling.

    Args:
        blocks: of each stage.
        num_classes: K.
        in_chans: channels of the images.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential
    literature_names = ((r"^linear\.", "fc."),)

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int = 10, in_chans: int = 3) -> None:
        stem, widths = 64, (64, 128, 256, 512)
        wide = [BottleneckBlock.expansion * width for width in widths]
        stages = [(f"layer{i + 1}", width, 2**i) for i, width in enumerate(wide)]
        super().__init__(num_features=wide[-1], num_classes=num_classes, stages=stages)
        self.conv1 = _conv3(in_chans, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        channels_in = stem
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            first = BottleneckBlock(channels_in, width, 1 if i == 0 else 2)
            rest = (BottleneckBlock(wide[i], width, 1) for _ in range(count - 1))
            self.add_module(f"layer{i + 1}", nn.Sequential(first, *rest))
            channels_in = wide[i]
        self.add_classifier()
        init_he(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 2048, H/8, W/8)."""
        x = F.relu(self.bn1(self.conv1(images)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class PreActivationBlock(nn.Module):
    """Normalise and rectify before each of two 3×3 convolutions.

    Where the channels change, the 1×1 shortcut sees the rectified map too; otherwise the input passes untouched.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = _conv3(channels_in, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3(channels, channels)
        projects = channels_in != channels
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H', W'), not rectified: that is the next block's first step."""
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(CifarNet):
    """6n+4 layers in three stages of n pre-activation blocks, `widen` times as wide as a ResNet.

    A stage's map is the sum before normalisation and ReLU, as in the distillation literature; the rectified last map
    is what `relu` returns.

    Args:
        depth: 6n+4.
        widen: the factor k of WRN-depth-k.
        num_classes: K.
        in_chans: channels of the images.
    """

    literature_names = ((r"^block(\d)\.layer\.", r"layer\1."), (r"\.convShortcut\.", ".shortcut."))
    before_relu = MappingProxyType({"layer1": "layer2.0.bn1", "layer2": "layer3.0.bn1", "layer3": "bn1"})

    def __init__(self, depth: int, widen: int, num_classes: int = 10, in_chans: int = 3) -> None:
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        stages = [(f"layer{i}", widths[i], 2 ** (i - 1)) for i in (1, 2, 3)]
        super().__init__(num_features=widths[3], num_classes=num_classes, stages=stages)
        blocks = (depth - 4) // 6
        self.conv1 = _conv3(in_chans, widths[0])
        self.layer1 = self._stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = self._stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = self._stage(widths[2], widths[3], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.relu = nn.ReLU()
        self.add_classifier()
        init_he(self)
        if isinstance(self.fc, nn.Linear):
            nn.init.zeros_(self.fc.bias)

    @staticmethod
    def _stage(channels_in: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
        first = PreActivationBlock(channels_in, channels, stride)
        return nn.Sequential(first, *(PreActivationBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, D, H/4, W/4), rectified."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return self.relu(self.bn1(x))
