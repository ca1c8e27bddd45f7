"""What a run begins with: its images, its networks, and a teacher that was found to know something."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L
import torch

from reldistill.core.checks import UserError
from reldistill.core.trust import note_named
from reldistill.core.types import Evaluator
from reldistill.data.images import Images, notes_of
from reldistill.methods.build import TaskObjective
from reldistill.networks.saved import OpenedNetwork, run_folder
from reldistill.tasks.base import AnyTask, task_of
from reldistill.training.progress import say
from reldistill.training.settings import DataSettings, PairSettings, TrainSettings
from reldistill.training.trainer import device_count, has_gpu, resolve_precision


@dataclass(frozen=True)
class Teacher:
    """A teacher, and what was found of it on the validation images."""

    network: OpenedNetwork
    measured: Evaluator

    @property
    def score(self) -> float:
        """What networks of the task are compared by, percent."""
        return self.measured.found[self.measured.score]


def read_images(data: DataSettings, training: TrainSettings, *, models: Sequence[str] = ()) -> Images:
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
    task, workers = task_of(data), _workers(data, devices)
    images = task.read(data, batch_size=training.step_images, seed=training.seed, workers=workers, models=models)
    say(task.summary(images))
    for note in notes_of(images):
        say(f"warning: {note}")
    return images


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
    return task.open(
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


def trusted_teacher(network: OpenedNetwork, images: Images, training: TrainSettings, *, task: AnyTask) -> Teacher:
    """A teacher and what was measured of it; UserError where nothing could be learned from it."""
    measured = measure(
        network,
        images,
        task.objective(training, images),
        precision=resolve_precision(training.precision, training.accelerator),
        accelerator=training.accelerator,
        channels_last=training.channels_last,
    )
    say(f"teacher {network.card.name}: {task.in_brief(measured.found, images.val.images)}")
    task.check_teacher(network, measured.found, images)
    return Teacher(network, measured)


def measure(
    network: OpenedNetwork,
    images: Images,
    objective: TaskObjective,
    *,
    precision: str = "32-true",
    accelerator: str = "auto",
    channels_last: bool = True,
) -> Evaluator:
    """How a network does on the validation images: the objective's evaluator, asked.

    In the layout of training, and by default in that of its default: another one rounds sums otherwise, and boxes of
    almost equal scores swap.
    """
    device = torch.device("cuda" if has_gpu(accelerator) else "cpu")
    extractor = network.extractor.to(device).eval()
    if channels_last:
        extractor.to(memory_format=torch.channels_last)
    evaluator = objective.evaluator()
    evaluator.start(device)
    for batch in images.val:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            evaluator.update(extractor, batch.to(device))
    evaluator.values()
    return evaluator
