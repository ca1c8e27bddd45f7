"""Measuring a network on validation images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from reldistill.core.checks import UserError
from reldistill.data.images import Images
from reldistill.networks.saved import OpenedNetwork, run_folder
from reldistill.report.record import read_record
from reldistill.runs.opening import check_named, measure, read_images
from reldistill.tasks.base import AnyTask, task_of
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
    check_named(network.model, network.model_weights, role="model")
    batch_size = TrainSettings(batch_size=batch_size).for_task(data.task).step_images
    size = data.image_size or (read_record(Path(network.model)).data.image_size if is_run else None)
    # Nothing is trained on, so the training images may be fewer than a batch.
    training = TrainSettings(batch_size=1, devices=1)
    images = read_images(dataclasses.replace(data, image_size=size), training, models=(network.model,))
    images.val.batch_size = batch_size
    images.val.shard(0, 1)
    opened = _open(network, images, task=task, is_run=is_run, image_size=data.image_size)
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


def _open(
    network: ModelSettings, images: Images, *, task: AnyTask, is_run: bool, image_size: int | None
) -> OpenedNetwork:
    """The network with its weights; UserError where it was trained on other classes."""
    opened = task.open(
        network.model,
        role="model",
        images=images,
        image_size=image_size,
        weights=network.model_weights,
        pretrained=network.model_pretrained,
        arguments=network.model_arguments,
    )
    if opened.card.classes and tuple(opened.card.classes) != images.classes:
        raise UserError(
            f"{network.model} was trained on other classes ({', '.join(opened.card.classes[:3])} …) than the data have "
            f"({', '.join(images.classes[:3])} …)"
        )
    return opened
