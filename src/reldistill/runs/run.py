"""Whole runs: settings → data, networks, training, and a folder with everything that came of it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from reldistill.core.checks import UserError
from reldistill.core.types import Evaluator, Task
from reldistill.methods.build import build_distiller, method_names
from reldistill.networks.saved import OpenedNetwork, run_folder
from reldistill.report.record import RunRecord, read_record
from reldistill.runs.caching import check_cache, open_cache
from reldistill.runs.fit import fit
from reldistill.runs.folders import claim_folder
from reldistill.step.curriculum import WarmUp
from reldistill.tasks.base import TaskSetup, setup_of
from reldistill.training.progress import say
from reldistill.training.settings import DataSettings, ModelSettings, PairSettings, TrainSettings
from reldistill.training.trainer import device_count, has_gpu, resolve_precision


def train(
    data: DataSettings, network: ModelSettings, training: TrainSettings, *, out: Path, resume: bool = False
) -> RunRecord:
    """Train a network by its task's loss alone: a teacher, or a student to compare with.

    Args:
        data: the images.
        network: the network.
        training: how to train it.
        out: the run's folder.
        resume: go on with the run that is there.

    Raises:
        UserError: when something given is wrong, or the loss stops being finite.
    """
    training = training.for_task(data.task)
    settings = flat_settings(data, network, training)
    previous = claim_folder(out, settings, resume=resume)
    if previous is not None and previous.status == "finished":
        return previous
    images = read_images(data, training)
    L.seed_everything(training.seed, verbose=False)
    setup = setup_of(data)
    student = setup.open(
        network.model,
        role="student",
        images=images,
        weights=network.model_weights,
        pretrained=network.model_pretrained,
        arguments=network.model_arguments,
    )
    distiller = build_distiller(
        "none",
        student=student.extractor,
        teacher=None,
        image_size=images.image_size,
        task=setup.task(training, images),
    )
    return fit(distiller, images, training, student=student, task=data.task, settings=settings, out=out, resume=resume)


def distill(
    data: DataSettings,
    networks: PairSettings,
    training: TrainSettings,
    *,
    out: Path,
    resume: bool = False,
    images: Any = None,
) -> RunRecord:
    """Distil a teacher into a student.

    Args:
        data: the images.
        networks: teacher, student and method.
        training: how to train the student.
        out: the run's folder.
        resume: go on with the run that is there.
        images: the images of `data`, where they are open already.

    Raises:
        UserError: when something given is wrong, the teacher knows nothing of these classes, or the loss stops being
            finite.
    """
    method_names(networks.method)
    check_cache(networks, task=data.task)
    levels = level_pairs(networks.levels)
    training = training.for_task(data.task)
    settings = flat_settings(data, networks, training)
    previous = claim_folder(out, settings, resume=resume)
    if previous is not None and previous.status == "finished":
        return previous
    setup = setup_of(data)
    images = images or read_images(data, training, models=(networks.student, networks.teacher))
    teacher = open_teacher(networks, images, setup=setup, seed=training.seed)
    student = open_student(networks, images, setup=setup, seed=training.seed)
    distiller = build_distiller(
        networks.method,
        student=student.extractor,
        teacher=teacher.extractor,
        image_size=images.image_size,
        task=setup.task(training, images),
        levels=levels,
        settings=networks.settings,
        weights=networks.weights,
        curriculum=WarmUp(over=networks.warm_up) if networks.warm_up else None,
        images=images.train.images,
        balance=networks.balance,
    )
    measured = trusted_teacher(teacher, images, training, setup=setup)
    return fit(
        distiller,
        images,
        training,
        student=student,
        teacher=teacher,
        teacher_measured=measured,
        task=data.task,
        method=networks.method,
        settings=settings,
        out=out,
        resume=resume,
        teacher_cache=open_cache(networks, distiller, teacher, images, training),
    )


def open_teacher(networks: PairSettings, images: Any, *, setup: TaskSetup, seed: int) -> OpenedNetwork:
    """The teacher, with weights and with the data's classes; one without is the same for the same seed."""
    L.seed_everything(seed, verbose=False)
    is_named = not networks.teacher_weights and ".py:" not in networks.teacher and not run_folder(networks.teacher)
    return setup.open(
        networks.teacher,
        role="teacher",
        images=images,
        image_size=networks.teacher_image_size,
        weights=networks.teacher_weights,
        pretrained=is_named,
        arguments=networks.teacher_arguments,
    )


