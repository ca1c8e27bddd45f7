"""From a name to a detector of torchvision's, with weights whose classes are known by name."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models._meta import _COCO_CATEGORIES

from reldistill.core.checks import UserError
from reldistill.core.safe_files import sha256
from reldistill.networks import cifar
from reldistill.networks.class_order import differences
from reldistill.networks.sources import Triple, impatient, told_in_one_line
from reldistill.networks.weights import fitting_names, mismatch, read_weights, weights_file
from reldistill.networks.zoo import TRAINED, ListedNetwork, Role
from reldistill.tasks.detection.networks.plain_detectors import (
    FAMILIES,
    FIXED_SIZE,
    OWN_NAMES,
    make_detector,
    split_name,
)

logger = logging.getLogger(__name__)

COCO_OUTPUTS = tuple(_COCO_CATEGORIES)
"""What the 91 outputs of torchvision's published weights stand for; some stand for nothing ("N/A")."""

_COUNTER = "num_batches_tracked"
# What Pascal VOC calls classes of COCO.
_SYNONYMS = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
_DRY_SIDE = 64


@dataclass(frozen=True)
class LoadedDetector:
    """A detector that is ready to be used, and what is needed to feed it and to build it again.

    Args:
        module: the network, as torchvision has it.
        name: as the user gave it.
        classes: names of the data's classes, in the order of their indices.
        outputs: for each of them the number of the network's class output; 0 is the background's.
        num_outputs: how many class outputs the network has.
        arguments: with name and `num_outputs`, all that `plain_detectors.make_detector` needs to build it again.
        pretrained: "no", "torchvision", "backbone" where only the backbone is, or the weights file's path.
    """

    module: nn.Module
    name: str
    classes: tuple[str, ...]
    outputs: tuple[int, ...]
    num_outputs: int
    arguments: Mapping[str, Any]
    pretrained: str

    @property
    def mean(self) -> Triple:
        """Of its normalisation, for images in [0, 1]."""
        transform: Any = self.module.transform
        return tuple(transform.image_mean)

    @property
    def std(self) -> Triple:
        """Of its normalisation."""
        transform: Any = self.module.transform
        return tuple(transform.image_std)

    @property
    def sizes(self) -> tuple[int, int]:
        """The shorter side that it gives an image, in pixels, and the longest that the longer one may have."""
        transform: Any = self.module.transform
        return int(transform.min_size[-1]), int(transform.max_size)


