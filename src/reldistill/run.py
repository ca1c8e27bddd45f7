"""Whole runs: settings → data, networks, training, and a folder with everything that came of it."""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
import shlex
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
import torchvision
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.nn import functional

import reldistill
from reldistill.checks import UserError
from reldistill.data.classification import ImageData, load_images
from reldistill.methods import build_distiller, method_names
from reldistill.report.intervals import wilson_interval
from reldistill.report.record import (
    RECORD_FILE,
    DataRecord,
    NetworkRecord,
    RunRecord,
    TermRecord,
    read_record,
    write_record,
)
from reldistill.report.render import render_html
from reldistill.saved import BEST_WEIGHTS, LAST_WEIGHTS, OpenedNetwork, open_network, run_folder, write_weights
from reldistill.step.curriculum import WarmUp
from reldistill.step.distiller import Distiller
from reldistill.step.term import Term
from reldistill.tasks.classification import Classification
from reldistill.train.checkpoint import BEST, LAST, unpack
from reldistill.train.keeper import RunKeeper
from reldistill.train.module import DistillationModule
from reldistill.train.optimisers import default_lr
from reldistill.train.pictures import write_pictures
from reldistill.train.progress import Progress, say
from reldistill.train.settings import DataSettings, ModelSettings, PairSettings, TrainSettings

PICTURES_FILE = "relations.npz"
REPORT_FILE = "report.html"
_MAY_CHANGE_ON_RESUME = {"devices", "nodes", "accelerator", "workers", "wandb", "checkpoint_every", "download"}


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
    settings = _flat(data, network, training)
    previous = _claim(out, settings, resume=resume)
    if previous is not None and previous.status == "finished":
        return previous
    images = _images(data, training)
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
    return _fit(distiller, images, student, None, None, "none", settings, training, out, resume=resume)


def distill(
    data: DataSettings, networks: PairSettings, training: TrainSettings, *, out: Path, resume: bool = False
) -> RunRecord:
    """Distil a teacher into a student.

    Args:
        data: the images.
        networks: teacher, student and method.
        training: how to train the student.
        out: the run's folder.
        resume: go on with the run that is there.

    Raises:
        UserError: when something given is wrong, the teacher knows nothing of these classes, or the loss stops being
            finite.
    """
    method_names(networks.method)
    levels = [_level_pair(text) for text in networks.levels]
    settings = _flat(data, networks, training)
    previous = _claim(out, settings, resume=resume)
    if previous is not None and previous.status == "finished":
        return previous
    images = _images(data, training)
    teacher = open_teacher(networks, images)
    L.seed_everything(training.seed, verbose=False)
    student = open_network(
        networks.student,
        role="student",
        num_classes=len(images.classes),
        image_size=images.image_size,
        weights=networks.student_weights,
        pretrained=networks.student_pretrained,
        arguments=networks.student_arguments,
    )
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
    )
    measured = _trusted_teacher(teacher, images, training)
    return _fit(distiller, images, student, teacher, measured, networks.method, settings, training, out, resume=resume)


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
    images = _images(dataclasses.replace(data, image_size=size), TrainSettings(batch_size=1, devices=1))
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


@torch.no_grad()
def measure(network: OpenedNetwork, images: ImageData, *, precision: str = "32-true") -> Measured:
    """How a network does on the validation images."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extractor = network.extractor.to(device).eval()
    hits, loss, count = 0.0, 0.0, 0
    for batch in images.val:
        batch = batch.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = extractor(batch.images).logits
        loss += float(functional.cross_entropy(logits.float(), batch.labels, reduction="sum"))
        hits += int((logits.argmax(dim=1) == batch.labels).sum())
        count += len(batch)
    return Measured(100 * hits / count, loss / count, count)


def resolve_precision(precision: str, accelerator: str = "auto") -> str:
    """`auto` → bf16-mixed where the device computes in it, else 32-true."""
    has_gpu = torch.cuda.is_available() and accelerator in ("auto", "gpu")
    if precision == "16-mixed" and not has_gpu and accelerator != "mps":
        raise UserError("--precision 16-mixed needs a GPU: take bf16-mixed or 32-true")
    if precision != "auto":
        return precision
    if has_gpu:
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    has_bf16 = accelerator in ("auto", "cpu") and torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if has_bf16 else "32-true"


def _images(data: DataSettings, training: TrainSettings) -> ImageData:
    devices = _devices(training)
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
        skip_bad_images=data.skip_bad_images,
        workers=_workers(data, devices),
        download=data.download,
    )
    skipped = f", {len(images.skipped)} bad images left out" if images.skipped else ""
    say(
        f"{images.name}: {images.train.images:,} training and {images.val.images:,} validation images of "
        f"{len(images.classes)} classes at {images.image_size}x{images.image_size}{skipped}"
    )
    return images


def _workers(data: DataSettings, devices: int | str) -> int | None:
    """Decoding processes of this process: the devices of a machine share its cores."""
    if data.workers is not None or not isinstance(devices, int) or devices == 1:
        return data.workers
    return max((os.cpu_count() or 1) // devices, 1)


def _trusted_teacher(teacher: OpenedNetwork, images: ImageData, training: TrainSettings) -> Measured:
    """The teacher's accuracy; UserError where it is no better than guessing."""
    measured = measure(teacher, images, precision=resolve_precision(training.precision, training.accelerator))
    say(f"teacher {teacher.card.name}: {measured.accuracy:.2f} % of the {measured.images:,} validation images right")
    chance = 100 / len(images.classes)
    low, _ = wilson_interval(round(measured.accuracy / 100 * measured.images), measured.images)
    if low <= chance:
        raise UserError(
            f"the teacher {teacher.card.name} gets {measured.accuracy:.1f} % of the validation images right, guessing "
            f"gets {chance:.1f} %: its weights are not for these classes or not in this order (it was not used)"
        )
    return measured


