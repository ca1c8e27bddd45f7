"""Distilling a teacher into a student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reldistill.core.checks import UserError
from reldistill.core.types import BesideTeacher
from reldistill.data.images import Images
from reldistill.methods.build import build_distiller, method_names
from reldistill.methods.plan import Choices
from reldistill.networks.saved import OpenedNetwork
from reldistill.report.record import RunRecord
from reldistill.runs.caching import check_cache, open_cache, settle_views
from reldistill.runs.fit import Run, fit, refuse_other_images, with_report
from reldistill.runs.folders import as_begun, claimed
from reldistill.runs.opening import (
    check_named,
    open_student,
    open_teacher,
    read_images,
    trusted_teacher,
    with_batches,
)
from reldistill.step.curriculum import WarmUp
from reldistill.step.distiller import Distiller
from reldistill.tasks.base import AnyTask, task_of
from reldistill.training.progress import say
from reldistill.training.settings import DataSettings, PairSettings, TrainSettings, flat_settings


def distill(
    data: DataSettings,
    networks: PairSettings,
    training: TrainSettings,
    *,
    out: Path,
    resume: bool = False,
    images: Images | None = None,
) -> RunRecord:
    """Distil a teacher into a student.

    Args:
        data: the images.
        networks: teacher, student and method.
        training: how to train the student.
        out: the run's folder.
        resume: continue the run that is there.
        images: the images of `data`, where they are open already.

    Raises:
        UserError: when something given is wrong, the teacher knows nothing of these classes, or the loss stops being
            finite.
    """
    method_names(networks.method)
    task = task_of(data)
    check_cache(networks, task=task)
    level_pairs(networks.levels)
    check_named(networks.teacher, networks.teacher_weights, role="teacher")
    check_named(networks.student, networks.student_weights, role="student")
    data = settle_views(data, networks)
    settings = flat_settings(data, networks, training)
    with claimed(out, settings, resume=resume) as previous:
        if previous is not None and previous.status == "finished":
            return with_report(previous, out)
        training = as_begun(training, out)
        images = images or read_images(data, training, models=(networks.student, networks.teacher))
        training = with_batches(training, images)
        settings |= flat_settings(training)
        refuse_other_images(previous, images, out=out)
        network = open_teacher(networks, images, task=task, seed=training.seed)
        student = open_student(networks, images, task=task, seed=training.seed)
        distiller = build_pair(networks, images, training, task=task, student=student, teacher=network)
        teacher = trusted_teacher(network, images, training, task=task, accept_weak=networks.accept_weak_teacher)
        if isinstance(distiller.task, BesideTeacher):
            distiller.task.beside(teacher.measured)
        if distiller.left_out:
            parts = ", ".join(distiller.left_out)
            say(f"left out of {networks.method}: {parts} (they need class scores of the teacher, or labels)")
        cache = open_cache(networks, distiller, network, images, training, views=data.views)
        run = Run(task, settings, out=out, previous=previous, student=student, teacher=teacher, method=networks.method)
        return fit(run, distiller, images, training, cache=cache)


def build_pair(
    networks: PairSettings,
    images: Images,
    training: TrainSettings,
    *,
    task: AnyTask,
    student: OpenedNetwork,
    teacher: OpenedNetwork,
) -> Distiller:
    """The Distiller that the settings ask for, between two networks that are open."""
    return build_distiller(
        networks.method,
        student=student.extractor,
        teacher=teacher.extractor,
        image_size=images.image_size,
        task=task.objective(training, images),
        choices=Choices(
            levels=level_pairs(networks.levels),
            settings=networks.settings,
            weights=networks.weights,
            curriculum=WarmUp(over=networks.warm_up) if networks.warm_up else None,
            balance=networks.balance,
        ),
        images=images.train.images,
    )


def level_pairs(given: Sequence[str]) -> list[tuple[str, str]]:
    """(student level, teacher level) for each STUDENT_LEVEL:TEACHER_LEVEL."""
    return [_level_pair(text) for text in given]


def _level_pair(text: str) -> tuple[str, str]:
    student, _, teacher = text.partition(":")
    if not student or (":" in text and not teacher):
        raise UserError(f"levels: expected STUDENT_LEVEL:TEACHER_LEVEL, got '{text}' (see: reldistill layers MODEL)")
    return student, teacher or student