def load_detector(
    name: str,
    *,
    classes: Sequence[str] | None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    pretrained_backbone: bool = False,
    min_size: int | None = None,
    max_size: int | None = None,
    trained_on: Sequence[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    role: Role = "model",
) -> LoadedDetector:
    """Build a detector by name and load its weights.

    Args:
        name: see `plain_detectors`: torchvision's own names, and `{retinanet|fasterrcnn|fcos}_BACKBONE_fpn`.
        classes: names of the data's classes; None takes those that the weights know, or COCO's.
        weights: a weights file or a run folder; it takes precedence over `pretrained`.
        pretrained: take the detector's weights that torchvision publishes, of COCO.
        pretrained_backbone: take the backbone's published classification weights.
        min_size: shorter side that the network gives an image; by default torchvision's, 800 for most.
        max_size: the longer side's limit; by default 5/3 of the shorter.
        trained_on: what the outputs 1, 2, … of the weights stand for; by default COCO's names for 91 outputs, else
            `classes`.
        arguments: for `plain_detectors.make_detector`.
        role: a student may start from random weights or get new class outputs; a teacher never.

    Raises:
        UserError: unknown name or argument, weights that are missing, don't fit or don't know a class, a teacher
            without weights, a download that failed.
    """
    what = f"{role} {name}"
    _check_name(name, what=what)
    pretrained = pretrained and weights is None
    _check_origin(name, what=what, role=role, has_weights=weights is not None, pretrained=pretrained)
    chosen = {**_sizes(name, min_size, max_size), **(arguments or {})}
    state, origin = None, "no"
    if weights is not None:
        state, origin = read_weights(weights, what=what), str(weights)
    elif pretrained:
        state, origin = _published(name, what=what), "torchvision"
    elif pretrained_backbone:
        origin = "backbone"
    if state is not None:
        chosen = {**_norms(name, state, weights), **chosen}
    elif "norm" not in chosen:
        chosen["norm"] = "frozen" if pretrained_backbone else "batch"
    classes = None if classes is None else tuple(classes)
    known = _known_outputs(name, state, classes, trained_on, what=what)
    if classes is None:
        classes = tuple(one for one in known[1:] if one != "N/A")
    found = _outputs_of(classes, known)
    fresh = state is not None and role in TRAINED and None in found
    if None in found and not fresh:
        lacking = [one for one, output in zip(classes, found, strict=True) if output is None]
        raise UserError(f"{what}: {differences(lacking)}: train a teacher on these data first (reldistill train …)")
    if state is None or fresh:
        known, found = ("", *classes), list(range(1, len(classes) + 1))
    backbone = pretrained_backbone and state is None
    with told_in_one_line(what, arguments or {}, downloads=backbone), impatient(hub=backbone):
        module = make_detector(name, num_outputs=len(known), pretrained_backbone=backbone, **chosen)
        width, height = module.transform.fixed_size or (_DRY_SIDE, _DRY_SIDE)  # type: ignore[union-attr, misc]
        with torch.no_grad():
            module.eval().backbone(torch.zeros(1, 3, height, width))  # type: ignore[operator]
        module.train()
    if state is not None:
        _load(module, state, what=what, path=weights or "torchvision's", fresh=fresh)
    outputs = tuple(output for output in found if output is not None)
    return LoadedDetector(module, name, classes, outputs, len(known), chosen, origin)


def list_detectors() -> list[ListedNetwork]:
    """Every name of torchvision's, and what stands for those with any backbone."""
    own = [ListedNetwork(name, "torchvision", "detector, with published weights of COCO") for name in OWN_NAMES]
    made = [
        ListedNetwork(f"{family}_BACKBONE_fpn", "reldistill", "detector on any BACKBONE of torchvision or timm")
        for family in FAMILIES
    ]
    return [*made, *own]


def class_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Path → layer, of those that make the class scores, of any detector of `plain_detectors`."""
    if isinstance(network, detection.FasterRCNN):
        paths = ["roi_heads.box_predictor.cls_score"]
    elif isinstance(network, detection.ssd.SSD):
        blocks = network.head.classification_head.module_list
        paths = []
        for number, block in enumerate(blocks):
            inside = [path for path, layer in block.named_modules() if isinstance(layer, nn.Conv2d)]
            paths.append(f"head.classification_head.module_list.{number}.{inside[-1]}".rstrip("."))
    else:
        paths = ["head.classification_head.cls_logits"]
    return {path: network.get_submodule(path) for path in paths}


def outputs_of(network: nn.Module) -> int:
    """How many class outputs a detector of `plain_detectors` has, the background's included."""
    if isinstance(network, detection.FasterRCNN):
        return int(network.roi_heads.box_predictor.cls_score.out_features)
    head: Any = network.head.classification_head  # type: ignore[union-attr]
    return int(head.num_columns if isinstance(network, detection.ssd.SSD) else head.num_classes)


def _check_name(name: str, *, what: str) -> None:
    parts = split_name(name)
    backbones = torchvision.models.list_models(module=torchvision.models)
    # a network for images of 32x32 has no maps that a pyramid could stand on
    small = cifar.REGISTERED.values()

    def is_backbone(one: str) -> bool:
        return one in backbones or (timm.is_model(one) and one not in small)

    if name in OWN_NAMES or (parts and is_backbone(parts[1])):
        return
    backbones += [one for one in timm.list_models() if one not in small]
    close = difflib.get_close_matches(name, OWN_NAMES, n=1, cutoff=0.75)
    close = difflib.get_close_matches(parts[1], dict.fromkeys(backbones), n=2, cutoff=0.75) if parts else close
    if not parts and is_backbone(name):
        close = [f"{family}_{name}_fpn" for family in FAMILIES]
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    thing = f"backbone {parts[1]!r}" if parts else "detector"
    raise UserError(
        f"{what}: no such {thing}: {hint}choose one of torchvision's (see: reldistill list models), or "
        f"{', '.join(f'{family}_BACKBONE_fpn' for family in FAMILIES)} for any backbone of torchvision or timm"
    )


def _check_origin(name: str, *, what: str, role: Role, has_weights: bool, pretrained: bool) -> None:
    remedy = "train a teacher first (reldistill train …) and pass --teacher-weights FILE"
    if pretrained and name not in OWN_NAMES:
        other = remedy if role == "teacher" else "take the backbone's, or weights from a file"
        raise UserError(f"{what}: no pretrained detector of this name exists: {other}")
    if role == "teacher" and not (has_weights or pretrained):
        raise UserError(f"{what}: its weights would be random: {remedy}, or ask for pretrained ones where they exist")


def _sizes(name: str, min_size: int | None, max_size: int | None) -> dict[str, int]:
    if name in FIXED_SIZE or (min_size is None and max_size is None):
        return {}
    if min_size is None or max_size is None:
        min_size, max_size = min_size or round(0.6 * (max_size or 0)), max_size or round((min_size or 0) / 0.6)
    return {"min_size": min_size, "max_size": max_size}


def _published(name: str, *, what: str) -> dict[str, Tensor]:
    with told_in_one_line(what, {}, downloads=True), impatient(hub=False):
        return dict(torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=False, check_hash=True))