def _fit(
    distiller: Distiller,
    images: ImageData,
    student: OpenedNetwork,
    teacher: OpenedNetwork | None,
    teacher_measured: Measured | None,
    method: str,
    settings: dict[str, Any],
    training: TrainSettings,
    out: Path,
    *,
    resume: bool,
) -> RunRecord:
    precision = resolve_precision(training.precision, training.accelerator)
    module = _module(distiller, images, training)
    record = RunRecord(
        version=reldistill.__version__,
        command=_command(),
        created=datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
        task="classification",
        method=method,
        settings={
            **settings,
            "used_optimizer": module.optimizer_name,
            "used_lr": module.lr,
            "used_weight_decay": module.weight_decay,
        },
        student=_network_record(student, images, None),
        teacher=None if teacher is None else _network_record(teacher, images, teacher_measured),
        data=DataRecord(
            name=images.name,
            classes=list(images.classes),
            train_images=images.train.images,
            val_images=images.val.images,
            image_size=images.image_size,
            skipped=len(images.skipped),
            fingerprint=images.fingerprint,
        ),
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
        patience=training.patience,
        checkpoint_every=training.checkpoint_every,
        resume=state,
    )
    trainer = _trainer(training, precision, out, keeper, label=method if teacher else student.card.name)
    if trainer.is_global_zero:
        write_record(out, record)
    try:
        if keeper.epochs_left > 0:
            trainer.fit(module, datamodule=_Loaders(keeper, images))
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
        _finish(record, module, images, student, teacher, out)
    trainer.strategy.barrier()  # what comes next may read the folder
    return record


def _finish(
    record: RunRecord,
    module: DistillationModule,
    images: ImageData,
    student: OpenedNetwork,
    teacher: OpenedNetwork | None,
    out: Path,
) -> None:
    card = dataclasses.replace(student.card, classes=images.classes, input_size=_side(student, images))
    prefix = "ema.module.network." if module.ema is not None else "distiller.student.network."
    for file, state in ((LAST_WEIGHTS, unpack(out / LAST)["module"]), (BEST_WEIGHTS, unpack(out / BEST)["module"])):
        network = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        record.result.weights[file] = write_weights(out / file, network, card)
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


def _drawn_levels(distiller: Distiller, teacher: OpenedNetwork, images: ImageData) -> tuple[str, str] | None:
    """The deepest pair of levels that a term compares, else the deepest of both networks."""
    for term in reversed(list(distiller.terms)):
        if term.student not in ("logits", "pooled"):
            return term.student, term.teacher  # type: ignore[return-value]
    stages = [network.stages(images.image_size) for network in (distiller.student, teacher.extractor)]  # type: ignore[operator]
    return (stages[0][-1].name, stages[1][-1].name) if all(stages) else None


def _module(distiller: Distiller, images: ImageData, training: TrainSettings) -> DistillationModule:
    name = training.optimizer
    if name == "auto":
        stages = distiller.student.stages(images.image_size)  # type: ignore[operator]
        name = "adamw" if stages and stages[-1].kind == "tokens" else "sgd"
    if training.channels_last:
        distiller.to(memory_format=torch.channels_last)
    return DistillationModule(
        distiller,
        optimizer=name,
        lr=training.lr if training.lr is not None else default_lr(name, training.batch_size),
        weight_decay=training.weight_decay,
        schedule=training.schedule,
        lr_warm_up=training.lr_warm_up,
        milestones=training.milestones,
        ema_decay=training.ema,
        total_batches=training.epochs * len(images.train),
    )


