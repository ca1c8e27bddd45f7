"""Whole runs: settings → data, networks, training, and a folder with everything that came of it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

from reldistill.build import build_distiller, method_names
from reldistill.checks import UserError
from reldistill.data.classification import ImageData, load_images
from reldistill.fit import fit
from reldistill.folders import claim_folder
from reldistill.report.intervals import wilson_interval
from reldistill.report.record import RunRecord, read_record
from reldistill.saved import OpenedNetwork, open_network, run_folder
from reldistill.step.curriculum import WarmUp
from reldistill.step.distiller import Distiller
from reldistill.step.term import Term
from reldistill.tasks.classification import Accuracy, Classification
from reldistill.train.progress import say
from reldistill.train.settings import DataSettings, ModelSettings, PairSettings, TrainSettings
from reldistill.train.teacher_cache import TeacherCache, fingerprint_of, size_in_words
from reldistill.train.trainer import device_count, has_gpu, resolve_precision


@dataclass(frozen=True)
class Measured:
    """How a network does on images: top-1 accuracy in percent, mean cross entropy, number of images."""

    accuracy: float
    loss: float
    images: int


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
    settings = flat_settings(data, network, training)
    previous = claim_folder(out, settings, resume=resume)
    if previous is not None and previous.status == "finished":
        return previous
    images = read_images(data, training)
    L.seed_everything(training.seed, verbose=False)
    student = open_network(
        network.model,
        role="student",
        num_classes=len(images.classes),
        image_size=images.image_size,
        weights=network.model_weights,
        pretrained=network.model_pretrained,
        arguments=network.model_arguments,
    )
    task = Classification(label_smoothing=training.label_smoothing)
    distiller = build_distiller(
        "none", student=student.extractor, teacher=None, image_size=images.image_size, task=task
    )
    return fit(distiller, images, training, student=student, settings=settings, out=out, resume=resume)


def distill(
    data: DataSettings,
    networks: PairSettings,
    training: TrainSettings,
    *,
    out: Path,
    resume: bool = False,
    images: ImageData | None = None,
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
    levels = level_pairs(networks.levels)
    settings = flat_settings(data, networks, training)
    previous = claim_folder(out, settings, resume=resume)
    if previous is not None and previous.status == "finished":
        return previous
    images = images or read_images(data, training)
    teacher = open_teacher(networks, images)
    student = open_student(networks, images, seed=training.seed)
    distiller = build_distiller(
        networks.method,
        student=student.extractor,
        teacher=teacher.extractor,
        image_size=images.image_size,
        task=Classification(label_smoothing=training.label_smoothing),
        levels=levels,
        settings=networks.settings,
        weights=networks.weights,
        curriculum=WarmUp(over=networks.warm_up) if networks.warm_up else None,
        images=images.train.images,
        balance=networks.balance,
    )
    measured = trusted_teacher(teacher, images, training)
    return fit(
        distiller,
        images,
        training,
        student=student,
        teacher=teacher,
        teacher_score=measured.accuracy,
        method=networks.method,
        settings=settings,
        out=out,
        resume=resume,
        teacher_cache=_open_cache(networks, distiller, teacher, images, training),
    )


def open_teacher(networks: PairSettings, images: ImageData) -> OpenedNetwork:
    """The teacher, with weights and with the data's classes."""
    is_named = not networks.teacher_weights and ".py:" not in networks.teacher and not run_folder(networks.teacher)
    return open_network(
        networks.teacher,
        role="teacher",
        num_classes=len(images.classes),
        image_size=networks.teacher_image_size or images.image_size,
        weights=networks.teacher_weights,
        pretrained=is_named,
        arguments=networks.teacher_arguments,
    )


def open_student(networks: PairSettings, images: ImageData, *, seed: int) -> OpenedNetwork:
    """The student as training starts from it: the same for the same seed."""
    L.seed_everything(seed, verbose=False)
    return open_network(
        networks.student,
        role="student",
        num_classes=len(images.classes),
        image_size=images.image_size,
        weights=networks.student_weights,
        pretrained=networks.student_pretrained,
        arguments=networks.student_arguments,
    )


def evaluate(
    data: DataSettings, network: ModelSettings, *, batch_size: int = 128, precision: str = "32-true"
) -> dict[str, Any]:
    """Measure a network on the validation images.

    Args:
        data: the images.
        network: a network's name with weights, or a run folder.
        batch_size: images a pass.
        precision: `32-true` or `bf16-mixed`.

    Raises:
        UserError: when network and data don't go together.
    """
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}: give at least 1")
    is_run = run_folder(network.model) is not None
    is_bare = not network.model_weights and not network.model_pretrained and ".py:" not in network.model
    if is_bare and not is_run:
        raise UserError(
            f"{network.model} has no weights to evaluate: give --weights FILE, --pretrained or a run folder"
        )
    size = data.image_size or (read_record(Path(network.model)).data.image_size if is_run else None)
    # Nothing is trained on, so the training images may be fewer than a batch.
    images = read_images(dataclasses.replace(data, image_size=size), TrainSettings(batch_size=1, devices=1))
    images.val.batch_size = batch_size
    images.val.shard(0, 1)
    opened = open_network(
        network.model,
        role="teacher" if not is_run else "model",
        num_classes=len(images.classes),
        image_size=images.image_size,
        weights=network.model_weights,
        pretrained=network.model_pretrained,
        arguments=network.model_arguments,
    )
    if opened.card.classes and tuple(opened.card.classes) != images.classes:
        raise UserError(
            f"{network.model} was trained on other classes ({', '.join(opened.card.classes[:3])} …) than the data have "
            f"({', '.join(images.classes[:3])} …)"
        )
    measured = measure(opened, images, precision=precision)
    hits = round(measured.accuracy / 100 * measured.images)
    return {
        "model": network.model,
        "weights": opened.pretrained,
        "data": images.name,
        "images": measured.images,
        "accuracy": measured.accuracy,
        "accuracy_interval": list(wilson_interval(hits, measured.images)),
        "loss": measured.loss,
        "parameters": sum(p.numel() for p in opened.extractor.network.parameters()),
        "skipped": list(images.skipped),
    }