def _norms(name: str, state: Mapping[str, Tensor], weights: str | Path | None) -> dict[str, Any]:
    """How the weights' backbone was normalised: frozen batch normalisation counts no batches."""
    inside = [key for key in state if "backbone." in key]
    if any(key.endswith(_COUNTER) for key in inside):
        return {"norm": "batch"}
    if not any(key.endswith("running_var") for key in inside):
        return {"norm": "group"} if split_name(name) and name not in OWN_NAMES else {}
    found: dict[str, Any] = {"norm": "frozen"}
    if name in ("retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn") and _is_published(name, weights):
        found["norm_eps"] = 0.0  # those two were trained without, and torchvision uses them so
    return found


def _is_published(name: str, weights: str | Path | None) -> bool:
    """Whether the weights are those that torchvision publishes: their address ends in the start of the hash."""
    if weights is None:
        return True
    address = torchvision.models.get_model_weights(name).DEFAULT.url
    return sha256(weights_file(weights, what=name)).startswith(address.rpartition("-")[2].removesuffix(".pth"))


def _known_outputs(
    name: str,
    state: Mapping[str, Tensor] | None,
    classes: tuple[str, ...] | None,
    trained_on: Sequence[str] | None,
    *,
    what: str,
) -> tuple[str, ...]:
    """Name of the class of every output, the background's first."""
    count = None if state is None else _outputs_in(name, state, what=what)
    if trained_on is not None:
        if count not in (None, len(trained_on) + 1):
            raise UserError(f"{what}: its weights have {count} outputs, not one for each of {len(trained_on)} classes")
        return ("", *trained_on)
    if classes is not None and (count in (None, len(classes) + 1)):
        return ("", *classes)
    if count in (None, len(COCO_OUTPUTS)):
        return COCO_OUTPUTS
    asked = "" if classes is None else f", the data have {len(classes)}"
    raise UserError(
        f"{what}: its weights have {int(count or 0) - 1} classes without names{asked}: give the run folder that "
        f"they come from, or train on these data (reldistill train …)"
    )


def _outputs_in(name: str, state: Mapping[str, Tensor], *, what: str) -> int:
    """How many class outputs the weights have."""
    with told_in_one_line(what, {}, downloads=False):
        probe = make_detector(name, num_outputs=2)
    path, layer = next(iter(class_layers(probe).items()))
    named = fitting_names(probe, state)
    if f"{path}.bias" not in named:
        raise UserError(f"{what}: these are not weights of a {name}: they lack {path}.bias")
    each = layer.bias.numel() // 2  # type: ignore[operator]
    return int(named[f"{path}.bias"].numel() // each)


def _outputs_of(classes: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Each class's output, by its name; None for one that the weights don't know."""

    def plain(one: str) -> str:
        one = one.strip().lower()
        return _SYNONYMS.get(one, one).replace("_", " ").replace(" ", "")

    place = {plain(one): output for output, one in enumerate(known) if output and one != "N/A"}
    return [place.get(plain(one)) for one in classes]


def _load(module: nn.Module, state: Mapping[str, Tensor], *, what: str, path: str | Path, fresh: bool) -> None:
    """Load all weights, or all but those of the class outputs."""
    named = fitting_names(module, state)
    own = module.state_dict()
    if not any(key.endswith(_COUNTER) for key in own):
        named = {key: value for key, value in named.items() if not key.endswith(_COUNTER)}
    left = [layer.rpartition(".")[0] if "box_predictor" in layer else layer for layer in class_layers(module)]
    new = {key for key in own if fresh and key.startswith(tuple(f"{layer}." for layer in left))}
    named = {key: value for key, value in named.items() if key not in new}
    try:
        # torchvision renames what older versions of it wrote, so that names are compared only afterwards
        result = module.load_state_dict(named, strict=False)
        missing = [key for key in result.missing_keys if key not in new and not key.endswith(_COUNTER)]
        fits = not (missing or result.unexpected_keys)
    except RuntimeError:
        fits = False
    if not fits:
        kept = {**{key: own[key] for key in new}, **named}
        raise UserError(f"{what}: {path} {mismatch(module, kept) or 'does not fit'}")
    if fresh:
        logger.info("%s: its class outputs start from random weights", what)
