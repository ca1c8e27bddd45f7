"""Training a network by its task's loss alone."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from reldistill.methods.build import build_distiller
from reldistill.networks.headless import freeze_backbone
from reldistill.report.record import RunRecord
from reldistill.runs.fit import Run, fit, refuse_other_images, with_report
from reldistill.runs.folders import as_begun, claimed
from reldistill.runs.opening import check_named, read_images, with_batches
from reldistill.tasks.base import task_of
from reldistill.training.settings import DataSettings, ModelSettings, TrainSettings, flat_settings


def train(
    data: DataSettings, network: ModelSettings, training: TrainSettings, *, out: Path, resume: bool = False
) -> RunRecord:
    """Train a network by its task's loss alone: a teacher, or a student to compare with.

    Args:
        data: the images.
        network: the network.
        training: how to train it.
        out: the run's folder.
        resume: continue the run that is there.

    Raises:
        UserError: when something given is wrong, or the loss stops being finite.
    """
    check_named(network.model, network.model_weights, role="network")
    settings = flat_settings(data, network, training)
    with claimed(out, settings, resume=resume) as previous:
        if previous is not None and previous.status == "finished":
            return with_report(previous, out)
        training = as_begun(training, out)
        task, images = task_of(data), read_images(data, training)
        training = with_batches(training, images)
        settings |= flat_settings(training)
        refuse_other_images(previous, images, out=out)
        L.seed_everything(training.seed, verbose=False)
        student = task.open(
            network.model,
            role="network",
            images=images,
            weights=network.model_weights,
            pretrained=network.model_pretrained,
            arguments=network.model_arguments,
        )
        if network.freeze == "backbone":
            freeze_backbone(student.extractor.network, image_size=student.card.input_size, what=network.model)
        distiller = build_distiller(
            "none",
            student=student.extractor,
            image_size=images.image_size,
            task=task.objective(training, images),
        )
        run = Run(task, settings, out=out, previous=previous, student=student)
        return fit(run, distiller, images, training)
