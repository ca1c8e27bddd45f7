"""One training: a distiller and its data → a folder with record, weights, pictures and report."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
import torchvision

import reldistill
from reldistill.core.checks import UserError
from reldistill.core.types import OUTPUTS, Evaluator
from reldistill.networks.extract import Extractor
from reldistill.networks.reused_head import ReusedHead
from reldistill.networks.saved import BEST_WEIGHTS, LAST_WEIGHTS, OpenedNetwork, write_weights
from reldistill.report.record import DataRecord, NetworkRecord, RunRecord, TermRecord, write_record
from reldistill.report.run.render import render_html
from reldistill.runs.folders import command_line, now
from reldistill.step.distiller import Distiller
from reldistill.step.term import Term
from reldistill.tasks.classification.images import ImageData
from reldistill.tasks.classification.pictures import write_pictures
from reldistill.tasks.detection.images import DetectionData
from reldistill.tasks.detection.metrics.average_precision import AveragePrecision
from reldistill.tasks.detection.pictures import write_detection_pictures
from reldistill.training.checkpoint import BEST, LAST, unpack
from reldistill.training.keeper import RunKeeper
from reldistill.training.module import DistillationModule
from reldistill.training.optimisers import DEFAULT_WEIGHT_DECAY, default_lr
from reldistill.training.settings import TrainSettings
from reldistill.training.teacher_cache import TeacherCache
from reldistill.training.trainer import Loaders, make_trainer, resolve_precision

PICTURES_FILE = "relations.npz"
REPORT_FILE = "report.html"


def fit(
    distiller: Distiller,
    images: ImageData | DetectionData,
    training: TrainSettings,
    *,
    student: OpenedNetwork,
    teacher: OpenedNetwork | None = None,
    teacher_measured: Evaluator | None = None,
    task: str = "classification",
    method: str = "none",
    settings: dict[str, Any],
    out: Path,
    resume: bool = False,
    teacher_cache: TeacherCache | None = None,
) -> RunRecord:
    """Train a distiller's student to the end and write the run's folder.

    Args:
        distiller: teacher, student, terms and task.
        images: training and validation images.
        training: how to train.
        student: the student as it was opened.
        teacher: the teacher likewise.
        teacher_measured: what was found of the teacher on the validation images.
        task: what the networks are for, for the record.
        method: the method's name, for the record.
        settings: what the run was told, for the record.
        out: the run's folder.
        resume: go on from the checkpoint that is there.
        teacher_cache: what the teacher says of the training images; None to ask it at every step.

    Raises:
        UserError: when the loss stops being finite, or the machine lacks what `training` asks for.
    """
    precision = resolve_precision(training.precision, training.accelerator)
    student = _as_built(student, distiller)
    module = _module(distiller, images, training, task=task)
    module.teacher_cache = teacher_cache
    if teacher_cache is None:
        images.train.cycle_views(None)
    else:
        images.train.cycle_views(teacher_cache.views, seed=teacher_cache.seed)
    record = RunRecord(
        version=reldistill.__version__,
        command=command_line(),
        created=now(),
        task=task,
        method=method,
        settings={
            **settings,
            "used_optimizer": module.optimizer_name,
            "used_lr": module.lr,
            "used_weight_decay": module.weight_decay,
        },
        student=_network_record(student, None),
        teacher=None if teacher is None else _network_record(teacher, _score_of(teacher_measured)),
        data=data_record(images),
        terms=[_term_record(term) for term in distiller.terms if isinstance(term, Term)],
        environment=_environment(precision),
        folder=out,
    )
    state = unpack(out / LAST) if resume and (out / LAST).is_file() else None
    keeper = RunKeeper(
        out,
        record,
        loader=images.train,
        seed=training.seed,
        epochs=training.epochs,
        validate_every=training.validate_every,
        patience=training.patience,
        checkpoint_every=training.checkpoint_every,
        resume=state,
    )
    label = method if teacher else student.card.name
    trainer = make_trainer(training, precision=precision, out=out, keeper=keeper, label=label)
    if trainer.is_global_zero:
        write_record(out, record)
    with contextlib.closing(images.train), contextlib.closing(images.val):
        try:
            if keeper.epochs_left > 0:
                trainer.fit(module, datamodule=Loaders(keeper, images))
        except BaseException as error:
            record.status = "stopped"
            if trainer.is_global_zero:
                write_record(out, record)
            if isinstance(error, UserError):
                where = f"; the last good checkpoint is {out / LAST}" if (out / LAST).is_file() else ""
                raise UserError(f"{error}{where}") from error
            if isinstance(error.__context__, KeyboardInterrupt):  # the Trainer makes SystemExit of it
                raise KeyboardInterrupt from error
            raise
        if trainer.is_global_zero:
            _finish(record, module, images, student, teacher, teacher_measured, out)
        trainer.strategy.barrier()  # what comes next may read the folder
    return record


def _as_built(student: OpenedNetwork, distiller: Distiller) -> OpenedNetwork:
    """The student as the method made it, which may have given it the teacher's classifier."""
    extractor = distiller.student
    if not isinstance(extractor, Extractor) or not isinstance(extractor.network, ReusedHead):
        return student
    card = dataclasses.replace(student.card, reused_head=extractor.network.described())
    return dataclasses.replace(student, extractor=extractor, card=card)


