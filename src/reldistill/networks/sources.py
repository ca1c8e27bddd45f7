"""Where named networks come from: timm, with the CIFAR networks in it, and torchvision."""

from __future__ import annotations

import contextlib
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import timm
import torchvision
from torch import nn

from reldistill.core.checks import UserError, one_line
from reldistill.core.trust import HUB_PREFIXES


def published_licence(name: str, source: str) -> str | None:
    """The licence that timm names for its weights of a network; None where it names none, and of torchvision's."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=True) if source == "timm" else None
    return config.license if config is not None and config.license not in (None, "unknown") else None


Triple = tuple[float, float, float]
_CONNECT_SECONDS = 5.0
_STALL_SECONDS = 15.0


@dataclass(frozen=True)
class BuiltNetwork:
    """A network as its source made it, nothing about it measured yet.

    Args:
        module: the network.
        mean: of its normalisation, for images in [0, 1].
        std: of its normalisation.
        own_size: the side of the images it was designed for; None where its source doesn't tell.
    """

    module: nn.Module
    mean: Triple
    std: Triple
    own_size: int | None


@runtime_checkable
class Source(Protocol):
    """One named network that can be built."""

    @property
    def label(self) -> str:
        """What to call it where weights of its own are used."""

    def has_pretrained(self) -> bool:
        """Whether asking for pretrained weights makes sense."""

    def pretrained_classes(self) -> int | None:
        """K of the pretrained weights, where it is known without a download."""

    def takes_size(self) -> bool:
        """Whether the network is made for one image size that can be chosen."""

    def build(
        self, *, num_classes: int | None, pretrained: bool, image_size: int | None, arguments: Mapping[str, Any]
    ) -> BuiltNetwork:
        """Make the network; None leaves the network's own default. UserError where that fails."""


@dataclass(frozen=True)
class TimmSource:
    """A name that `timm.create_model` understands: ours for CIFAR are among them."""

    name: str
    what: str
    label: str = "timm"

    def _on_hub(self) -> bool:
        return self.name.startswith(HUB_PREFIXES)

    def _config(self) -> Any:
        try:
            return timm.get_pretrained_cfg(self.name)
        except RuntimeError as error:
            tags = ", ".join(timm.list_pretrained(f"{self.name.partition('.')[0]}.*")) or "none"
            raise UserError(f"{self.what}: timm has no such weights; it has {tags}") from error

    def has_pretrained(self) -> bool:
        """Whether timm knows weights of this name."""
        return self._on_hub() or bool(self._config().has_weights)

    def pretrained_classes(self) -> int | None:
        """K in timm's entry; unknown for a network that the hub describes."""
        return None if self._on_hub() else int(self._config().num_classes)

    def takes_size(self) -> bool:
        """Transformers and their like, whose position embeddings are made for one size."""
        return not self._on_hub() and bool(self._config().fixed_input_size)

    def build(
        self, *, num_classes: int | None, pretrained: bool, image_size: int | None, arguments: Mapping[str, Any]
    ) -> BuiltNetwork:
        """Ask timm for it."""
        settings = dict(arguments)
        if num_classes is not None:
            settings["num_classes"] = num_classes
        if image_size is not None:
            settings["img_size"] = image_size
        # A local folder is described and loaded without a network.
        downloads = (pretrained or self._on_hub()) and not self.name.startswith("local-dir:")
        with told_in_one_line(self.what, arguments, downloads=downloads), impatient(hub=downloads):
            module = timm.create_model(self.name, pretrained=pretrained, **settings)
        config: Any = module.pretrained_cfg
        mean, std = (triple(config[key], name=key, what=self.what) for key in ("mean", "std"))
        return BuiltNetwork(module, mean, std, own_size=_side(settings.get("img_size", config["input_size"])))


