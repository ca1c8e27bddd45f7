"""Networks from a user's own Python file, as in `my_network.py:resnet56`."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from reldistill.core.checks import UserError
from reldistill.core.user_code import importable_beside, run_file
from reldistill.networks.sources import BuiltNetwork, Triple, told_in_one_line, triple
from reldistill.networks.weights import first_not_finite

logger = logging.getLogger(__name__)

ANY_CLASSES = 2
"""What a factory that wants a number of classes gets where there is none."""


@dataclass(frozen=True)
class FileSource:
    """A function or class in a user's own Python file that makes a network.

    Constants `MEAN` and `STD` in the file give its normalisation.
    """

    path: Path
    factory: str
    what: str
    label: str = "factory"

    def has_pretrained(self) -> bool:
        """Only the file knows: its factory may load weights by itself."""
        return True

    def pretrained_classes(self) -> int | None:
        """Only the file knows."""
        return None

    def takes_size(self) -> bool:
        """A size is given by the factory's own arguments."""
        return False

    def build(
        self, *, num_classes: int | None, pretrained: bool, image_size: int | None, arguments: Mapping[str, Any]
    ) -> BuiltNetwork:
        """Run the file, then its factory, with `num_classes` and `pretrained` where it takes them."""
        with importable_beside(self.path):
            module = run_file(self.path, what=self.what)
            make = getattr(module, self.factory, None)
            if not callable(make):
                found = [n for n, v in vars(module).items() if callable(v) and _defined_in(v, module)]
                raise UserError(f"{self.what}: {self.path.name} defines no {self.factory!r}: it has {', '.join(found)}")
            if num_classes is None and _demands(make, "num_classes"):
                num_classes = ANY_CLASSES  # its class scores are never used
            offered = {"num_classes": num_classes, "pretrained": pretrained or None}
            settings = {k: v for k, v in offered.items() if v is not None and _accepts(make, k)} | dict(arguments)
            unknown = [name for name in arguments if not _accepts(make, name)]
            if unknown:
                accepted = ", ".join(inspect.signature(make).parameters) or "none"
                raise UserError(f"{self.what} takes no argument {unknown[0]!r}: it takes {accepted}")
            with told_in_one_line(self.what, settings, downloads=False):
                network = make(**settings)
        if not isinstance(network, nn.Module):
            raise UserError(f"{self.what} returned {_said(network)}: expected a torch.nn.Module")
        not_finite = first_not_finite(network.state_dict())
        if not_finite:
            raise UserError(f"{self.what} has values that are not finite, first in {not_finite}")
        mean, std = self._normalisation(module)
        return BuiltNetwork(network, mean, std, own_size=None)

    def _normalisation(self, module: ModuleType) -> tuple[Triple, Triple]:
        given = [hasattr(module, name) for name in ("MEAN", "STD")]
        if all(given):
            mean = triple(module.MEAN, name="MEAN", what=self.what)
            return mean, triple(module.STD, name="STD", what=self.what, positive=True)
        if any(given):
            raise UserError(f"{self.what}: {self.path.name} defines only one of MEAN and STD: it needs both or neither")
        logger.warning("%s: %s defines no MEAN and STD, so ImageNet's are used", self.what, self.path.name)
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def _said(value: Any) -> str:
    if value is None:
        return "None"
    return f"the class {value.__name__}, not made" if isinstance(value, type) else type(value).__name__


def _accepts(function: Callable[..., Any], name: str) -> bool:
    if getattr(function, "__init__", None) is nn.Module.__init__:  # takes whatever it is given, and refuses it
        return False
    parameters = inspect.signature(function).parameters
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return any(p.kind is p.VAR_KEYWORD or (p.name == name and p.kind in by_name) for p in parameters.values())


def _demands(function: Callable[..., Any], name: str) -> bool:
    parameter = inspect.signature(function).parameters.get(name)
    return parameter is not None and parameter.default is parameter.empty


def _defined_in(value: Any, module: ModuleType) -> bool:
    return getattr(value, "__module__", None) == module.__name__
