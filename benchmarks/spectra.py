r"""What sekd's spectra meet in networks: channels that are dead, and eigenvalues too close for float32.

    python -m benchmarks.spectra --cifar cifar10-jpeg.zip --photographs tiny-imagenet-40.zip \
        --teacher my_resnet.py:resnet56 --teacher-weights resnet56-cifar10jpeg.safetensors \
        --lite-weights tf_efficientnet_lite0.safetensors

prints the tables of docs/methods/sekd.md and writes benchmarks/results/spectra.json. For each of the levels that sekd
compares, of a batch of 128 images: channels that are dead in all of them, and in one of them on average. And of the
spectral part between the network's maps of these images and of the same with noise: how float32's gradient by the maps
compares with float64's, where gaps are broadened by far less; and both gaps at the end of what is kept.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reldistill.losses.sekd import SEKD
from reldistill.networks.extract import Extractor
from reldistill.networks.levels import pick_levels
from reldistill.networks.zoo import load_network
from reldistill.relations.channel_graph import channel_adjacency
from reldistill.relations.kernels.switch import fast_kernels
from reldistill.relations.precision import DEAD
from reldistill.relations.spectrum import spectral_embedding

RESULTS = Path(__file__).parent / "results" / "spectra.json"
BATCH, LEVELS, RANK = 128, 3, 8


def photographs(archive: Path, *, side: int) -> Tensor:
    """(128, 3, side, side) in [0, 1], spread evenly over an archive's training images."""
    with zipfile.ZipFile(archive) as source:
        names = sorted(name for name in source.namelist() if name.startswith("train/") and not name.endswith("/"))
        chosen = [names[i * len(names) // BATCH] for i in range(BATCH)]
        images = [Image.open(io.BytesIO(source.read(name))).convert("RGB").resize((side, side)) for name in chosen]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255


@torch.no_grad()
def levels_of(name: str, images: Tensor, **how: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, and maps of the images and of the same with noise, of each level that sekd compares."""
    torch.manual_seed(0)
    loaded = load_network(name, **how)
    network = Extractor(loaded.module, mean=loaded.mean, std=loaded.std, input_size=loaded.input_size, name=name).eval()
    noisy = (images + 0.05 * torch.randn(images.shape)).clamp(0, 1)
    names = tuple(level.name for level in pick_levels(network.stages(images.shape[-1]), LEVELS))
    plain, other = (network(x, levels=names, logits=False).levels for x in (images, noisy))
    for level in names:
        yield level, plain[level].float(), other[level].float()


def dead(maps: Tensor) -> tuple[int, float]:
    """Of maps (B, C, H, W): channels without activation in the batch, and in an image on average."""
    gone = maps.flatten(2).abs().amax(dim=2) <= DEAD
    return int(gone.all(dim=0).sum()), float(gone.sum(dim=1).float().mean())


def gradients(student: Tensor, teacher: Tensor, *, dense: bool) -> dict[str, float]:
    """Of float32 beside float64: length, angle's cosine and distance, as ratios to float64's length."""
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = student.to(dtype).requires_grad_()
        with fast_kernels(not dense):
            part = SEKD(rank=RANK).parts(leaf, teacher.to(dtype), names=("spectral",))["spectral"]
        found.append(torch.autograd.grad(part, leaf)[0].double().flatten())
    single, double = found
    length = double.norm()
    return {
        "length": float(single.norm() / length),
        "cosine": float(single @ double / (single.norm() * length)),
        "distance": float((single - double).norm() / length),
    }


def gap(maps: Tensor) -> float:
    """Between the last eigenvalue that is kept and the first that is not, of the batch's graph."""
    values = spectral_embedding(channel_adjacency(maps.double()).mean(dim=0), rank=RANK + 1)[1]
    return float(values[RANK] - values[RANK - 1])


def measured(network: str, level: str, plain: Tensor, noisy: Tensor) -> dict[str, Any]:
    """A row of the tables."""
    in_all, in_one = dead(plain)
    return {
        "network": network,
        "level": level,
        "channels": plain.shape[1],
        "dead": in_all,
        "dead in an image": in_one,
        "gap": gap(noisy),
        "dense": gradients(noisy, plain, dense=True),
        "kernels": gradients(noisy, plain, dense=False),
    }


def random_maps(channels: int) -> tuple[Tensor, Tensor]:
    """Of two networks that have nothing in common: normal numbers, as an untrained layer gives."""
    generator = torch.Generator().manual_seed(channels)
    first, second = (torch.randn(16, channels, 8, 8, generator=generator) for _ in range(2))
    return first.relu(), second.relu()


def tables(rows: list[dict[str, Any]]) -> str:
    """As they stand on the page."""
    lines = [
        "| network | level | channels | dead in the batch | dead in an image |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {r['network']} | {r['level']} | {r['channels']} | {r['dead']} | {r['dead in an image']:.1f} |"
        for r in rows
        if r["level"] != "–"
    ]
    head = "| maps | level | channels | gap | length | cosine |"
    lines += ["", head, "| --- | --- | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {r['network']} | {r['level']} | {r['channels']} | {r['gap']:.1e} | {r['kernels']['length']:.2f} | "
        f"{r['kernels']['cosine']:.3f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cifar", "photographs", "teacher", "teacher-weights", "lite-weights"):
        parser.add_argument(f"--{name}", required=True)
    given = parser.parse_args()
    small, large = photographs(Path(given.cifar), side=32), photographs(Path(given.photographs), side=224)
    networks: list[tuple[str, str, Tensor, dict[str, Any]]] = [
        ("resnet56, trained", given.teacher, small, {"num_classes": 10, "weights": given.teacher_weights}),
        ("resnet18, random", "resnet18", large, {"num_classes": 10}),
        (
            "efficientnet_lite0, trained",
            "tf_efficientnet_lite0",
            large,
            {"num_classes": 1000, "weights": given.lite_weights},
        ),
    ]
    rows = [
        measured(said, level, plain, noisy)
        for said, name, images, how in networks
        for level, plain, noisy in levels_of(name, images, image_size=images.shape[-1], **how)
    ]
    rows += [measured("random maps", "–", *random_maps(channels)) for channels in (64, 256)]
    command = shlex.join(["python", "-m", "benchmarks.spectra", *sys.argv[1:]])
    RESULTS.write_text(json.dumps({"command": command, "rows": rows}, indent=2, ensure_ascii=False) + "\n")
    print(tables(rows))


if __name__ == "__main__":
    main()