def measure(
    network: OpenedNetwork, images: ImageData, *, precision: str = "32-true", accelerator: str = "auto"
) -> Measured:
    """How a network does on the validation images."""
    device = torch.device("cuda" if has_gpu(accelerator) else "cpu")
    extractor = network.extractor.to(device).eval()
    evaluator = Accuracy()
    evaluator.start(device)
    for batch in images.val:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            evaluator.update(extractor, batch.to(device))
    found = evaluator.values()
    return Measured(found["accuracy"], found["loss"], evaluator.images)


def read_images(data: DataSettings, training: TrainSettings) -> ImageData:
    """The images, looked at once, and a line about them to the user."""
    devices = device_count(training)
    if isinstance(devices, int) and training.batch_size % (devices * training.nodes):
        raise UserError(
            f"batch size {training.batch_size} can't be shared evenly by {devices * training.nodes} devices: it counts "
            f"the images of a step over all of them"
        )
    images = load_images(
        data.data,
        image_size=data.image_size,
        batch_size=training.batch_size,
        seed=training.seed,
        augment=data.augment,
        val_fraction=data.val_fraction,
        hold_out_test=data.hold_out_test,
        skip_bad_images=data.skip_bad_images,
        workers=_workers(data, devices),
        download=data.download,
    )
    skipped = f", {len(images.skipped)} bad images left out" if images.skipped else ""
    test = f", and {images.test.images:,} test images" if images.test else ""
    say(
        f"{images.name}: {images.train.images:,} training and {images.val.images:,} validation images{test} of "
        f"{len(images.classes)} classes at {images.image_size}x{images.image_size}{skipped}"
    )
    return images


def _workers(data: DataSettings, devices: int | str) -> int | None:
    """Decoding processes of this process: the devices of a machine share its cores."""
    if data.workers is not None or not isinstance(devices, int) or devices == 1:
        return data.workers
    return max((os.cpu_count() or 1) // devices, 1)


def trusted_teacher(teacher: OpenedNetwork, images: ImageData, training: TrainSettings) -> Measured:
    """The teacher's accuracy; UserError where it is no better than guessing."""
    precision = resolve_precision(training.precision, training.accelerator)
    measured = measure(teacher, images, precision=precision, accelerator=training.accelerator)
    say(f"teacher {teacher.card.name}: {measured.accuracy:.2f} % of the {measured.images:,} validation images right")
    chance = 100 / len(images.classes)
    low, _ = wilson_interval(round(measured.accuracy / 100 * measured.images), measured.images)
    if low <= chance:
        raise UserError(
            f"the teacher {teacher.card.name} gets {measured.accuracy:.1f} % of the validation images right, guessing "
            f"gets {chance:.1f} %: its weights are not for these classes or not in this order (it was not used)"
        )
    return measured


@torch.no_grad()
def _open_cache(
    networks: PairSettings,
    distiller: Distiller,
    teacher: OpenedNetwork,
    images: ImageData,
    training: TrainSettings,
) -> TeacherCache | None:
    """What the terms need of the teacher, on disk, where that was asked for."""
    if networks.cache_teacher is None or distiller.teacher is None:
        return None
    if training.nodes > 1:
        raise UserError("--cache-teacher needs a folder that all processes see: it works on one machine only")
    for term in distiller.terms:
        if isinstance(term, Term) and hasattr(term.loss, "chosen"):
            raise UserError(
                f"--cache-teacher: {term.name} chooses the teacher's level while it trains, so no one level can be kept"
            )
    size = images.image_size
    one = torch.zeros(1, 3, size, size, device=next(teacher.extractor.parameters()).device)
    extractor = teacher.extractor
    cache = TeacherCache(
        Path(networks.cache_teacher),
        made_of={
            "teacher": fingerprint_of(extractor.network),
            "teacher input": [*teacher.card.mean, *teacher.card.std, extractor.input_size or size],
            "data": images.fingerprint,
            "augmentation": images.augment,
            "image size": size,
            "precision": resolve_precision(training.precision, training.accelerator),
        },
        rows={name: tuple(tensor.shape[1:]) for name, tensor in distiller.ask_teacher(one).items()},
        images=images.train.images,
        views=networks.cache_views,
        seed=training.seed,
    )
    state = "complete" if cache.is_full else f"filled in the first {cache.views} epochs"
    say(
        f"teacher cache: {cache.views} views of {cache.images:,} images take {size_in_words(cache.bytes)} in "
        f"{cache.folder} ({state})"
    )
    return cache


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
