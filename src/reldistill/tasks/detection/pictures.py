"""What the page shows of a detection run: boxes of both networks over a few images, and their errors over all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from reldistill.core.types import Batch, Evaluator, FeatureSource, Wanted
from reldistill.relations.attention import map_attention
from reldistill.tasks.base import FinishedRun
from reldistill.tasks.detection.boxes import Boxes
from reldistill.tasks.detection.detections_file import Detections, Shown, write_detections
from reldistill.tasks.detection.metrics.average_precision import AveragePrecision
from reldistill.tasks.detection.metrics.detection_errors import KINDS, SIZES
from reldistill.tasks.detection.metrics.detection_results import ImageResult

_IMAGES = 6
_LARGEST_SIDE = 384
_LEAST_SCORE = 0.3
_MOST_BOXES = 8


def write_detection_pictures(run: FinishedRun) -> None:
    """Write `detections_file` into a run's folder: the first validation images with objects."""
    student, teacher = _precision(run.student), None
    if run.teacher_measured is not None:
        teacher = _precision(run.teacher_measured)
    ours = {image.index: image for image in student.metrics.images}
    theirs = {} if teacher is None else {image.index: image for image in teacher.metrics.images}
    shown: list[Shown] = []
    for batch in run.images.val:
        if len(shown) == _IMAGES:
            break
        boxes = batch.targets_as(Boxes)
        if batch.indices is None:
            raise ValueError("drawn images are known by their indices: give Batch(images, boxes, indices)")
        attention = None
        if run.teacher is not None and run.level:
            attention = _attention(run.teacher.extractor, run.level, batch)
        for row, index in enumerate(batch.indices.tolist()):
            if len(shown) < _IMAGES and len(ours[index].true_boxes):
                height, width = boxes.sizes[row].tolist()
                mask = None if attention is None else _inside(attention[row], batch.images.shape[-2:], (height, width))
                pixels = batch.images[row, :, :height, :width]
                shown.append(_shown(pixels, ours[index], theirs.get(index), mask))
    errors = {"student": _errors(student)} | ({} if teacher is None else {"teacher": _errors(teacher)})
    write_detections(run.folder, Detections(shown, student.classes, run.level, errors))


def _precision(measured: Evaluator) -> AveragePrecision:
    if not isinstance(measured, AveragePrecision):
        raise TypeError(f"boxes are drawn by what AveragePrecision found, not {type(measured).__name__}")
    return measured


def _shown(pixels: Tensor, ours: ImageResult, theirs: ImageResult | None, attention: Tensor | None) -> Shown:
    height, width = pixels.shape[-2:]
    scale = min(1.0, _LARGEST_SIDE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = functional.interpolate(pixels[None].float(), size, mode="bilinear", antialias=True)[0]
    shares = np.array([width, height, width, height], dtype=np.float64)
    truth = np.column_stack([ours.true_boxes / shares, ours.true_labels])[~ours.ignored]
    return Shown(
        (small.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy(),
        truth.astype(np.float32),
        _found(ours, shares),
        None if theirs is None else _found(theirs, shares),
        None if attention is None else attention.cpu().numpy(),
    )


def _found(image: ImageResult, shares: np.ndarray) -> np.ndarray:
    """The boxes worth drawing, best first."""
    order = np.argsort(-image.scores, kind="stable")
    order = order[image.scores[order] >= _LEAST_SCORE][:_MOST_BOXES]
    rows = np.column_stack([image.boxes / shares, image.labels, image.scores])[order]
    return rows.astype(np.float32)


@torch.no_grad()
def _attention(network: FeatureSource, level: str, batch: Batch) -> Tensor:
    """The teacher's spatial attention (B, h, w), mean 1, as SEKD weighs positions by it."""
    with torch.autocast(batch.images.device.type, enabled=False):
        features = (
            network.ask(batch.images, Wanted(levels=(level,), logits=False), targets=batch.targets)
            .levels[level]
            .float()
        )
    spatial, _ = map_attention(features.flatten(2), temperature=1.0, scale="relative")
    return spatial.unflatten(1, features.shape[2:])


def _inside(attention: Tensor, padded: Sequence[int], size: tuple[int, int]) -> Tensor:
    """The part of (h, w) that lies over the image."""
    rows, columns = (max(1, round(n * s / p)) for n, s, p in zip(attention.shape, size, padded, strict=True))
    return attention[:rows, :columns]


def _errors(measured: AveragePrecision) -> np.ndarray:
    errors = measured.metrics.errors()
    table = [[(errors.counts[kind][size], errors.costs[kind][size]) for size in SIZES] for kind in KINDS]
    return np.array(table, dtype=np.float64)
