"""What a run begins with: its images, its networks, and a teacher that was found to know something."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L
import torch

from reldistill.core.checks import UserError
from reldistill.core.tasks import task_naming
from reldistill.core.trust import note_named
from reldistill.core.types import Evaluator
from reldistill.data.images import Images, notes_of
from reldistill.data.loader import Loader
from reldistill.data.samples import TooFewImages
from reldistill.networks.saved import OpenedNetwork, run_folder
from reldistill.networks.weights import weights_file
from reldistill.networks.zoo import Role, find_source
from reldistill.tasks.base import AnyTask, takes_headless, task_of
from reldistill.training.progress import say
from reldistill.training.settings import DataSettings, PairSettings, TrainSettings
from reldistill.training.trainer import device_count, has_gpu, resolve_precision


@dataclass(frozen=True)
class Teacher:
    """A teacher, and what was found of it on the validation images.

    Args:
        network: the teacher.
        measured: the evaluator that was asked.
        score: what networks of the task are compared by, percent; None where there is no such measure of a teacher.
        notes: what a reader of its score has to know.
    """

    network: OpenedNetwork
    measured: Evaluator
    score: float | None
    notes: tuple[str, ...] = ()


def read_images(data: DataSettings, training: TrainSettings, *, models: Sequence[str] = ()) -> Images:
    """The images, looked at once, and a line about them to the user.

    Where the batch size is left to the task, and that is more than there are training images, it is all of them.

    Args:
        data: the images.
        training: batch size, seed and devices.
        models: names of the networks that will see them.
    """
    devices, batch_size = device_count(training), training.for_task(data.task).step_images
    shares = devices * training.nodes if isinstance(devices, int) else 1
    if batch_size % shares:
        raise UserError(
            f"batch size {batch_size} can't be shared evenly by {shares} devices: it counts the images of a step over "
            f"all of them"
        )
    task, workers = task_of(data), _workers(data, devices)

    def read(batch_size: int) -> Images:
        return task.read(data, batch_size=batch_size, seed=training.seed, workers=workers, models=models)

    try:
        images = read(batch_size)
    except TooFewImages as error:
        fitting = error.images // shares * shares
        if training.batch_size is not None or not fitting:
            raise
        say(f"batch size: {fitting} instead of {batch_size}, as there are {error.images} training images")
        images = read(fitting)
    say(task.summary(images))
    for note in notes_of(images):
        say(f"warning: {note}")
    return images


def with_batches(training: TrainSettings, images: Images) -> TrainSettings:
    """The settings with the batch size that the images were read with."""
    return dataclasses.replace(training, batch_size=images.train.batch_size)


def check_named(name: str, weights: str | None, *, role: Role) -> None:
    """UserError for a network, a run or weights that are not there, before any image is looked at."""
    what = f"{role} {name}"
    if run_folder(name) is None and task_naming(name) is None:
        find_source(name, what=what)
    if weights is not None:
        weights_file(weights, what=what)


def _workers(data: DataSettings, devices: int | str) -> int | None:
    """Decoding processes of this process: the devices of a machine share its cores."""
    if data.workers is not None or not isinstance(devices, int) or devices == 1:
        return data.workers
    return max((os.cpu_count() or 1) // devices, 1)


def open_teacher(networks: PairSettings, images: Images, *, task: AnyTask, seed: int) -> OpenedNetwork:
    """The teacher, with weights and with the data's classes; one without is the same for the same seed."""
    note_named(networks.student)  # a file that makes the student may be that of the teacher's run
    L.seed_everything(seed, verbose=False)
    is_named = not networks.teacher_weights and ".py:" not in networks.teacher and not run_folder(networks.teacher)
    headless = networks.teacher_head == "none"
    return (takes_headless(task, teacher=networks.teacher).open_headless if headless else task.open)(
        networks.teacher,
        role="teacher",
        images=images,
        image_size=networks.teacher_image_size,
        weights=networks.teacher_weights,
        pretrained=is_named,
        arguments=networks.teacher_arguments,
    )


def open_student(networks: PairSettings, images: Images, *, task: AnyTask, seed: int) -> OpenedNetwork:
    """The student as training starts from it: the same for the same seed."""
    L.seed_everything(seed, verbose=False)
    return task.open(
        networks.student,
        role="student",
        images=images,
        weights=networks.student_weights,
        pretrained=networks.student_pretrained,
        arguments=networks.student_arguments,
    )


def trusted_teacher(
    network: OpenedNetwork, images: Images, training: TrainSettings, *, task: AnyTask, accept_weak: bool
) -> Teacher:
    """A teacher and what was measured of it.

    One without class scores is judged by its features, as the task knows how.

    Raises:
        UserError: nothing could be learned from it, unless `accept_weak` makes a warning of that.
    """
    how = functools.partial(
        measure,
        precision=resolve_precision(training.precision, training.accelerator),
        accelerator=training.accelerator,
        channels_last=training.channels_last,
    )
    notes: tuple[str, ...] = ()
    if network.extractor.num_classes:
        measured, fault = how(network, images.val, task.objective(training, images).evaluator()), None
        score: float | None = measured.found[measured.score]
        words = f"teacher {network.card.name}: {task.in_brief(measured.found, images.val.images)}"
        try:
            task.check_teacher(network, measured.found, images)
        except UserError as error:
            fault = str(error)
    else:
        judge = takes_headless(task, teacher=network.card.name)
        measured, words, score, fault = judge.judged(network, images, how)
        notes = (words,)  # its score is not of class scores
    say(words)
    if fault is None:
        return Teacher(network, measured, score, notes)
    if not accept_weak:
        raise UserError(f"{fault} (it was not used; --accept-weak-teacher takes it as it is)")
    note = f"accepted by --accept-weak-teacher: {fault}"
    warnings.warn(note, stacklevel=1)
    return Teacher(network, measured, score, (*notes, note))


def measure(
    network: OpenedNetwork,
    batches: Loader,
    evaluator: Evaluator,
    *,
    precision: str = "32-true",
    accelerator: str = "auto",
    channels_last: bool = True,
) -> Evaluator:
    """How a network does on images that come in order: the evaluator, asked.

    In the layout of training, and by default in that of its default: another one rounds sums otherwise, and boxes of
    almost equal scores swap.
    """
    device = torch.device("cuda" if has_gpu(accelerator) else "cpu")
    extractor = network.extractor.to(device).eval()
    if channels_last:
        extractor.to(memory_format=torch.channels_last)
    evaluator.start(device)
    for batch in batches:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            evaluator.update(extractor, batch.to(device))
    evaluator.values()
    return evaluator
