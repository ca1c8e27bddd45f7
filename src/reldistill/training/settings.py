"""What a run can be told: plain typed settings, from which the command line and its YAML are derived."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from reldistill.core.checks import LARGEST_SIDE, UserError, check_range
from reldistill.core.tasks import open_task, task_of_data


@dataclass(kw_only=True)
class DataSettings:
    """Images.

    Args:
        data: a folder of class folders (with train/ and val/ or test/ inside, or split by a fixed seed), a .zip of the
            same, digits, cifar10, cifar100, or a timm data set name (hfds/…, wds/…, tfds/…, torch/…); with labelled
            boxes coco:DIR, voc:DIR or yolo:DIR.
        task: what the images are labelled for: classification, detection, or FILE.py:CLASS for one of your own (which
            runs that file); auto is detection where the data have labelled boxes.
        image_size: side of the square images in a batch; by default their own size if small, else 224. For detection
            the shorter side while training; by default 800.
        augment: what is done to training images; auto is crop-flip, and crop for digits; for detection multi-scale
            (others there: flip, crop, jitter).
        val_fraction: share of each class that is held out where the data bring no validation folder.
        hold_out_test: keep what would validate for a test that nothing is chosen by, and validate on val-fraction of
            each class of the training images.
        skip_bad_images: leave out images that can't be read, and count them.
        probe_data: labelled images by which a student without labels is measured while it trains (--task features): the
            classes of its features' nearest neighbours are then its score. Given like data.
        download: fetch the data set if it is not there.
        workers: processes that decode images which don't fit in memory; by default by the number of cores.
        views: how many views (random changes of every image) the epochs cycle through; by default every epoch has new
            ones, with a teacher cache 16.
    """

    data: str
    task: str = "auto"
    image_size: int | None = None
    augment: Literal["auto", "none", "crop", "crop-flip", "strong", "flip", "multi-scale", "jitter"] = "auto"
    val_fraction: float = 0.1
    hold_out_test: bool = False
    skip_bad_images: bool = False
    probe_data: str | None = None
    download: bool = False
    workers: int | None = None
    views: int | None = None

    def __post_init__(self) -> None:
        """Check the words and numbers; which sizes are possible is up to the task."""
        _check_words(self)
        check_range("image_size", self.image_size, 1, LARGEST_SIDE)
        check_range("val_fraction", self.val_fraction, 0, 1, open_start=True, open_end=True)
        check_range("workers", self.workers, 0)
        check_range("views", self.views, 1)
        self.task = task_of_data(self.data, task=self.task)
        if self.probe_data is not None and not getattr(open_task(self.task), "takes_probe", False):
            raise UserError(
                "--probe-data measures students without labels: give it with unlabelled: or --task features"
            )


@dataclass(kw_only=True)
class ModelSettings:
    """The network of `train`.

    Args:
        model: a timm or torchvision name, a CIFAR net of the literature (resnet20, wrn_40_2, …), FILE.py:factory, which
            runs that file, or a run folder.
        model_weights: a .safetensors or .pth file, or a run folder, to start from.
        model_pretrained: start from the weights that timm or torchvision publish.
        model_arguments: keyword arguments for the network's constructor, e.g. '{"patch_size": 4}'.
        freeze: backbone trains the head alone, on the features as they are.
    """

    model: str
    model_weights: str | None = None
    model_pretrained: bool = False
    model_arguments: dict[str, Any] = field(default_factory=dict)
    freeze: Literal["nothing", "backbone"] = "nothing"


@dataclass(kw_only=True)
class PairSettings:
    """Teacher, student and method.

    Args:
        teacher: a timm or torchvision name, a CIFAR net of the literature, FILE.py:factory (which runs that
            file), or a run folder.
        student: the same for the student.
        method: a method's name (see: reldistill list methods), or several joined by +.
        teacher_weights: a .safetensors or .pth file with the teacher's weights; otherwise the published ones are taken.
        teacher_head: none takes the teacher without its class scores, whatever their number: features and relations
            remain. Not needed for a teacher that never had any.
        teacher_image_size: side of the images the teacher gets; by default what it needs, else the student's.
        teacher_arguments: keyword arguments for the teacher's constructor.
        accept_weak_teacher: continue, with a warning, where the teacher is no better than one that knows nothing of
            these classes.
        student_weights: weights that the student starts from.
        student_pretrained: start the student from the weights that timm or torchvision publish.
        student_arguments: keyword arguments for the student's constructor, e.g. '{"patch_size": 4}'.
        levels: pairs STUDENT_LEVEL:TEACHER_LEVEL to use instead of the automatic choice (see: reldistill layers).
        weights: part name to weight, e.g. '{"kd": 2, "serkd.angle": 4, "task": 0.5}'.
        settings: loss name to its settings, e.g. '{"serkd": {"iterations": 2}}'.
        warm_up: fraction of training over which the weights of all but the logit terms rise from 0; 0 leaves it to the
            method.
        balance: find the weights while training: every part's gradient gets this share of the task's (try 1); 0 for
            fixed weights. With it, weights are multiples of that share.
        cache_teacher: folder where the teacher's outputs for the images are kept, so that it runs once for each view
            of them (see views); may serve other runs with the same teacher and data too.
    """

    teacher: str
    student: str
    method: str = "serkd"
    teacher_weights: str | None = None
    teacher_head: Literal["own", "none"] = "own"
    teacher_image_size: int | None = None
    teacher_arguments: dict[str, Any] = field(default_factory=dict)
    accept_weak_teacher: bool = False
    student_weights: str | None = None
    student_pretrained: bool = False
    student_arguments: dict[str, Any] = field(default_factory=dict)
    levels: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    warm_up: float = 0.0
    balance: float = 0.0
    cache_teacher: str | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without networks."""
        _check_words(self)
        check_range("teacher_image_size", self.teacher_image_size, 1, LARGEST_SIDE)
        check_range("balance", self.balance, 0)
        check_range("warm up", self.warm_up, 0, 1)
        for part, weight in self.weights.items():
            check_range(f"weight of {part}", weight, 0)


