"""From a name to a network: CIFAR networks of the literature, timm, torchvision, or a user's own file.

A name is looked up in this order: `FILE.py:factory`; timm's `hf-hub:…` and `local-dir:…`; `torchvision/NAME`; our CIFAR
networks (`-` and `_` alike, as in `wrn-16-2`); timm; torchvision's names that timm lacks.
"""

from __future__ import annotations

import difflib
import fnmatch
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torchvision
from torch import Tensor, nn

from reldistill.core.checks import UserError, one_line
from reldistill.core.tasks import task_naming
from reldistill.core.trust import FILE, HUB_PREFIXES
from reldistill.networks import cifar
from reldistill.networks.headless import NoSingleHead, head_weights, without_head
from reldistill.networks.sources import BuiltNetwork, Source, TimmSource, TorchvisionSource, published_licence
from reldistill.networks.user_file import FileSource
from reldistill.networks.weights import fitting_names, load_weights, mismatch, read_weights

__all__ = ["ListedNetwork", "LoadedNetwork", "list_networks", "load_network", "load_weights"]

logger = logging.getLogger(__name__)

Role = Literal["student", "network", "teacher", "model"]
TRAINED = ("student", "network")
"""The roles whose weights are trained: they may be random, and get outputs for other classes."""
Head = Literal["own", "none", "new"]

_TORCHVISION = "torchvision/"
_OWN_ARGUMENTS = ("num_classes", "pretrained", "weights")


@dataclass(frozen=True)
class LoadedNetwork:
    """A network that is ready to be used, and what is needed to feed it.

    Args:
        module: the network, as its maker left it (usually in training mode), on the device where it was made.
        name: as the user gave it.
        num_classes: K, measured by a dry run.
        mean: of its normalisation, for images in [0, 1].
        std: of its normalisation.
        input_size: the side that images must have, or None where the dry runs passed at more than one.
        pretrained: "no", "timm", "torchvision", the weights file's path, or "factory" where a user's file made the
            network without a weights file, so that only the file knows.
    """

    module: nn.Module
    name: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int | None
    pretrained: str


@dataclass(frozen=True)
class ListedNetwork:
    """A name that `load_network` understands.

    Args:
        name: the name.
        source: who defines the network.
        note: what it could be confused with, or "".
    """

    name: str
    source: Literal["reldistill", "timm", "torchvision"]
    note: str = ""

    @property
    def licence(self) -> str:
        """Of the weights that are published by that name, as far as their publisher names it."""
        return published_licence(self.name, self.source) or ""


def load_network(
    name: str,
    *,
    num_classes: int | None,
    weights: str | Path | None = None,
    pretrained: bool = False,
    image_size: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    role: Role = "model",
    head: Head = "own",
) -> LoadedNetwork:
    """Build a network by name, load its weights, and measure its output and which images it takes.

    Args:
        name: see this module's beginning.
        num_classes: K of the data; None takes what the network has. A teacher without class scores is taken as it is.
        weights: a weights file or a run folder; it takes precedence over `pretrained`.
        pretrained: take the weights that timm or torchvision offer.
        image_size: side of the data's images; a network whose size can be chosen is made for it, unless its
            pretrained weights are used as they are.
        arguments: for the network's maker, e.g. `{"patch_size": 4, "depth": 6}` for a transformer of timm.
        role: a student, or the network that is trained alone, may start from random weights or get a new classifier;
            a teacher never.
        head: `none` takes the network without its class scores, whatever their number, see `headless.without_head`;
            `new` lets its head start from random weights. A network that is trained gets a new one where the weights
            don't fit it.

    Raises:
        UserError: unknown name or argument, weights that are missing or don't fit, a class count that differs from
            the data's, a teacher without weights, a download that failed.
    """
    what = f"{role} {name}"
    source = find_source(name, what=what)
    chosen = dict(arguments or {})
    for reserved in _OWN_ARGUMENTS:
        if reserved in chosen:
            raise UserError(
                f"{what}: {reserved!r} can't be among the arguments: it has an option of its own (--teacher-head none "
                f"takes a teacher without its classes)"
            )
    if image_size is not None and image_size < 1:
        raise UserError(f"{what}: image size must be positive, got {image_size}")
    state = None if weights is None else read_weights(weights, what=what)
    pretrained = pretrained and weights is None
    _check_origin(source, role=role, what=what, has_weights=state is not None, pretrained=pretrained)
    from_file = isinstance(source, FileSource)
    known = source.pretrained_classes()
    if role == "teacher" and known == 0:
        head = "none"  # it never had one
    keeps_head = pretrained and role not in TRAINED and not from_file
    if keeps_head and head == "own" and known is not None and num_classes not in (None, known):
        raise _wrong_classes(what, role=role, found=known, wanted=num_classes)
    built = _build(
        source,
        what=what,
        num_classes=None if keeps_head or head == "none" else num_classes,
        pretrained=pretrained,
        image_size=None if keeps_head or "img_size" in chosen or not source.takes_size() else image_size,
        arguments=chosen,
        state=state,
        weights=weights,
        role=role,
        head=head,
    )
    classes, input_size = _measure(built, image_size=image_size, what=what)
    if head == "none" and classes:
        side = input_size or _sides(built, image_size)[0]
        without_head(built.module, image_size=side, what=what, own=from_file)
        classes = 0
    if num_classes not in (None, classes) and not (classes == 0 and (head == "none" or role == "teacher")):
        raise _wrong_classes(what, role=role, found=classes, wanted=num_classes)
    if pretrained and known is not None and classes and known != classes:
        logger.info("%s: its classifier for %d classes starts from random weights", what, classes)
    _warn_of_namesake(name, image_size=image_size)
    origin = source.label if pretrained or from_file else "no"
    return LoadedNetwork(
        module=built.module,
        name=name,
        num_classes=classes,
        mean=built.mean,
        std=built.std,
        input_size=input_size,
        pretrained=origin if weights is None else str(weights),
    )


