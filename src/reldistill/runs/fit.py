"""One training: a distiller and its data → a folder with record, weights, pictures and report."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
import torchvision
from lightning.pytorch.utilities.exceptions import SIGTERMException

import reldistill
from reldistill.core.checks import UserError, printable, system_error
from reldistill.core.run_files import BEST_WEIGHTS, LAST_WEIGHTS
from reldistill.core.safe_files import write_text
from reldistill.core.types import holds_map
from reldistill.data.images import Images, notes_of
from reldistill.networks.cards import write_weights
from reldistill.networks.extract import Extractor
from reldistill.networks.reused_head import ReusedHead
from reldistill.networks.saved import OpenedNetwork
from reldistill.report.record import DataRecord, NetworkRecord, RunRecord, TermRecord, write_record
from reldistill.report.run.render import render_html
from reldistill.runs.folders import command_line, now, rank
from reldistill.runs.licences import licence_of, licence_warnings
from reldistill.runs.opening import Teacher
from reldistill.runs.relation_pictures import write_relation_pictures
from reldistill.step.distiller import Distiller
from reldistill.step.term import Term
from reldistill.tasks.base import AnyTask, FinishedRun
from reldistill.training.checkpoint import BEST, LAST, restore_weights, unpack
from reldistill.training.keeper import METRICS_FILE, RunKeeper, metrics_csv
from reldistill.training.module import DistillationModule
from reldistill.training.progress import say
from reldistill.training.ranks import Ranks
from reldistill.training.settings import TrainSettings
from reldistill.training.signals import usr1_ends_training
from reldistill.training.teacher_cache import TeacherCache
from reldistill.training.trainer import Loaders, device_count, make_trainer, quiet_writers, resolve_precision

REPORT_FILE = "report.html"
_NAMED = 10  # of the images that are left out


@dataclass(frozen=True)
class Run:
    """What a run is, and where it goes.

    Args:
        task: what the images are labelled for.
        settings: the run's settings, for the record.
        out: its folder.
        previous: the record that is there, of this run before it was cut short; None for a new run.
        student: the student as it was opened.
        teacher: the teacher; None for the student alone.
        method: the method's name.
    """

    task: AnyTask
    settings: dict[str, Any]
    out: Path
    previous: RunRecord | None
    student: OpenedNetwork
    teacher: Teacher | None = None
    method: str = "none"


def fit(
    run: Run, distiller: Distiller, images: Images, training: TrainSettings, *, cache: TeacherCache | None = None
) -> RunRecord:
    """Train a distiller's student to the end and write the run's folder.

    Args:
        run: what it is, and where it goes.
        distiller: teacher, student, terms and task.
        images: training and validation images.
        training: how to train.
        cache: the teacher's outputs for the training images; None to run the teacher at every step.

    Raises:
        UserError: when the loss stops being finite, the machine lacks what `training` asks for, or a run that is
            continued began with other images or weights.
        SystemExit: 128 + the signal's number, after a checkpoint, where SIGTERM or SIGUSR1 ends the training.
    """
    precision = resolve_precision(training.precision, training.accelerator)
    run = dataclasses.replace(run, student=_as_built(run.student, distiller))
    module = _module(distiller, images, training, task=run.task)
    module.teacher_cache = cache
    images.train.cycle_views(run.settings["views"])
    record = _record(run, module, images, training, precision=precision)
    if run.previous is not None:
        _refuse_other_weights(run.previous, record, out=run.out)
        _refuse_other_devices(run.previous, record, out=run.out)
    keeper = _keeper(run, record, images, training)
    label = run.method if run.teacher else run.student.card.name
    trainer = make_trainer(training, precision=precision, out=run.out, keeper=keeper, label=label)
    if trainer.is_global_zero:
        write_record(run.out, record)
        for warning in licence_warnings((record.student, record.teacher)):
            say(warning)
    with contextlib.closing(images.train), contextlib.closing(images.val):
        loaders, ranks = Loaders(keeper, images), Ranks(trainer)
        with usr1_ends_training() as signals, _stopped_on_error(record, run.out, trainer, signals, ranks):
            if keeper.resume is not None and keeper.epochs_left == 0:
                # Killed after its last epoch: the pictures show what that epoch left.
                restore_weights(keeper.resume, module)
                trainer.validate(module, datamodule=loaders, verbose=False)
            else:
                with ranks.watched():
                    trainer.fit(module, datamodule=loaders)
        if trainer.is_global_zero:
            _finish(run, record, module, images)
        trainer.strategy.barrier()  # what comes next may read the folder
    return record


@contextlib.contextmanager
def _stopped_on_error(
    record: RunRecord, out: Path, trainer: L.Trainer, signals: Sequence[int], ranks: Ranks
) -> Iterator[None]:
    """The record says so where training ends by an error; a user's error names the last good checkpoint."""
    try:
        with quiet_writers():
            yield
    except BaseException as error:
        record.status = "stopped"
        if trainer.is_global_zero and out.is_dir():
            with contextlib.suppress(UserError):  # where the disk is full: the error says so
                write_record(out, record)
        if isinstance(error, UserError | OSError):
            reason = str(error) if isinstance(error, UserError) else system_error(error, out)
            where = f"; the last good checkpoint is {out / LAST}" if (out / LAST).is_file() else ""
            raise UserError(f"{reason}{where}") from error
        if isinstance(error, SIGTERMException):
            say("stopped by a signal: the same command with --resume continues from the last checkpoint")
            raise SystemExit(128 + (signals[0] if signals else signal.SIGTERM)) from error
        if isinstance(error, RuntimeError) and (lost := ranks.lost(wait=2.0)) is not None:
            raise UserError(ranks.ended(lost)) from error
        if isinstance(error.__context__, KeyboardInterrupt):  # the Trainer makes SystemExit of it
            raise KeyboardInterrupt from error
        raise