def open_student(networks: PairSettings, images: Any, *, setup: TaskSetup, seed: int) -> OpenedNetwork:
    """The student as training starts from it: the same for the same seed."""
    L.seed_everything(seed, verbose=False)
    return setup.open(
        networks.student,
        role="student",
        images=images,
        weights=networks.student_weights,
        pretrained=networks.student_pretrained,
        arguments=networks.student_arguments,
    )


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
    batch_size = TrainSettings(batch_size=batch_size).for_task(data.task).step_images
    is_run = run_folder(network.model) is not None
    is_bare = not network.model_weights and not network.model_pretrained and ".py:" not in network.model
    if is_bare and not is_run:
        raise UserError(
            f"{network.model} has no weights to evaluate: give --weights FILE, --pretrained or a run folder"
        )
    size = data.image_size or (read_record(Path(network.model)).data.image_size if is_run else None)
    # Nothing is trained on, so the training images may be fewer than a batch.
    training = TrainSettings(batch_size=1, devices=1)
    images = read_images(dataclasses.replace(data, image_size=size), training, models=(network.model,))
    images.val.batch_size = batch_size
    images.val.shard(0, 1)
    setup = setup_of(data)
    opened = setup.open(
        network.model,
        role="teacher" if not is_run else "model",
        images=images,
        image_size=data.image_size,
        weights=network.model_weights,
        pretrained=network.model_pretrained,
        arguments=network.model_arguments,
    )
    if opened.card.classes and tuple(opened.card.classes) != images.classes:
        raise UserError(
            f"{network.model} was trained on other classes ({', '.join(opened.card.classes[:3])} …) than the data have "
            f"({', '.join(images.classes[:3])} …)"
        )
    found = measure(opened, images, setup.task(training, images), precision=precision).found
    return {
        "model": network.model,
        "weights": opened.pretrained,
        "data": images.name,
        "images": images.val.images,
        **setup.measures(found, images.val.images),
        "parameters": sum(p.numel() for p in opened.extractor.network.parameters()),
        "skipped": list(images.skipped),
        "summary": f"{network.model}: {setup.in_words(found, images.val.images)}",
    }


def measure(
    network: OpenedNetwork,
    images: Any,
    task: Task,
    *,
    precision: str = "32-true",
    accelerator: str = "auto",
    channels_last: bool = True,
) -> Evaluator:
    """How a network does the task on the validation images: the task's evaluator, asked.

    In the layout of training, and by default in that of its default: another one rounds sums otherwise, and boxes of
    almost equal scores swap.
    """
    device = torch.device("cuda" if has_gpu(accelerator) else "cpu")
    extractor = network.extractor.to(device).eval()
    if channels_last:
        extractor.to(memory_format=torch.channels_last)
    evaluator = task.evaluator()
    evaluator.start(device)
    for batch in images.val:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            evaluator.update(extractor, batch.to(device))
    evaluator.values()
    return evaluator


def read_images(data: DataSettings, training: TrainSettings, *, models: Sequence[str] = ()) -> Any:
    """The images, looked at once, and a line about them to the user.

    Args:
        data: the images.
        training: batch size, seed and devices.
        models: names of the networks that will see them.
    """
    devices = device_count(training)
    if isinstance(devices, int) and training.step_images % (devices * training.nodes):
        raise UserError(
            f"batch size {training.batch_size} can't be shared evenly by {devices * training.nodes} devices: it counts "
            f"the images of a step over all of them"
        )
    setup = setup_of(data)
    workers = _workers(data, devices)
    images = setup.read(data, batch_size=training.step_images, seed=training.seed, workers=workers, models=models)
    say(setup.summary(images))
    return images


def _workers(data: DataSettings, devices: int | str) -> int | None:
    """Decoding processes of this process: the devices of a machine share its cores."""
    if data.workers is not None or not isinstance(devices, int) or devices == 1:
        return data.workers
    return max((os.cpu_count() or 1) // devices, 1)


def trusted_teacher(teacher: OpenedNetwork, images: Any, training: TrainSettings, *, setup: TaskSetup) -> Evaluator:
    """What was measured of the teacher; UserError where nothing could be learned from it."""
    precision = resolve_precision(training.precision, training.accelerator)
    task = setup.task(training, images)
    measured = measure(
        teacher,
        images,
        task,
        precision=precision,
        accelerator=training.accelerator,
        channels_last=training.channels_last,
    )
    say(f"teacher {teacher.card.name}: {setup.in_brief(measured.found, images.val.images)}")
    setup.check_teacher(teacher, measured.found, images)
    return measured


def flat_settings(*groups: DataSettings | ModelSettings | PairSettings | TrainSettings) -> dict[str, Any]:
    """Every setting by name, as the record keeps them."""
    return {name: value for group in groups for name, value in dataclasses.asdict(group).items()}


def level_pairs(given: Sequence[str]) -> list[tuple[str, str]]:
    """(student level, teacher level) for each STUDENT_LEVEL:TEACHER_LEVEL."""
    return [_level_pair(text) for text in given]


def _level_pair(text: str) -> tuple[str, str]:
    student, _, teacher = text.partition(":")
    if not student or (":" in text and not teacher):
        raise UserError(f"levels: expected STUDENT_LEVEL:TEACHER_LEVEL, got '{text}' (see: reldistill layers MODEL)")
    return student, teacher or student