def list_networks(pattern: str = "") -> list[ListedNetwork]:
    """Every name with its source: ours first, then timm's, then torchvision's.

    Args:
        pattern: part of a name, or a pattern with `*` and `?`; `_` and `-` are alike.
    """
    ours = [
        ListedNetwork(
            registered,
            "reldistill",
            "for 32×32 images" if registered == name else f"for 32×32 images; {name} is timm's ImageNet network",
        )
        for name, registered in cifar.REGISTERED.items()
    ]
    own = set(cifar.REGISTERED.values())
    namesakes = {name: registered for name, registered in cifar.REGISTERED.items() if registered != name}
    from_timm = [
        ListedNetwork(
            name,
            "timm",
            f"for ImageNet; {namesakes[name]} is for CIFAR" if name in namesakes else "",
        )
        for name in timm.list_models()
        if name not in own
    ]
    from_torchvision = [
        ListedNetwork(f"{_TORCHVISION}{name}", "torchvision", "" if timm.is_model(name) else f"{name} for short")
        for name in _torchvision_names()
    ]
    wanted = pattern.lower().replace("-", "_")
    wanted = wanted if any(sign in wanted for sign in "*?") else f"*{wanted}*"
    return [
        network
        for network in (*ours, *from_timm, *from_torchvision)
        if fnmatch.fnmatchcase(network.name.lower().replace("-", "_"), wanted)
    ]


def _torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def find_source(name: str, *, what: str) -> Source:
    """The source of a name, in the order that this module's beginning gives."""
    file = FILE.fullmatch(name)
    if file:
        path = Path(file["path"]).expanduser()
        if not path.is_file():
            raise UserError(f"{what}: no such Python file: {path}")
        if not file["factory"]:
            raise UserError(f"{what}: name the function that makes the network, as in {path.name}:factory")
        return FileSource(path, file["factory"], what)
    if name.startswith(HUB_PREFIXES):
        return TimmSource(name, what)
    ours = name.lower().replace("-", "_")
    if ours in cifar.REGISTERED.values():
        return TimmSource(ours, what)
    bare = name.removeprefix(_TORCHVISION)
    if bare == name and "/" not in name and timm.is_model(name):
        return TimmSource(name, what)
    if bare in _torchvision_names():
        return TorchvisionSource(bare, what)
    raise _unknown(name, what=what)


def _unknown(name: str, *, what: str) -> UserError:
    task = task_naming(name)
    if task is not None:
        return UserError(f"{what}: a network for {task.name} only: {task.data_help}")
    names = [network.name for network in list_networks()] + _torchvision_names()
    close = difflib.get_close_matches(name.lower().replace("-", "_"), dict.fromkeys(names), n=3, cutoff=0.6)
    hint = f": did you mean {' or '.join(close)}?" if close else ""
    return UserError(
        f"{what}: no such network{hint} (see: reldistill list models; FILE.py:factory for one of your own)"
    )


def _warn_of_namesake(name: str, *, image_size: int | None) -> None:
    registered = cifar.REGISTERED.get(name)
    if registered not in (None, name) and image_size is not None and image_size <= 64:
        logger.warning("%s is timm's ImageNet network; the one of the CIFAR literature is %s", name, registered)


def _check_origin(source: Source, *, role: Role, what: str, has_weights: bool, pretrained: bool) -> None:
    """UserError for pretrained weights that don't exist, and for a teacher that would start from random ones."""
    remedy = "train a teacher first (reldistill train …) and pass --teacher-weights FILE"
    if pretrained and not source.has_pretrained():
        other = remedy if role == "teacher" else "start from random ones, or from a file"
        raise UserError(f"{what}: no pretrained weights exist: {other}")
    if role == "teacher" and not (has_weights or pretrained or isinstance(source, FileSource)):
        raise UserError(f"{what}: its weights would be random: {remedy}, or ask for pretrained ones where they exist")


