"""CIFAR: the short schedule of our results page, and the 240-epoch one of the literature."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reldistill.training.settings import DataSettings, ModelSettings, PairSettings, TrainSettings

if TYPE_CHECKING:
    from reldistill.report.record import RunRecord


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

    Cost: teacher and student take some hours on one GPU. Without teacher weights the teacher is trained first by the
    same schedule, into OUT/teacher.

    Expected score: resnet56 72.34, resnet20 alone 69.06, kd 70.66, rkd (without kd) 69.61, as RepDistiller reports them
    (last epoch). Neither SeRKD nor SEKD has a published number for this pair that we hold.

    Args:
        out: the run's folder.
        teacher: a network's name, or a run folder.
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
    from reldistill.networks.saved import run_folder
    from reldistill.runs.distill import distill
    from reldistill.runs.train import train

    images = DataSettings(data=data, image_size=32, download=download)
    slow = ("mobilenet", "shufflenet")
    training = TrainSettings(
        epochs=epochs,
        batch_size=64,
        lr=0.01 if student.startswith(slow) else 0.05,
        optimizer="sgd",
        weight_decay=5e-4,
        schedule="step",
        lr_warm_up=0.0,
        seed=seed,
        devices=devices,
    )
    if teacher_weights is None and run_folder(teacher) is None:
        folder = out / "teacher"
        train(images, ModelSettings(model=teacher), training, out=folder, resume=(folder / "record.json").is_file())
        teacher = str(folder)
    pair = PairSettings(teacher=teacher, teacher_weights=teacher_weights, student=student, method=method)
    return distill(images, pair, training, out=out, resume=resume)