@dataclass(kw_only=True)
class TrainSettings:
    """Training.

    Args:
        epochs: passes over the training images.
        batch_size: images per step, over all devices together; by default 128, for detection 8.
        lr: peak learning rate; by default 0.1 for each 128 images (sgd), 0.001 for each 256 (adamw); for detection
            0.01 and 0.0002 for each 16.
        optimizer: auto is adamw for networks of tokens and sgd (momentum 0.9) for all others.
        nesterov: whether the momentum of sgd is Nesterov's.
        weight_decay: by default 5e-4 (sgd; for detection 1e-4), 0.05 (adamw, not on biases and norms).
        schedule: course of the learning rate: one-cycle, cosine (after the warm-up), step (a tenth at each milestone),
            or constant.
        milestones: fractions of training at which the step schedule goes down.
        lr_warm_up: fraction of training over which the learning rate rises; by default 0.3 (one-cycle), 0.05 (others).
        label_smoothing: share of the target spread evenly over the classes.
        clip: largest norm of the gradient; 0 for none.
        accumulate: batches whose gradients are added before a step.
        ema: decay of the moving average of the student's weights that is evaluated and saved; 0 for none.
        validate_every: epochs from one look at the validation images to the next; the last epoch always has one.
        patience: stop after this many epochs without a better validation accuracy; 0 for never.
        precision: auto is bf16-mixed where the device has it, else 32-true.
        accelerator: where to run.
        devices: how many devices (with the CPU: processes), or auto.
        nodes: how many machines.
        sync_batch_norm: take batch norm's statistics over all devices, as one device would; needs GPUs.
        seed: of the initial weights, the order of the images, augmentation and dropout.
        checkpoint_every: steps between checkpoints within an epoch; one is written after every epoch anyway.
        channels_last: memory layout of images and weights.
        wandb: log to Weights & Biases as well.
    """

    epochs: int = 30
    batch_size: int | None = None
    lr: float | None = None
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    nesterov: bool = True
    weight_decay: float | None = None
    schedule: Literal["one-cycle", "cosine", "step", "constant"] = "one-cycle"
    milestones: list[float] = field(default_factory=lambda: [0.625, 0.75, 0.875])
    lr_warm_up: float | None = None
    label_smoothing: float = 0.0
    clip: float = 0.0
    accumulate: int = 1
    ema: float = 0.0
    validate_every: int = 1
    patience: int = 0
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: int | str = "auto"
    nodes: int = 1
    sync_batch_norm: bool = False
    seed: int = 0
    checkpoint_every: int = 0
    channels_last: bool = True
    wandb: bool = False

    @property
    def step_images(self) -> int:
        """`batch_size`, once it is settled by `for_task`."""
        if self.batch_size is None:
            raise ValueError("batch size: not settled yet, ask for_task first")
        return self.batch_size

    def for_task(self, task: str) -> TrainSettings:
        """The same with what was left to the task filled in."""
        return self if self.batch_size else dataclasses.replace(self, batch_size=open_task(task).defaults.batch_size)

    def __post_init__(self) -> None:
        """Check every number, so that a typo is found before images are read."""
        _check_words(self)
        for name in ("epochs", "batch_size", "accumulate", "nodes", "validate_every"):
            check_range(name, getattr(self, name), 1)
        for name in ("clip", "patience", "checkpoint_every", "weight_decay"):
            check_range(name, getattr(self, name), 0)
        for name in ("label_smoothing", "ema", "lr_warm_up"):
            check_range(name, getattr(self, name), 0, 1, open_end=True)
        check_range("lr", self.lr, 0, open_start=True)
        check_range("seed", self.seed, 0, 2**32 - 1)
        for mark in self.milestones:
            check_range("milestones", mark, 0, 1)
        if self.devices != "auto":
            if not str(self.devices).isdecimal():
                raise UserError(f"devices: expected a number or auto, got '{self.devices}'")
            check_range("devices", int(self.devices), 1)


def _default(one: dataclasses.Field[Any]) -> Any:
    return one.default if one.default_factory is dataclasses.MISSING else one.default_factory()


DEFAULTS: dict[str, Any] = {
    one.name: _default(one)
    for kind in (DataSettings, ModelSettings, PairSettings, TrainSettings)
    for one in dataclasses.fields(kind)
    if _default(one) is not dataclasses.MISSING
}
"""Setting → its default."""


def flat_settings(*groups: DataSettings | ModelSettings | PairSettings | TrainSettings) -> dict[str, Any]:
    """Every setting by name, as records keep them."""
    return {name: value for group in groups for name, value in dataclasses.asdict(group).items()}


def _check_words(settings: Any) -> None:
    for name, kind in get_type_hints(type(settings)).items():
        if get_origin(kind) is Literal and getattr(settings, name) not in get_args(kind):
            words = ", ".join(get_args(kind))
            raise UserError(f"{name.replace('_', ' ')} '{getattr(settings, name)}' is unknown: choose one of {words}")
