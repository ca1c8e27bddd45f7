"""Measuring a network on validation images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from reldistill.core.checks import UserError
from reldistill.networks.saved import run_folder
from reldistill.report.record import read_record
from reldistill.runs.opening import measure, read_images
from reldistill.tasks.base import task_of
from reldistill.training.settings import DataSettings, ModelSettings, TrainSettings


def evaluate(
    data: DataSettings, network: ModelSettings, *, batch_size: int | None = None, precision: str = "32-true"
) -> dict[str, Any]:
    """Measure a network on the validation images.

    Args:
        data: the images.
        network: a network's name with weights, or a run folder.
        batch_size: images a pass; None: what training would take.
        precision: `32-true` or `bf16-mixed`.

    Raises:
        UserError: when network and data don't go together.
    """
    task, is_run = task_of(data), run_folder(network.model) is not None
    is_bare = not network.model_weights and not network.model_pretrained and ".py:" not in network.model
    if is_bare and not is_run:
        raise UserError(
            f"{network.model} has no weights to evaluate: give --weights FILE, --pretrained or a run folder"
        )
    size = data.image_size or (read_record(Path(network.model)).data.image_size if is_run else None)
    # Nothing is trained on, so the training images may be fewer than a batch.
    training = TrainSettings(batch_size=1, devices=1)
    images = read_images(dataclasses.replace(data, image_size=size), training, models=(network.model,))
    images.val.batch_size = TrainSettings(batch_size=batch_size).for_task(data.task).step_images
    images.val.shard(0, 1)
    opened = task.open(
        network.model,
        role="model" if is_run else "teacher",
        images=images,
        image_size=data.image_size,
        weights=network.model_weights,
        pretrained=network.model_pretrained,
        arguments=network.model_arguments,
    )
    found = measure(opened, images, task.objective(training, images), precision=precision).found
    return {
        "model": network.model,
        "weights": opened.pretrained,
        "data": images.name,
        "images": images.val.images,
        **task.measures(found, images.val.images),
        "parameters": sum(p.numel() for p in opened.extractor.network.parameters()),
        "skipped": list(images.skipped),
        "left_out": dict(images.left_out),
        "summary": f"{network.model}: {task.in_words(found, images.val.images)}",
    }