def _finish(
    record: RunRecord,
    module: DistillationModule,
    images: ImageData | DetectionData,
    student: OpenedNetwork,
    teacher: OpenedNetwork | None,
    teacher_measured: Evaluator | None,
    out: Path,
) -> None:
    card = dataclasses.replace(student.card, classes=images.classes)
    prefix = "ema.module.network." if module.ema is not None else "distiller.student.network."
    for file, state in ((LAST_WEIGHTS, unpack(out / LAST)["module"]), (BEST_WEIGHTS, unpack(out / BEST)["module"])):
        network = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        record.result.weights[file] = write_weights(out / file, network, card)
    if isinstance(images, DetectionData):
        _draw_boxes(module, images, teacher, teacher_measured, out)
    if teacher is not None:
        levels = _drawn_levels(module.distiller, teacher, images)
        if levels is not None:
            device = next(module.parameters()).device
            write_pictures(
                out / PICTURES_FILE,
                student=module.student,
                teacher=teacher.extractor.to(device),
                levels=levels,
                batch=next(iter(images.val)).to(device),
                classes=images.classes,
            )
    record.status = "finished"
    write_record(out, record)
    render_html([out], out / REPORT_FILE)


def _draw_boxes(
    module: DistillationModule,
    images: DetectionData,
    teacher: OpenedNetwork | None,
    teacher_measured: Evaluator | None,
    out: Path,
) -> None:
    """Boxes over validation images and kinds of errors, by what the last epoch and the teacher's measuring found."""
    assert isinstance(module.evaluator, AveragePrecision)
    assert teacher_measured is None or isinstance(teacher_measured, AveragePrecision)
    levels = None if teacher is None else _drawn_levels(module.distiller, teacher, images)
    write_detection_pictures(
        out,
        student=module.evaluator,
        teacher=teacher_measured,
        teacher_network=None if teacher is None else teacher.extractor.eval(),
        level="" if levels is None else levels[1],
        batches=images.val,
    )


def _drawn_levels(
    distiller: Distiller, teacher: OpenedNetwork, images: ImageData | DetectionData
) -> tuple[str, str] | None:
    """The deepest pair of levels that a term compares, else the deepest of both networks; of detectors the finest."""
    place = 0 if isinstance(images, DetectionData) else -1
    for term in list(distiller.terms)[:: 1 if place == 0 else -1]:
        if isinstance(term, Term) and term.looks_inside:
            inside = [[p for p in places if p not in OUTPUTS] for places in (term.student_places, term.teacher_places)]
            return inside[0][place], inside[1][place]
    stages = [network.stages(images.image_size) for network in (distiller.student, teacher.extractor)]  # type: ignore[operator]
    return (stages[0][place].name, stages[1][place].name) if all(stages) else None


def _module(
    distiller: Distiller, images: ImageData | DetectionData, training: TrainSettings, *, task: str
) -> DistillationModule:
    name = training.optimizer
    if name == "auto":
        stages = distiller.student.stages(images.image_size)  # type: ignore[operator]
        name = "adamw" if stages and stages[-1].kind == "tokens" else "sgd"
    if training.channels_last:
        distiller.to(memory_format=torch.channels_last)
    return DistillationModule(
        distiller,
        optimizer=name,
        lr=training.lr if training.lr is not None else default_lr(name, training.step_images, task=task),
        weight_decay=DEFAULT_WEIGHT_DECAY[task, name] if training.weight_decay is None else training.weight_decay,
        schedule=training.schedule,
        lr_warm_up=training.lr_warm_up,
        milestones=training.milestones,
        ema_decay=training.ema,
        total_batches=training.epochs * len(images.train),
    )


def data_record(images: ImageData | DetectionData) -> DataRecord:
    """What a record says of the images."""
    return DataRecord(
        name=images.name,
        classes=list(images.classes),
        train_images=images.train.images,
        val_images=images.val.images,
        image_size=images.image_size,
        skipped=len(images.skipped),
        fingerprint=images.fingerprint,
    )


def _score_of(measured: Evaluator | None) -> float | None:
    return None if measured is None else measured.found[measured.score]


def _network_record(network: OpenedNetwork, score: float | None) -> NetworkRecord:
    return NetworkRecord(
        name=network.card.name,
        parameters=sum(p.numel() for p in network.extractor.network.parameters()),
        input_size=network.card.input_size,
        pretrained=network.pretrained,
        weights_sha256=network.weights_sha256,
        score=score,
    )


def _term_record(term: Term) -> TermRecord:
    return TermRecord(term.name, term.named_weights, ", ".join(term.student_places), ", ".join(term.teacher_places))


def _environment(precision: str) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "lightning": L.__version__,
        "timm": timm.__version__,
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU",
        "precision": precision,
        "threads": torch.get_num_threads(),
    }
