"""ImageNet-1k: the two settings whose scores SeRKD reports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reldistill.training.settings import DataSettings, PairSettings, TrainSettings

if TYPE_CHECKING:
    from reldistill.report.record import RunRecord


def imagenet_deit_tiny(
    *,
    data: str,
    teacher_weights: str,
    out: Path,
    teacher: str = "vit_base_patch16_224",
    method: str = "serkd",
    epochs: int = 300,
    batch_size: int = 1024,
    seed: int = 0,
    devices: int | str = "auto",
    resume: bool = False,
) -> RunRecord:
    """ImageNet-1k: a ViT-B fine-tuned from MAE into DeiT-Ti, SeRKD's main setting.

    Command: reldistill run imagenet-deit-tiny --data IMAGENET --teacher-weights mae_vit_base.pth --out OUT

    Cost: 300 epochs of 1.28 million images: days on eight GPUs. Not run by us.

    Expected score: SeRKD reports 76.8 (teacher 83.6; CSKD 76.3, DeiT 74.5). Its full training recipe is not in the text
    we hold; this one is DeiT's schedule with the strong augmentation of this package, without mixup.

    Args:
        data: folder with train/ and val/.
        teacher_weights: the fine-tuned MAE weights.
        out: the run's folder.
        teacher: the teacher's architecture.
        method: a method's name, or several joined by +.
        epochs: passes over the training images.
        batch_size: images per step over all devices.
        seed: of weights, order and augmentation.
        devices: how many devices, or auto.
        resume: continue the run in out.
    """
    from reldistill.runs.distill import distill

    return distill(
        DataSettings(data=data, image_size=224, augment="strong"),
        PairSettings(teacher=teacher, teacher_weights=teacher_weights, student="deit_tiny_patch16_224", method=method),
        TrainSettings(
            epochs=epochs,
            batch_size=batch_size,
            lr=1e-3 * batch_size / 1024,
            optimizer="adamw",
            weight_decay=0.05,
            schedule="cosine",
            lr_warm_up=5 / 300,
            label_smoothing=0.1,
            seed=seed,
            devices=devices,
        ),
        out=out,
        resume=resume,
    )


def imagenet_resnet18(
    *,
    data: str,
    out: Path,
    teacher: str = "resnet101.tv_in1k",
    teacher_weights: str | None = None,
    method: str = "serkd",
    epochs: int = 100,
    batch_size: int = 512,
    seed: int = 0,
    devices: int | str = "auto",
    resume: bool = False,
) -> RunRecord:
    """ImageNet-1k: ResNet-101 into ResNet-18, SeRKD's setting for CNNs.

    Command: reldistill run imagenet-resnet18 --data IMAGENET --out OUT

    Cost: 100 epochs of 1.28 million images: about two days on eight GPUs. Not run by us.

    Expected score: SeRKD reports up to 72.25 (student alone 69.76 with torchvision's weights).

    Args:
        data: folder with train/ and val/.
        out: the run's folder.
        teacher: the teacher, whose published weights are taken.
        teacher_weights: file with other weights for it.
        method: a method's name, or several joined by +.
        epochs: passes over the training images.
        batch_size: images per step over all devices.
        seed: of weights, order and augmentation.
        devices: how many devices, or auto.
        resume: continue the run in out.
    """
    from reldistill.runs.distill import distill

    return distill(
        DataSettings(data=data, image_size=224),
        PairSettings(teacher=teacher, teacher_weights=teacher_weights, student="resnet18", method=method),
        TrainSettings(
            epochs=epochs,
            batch_size=batch_size,
            lr=0.2 * batch_size / 512,
            optimizer="sgd",
            weight_decay=1e-4,
            schedule="step",
            milestones=[0.3, 0.6, 0.9],
            lr_warm_up=0.0,
            seed=seed,
            devices=devices,
        ),
        out=out,
        resume=resume,
    )
