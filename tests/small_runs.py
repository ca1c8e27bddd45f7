"""Images, networks and runs so small that the whole command line can be tried in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (60, 60, 200), "green": (60, 200, 60), "red": (200, 60, 60)}
NETWORKS = '''
"""Networks of a user's own: no batch norm, so that a few steps are enough."""
from torch import nn

MEAN = STD = (0.5, 0.5, 0.5)


class Small(nn.Module):
    def __init__(self, num_classes, width, dropout, norm):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), norm(width), nn.ReLU())
        self.layer2 = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), norm(2 * width), nn.ReLU(), nn.Dropout2d(dropout)
        )
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        return self.head(self.layer2(self.layer1(x)).mean(dim=(2, 3)))


def small(num_classes, width=8, dropout=0.0):
    return Small(num_classes, width, dropout, lambda channels: nn.GroupNorm(2, channels))


def batch_normed(num_classes, width=8, dropout=0.2):
    return Small(num_classes, width, dropout, nn.BatchNorm2d)
'''


def write_images(folder: Path, *, count: int, seed: int = 0) -> None:
    """`count` images of 12x12 of each of three classes; any network learns them at once."""
    random = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.array(colour) + random.normal(0, 60, (12, 12, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name / f"{number:02}.png")


def write_world(folder: Path) -> Path:
    """60 images in `pics`, and networks in `nets.py`."""
    write_images(folder / "pics", count=20)
    (folder / "nets.py").write_text(NETWORKS)
    return folder


DATA = ["--data", "pics", "--val-fraction", "0.3", "--batch-size", "12", "--lr", "0.1"]
TRAIN = ["train", *DATA, "--model", "nets.py:small"]
TRUST = ["--trust", "nets.py:small"]  # where the teacher's run is opened by a command that does not name that file
DISTILL = ["distill", *DATA, "--teacher", "teacher", "--student", "nets.py:small", *TRUST]


def with_options(arguments: list[str], **options: object) -> list[str]:
    """The same command with options replaced or added; True stands for a switch."""
    result = list(arguments)
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if option in result:
            at = result.index(option)
            del result[at : at + 2]
        result += [option] if value is True else [option, str(value)]
    return result


def environment() -> dict[str, str]:
    """One thread a process: faster for small networks, and the same sums in every process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "80"}


def reldistill(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    return subprocess.run(
        [sys.executable, "-m", "reldistill", *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
