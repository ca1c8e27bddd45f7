"""Learnable layers that shape a student's map like the teacher's; trained with the step, dropped at export."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from reldistill.core.types import LevelInfo


class MapAdapter(nn.Module):
    """(B, C, H, W) of the student → (B, C', H', W') of the teacher: 1×1 convolution and bilinear resize, as needed.

    Args:
        channels: C of the student's map.
        teacher_channels: C' of the teacher's map.
        teacher_size: (H', W') of the teacher's map.

    >>> import torch
    >>> tuple(MapAdapter(16, 64, teacher_size=(8, 8))(torch.rand(2, 16, 4, 4)).shape)
    (2, 64, 8, 8)
    """

    def __init__(self, channels: int, teacher_channels: int, *, teacher_size: tuple[int, int]) -> None:
        super().__init__()
        self.teacher_size = teacher_size
        self.project = (
            nn.Identity() if channels == teacher_channels else nn.Conv2d(channels, teacher_channels, 1, bias=False)
        )

    def forward(self, student: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C_t H_t W_t"]:
        """(B, C, H, W) → (B, C', H', W')."""
        # The convolution and the resize commute, so the convolution runs where there are fewer pixels.
        if student.shape[-2:].numel() > self.teacher_size[0] * self.teacher_size[1]:
            return self.project(self._resize(student))
        return self._resize(self.project(student))

    def _resize(self, student: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H_t W_t"]:
        if student.shape[-2:] == self.teacher_size:
            return student
        return functional.interpolate(student, self.teacher_size, mode="bilinear", align_corners=False)


class PyramidAdapter(nn.Module):
    """(B, C, H, W) of the student → (B, C', H', W') of the teacher's map, whatever its size in this batch.

    Args:
        channels: C of the student's map.
        teacher_channels: C' of the teacher's map.

    >>> import torch
    >>> tuple(PyramidAdapter(16, 64)(torch.rand(2, 16, 4, 4), teacher=torch.rand(2, 64, 5, 6)).shape)
    (2, 64, 5, 6)
    """

    wants_teacher = True  # of a Distiller, by the keyword `teacher`

    def __init__(self, channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.project = (
            nn.Identity() if channels == teacher_channels else nn.Conv2d(channels, teacher_channels, 1, bias=False)
        )

    def forward(
        self, student: Float[Tensor, "B C H W"], *, teacher: Float[Tensor, "B C_t H_t W_t"]
    ) -> Float[Tensor, "B C_t H_t W_t"]:
        """(B, C, H, W), and the map that it is to fit → (B, C', H', W')."""
        projected = self.project(student)
        if student.shape[-2:] == teacher.shape[-2:]:
            return projected
        return functional.interpolate(projected, teacher.shape[-2:], mode="bilinear", align_corners=False)


class StridedTokeniser(nn.Module):
    """SeRKD's learnable tokeniser for CNNs: a strided convolution that turns a map's cells into tokens.

    Args:
        channels: C of the student's map.
        factor: cells per token along each side.
    """

    def __init__(self, channels: int, *, factor: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, factor, stride=factor)

    def forward(self, student: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C _H _W"]:
        """(B, C, H, W) → (B, C, ceil(H / factor), ceil(W / factor))."""
        factor = self.convolution.stride[0]
        height, width = student.shape[-2:]
        padded = functional.pad(student, (0, -width % factor, 0, -height % factor), mode="replicate")
        return self.convolution(padded)


def map_adapter(student: LevelInfo, teacher: LevelInfo) -> MapAdapter | None:
    """The adapter between two levels, or None where their maps already have one shape."""
    size = (teacher.height, teacher.width)
    if student.channels == teacher.channels and (student.height, student.width) == size:
        return None
    return MapAdapter(student.channels, teacher.channels, teacher_size=size)


class LinearProjection(nn.Module):
    """A linear map of every place's vector, with a bias, and bilinear resize as needed.

    Args:
        channels: C of the student's map.
        teacher_channels: C' of the teacher's map.
        teacher_size: (H', W') of the teacher's map.
    """

    def __init__(self, channels: int, teacher_channels: int, *, teacher_size: tuple[int, int]) -> None:
        super().__init__()
        self.resize = MapAdapter(channels, channels, teacher_size=teacher_size)
        self.project = nn.Conv2d(channels, teacher_channels, 1)

    def forward(self, student: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C_t H_t W_t"]:
        """(B, C, H, W) → (B, C', H', W')."""
        return self.project(self.resize(student))


class PixelwiseRegressor(nn.Module):
    """VID's mean of the teacher's map: three 1×1 convolutions with ReLU between them, and bilinear resize as needed.

    Args:
        channels: C of the student's map.
        teacher_channels: C' of the teacher's map, and of the layers between.
        teacher_size: (H', W') of the teacher's map.
    """

    def __init__(self, channels: int, teacher_channels: int, *, teacher_size: tuple[int, int]) -> None:
        super().__init__()
        self.resize = MapAdapter(channels, channels, teacher_size=teacher_size)
        self.regress = nn.Sequential(
            nn.Conv2d(channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )

    def forward(self, student: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C_t H_t W_t"]:
        """(B, C, H, W) → (B, C', H', W')."""
        return self.regress(self.resize(student))


class NormedProjection(nn.Module):
    """OFD's connector: a 1×1 convolution with batch norm, and bilinear resize as needed.

    Args:
        channels: C of the student's map.
        teacher_channels: C' of the teacher's map.
        teacher_size: (H', W') of the teacher's map.
    """

    def __init__(self, channels: int, teacher_channels: int, *, teacher_size: tuple[int, int]) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Conv2d(channels, teacher_channels, 1, bias=False), nn.BatchNorm2d(teacher_channels)
        )
        self.resize = MapAdapter(teacher_channels, teacher_channels, teacher_size=teacher_size)

    def forward(self, student: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C_t H_t W_t"]:
        """(B, C, H, W) → (B, C', H', W')."""
        return self.resize(self.project(student))


class EachLevel(nn.ModuleList):
    """Adapters side by side: the first takes the first of the student's tensors, and so on."""

    def forward(self, *student: Float[Tensor, "B _C *_"]) -> tuple[Float[Tensor, "B _C *_"], ...]:
        """As many tensors as adapters → what each makes of its own."""
        return tuple(adapter(tensor) for adapter, tensor in zip(self, student, strict=True))
