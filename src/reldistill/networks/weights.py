"""Weights from files: read without executing code, fitted to a network, every mismatch reported in one line."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from reldistill.core.checks import UserError, one_line
from reldistill.networks.cifar.base import CifarNet

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")
RUN_WEIGHTS = "student.safetensors"

# Where training programs put the state dict, and what their wrappers put before its names.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "student")
_PREFIXES = ("module.", "model.", "net.", "student.")


def weights_file(path: str | Path, *, what: str) -> Path:
    """The file that `path` stands for, which may be a run folder; UserError where there is none."""
    file = Path(path).expanduser()
    if file.is_dir():
        inside = file / RUN_WEIGHTS
        if not inside.is_file():
            raise UserError(f"{what}: {path} is a folder without {RUN_WEIGHTS}: give a run folder or a weights file")
        return inside
    if not file.is_file():
        raise UserError(f"{what}: no such weights file: {path}")
    if file.suffix not in SUFFIXES:
        raise UserError(f"{what}: {path} is not a weights file: expected one of {', '.join(SUFFIXES)}")
    return file


def read_weights(path: str | Path, *, what: str) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU, taken out of the usual nesting.

    Args:
        path: a `.safetensors` file, a torch checkpoint (tensors only: nothing in it is executed) or a run folder.
        what: whose weights they are, for the messages.

    Raises:
        UserError: no such file, a damaged one, one that holds more than tensors, or values that are not finite.
    """
    file = weights_file(path, what=what)
    tensors = _tensors_of(file, path=path, what=what)
    not_finite = first_not_finite(tensors)
    if not_finite:
        raise UserError(
            f"{what}: {path} holds values that are not finite, first in {not_finite}: give weights of a training that "
            f"did not diverge"
        )
    return tensors


def first_not_finite(state: Mapping[str, Any]) -> str | None:
    """The first tensor with a NaN or an infinity; None where all are finite."""
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and (tensor.is_floating_point() or tensor.is_complex()):
            # what is smaller than single precision has no isfinite everywhere
            values = tensor.float() if tensor.element_size() < 4 else tensor
            if not torch.isfinite(values).all():
                return name
    return None


def _tensors_of(file: Path, *, path: str | Path, what: str) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(file)
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{what}: {path} is damaged or not a safetensors file ({one_line(error)})") from error
    try:
        # Training scripts like to keep their argparse.Namespace, which is plain data, beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(_unreadable(error, path=path, what=what)) from error
    tensors = _unwrap(content)
    if not tensors:
        raise UserError(f"{what}: {path} holds no weights: expected a state dict, found {type(content).__name__}")
    return tensors


def load_weights(module: nn.Module, path: str | Path, *, what: str) -> None:
    """Load a weights file into a network, all of it or not at all.

    Names of the usual distillation codebases are understood for the CIFAR networks.

    Args:
        module: the network, changed in place.
        path: see `read_weights`.
        what: whose weights they are, for the messages, e.g. `teacher resnet56`.

    Raises:
        UserError: the file can't be read or doesn't fit.
    """
    state = fitting_names(module, read_weights(path, what=what))
    problem = mismatch(module, state)
    if problem:
        raise UserError(f"{what}: {path} {problem}")
    module.load_state_dict(state, strict=False)


def fitting_names(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under the network's own names: wrappers' prefixes removed, other codebases' CIFAR networks renamed."""
    own = module.state_dict().keys()
    named = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if named and all(k.startswith(prefix) for k in named) and not any(k.startswith(prefix) for k in own):
                named = {key.removeprefix(prefix): value for key, value in named.items()}
                stripped = True
    return module.rename_weights(named) if isinstance(module, CifarNet) else named


def mismatch(module: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """What keeps `state` from fitting the network, to be read after the file's name; None where it fits."""
    own = module.state_dict()
    # Counters that weights from before torch 0.4.1 lack and that inference never reads.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    misshapen = [key for key in own if key in state and own[key].shape != state[key].shape]
    if not (missing or unexpected or misshapen):
        return None
    classes = _class_counts(module, state, misshapen)
    if classes and not (missing or unexpected):
        theirs, ours = classes
        return (
            f"has {theirs} classes, not {ours}: train a network on these classes first "
            f"(reldistill train …) or give weights with {ours} classes"
        )
    parts = [f"{len(missing)} missing ({_examples(missing)})"] if missing else []
    parts += [f"{len(unexpected)} unexpected ({_examples(unexpected)})"] if unexpected else []
    shapes = [f"{key} {_shape(state[key])} for {_shape(own[key])}" for key in misshapen[:2]]
    parts += [f"{len(misshapen)} misshapen ({_examples(shapes, len(misshapen))})"] if misshapen else []
    return (
        f"does not fit, of {len(own)} keys: {'; '.join(parts)}: "
        f"name the network that these weights belong to, with the arguments it was made with"
    )


def _class_counts(module: nn.Module, state: Mapping[str, Tensor], misshapen: list[str]) -> tuple[int, int] | None:
    """(theirs, ours) where only the outputs of linear layers differ, and all alike: that is the classifier."""
    own = module.state_dict()
    counts = set()
    for key in misshapen:
        layer = module.get_submodule(key.rpartition(".")[0])
        theirs, ours = state[key].shape, own[key].shape
        if not isinstance(layer, nn.Linear | nn.Conv2d) or len(theirs) != len(ours) or theirs[1:] != ours[1:]:
            return None
        counts.add((theirs[0], ours[0]))
    return counts.pop() if len(counts) == 1 else None


def _examples(names: list[str], count: int | None = None) -> str:
    return ", ".join(names[:2]) + (", …" if (count or len(names)) > 2 else "")


def _shape(tensor: Tensor) -> str:
    return "×".join(str(size) for size in tensor.shape) or "scalar"


def _unwrap(content: Any) -> dict[str, Tensor]:
    """The tensors of the innermost state dict."""
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
        content = inner
    return {}


def _unreadable(error: Exception, *, path: str | Path, what: str) -> str:
    needs = re.search(r"GLOBAL ([\w.]{1,80})", str(error))
    if needs or "TorchScript" in str(error):
        thing = needs.group(1) if needs else "a TorchScript program"
        return (
            f"{what}: {path} holds more than tensors ({thing}) and could execute code, so it is not loaded: where you "
            f"trust it, save its state_dict as .safetensors"
        )
    if isinstance(error, pickle.UnpicklingError):
        return f"{what}: {path} is damaged, or a pickle of more than tensors, which is not loaded: give .safetensors"
    return f"{what}: {path} is damaged or not a torch checkpoint ({type(error).__name__})"