def refuse_other_images(before: RunRecord | None, images: Images, *, out: Path) -> None:
    """UserError where the images are not those that the run in the folder began with."""
    if before is not None:
        _refuse_change(f"the images of {images.name}", before.data.fingerprint, images.fingerprint, out=out)


def _refuse_other_weights(before: RunRecord, now: RunRecord, *, out: Path) -> None:
    """UserError where a network does not start from the weights that the run began with."""
    for role in ("student", "teacher"):
        was, is_now = getattr(before, role), getattr(now, role)
        if was is not None and is_now is not None:
            who = "network" if before.teacher is None else role
            what = f"the {who}'s weights ({is_now.pretrained})"
            _refuse_change(what, was.weights_sha256, is_now.weights_sha256, out=out)


def _refuse_other_devices(before: RunRecord, now: RunRecord, *, out: Path) -> None:
    """UserError where another number of processes would train: batch norm sees another part of a batch in each."""
    was, is_now = (record.environment.get("processes") for record in (before, now))
    if was not in (None, is_now):
        raise UserError(
            f"the run in {out} began on {was} device{'s' * (was != 1)}, not {is_now}, and would end differently: batch "
            f"norm's statistics are of a device's part of a batch; give as many --devices, or another --out"
        )


def _refuse_change(what: str, before: str | None, now: str | None, *, out: Path) -> None:
    if before != now:
        raise UserError(
            f"{what} have changed since the run in {out} began (from {str(before)[:16]} to {str(now)[:16]}): restore "
            f"them, or give another --out"
        )


def _keeper(run: Run, record: RunRecord, images: Images, training: TrainSettings) -> RunKeeper:
    return RunKeeper(
        run.out,
        record,
        loader=images.train,
        seed=training.seed,
        epochs=training.epochs,
        validate_every=training.validate_every,
        patience=training.patience,
        checkpoint_every=training.checkpoint_every,
        resume=None if run.previous is None else _checkpoint(run.out),
    )


def _checkpoint(out: Path) -> dict[str, Any] | None:
    """What a killed run left; its best weights are looked at now, and not when all epochs are done."""
    if not (out / LAST).is_file():
        return None
    state = unpack(out / LAST)
    if state["position"]["result"]["best_epoch"] is not None:
        unpack(out / BEST)
    return state


def _as_built(student: OpenedNetwork, distiller: Distiller) -> OpenedNetwork:
    """The student as the method made it, which may have given it the teacher's classifier."""
    extractor = distiller.student
    if not isinstance(extractor, Extractor) or not isinstance(extractor.network, ReusedHead):
        return student
    card = dataclasses.replace(student.card, reused_head=extractor.network.described())
    return dataclasses.replace(student, extractor=extractor, card=card)


def _module(distiller: Distiller, images: Images, training: TrainSettings, *, task: AnyTask) -> DistillationModule:
    name, defaults = training.optimizer, task.defaults
    if name == "auto":
        stages = distiller.student.stages(images.image_size)
        name = "adamw" if stages and stages[-1].kind == "tokens" else "sgd"
    if training.channels_last:
        distiller.to(memory_format=torch.channels_last)
    return DistillationModule(
        distiller,
        optimizer=name,
        lr=training.lr if training.lr is not None else defaults.lr_for(name, training.step_images),
        weight_decay=defaults.weight_decay[name] if training.weight_decay is None else training.weight_decay,
        nesterov=training.nesterov,
        schedule=training.schedule,
        lr_warm_up=training.lr_warm_up,
        milestones=training.milestones,
        ema_decay=training.ema,
        total_batches=training.epochs * len(images.train),
    )


# When training has ended ---------------------------------------------------------------------------------------------


