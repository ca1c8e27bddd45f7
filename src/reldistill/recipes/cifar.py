"""CIFAR: the short schedule of our results page, and the 240-epoch one of the literature."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reldistill.training.settings import DataSettings, ModelSettings, PairSettings, TrainSettings

if TYPE_CHECKING:
    from reldistill.report.record import RunRecord

CIFAR100_MEAN = (0.5071, 0.4867, 0.4408)
CIFAR100_STD = (0.2675, 0.2565, 0.2761)


def cifar10_resnet20(
    *,
    teacher: str,
    out: Path,
    teacher_weights: str | None = None,
    data: str = "cifar10",
    method: str = "serkd",
    epochs: int = 6,
    seed: int = 0,
    download: bool = False,
    devices: int | str = "auto",
    resume: bool = False,
) -> RunRecord:
    """CIFAR-10: any teacher into resnet20 by a one-cycle schedule of a few epochs.

    Command: reldistill run cifar10-resnet20 --teacher RUN --method serkd --out OUT

    Cost: six epochs take some six minutes on two CPU cores with bf16.

    Expected score: docs/results.md, made from the records in benchmarks/results.

    Args:
        teacher: a run folder, FILE.py:factory with its weights, or a network's name.
        out: the run's folder.
        teacher_weights: file with the teacher's weights.
        data: CIFAR-10, or a folder or zip with its images.
        method: a method's name, or several joined by +.
        epochs: passes over the training images.
        seed: of weights, order and augmentation.
        download: fetch CIFAR-10 if it is not there.
        devices: how many devices, or auto.
        resume: continue the run in out.
    """
    from reldistill.runs.distill import distill

    return distill(
        DataSettings(data=data, image_size=32, download=download),
        PairSettings(teacher=teacher, teacher_weights=teacher_weights, student="resnet20", method=method),
        TrainSettings(epochs=epochs, batch_size=128, lr=0.2, optimizer="sgd", seed=seed, devices=devices),
        out=out,
        resume=resume,
    )


def cifar100(
    *,
    out: Path,
    teacher: str = "resnet56",
    student: str = "resnet20",
    teacher_weights: str | None = None,
    data: str = "cifar100",
    method: str = "serkd",
    epochs: int = 240,
    seed: int = 0,
    download: bool = False,
    devices: int | str = "auto",
    resume: bool = False,
) -> RunRecord:
    """CIFAR-100: the 240-epoch schedule that the distillation literature shares, teacher included.

    Command: reldistill run cifar100 --teacher resnet56 --student resnet20 --method kd --out OUT --download

    Settings: those of RepDistiller, whose scores these are. Plain momentum in place of Nesterov's, 5e-4 of weight
    decay, a tenth of the rate from epoch 150, 180 and 210 of 240 on (0.05 at first, 0.01 for a MobileNet or
    ShuffleNet); the literature's nets get images normalised by CIFAR-100's own mean and deviation. The method kd alone
    has the weights 0.1 for the labels and 0.9 for the teacher there; --method kd+… keeps its own.

    Cost: teacher and student take some hours on one GPU. Without teacher weights the teacher is trained first by the
    same schedule, into OUT/teacher.

    Expected score: resnet56 72.34, resnet20 alone 69.06, kd 70.66, rkd (without kd) 69.61, as RepDistiller reports them
    (last epoch). Neither SeRKD nor SEKD has a published number for this pair that we hold. All thirteen pairs of that
    literature can be asked for by the names it has for them, such as --teacher resnet50 --student vgg8; levels are
    chosen by our rule, and the pages of at, fitnets, ofd and reviewkd say which ones it takes instead.

    Args:
        out: the run's folder.
        teacher: a network's name, or a run folder; resnet50, vgg13 and the like are those of the CIFAR literature.
        student: a network's name.
        teacher_weights: file with the teacher's weights.
        data: CIFAR-100, or a folder or zip with its images.
        method: a method's name, or several joined by +.
        epochs: passes over the training images.
        seed: of weights, order and augmentation.
        download: fetch CIFAR-100 if it is not there.
        devices: how many devices, or auto.
        resume: continue the runs in out.
    """
    from reldistill.methods.build import method_names
    from reldistill.networks.saved import run_folder
    from reldistill.runs.distill import distill
    from reldistill.runs.train import train

    images = DataSettings(data=data, image_size=32, download=download)
    student, student_arguments = _of_the_literature(student)
    schedule = partial(_schedule, epochs=epochs, seed=seed, devices=devices)
    teacher_arguments: dict[str, Any] = {}
    if run_folder(teacher) is None:
        teacher, teacher_arguments = _of_the_literature(teacher)
        if teacher_weights is None:
            folder = out / "teacher"
            network = ModelSettings(model=teacher, model_arguments=teacher_arguments)
            resumed = (folder / "record.json").is_file()
            train(images, network, schedule(teacher), out=folder, resume=resumed)
            teacher, teacher_arguments = str(folder), {}
    pair = PairSettings(
        teacher=teacher,
        teacher_weights=teacher_weights,
        teacher_arguments=teacher_arguments,
        student=student,
        student_arguments=student_arguments,
        method=method,
        weights={"task": 0.1, "kd": 0.9} if method_names(method) == ["kd"] else {},
    )
    return distill(images, pair, schedule(student), out=out, resume=resume)


def _of_the_literature(name: str) -> tuple[str, dict[str, Any]]:
    """A network of the CIFAR literature by the name it is registered under, told CIFAR-100's normalisation."""
    from reldistill.networks.cifar import REGISTERED

    registered = REGISTERED.get(name, name)
    if registered not in REGISTERED.values():
        return name, {}
    return registered, {"pretrained_cfg_overlay": {"mean": list(CIFAR100_MEAN), "std": list(CIFAR100_STD)}}


def _schedule(network: str, *, epochs: int, seed: int, devices: int | str) -> TrainSettings:
    return TrainSettings(
        epochs=epochs,
        batch_size=64,
        lr=0.01 if network.startswith(("mobilenet", "shufflenet")) else 0.05,
        optimizer="sgd",
        nesterov=False,
        weight_decay=5e-4,
        schedule="step",
        lr_warm_up=0.0,
        seed=seed,
        devices=devices,
    )
