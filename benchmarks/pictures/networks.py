"""What is drawn: photographs under two published networks, and scans of digits under two that train in a minute.

The photographs may be passed on: `cat` (Stéfan van der Walt, CC0), `coffee` (Rachel Michetti, CC0) and `rocket`
(SpaceX, CC0) come with scikit-image; `flower` (vultilion, CC BY 2.0) and `temple` (danielbuechele, CC BY 2.0) with
scikit-learn. docs/index.md names them too.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.nn import functional

from reldistill import Classification, Extractor, build_distiller, load_network

SIDE = 256
LEVELS = {8: "blocks.2", 16: "blocks.4", 32: "blocks.6"}
"""The levels of an EfficientNet-Lite by their stride."""


@functools.cache
def photographs() -> dict[str, np.ndarray]:
    """The middle of each photograph as a square, (256, 256, 3) uint8."""
    from skimage import data

    found = {
        "cat": data.chelsea(),
        "temple": load_sample_image("china.jpg"),
        "coffee": data.coffee(),
        "flower": load_sample_image("flower.jpg"),
        "rocket": data.rocket(),
    }
    return {name: _square(image) for name, image in found.items()}


def small(name: str, side: int = 160) -> np.ndarray:
    """A photograph as it stands in a picture."""
    return np.asarray(Image.fromarray(photographs()[name]).resize((side, side), Image.Resampling.LANCZOS))


def _square(image: np.ndarray) -> np.ndarray:
    side = min(image.shape[:2])
    top, left = ((size - side) // 2 for size in image.shape[:2])
    cut = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(cut.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def images() -> Tensor:
    """All photographs, (n, 3, 256, 256) in [0, 1]."""
    return torch.tensor(np.stack(list(photographs().values()))).permute(0, 3, 1, 2) / 255


def place(name: str) -> int:
    """The row of a photograph among `images`."""
    return list(photographs()).index(name)


def class_name(index: int) -> str:
    """ImageNet's name of a class, its first word for it."""
    return ImageNetInfo().index_to_description(index).split(",")[0]


@functools.cache
def lite(role: str) -> Extractor:
    """EfficientNet-Lite2 teaches, Lite0 learns; both with their published weights of ImageNet."""
    name = {"teacher": "tf_efficientnet_lite2", "student": "tf_efficientnet_lite0"}[role]
    file = Path(os.environ.get("RELDISTILL_DATA", "")) / "foundation" / f"{name}.safetensors"
    network = timm.create_model(name, **({"checkpoint_path": str(file)} if file.is_file() else {"pretrained": True}))
    return Extractor(network.eval(), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), name=name)


@functools.cache
def maps(role: str, stride: int) -> Tensor:
    """A level's maps of all photographs, (n, C, H, W)."""
    with torch.no_grad():
        return lite(role)(images(), levels=(LEVELS[stride],), logits=False).levels[LEVELS[stride]]


@functools.cache
def logits(role: str) -> Tensor:
    """Class scores of all photographs, (n, 1000)."""
    with torch.no_grad():
        said = lite(role)(images()).logits
    assert said is not None
    return said


@functools.cache
def adapted(stride: int = 16) -> Tensor:
    """The student's maps through the 1×1 convolution that brings them closest to the teacher's: least squares."""
    student, teacher = (maps(role, stride).movedim(1, -1).flatten(0, 2).double() for role in ("student", "teacher"))
    student = torch.cat([student, torch.ones(len(student), 1)], dim=1)
    squares = student.T @ student
    weight = torch.linalg.solve(
        squares + 1e-3 * squares.diagonal().mean() * torch.eye(len(squares)), student.T @ teacher
    )
    shape = maps("teacher", stride).movedim(1, -1).shape
    return (student @ weight).float().reshape(shape).movedim(-1, 1)


@dataclass(frozen=True)
class Scans:
    """A batch of digits under a trained network, in the order of their classes."""

    labels: Tensor
    logits: Tensor
    pooled: Tensor
    maps: Tensor


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """All scans, (1797, 3, 32, 32), and their classes."""
    scans = load_digits()
    pixels = torch.tensor(scans.images, dtype=torch.float32)[:, None] / 16
    return functional.interpolate(pixels, 32, mode="bilinear").expand(-1, 3, -1, -1), torch.tensor(scans.target)


def train(step: Callable[[Tensor, Tensor], Tensor], parameters: list[nn.Parameter], *, epochs: int) -> None:
    """Adam over the first 1200 scans."""
    scans, classes = digits()
    optimizer = torch.optim.Adam(parameters, lr=0.001)
    for _ in range(epochs):
        for batch in torch.randperm(1200).split(60):
            optimizer.zero_grad()
            step(scans[batch], classes[batch]).backward()
            optimizer.step()


@functools.cache
def reader(name: str, *, epochs: int, **arguments: int) -> Extractor:
    """A network that learned the digits, by its name."""
    torch.manual_seed(0)
    network = load_network(name, num_classes=10, image_size=32, arguments=arguments, role="student").module
    train(lambda x, y: functional.cross_entropy(network(x), y), list(network.parameters()), epochs=epochs)
    extractor = Extractor(network.eval(), name=name)
    extractor.survey(32)
    return extractor


def readers() -> dict[str, Extractor]:
    """ResNet-20 after eight epochs teaches, ResNet-8 after three learns."""
    return {"student": reader("resnet8", epochs=3), "teacher": reader("resnet20", epochs=8)}


@functools.cache
def scans(role: str, *, each: int = 6) -> Scans:
    """`each` held-out scans of every class."""
    everything, classes = digits()
    chosen = torch.cat([(classes[1200:] == k).nonzero()[:each, 0] + 1200 for k in range(10)])
    network = readers()[role]
    level = network.stages(32)[-1].name
    with torch.no_grad():
        said = network(everything[chosen], levels=(level,), pooled=True)
    assert said.logits is not None
    assert said.pooled is not None
    return Scans(classes[chosen], said.logits, said.pooled, said.levels[level])


def distilled(method: str, *, epochs: int) -> nn.Module:
    """ResNet-8 that learned the digits from ResNet-20 by a method."""
    torch.manual_seed(0)
    student = load_network("resnet8", num_classes=10, image_size=32, role="student").module
    teacher = readers()["teacher"]
    distiller = build_distiller(method, student=student, teacher=teacher, image_size=32, task=Classification())
    train(lambda x, y: distiller((x, y)).total, distiller.trainable_parameters(), epochs=epochs)
    return distiller.export().eval()