@dataclass(frozen=True)
class TorchvisionSource:
    """A classification network of torchvision."""

    name: str
    what: str
    label: str = "torchvision"

    def _default_weights(self) -> Any:
        return torchvision.models.get_model_weights(self.name).DEFAULT

    def has_pretrained(self) -> bool:
        """All of them come with ImageNet weights."""
        return True

    def pretrained_classes(self) -> int | None:
        """K of the default weights."""
        return len(self._default_weights().meta["categories"])

    def takes_size(self) -> bool:
        """Those with position embeddings are used at their own size."""
        return False

    def build(
        self, *, num_classes: int | None, pretrained: bool, image_size: int | None, arguments: Mapping[str, Any]
    ) -> BuiltNetwork:
        """Ask torchvision for it; pretrained weights with other classes get a new classifier."""
        settings = dict(arguments)
        if not pretrained:
            settings |= {} if num_classes is None else {"num_classes": num_classes}
            if self.name in ("googlenet", "inception_v3"):
                settings = {"aux_logits": False, "init_weights": True} | settings
        with told_in_one_line(self.what, arguments, downloads=pretrained), impatient(hub=False):
            module = torchvision.models.get_model(self.name, weights="DEFAULT" if pretrained else None, **settings)
        if pretrained and self.name == "inception_v3":
            # Else the network returns two kinds of logits when training.
            module.aux_logits, module.AuxLogits = False, None
        classes = self.pretrained_classes()
        if pretrained and num_classes is not None and num_classes != classes:
            _replace_classifier(module, classes=classes, num_classes=num_classes, what=self.what)
        preset = self._default_weights().transforms()
        mean, std = (triple(value, name="mean or std", what=self.what) for value in (preset.mean, preset.std))
        return BuiltNetwork(module, mean, std, own_size=_side(settings.get("image_size", preset.crop_size)))


def triple(values: Any, *, name: str, what: str, positive: bool = False) -> Triple:
    """Three numbers on the scale of images in [0, 1]."""
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: {name} must hold three numbers, for red, green and blue; it is {values!r}") from error
    smallest = 1e-6 if positive else 0.0
    if not all(smallest <= value <= 1 for value in (red, green, blue)):
        raise UserError(f"{what}: {name} must fit images in [0, 1] (divide by 255?); it is {values!r}")
    return red, green, blue


def _side(size: int | Sequence[int]) -> int:
    return int(size) if isinstance(size, int) else int(size[-1])


def _replace_classifier(module: nn.Module, *, classes: int | None, num_classes: int, what: str) -> None:
    """Put a new last layer where the old one had `classes` outputs."""
    for path, layer in reversed(list(module.named_modules())):
        fresh: nn.Module
        if isinstance(layer, nn.Linear) and layer.out_features == classes:
            fresh = nn.Linear(layer.in_features, num_classes, bias=layer.bias is not None)
        elif isinstance(layer, nn.Conv2d) and layer.out_channels == classes:
            fresh = nn.Conv2d(layer.in_channels, num_classes, layer.kernel_size)  # type: ignore[arg-type]
        else:
            continue
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, fresh)
        return
    raise UserError(f"{what}: found no layer of {classes} outputs to replace: leave the pretrained weights off")


@contextlib.contextmanager
def told_in_one_line(what: str, arguments: Mapping[str, Any], *, downloads: bool) -> Iterator[None]:
    """Turn whatever building a network raises into a UserError."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too, and whatever else a user's file raises
        if downloads and _is_download_error(error):
            raise UserError(
                f"{what}: its pretrained weights could not be downloaded ({one_line(error, limit=100)}): "
                f"check the connection, or give the weights as a file (--teacher-weights, --student-weights or "
                f"--model-weights)"
            ) from error
        given = f" with {', '.join(f'{k}={v!r}' for k, v in arguments.items())}" if arguments else ""
        raise UserError(f"{what} could not be made{given}: {one_line(error)}") from error


def _is_download_error(error: BaseException) -> bool:
    libraries = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3")
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in libraries


@contextlib.contextmanager
def impatient(*, hub: bool) -> Iterator[None]:
    """Give up on a dead connection within seconds; the hub's client alone would retry for most of a minute.

    Args:
        hub: whether the weights lie on the hub that timm uses. Unreachable, it is told to look only into its cache.
    """
    from huggingface_hub import constants

    before, offline = socket.getdefaulttimeout(), constants.HF_HUB_OFFLINE
    socket.setdefaulttimeout(_STALL_SECONDS)
    try:
        if hub and not offline and not _reachable(constants.ENDPOINT):
            constants.HF_HUB_OFFLINE = True
        yield
    finally:
        socket.setdefaulttimeout(before)
        constants.HF_HUB_OFFLINE = offline


def _reachable(address: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=_CONNECT_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError as error:
        # A certificate that only this check distrusts is the hub client's business.
        return "CERTIFICATE" in str(error)