def _trainer(training: TrainSettings, precision: str, out: Path, keeper: RunKeeper, *, label: str) -> L.Trainer:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (".*eval mode.*", ".*does not have many workers.*", ".*log_every_n_steps.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message)
    loggers: list[Logger] = [TensorBoardLogger(str(out), name="tensorboard", version="")]
    if training.wandb:
        loggers.append(_wandb(out, keeper.record))
    devices = _devices(training)
    many = devices != 1 or training.nodes > 1
    try:
        return L.Trainer(
            accelerator=training.accelerator,
            devices=devices,
            num_nodes=training.nodes,
            strategy="ddp" if many else "auto",
            precision=precision,  # type: ignore[arg-type]
            max_epochs=max(keeper.epochs_left, 1),
            accumulate_grad_batches=training.accumulate,
            gradient_clip_val=training.clip or None,
            callbacks=[keeper, Progress(keeper, label=label)],
            logger=loggers,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            deterministic="warn" if torch.cuda.is_available() else False,
            benchmark=False,
        )
    except MisconfigurationException as error:
        raise UserError(f"--accelerator {training.accelerator} --devices {training.devices}: {error}") from error


class _Loaders(L.LightningDataModule):
    """Hands the Trainer the batches that are left of each epoch."""

    def __init__(self, keeper: RunKeeper, images: ImageData) -> None:
        super().__init__()
        self.keeper, self.images = keeper, images

    def setup(self, stage: str) -> None:
        """Give this process its part of every batch."""
        assert self.trainer is not None
        for loader in (self.images.train, self.images.val):
            loader.shard(self.trainer.global_rank, self.trainer.world_size)

    def train_dataloader(self) -> Any:
        """The batches left of the current epoch."""
        return self.keeper.remaining()

    def val_dataloader(self) -> Any:
        """The validation batches."""
        return self.images.val


def _devices(training: TrainSettings) -> int | str:
    if training.devices == "auto":
        has_gpu = torch.cuda.is_available() and training.accelerator in ("auto", "gpu")
        return torch.cuda.device_count() if has_gpu else 1
    try:
        return int(training.devices)
    except ValueError:
        raise UserError(f"devices: expected a number or auto, got '{training.devices}'") from None


def _wandb(out: Path, record: RunRecord) -> Logger:
    try:
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(project="reldistill", name=out.name, save_dir=str(out), config=record.settings)
    except (ImportError, ModuleNotFoundError) as error:
        raise UserError("--wandb needs the package wandb: pip install 'reldistill[wandb]'") from error


def _claim(out: Path, settings: dict[str, Any], *, resume: bool) -> RunRecord | None:
    """The record that is in the folder; UserError where it belongs to another run and would be overwritten."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        # The first process has looked at the folder, and has begun to write into it.
        found = read_record(out) if (out / RECORD_FILE).is_file() else None
        return found if found and found.status == "finished" else None
    _make_folder(out)
    if not (out / RECORD_FILE).is_file():
        return None
    if not resume:
        raise UserError(f"{out} already holds a run: go on with it by --resume, or give another --out")
    for half_written in out.glob(".*.part"):
        half_written.unlink(missing_ok=True)
    record = read_record(out)
    for name, value in settings.items():
        before = record.settings.get(name)
        if name not in _MAY_CHANGE_ON_RESUME and before != value:
            raise UserError(
                f"the run in {out} was started with {name} = {before}, not {value}: resume it as it was started, or "
                f"give another --out"
            )
    return record


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--out {out}: that is a file, or lies in one: give a folder") from None
    except OSError as error:
        raise UserError(f"--out {out} can't be written to ({error.strerror}): give another folder") from None


def recorded_settings(model: str) -> dict[str, Any]:
    """What a run was told, where `model` is a run's folder."""
    return read_record(model).settings if (Path(model) / RECORD_FILE).is_file() else {}


def _flat(*groups: DataSettings | ModelSettings | PairSettings | TrainSettings) -> dict[str, Any]:
    return {name: value for group in groups for name, value in dataclasses.asdict(group).items()}


def _level_pair(text: str) -> tuple[str, str]:
    student, _, teacher = text.partition(":")
    if not student or (":" in text and not teacher):
        raise UserError(f"levels: expected STUDENT_LEVEL:TEACHER_LEVEL, got '{text}' (see: reldistill layers MODEL)")
    return student, teacher or student


def _network_record(network: OpenedNetwork, images: ImageData, measured: Measured | None) -> NetworkRecord:
    return NetworkRecord(
        name=network.card.name,
        parameters=sum(p.numel() for p in network.extractor.network.parameters()),
        input_size=_side(network, images),
        pretrained=network.pretrained,
        weights_sha256=network.weights_sha256,
        accuracy=None if measured is None else measured.accuracy,
    )


def _side(network: OpenedNetwork, images: ImageData) -> int:
    return network.extractor.input_size or images.image_size


def _term_record(term: Term) -> TermRecord:
    weights = {f"{term.name}.{part}" if part else term.name: weight for part, weight in term.weights.items()}
    return TermRecord(term.name, weights, term.student, term.teacher)


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


def _command() -> list[str]:
    name = Path(sys.argv[0]).name
    return ["reldistill" if name in ("reldistill", "__main__.py") else name, *sys.argv[1:]]


def command_line(command: Sequence[str]) -> str:
    """A record's command as one would type it."""
    return shlex.join(command)
