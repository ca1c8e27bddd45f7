"""Detection: the pairs of SEKD's experiments on COCO and Pascal VOC, by the schedules that the literature shares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from reldistill.core.checks import UserError
from reldistill.training.settings import DataSettings, PairSettings, TrainSettings

if TYPE_CHECKING:
    from reldistill.report.record import RunRecord

Family = Literal["retinanet", "fasterrcnn"]
Pair = Literal["r50-r18", "r101-r50", "r50-mobilenet-v2", "r101-efficientnet-b0"]

# teacher and student
_BACKBONES: dict[Pair, tuple[str, str]] = {
    "r50-r18": ("resnet50", "resnet18"),
    "r101-r50": ("resnet101", "resnet50"),
    "r50-mobilenet-v2": ("resnet50", "mobilenet_v2"),
    "r101-efficientnet-b0": ("resnet101", "efficientnet_b0"),
}
_LR_OF_8: dict[Family, float] = {"retinanet": 0.005, "fasterrcnn": 0.01}


def coco_detector(
    *,
    data: str,
    out: Path,
    family: Family = "retinanet",
    pair: Pair = "r50-r18",
    teacher: str | None = None,
    teacher_weights: str | None = None,
    method: str = "sekd",
    epochs: int = 12,
    batch_size: int = 8,
    image_size: int = 800,
    pretrained_backbone: bool = True,
    seed: int = 0,
    workers: int | None = None,
    devices: int | str = "auto",
    resume: bool = False,
) -> RunRecord:
    """COCO, the 1x schedule: RetinaNet or Faster R-CNN into the same detector on a smaller backbone.

    Command: reldistill run coco-detector --data coco:COCO --family retinanet --pair r50-r18 --out OUT

    Teacher: with ResNet-50 torchvision's published one. None is published with ResNet-101: train it (reldistill train)
    and give its run folder as --teacher, or a file with its weights as --teacher-weights.

    Schedule: SEKD's code takes 180,000 steps of 8 images (detectron2's 1x, 90,000 of 16), a tenth of the rate from step
    120,000 on and a hundredth from 160,000. Here that is 12 epochs of the 118,287 images of train2017 (177,400 steps)
    with the rate lowered at 2/3 and 8/9 of training; it rises over the first 1/180 (1,000 steps). Its peak is 0.005 for
    RetinaNet and 0.01 for Faster R-CNN with 8 images per step, in proportion for more or fewer.

    Cost: 177,400 steps of teacher and student at 800 pixels: days on one GPU. Not run by us.

    Expected score: not published for SEKD, whose code has these settings without numbers. Of the same schedule, as
    MMRazor lists them: ResNet-50 alone 36.5 AP in RetinaNet and 37.4 in Faster R-CNN; Faster R-CNN R101 to R50 by FBKD
    39.3 (teacher 39.4). For the other pairs we hold no number.

    Args:
        data: coco:DIR with train2017 and val2017.
        out: the run's folder.
        family: of teacher and student.
        pair: backbones of teacher and student.
        teacher: a run folder, or a detector's name; by default the pair's.
        teacher_weights: file with the teacher's weights.
        method: a method's name, or several joined by +.
        epochs: passes over the training images.
        batch_size: images per step over all devices.
        image_size: pixels of the images' shorter side.
        pretrained_backbone: start the student from its backbone's published weights.
        seed: of weights, order and augmentation.
        workers: processes that decode images; by default by the number of cores.
        devices: how many devices, or auto.
        resume: continue the run in out.
    """
    from reldistill.runs.distill import distill

    return distill(
        DataSettings(data=data, image_size=image_size, workers=workers),
        _networks(family, pair, teacher, teacher_weights, method, pretrained_backbone),
        _schedule(family, epochs=epochs, batch_size=batch_size, seed=seed, devices=devices),
        out=out,
        resume=resume,
    )


def voc_detector(
    *,
    data: str,
    out: Path,
    family: Family = "retinanet",
    pair: Pair = "r50-r18",
    teacher: str | None = None,
    teacher_weights: str | None = None,
    method: str = "sekd",
    epochs: int = 17,
    batch_size: int = 8,
    image_size: int = 800,
    pretrained_backbone: bool = True,
    seed: int = 0,
    workers: int | None = None,
    devices: int | str = "auto",
    resume: bool = False,
) -> RunRecord:
    """Pascal VOC 07+12: RetinaNet or Faster R-CNN into the same detector on a smaller backbone, tested on VOC 2007.

    Command: reldistill run voc-detector --data voc:VOCdevkit --family fasterrcnn --pair r50-r18 --out OUT

    Teacher: one trained on these images (reldistill train), by its run folder as --teacher or its weights' file as
    --teacher-weights. Without either a ResNet-50 teacher is torchvision's of COCO, whose classes are matched with
    VOC's by name; with ResNet-101 none is published.

    Schedule: detectron2's for VOC, 18,000 steps of 16 images, a tenth of the rate from step 12,000 on and a hundredth
    from 16,000. Here that is 17 epochs of the 16,551 images of both trainval lists (35,200 steps of 8) with the rate
    lowered at 2/3 and 8/9 of training; it rises over the first 1/180. Its peak is 0.005 for RetinaNet and 0.01 for
    Faster R-CNN with 8 images per step, in proportion for more or fewer.

    Cost: 35,200 steps of teacher and student at 800 pixels: a fifth of the COCO recipe. Not run by us.

    Expected score: not published for SEKD by its code; we hold no number of another method for these pairs.

    Args:
        data: voc:DIR with VOC2007 (and its annotated test list) and VOC2012.
        out: the run's folder.
        family: of teacher and student.
        pair: backbones of teacher and student.
        teacher: a run folder, or a detector's name; by default the pair's.
        teacher_weights: file with the teacher's weights.
        method: a method's name, or several joined by +.
        epochs: passes over the training images.
        batch_size: images per step over all devices.
        image_size: pixels of the images' shorter side.
        pretrained_backbone: start the student from its backbone's published weights.
        seed: of weights, order and augmentation.
        workers: processes that decode images; by default by the number of cores.
        devices: how many devices, or auto.
        resume: continue the run in out.
    """
    from reldistill.runs.distill import distill

    return distill(
        DataSettings(data=data, image_size=image_size, workers=workers),
        _networks(family, pair, teacher, teacher_weights, method, pretrained_backbone),
        _schedule(family, epochs=epochs, batch_size=batch_size, seed=seed, devices=devices),
        out=out,
        resume=resume,
    )


def _networks(
    family: Family, pair: Pair, teacher: str | None, teacher_weights: str | None, method: str, pretrained_backbone: bool
) -> PairSettings:
    """UserError where the pair's own teacher is asked for, and nobody has published its weights."""
    from reldistill.tasks.detection.networks.plain_detectors import OWN_NAMES

    theirs, ours = (f"{family}_{backbone}_fpn" for backbone in _BACKBONES[pair])
    if not (teacher or teacher_weights) and theirs not in OWN_NAMES:
        raise UserError(
            f"nobody publishes weights of {theirs}: give the folder of a run that trained it (reldistill train "
            f"--model {theirs} …) by --teacher, or its weights by --teacher-weights"
        )
    return PairSettings(
        teacher=teacher or theirs,
        teacher_weights=teacher_weights,
        student=ours,
        student_arguments={"pretrained_backbone": pretrained_backbone},
        method=method,
    )


def _schedule(family: Family, *, epochs: int, batch_size: int, seed: int, devices: int | str) -> TrainSettings:
    return TrainSettings(
        epochs=epochs,
        batch_size=batch_size,
        lr=_LR_OF_8[family] * batch_size / 8,
        optimizer="sgd",
        weight_decay=1e-4,
        schedule="step",
        milestones=[2 / 3, 8 / 9],
        lr_warm_up=1 / 180,
        seed=seed,
        devices=devices,
    )
