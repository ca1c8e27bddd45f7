"""Measuring a network on validation images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reldistill.core.checks import UserError
from reldistill.core.tasks import FALLBACK
from reldistill.data.images import Images
from reldistill.data.loader import Loader
from reldistill.networks.probes import PROBES, Labelled, PooledVectors
from reldistill.networks.saved import OpenedNetwork, run_folder
from reldistill.report.draws import interval_of_draws, means
from reldistill.report.intervals import wilson_interval
from reldistill.report.record import read_record
from reldistill.runs.opening import check_named, measure, read_images
from reldistill.tasks.base import AnyTask, TakesHeadless, takes_headless, task_named, task_of
from reldistill.training.settings import DataSettings, ModelSettings, TrainSettings


def evaluate(
    data: DataSettings,
    network: ModelSettings,
    *,
    batch_size: int | None = None,
    precision: str = "32-true",
    probes: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure a network on the validation images.

    Args:
        data: the images.
        network: a network's name with weights, or a run folder.
        batch_size: images per pass; None: what training would take.
        precision: `32-true` or `bf16-mixed`.
        probes: measure what its features know of the labels, not its class scores: `knn`, `linear`, `retrieval`, see
            `networks.probes.PROBES`.

    Raises:
        UserError: when network and data don't go together.
    """
    for name in probes:
        if name not in PROBES:
            raise UserError(f"probe '{name}' is unknown: choose one of {', '.join(PROBES)}")
        if probes.count(name) > 1:
            raise UserError(f"probe '{name}' is given twice")
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
    for loader in (images.train, images.val):
        loader.in_batches_of(batch_size)
    opened = _open(network, images, task=task, is_run=is_run, image_size=data.image_size, headless=bool(probes))
    if probes:
        values, words = _probed(opened, images, probes, precision=precision)
    else:
        if not opened.extractor.num_classes:
            raise UserError(f"{network.model} has no class scores: measure its features by --probe {' '.join(PROBES)}")
        evaluator = task.objective(training, images).evaluator()
        found = measure(opened, images.val, evaluator, precision=precision).found
        values, words = task.measures(found, images.val.images), task.in_words(found, images.val.images)
    return {
        "model": network.model,
        "weights": opened.pretrained,
        "data": images.name,
        "images": images.val.images,
        **values,
        "parameters": sum(p.numel() for p in opened.extractor.network.parameters()),
        "skipped": list(images.skipped),
        "left_out": dict(images.left_out),
        "summary": f"{network.model}: {words}",
    }


def _probed(
    network: OpenedNetwork, images: Images, probes: Sequence[str], *, precision: str
) -> tuple[dict[str, Any], str]:
    """What the network's features know of the labels: probe → score and interval in percent, and in words."""
    train, val = (
        _vectors(network, loader, precision=precision)
        for loader in (images.train.plain(images.train.images), images.val)
    )
    values: dict[str, dict[str, Any]] = {}
    words = []
    for name in probes:
        title, ask = PROBES[name]
        right = ask(train, val, classes=len(images.classes))
        score, (low, high) = 100 * float(right.mean()), _interval(right)
        values[name] = {"score": score, "interval": [low, high]}
        words.append(f"{title} {score:.2f} % ({low:.2f} to {high:.2f})")
    by = f"{images.val.images:,} validation images by {images.train.images:,} training images"
    return {"probes": values}, f"{', '.join(words)}, {by}"


def _vectors(network: OpenedNetwork, loader: Loader, *, precision: str) -> Labelled:
    kept = PooledVectors()
    measure(network, loader, kept, precision=precision)
    return kept.labelled


def _interval(right: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of each image's score, percent."""
    if right.dtype == bool:
        return wilson_interval(int(right.sum()), len(right))
    return interval_of_draws(means(right), observed=100 * float(right.mean()))


def _open(
    network: ModelSettings, images: Images, *, task: AnyTask, is_run: bool, image_size: int | None, headless: bool
) -> OpenedNetwork:
    """The network with its weights, or with its features alone."""
    if headless and (not isinstance(task, TakesHeadless) or not images.classes):
        raise UserError(f"--probe measures features by one class per image: {task_named(FALLBACK).data_help}")
    return (takes_headless(task, teacher=network.model).open_headless if headless else task.open)(
        network.model,
        role="model",
        images=images,
        image_size=image_size,
        weights=network.model_weights,
        pretrained=network.model_pretrained,
        arguments=network.model_arguments,
    )