def _wrong_classes(what: str, *, role: Role, found: int, wanted: int | None) -> UserError:
    if not found:
        return UserError(f"{what} has no class scores: measure its features by reldistill evaluate --probe")
    remedy = {
        "teacher": "train a teacher first (reldistill train …), pass --teacher-weights FILE, or take it without its "
        "classes (--teacher-head none)",
        "student": "let its factory take num_classes",
        "network": "let its factory take num_classes",
        "model": "give the weights of a network that was trained on these classes",
    }[role]
    return UserError(f"{what} expects {found} classes, the data have {wanted}: {remedy}")


def _build(
    source: Source,
    *,
    what: str,
    num_classes: int | None,
    pretrained: bool,
    image_size: int | None,
    arguments: Mapping[str, Any],
    state: dict[str, Tensor] | None,
    weights: str | Path | None,
    role: Role,
    head: Head,
) -> BuiltNetwork:
    """The network with its weights, made for `image_size` where that works, else for its own size."""
    problems: list[UserError] = []
    for size in dict.fromkeys((image_size, None)):
        try:
            built = source.build(num_classes=num_classes, pretrained=pretrained, image_size=size, arguments=arguments)
        except UserError as error:
            # The later one is about the user's own arguments alone.
            problems = [error]
            continue
        if state is None:
            return built
        named = fitting_names(built.module, state)
        misfit = mismatch(built.module, named)
        if head == "new" or (misfit is not None and (head == "none" or role in TRAINED)):
            own = isinstance(source, FileSource)
            try:
                named, misfit = _body(named, built, misfit, image_size=image_size, what=what, own=own)
            except NoSingleHead:
                if head == "none":
                    raise
            if misfit is None and head != "none":
                logger.warning(
                    "%s: its head starts from random weights, all other %d tensors from %s", what, len(named), weights
                )
        if misfit is None:
            built.module.load_state_dict(named, strict=False)
            return built
        remedy = ", or take it without its classes: --teacher-head none" if role == "teacher" and head == "own" else ""
        problems.append(UserError(f"{what}: {weights} {misfit}{remedy}"))
    raise problems[0]


def _body(
    state: dict[str, Tensor], built: BuiltNetwork, misfit: str | None, *, image_size: int | None, what: str, own: bool
) -> tuple[dict[str, Tensor], str | None]:
    """The weights that are not the head's, and what is wrong with these."""
    for side in _sides(built, image_size):
        try:
            head = head_weights(built.module, image_size=side, what=what, own=own)
        except NoSingleHead:
            raise
        except UserError:  # not a side that the network takes
            continue
        body = {name: tensor for name, tensor in state.items() if name not in head}
        whole = {name: tensor for name, tensor in built.module.state_dict().items() if name in head}
        return body, mismatch(built.module, {**body, **whole})
    return state, misfit


def _sides(built: BuiltNetwork, image_size: int | None) -> list[int]:
    """Sides of images to try a network at."""
    if image_size is None:
        return list(dict.fromkeys([built.own_size or 224, 32]))
    # Before its own size, the next side that halves evenly five times, as most networks want.
    return list(dict.fromkeys([image_size, -(-image_size // 32) * 32, built.own_size or 224]))


def _measure(built: BuiltNetwork, *, what: str, image_size: int | None) -> tuple[int, int | None]:
    """(K, the side that images must have or None), by dry runs; K is 0 for a network without class scores."""
    headless = getattr(built.module, "num_classes", None) == 0
    problems = []
    for side in _sides(built, image_size):
        try:
            output = _dry_run(built.module, side)
        except Exception as error:
            problems.append(f"at {side}×{side}: {one_line(error, limit=120)}")
            continue
        if not isinstance(output, Tensor) or output.ndim != 2:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UserError(f"{what} returns {shape} for one image: expected logits of shape (1, K)")
        classes = 0 if headless else output.shape[1]
        if image_size not in (None, side) or not _runs(built.module, side + 32):
            return classes, side
        return classes, None
    raise UserError(f"{what} fails on images: {'; '.join(problems)}")


def _runs(module: nn.Module, side: int) -> bool:
    try:
        _dry_run(module, side)
    except Exception:
        return False
    return True


def _dry_run(module: nn.Module, side: int) -> Any:
    """The network's output in eval mode for one black image; its own modes are restored."""
    modes = [(part, part.training) for part in module.modules()]
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    module.eval()
    try:
        with torch.no_grad():
            return module(torch.zeros(1, 3, side, side, device=device))
    finally:
        for part, training in modes:
            part.training = training
