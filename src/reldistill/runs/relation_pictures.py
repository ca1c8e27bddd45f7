"""What a report draws of a finished run: superpixels over a few images, a level's channel graph and its spectrum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reldistill.core.safe_files import write_arrays
from reldistill.core.types import Batch, ClassLabels, FeatureSource, Wanted
from reldistill.relations.channel_graph import channel_adjacency
from reldistill.relations.principal_components import component_colours
from reldistill.relations.spectrum import laplacian_eigenvalues
from reldistill.relations.superpixels import assign, initial_superpixels, superpixel_grid
from reldistill.relations.tokens import map_to_tokens, tokenise
from reldistill.report.run.relations_file import RELATIONS_FILE

# A side of 16 tokens is what the superpixel loss works on by default; of a graph of more than 1024 channels only the
# first are drawn.
_LARGEST_GRID = 16
_LARGEST_GRAPH = 1024


@torch.no_grad()
def write_relation_pictures(
    folder: Path,
    *,
    student: FeatureSource,
    teacher: FeatureSource,
    levels: tuple[str, str],
    batch: Batch,
    classes: tuple[str, ...],
    images: int = 6,
) -> None:
    """Write `relations.npz` into a run's folder.

    Args:
        folder: the run's.
        student: gives Features of images.
        teacher: the same.
        levels: the level of the student and of the teacher that are drawn.
        batch: validation images: their graph is drawn, and the superpixels of the first ones.
        classes: names of the classes.
        images: over how many images superpixels are drawn.
    """
    drawn: dict[str, np.ndarray] = {
        "images": (batch.images[:images].permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy(),
        "level": np.array(":".join(levels)),
    }
    if classes:
        drawn["classes"] = np.array(classes)
    if isinstance(batch.targets, ClassLabels):
        drawn["labels"] = batch.targets.labels[:images].cpu().numpy()
    maps: list[Tensor] = []
    for name, network, level in (("student", student.eval(), levels[0]), ("teacher", teacher.eval(), levels[1])):
        features = network.ask(batch.images, Wanted(levels=(level,), logits=False))
        feature_map = features.levels[level].float()
        drawn[f"{name}_superpixels"] = _superpixels(feature_map[:images]).cpu().numpy().astype(np.int16)
        adjacency = channel_adjacency(feature_map).mean(dim=0)  # of this process's images: only one draws
        maps.append(feature_map)
        drawn[f"{name}_spectrum"] = laplacian_eigenvalues(adjacency).cpu().numpy()
        drawn[f"{name}_adjacency"] = adjacency[:_LARGEST_GRAPH, :_LARGEST_GRAPH].cpu().numpy()
    ours, theirs, explained = component_colours(*maps)
    drawn["student_components"], drawn["teacher_components"] = (one[:images].cpu().numpy() for one in (ours, theirs))
    drawn["explained"] = np.array(explained)
    write_arrays(folder / RELATIONS_FILE, **drawn)


def _superpixels(feature_map: Tensor) -> Tensor:
    tokens = tokenise(feature_map, largest_grid=_LARGEST_GRID)
    size = (tokens.shape[2], tokens.shape[3])
    grid = superpixel_grid(size)
    first = initial_superpixels(tokens, grid=grid)
    return assign(map_to_tokens(tokens), first, token_grid=size, superpixel_grid=grid).labels()