def _finish(run: Run, record: RunRecord, module: DistillationModule, images: Images) -> None:
    """Write weights, pictures, record and report."""
    card = dataclasses.replace(run.student.card, classes=images.classes)
    prefix = "ema.module.network." if module.ema is not None else "distiller.student.network."
    for file, state in (
        (LAST_WEIGHTS, unpack(run.out / LAST)["module"]),
        (BEST_WEIGHTS, unpack(run.out / BEST)["module"]),
    ):
        network = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        record.result.weights[file] = write_weights(run.out / file, network, card)
    _draw(run, module, images)
    write_text(run.out / METRICS_FILE, metrics_csv(record.history))
    record.status = "finished"
    write_record(run.out, record)
    render_html([run.out], run.out / REPORT_FILE)


def with_report(finished: RunRecord, out: Path) -> RunRecord:
    """A finished run's record; its report is written where the run was killed just before."""
    if rank() == 0 and not (out / REPORT_FILE).is_file():
        render_html([out], out / REPORT_FILE)
    return finished


def _draw(run: Run, module: DistillationModule, images: Images) -> None:
    """What the report shows: the task's own pictures, and relations of both networks."""
    levels = None if run.teacher is None else _drawn_levels(run, module.distiller, run.teacher.network, images)
    teacher = None if run.teacher is None else run.teacher.network
    if teacher is not None:
        teacher.extractor.eval()
    run.task.draw(
        FinishedRun(
            run.out,
            images,
            module.evaluator,
            teacher=teacher,
            teacher_measured=None if run.teacher is None else run.teacher.measured,
            level="" if levels is None else levels[1],
        )
    )
    if teacher is not None and levels is not None:
        device = next(module.parameters()).device
        write_relation_pictures(
            run.out,
            student=module.student,
            teacher=teacher.extractor.to(device),
            levels=levels,
            batch=next(iter(images.val)).to(device),
            classes=images.classes,
        )


def _drawn_levels(run: Run, distiller: Distiller, teacher: OpenedNetwork, images: Images) -> tuple[str, str] | None:
    """The pair of levels that a term compares, deepest or finest as the task wants it, else such a level of both."""
    place = 0 if run.task.drawn_level == "finest" else -1
    for term in list(distiller.terms)[:: 1 if place == 0 else -1]:
        if isinstance(term, Term) and term.looks_inside:
            inside = [[p for p in places if holds_map(p)] for places in (term.student_places, term.teacher_places)]
            return inside[0][place], inside[1][place]
    stages = [network.stages(images.image_size) for network in (distiller.student, teacher.extractor)]
    return (stages[0][place].name, stages[1][place].name) if all(stages) else None


# The record ------------------------------------------------------------------------------------------------


def _record(
    run: Run, module: DistillationModule, images: Images, training: TrainSettings, *, precision: str
) -> RunRecord:
    teacher = run.teacher
    networks = (
        _network_record(run.student, None),
        None if teacher is None else _network_record(teacher.network, teacher.score),
    )
    return RunRecord(
        version=reldistill.__version__,
        command=command_line(),
        created=now(),
        task=run.task.name,
        method=run.method,
        settings={
            **run.settings,
            "used_optimizer": module.optimizer_name,
            "used_lr": module.lr,
            "used_weight_decay": module.weight_decay,
        },
        student=networks[0],
        teacher=networks[1],
        data=data_record(images),
        terms=[_term_record(term) for term in module.distiller.terms if isinstance(term, Term)],
        environment=_environment(training, precision),
        notes=[
            *_skipped(images),
            *notes_of(images),
            *(() if teacher is None else teacher.notes),
            *licence_warnings(networks),
        ],
        folder=run.out,
    )


def _skipped(images: Images) -> list[str]:
    """Which images were left out as unreadable, as a note; nothing where none were."""
    if not images.skipped:
        return []
    more = len(images.skipped) - _NAMED
    named = ", ".join(printable(name) for name in images.skipped[:_NAMED])
    return [f"unreadable and left out: {named}{f' and {more:,} more' if more > 0 else ''}"]


def data_record(images: Images) -> DataRecord:
    """The images in a record."""
    return DataRecord(
        name=images.name,
        classes=list(images.classes),
        train_images=images.train.images,
        val_images=images.val.images,
        image_size=images.image_size,
        skipped=len(images.skipped),
        fingerprint=images.fingerprint,
        left_out=dict(images.left_out),
    )


def _network_record(network: OpenedNetwork, score: float | None) -> NetworkRecord:
    return NetworkRecord(
        name=network.card.name,
        parameters=sum(p.numel() for p in network.extractor.network.parameters()),
        input_size=network.card.input_size,
        pretrained=network.pretrained,
        licence=licence_of(network),
        weights_sha256=network.weights_sha256,
        score=score,
    )


def _term_record(term: Term) -> TermRecord:
    return TermRecord(term.name, term.named_weights, ", ".join(term.student_places), ", ".join(term.teacher_places))


def _environment(training: TrainSettings, precision: str) -> dict[str, Any]:
    devices = int(device_count(training))
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "lightning": L.__version__,
        "timm": timm.__version__,
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU",
        "devices": devices,
        "nodes": training.nodes,
        "processes": devices * training.nodes,
        "precision": precision,
        "threads": torch.get_num_threads(),
    }
