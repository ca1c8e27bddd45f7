"""Any network → Features: its own normalisation and input size, and the maps inside it, without editing it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from reldistill.checks import UserError, check_axes
from reldistill.types import Features, LevelInfo

Layout = Literal["BCHW", "BHWC", "BND"]
_NO_MAP_OF_THEIR_OWN = (nn.Identity, nn.Softmax, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True)
class _Tap:
    """How to read one module's output: its layout, how many tokens to drop in front, and the patch grid."""

    info: LevelInfo
    layout: Layout
    prefix_tokens: int = 0

    def read(self, output: Tensor) -> Tensor:
        """The module's output → (B, C, H, W)."""
        if self.layout == "BCHW":
            return output
        if self.layout == "BHWC":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, self.prefix_tokens :]
        side = self.info.height / self.info.width
        width = round(math.sqrt(tokens.shape[1] / side))
        return tokens.transpose(1, 2).unflatten(2, (tokens.shape[1] // width, width))


class _DeepEnough(Exception):
    """Not an error: it ends a forward pass whose remainder nobody asked for."""


class Extractor(nn.Module):
    """A network that takes un-normalised images of any size and says Features of them.

    The first use of a level (or `survey`) makes a dry run that finds every place that can be tapped. Hooks are set
    for one forward pass and removed after it; a pass from which nobody wants logits stops at the deepest level asked.

    Args:
        network: any module that maps (B, 3, H, W) to logits (B, K).
        mean: per-channel mean that the network expects to be subtracted; the default leaves images as they are.
        std: per-channel standard deviation it expects images to be divided by.
        input_size: side that images are resized to, or None where the network takes them at any size.
        name: what to call the network in messages.

    Raises:
        UserError: when a level is not in the network.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    >>> features = Extractor(net, input_size=8)(torch.rand(2, 3, 8, 8), levels=("1",))
    >>> tuple(features.logits.shape), tuple(features.levels["1"].shape)
    ((2, 5), (2, 8, 4, 4))
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        input_size: int | None = None,
        name: str = "network",
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.input_size = input_size
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self._taps: dict[str, _Tap] = {}
        self._classifier: str | None = None
        self.num_classes = 0
        self.pooled_size = 0

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → the network's own size and normalisation."""
        check_axes(images, "B C H W", name="images")
        size = self.input_size
        if size is not None and images.shape[-2:] != (size, size):
            images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return (images - self.mean) / self.std

    def forward(
        self, images: Tensor, *, levels: tuple[str, ...] = (), logits: bool = True, pooled: bool = False
    ) -> Features:
        """Features of images.

        Args:
            images: (B, 3, H, W) in [0, 1].
            levels: names of the levels wanted.
            logits: whether the logits are wanted.
            pooled: whether the classifier's input is wanted.
        """
        if (levels or pooled) and not self._taps:
            self.survey(max(images.shape[-2:]))
        taps = {name: self._tap(name) for name in levels}
        found: dict[str, Tensor] = {}
        classifier_input: list[Tensor] = []
        stop_early = not logits and not pooled

        def keep(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                found[name] = taps[name].read(_first_tensor(output))
                if stop_early and len(found) == len(taps):
                    raise _DeepEnough

            return hook

        hooks = [(self.network.get_submodule(n), keep(n)) for n in taps]
        with _hooked(hooks):
            handle = None
            if pooled and self._classifier:
                handle = self.network.get_submodule(self._classifier).register_forward_pre_hook(
                    lambda _module, inputs: classifier_input.append(inputs[0])
                )
            try:
                output = _first_tensor(self.network(self.prepare(images)))
            except _DeepEnough:
                return Features(levels=found)
            finally:
                if handle is not None:
                    handle.remove()
        vector = None
        if pooled:
            vector = classifier_input[-1].flatten(1) if classifier_input else output
        return Features(logits=output if logits else None, pooled=vector, levels=found)

    @torch.no_grad()
    def survey(self, image_size: int) -> list[LevelInfo]:
        """Every place that can be tapped, in order of execution, found by a dry run on square images of that side.

        Raises:
            UserError: when the network does not map images of that size to (B, K) logits.
        """
        size = self.input_size or image_size
        device = self.mean.device
        parameter = next(self.network.parameters(), None)
        images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
        if parameter is not None and parameter.is_floating_point():
            images = images.to(parameter.dtype)
        seen: list[tuple[str, nn.Module, Tensor]] = []
        inputs_of: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                tensor = _first_tensor(output)
                if isinstance(tensor, Tensor):
                    seen.append((name, module, tensor))
                if inputs and isinstance(inputs[0], Tensor):
                    inputs_of[name] = inputs[0]

            return hook

        modes = {m: m.training for m in self.network.modules()}
        self.network.eval()
        try:
            with _hooked([(m, keep(n)) for n, m in self.network.named_modules() if n]):
                logits = _first_tensor(self.network(images))
        except UserError:
            raise
        except Exception as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{self.name} does not run on {size}x{size} images: {why} (try another --image-size)"
            ) from error
        finally:
            for module, training in modes.items():
                module.training = training
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(f"{self.name} must map images (B, 3, H, W) to class scores (B, K), but returned {shape}")
        self.num_classes = logits.shape[1]
        self._find_classifier(seen, logits, inputs_of)
        self._taps = _taps_of(self.network, seen, size)
        return [tap.info for tap in self._taps.values()]

    def stages(self, image_size: int) -> list[LevelInfo]:
        """The levels `auto` chooses from: the last map at each resolution, or the repeated blocks of a plain ViT."""
        if not self._taps:
            self.survey(image_size)
        infos = {n: t.info for n, t in self._taps.items()}
        return _stages(self.network, infos)

    def level(self, name: str, image_size: int) -> LevelInfo:
        """One level by name.

        Raises:
            UserError: when it is not in the network.
        """
        if not self._taps:
            self.survey(image_size)
        return self._tap(name).info

    def _find_classifier(
        self, seen: list[tuple[str, nn.Module, Tensor]], logits: Tensor, inputs_of: dict[str, Tensor]
    ) -> None:
        """The module that makes the logits is the last with parameters whose output holds the same numbers."""
        self._classifier = None
        self.pooled_size = logits.shape[1]
        for name, module, output in seen:
            is_leaf = next(module.children(), None) is None
            same = output.numel() == logits.numel() and torch.equal(output.flatten(1), logits)
            if is_leaf and same and next(module.parameters(), None) is not None and name in inputs_of:
                self._classifier = name
                self.pooled_size = inputs_of[name].flatten(1).shape[1]

    def _tap(self, name: str) -> _Tap:
        if name not in self._taps:
            names = [i.name for i in _stages(self.network, {n: t.info for n, t in self._taps.items()})]
            listed = ", ".join(names) if len(names) < 6 else f"{', '.join(names[:3])} … {names[-1]}"
            raise UserError(
                f"level '{name}' not in {self.name}: it has {listed} (see: reldistill layers {self.name} --all)"
            )
        return self._taps[name]


def pick_levels(stages: Sequence[LevelInfo], count: int) -> list[LevelInfo]:
    """`count` of the stages: the deepest ones of a pyramid, evenly spaced ones where all have one resolution.

    >>> blocks = [LevelInfo(f"blocks.{i}", 64, 8, 8, 4.0, "tokens", (i + 1) / 12) for i in range(12)]
    >>> [level.name for level in pick_levels(blocks, 3)]
    ['blocks.3', 'blocks.7', 'blocks.11']
    """
    count = min(count, len(stages))
    if len({s.stride for s in stages}) == 1:
        return [stages[math.ceil((i + 1) * len(stages) / count) - 1] for i in range(count)]
    return list(stages[len(stages) - count :])


@contextmanager
def _hooked(hooks: Sequence[tuple[nn.Module, Callable[..., None]]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_tensor(output: Any) -> Any:
    """Networks answer with a tensor, or a tuple or dict whose first entry (or `logits`, `out`) is the one meant."""
    if isinstance(output, dict):
        for key in ("logits", "out"):
            if key in output:
                return output[key]
        return next(iter(output.values()), None)
    if isinstance(output, (tuple, list)):
        return _first_tensor(output[0]) if output else None
    return output


def _taps_of(network: nn.Module, seen: list[tuple[str, nn.Module, Tensor]], size: int) -> dict[str, _Tap]:
    calls = Counter(name for name, _, _ in seen)
    channels_last = _says_channels_last(network, [o for _, _, o in seen])
    taps: dict[str, _Tap] = {}
    for position, (name, module, output) in enumerate(seen, start=1):
        # A module that runs twice (a shared activation) has no one output.
        if calls[name] > 1 or isinstance(module, _NO_MAP_OF_THEIR_OWN) or len(output) != 2:
            continue
        if not output.is_floating_point():
            continue
        read = _read_map(output, channels_last) if output.ndim == 4 else _read_tokens(output, network)
        if read is None:
            continue
        layout, channels, height, width, prefix = read
        kind: Literal["map", "tokens"] = "tokens" if layout == "BND" else "map"
        info = LevelInfo(name, channels, height, width, size / height, kind, position / len(seen))
        taps[name] = _Tap(info, layout, prefix)
    return taps


def _says_channels_last(network: nn.Module, outputs: list[Tensor]) -> bool:
    """Whether 4-D outputs are (B, H, W, C): as timm declares it, else by the majority of the unambiguous ones."""
    declared = getattr(network, "output_fmt", None)
    if declared is not None:
        return str(declared).upper().endswith("NHWC")
    votes = Counter(
        "last" if o.shape[1] == o.shape[2] else "first"
        for o in outputs
        if o.ndim == 4 and len(o) == 2 and (o.shape[1] == o.shape[2]) != (o.shape[2] == o.shape[3])
    )
    return votes["last"] > votes["first"]


def _read_map(output: Tensor, channels_last: bool) -> tuple[Layout, int, int, int, int] | None:
    _, a, b, c = output.shape
    if a == b and b > 1 and (b != c or channels_last):
        return "BHWC", c, a, b, 0
    if b == c and b > 1:
        return "BCHW", a, b, c, 0
    return None


def _read_tokens(output: Tensor, network: nn.Module) -> tuple[Layout, int, int, int, int] | None:
    if output.ndim != 3:
        return None
    count, channels = output.shape[1:]
    declared = getattr(network, "num_prefix_tokens", None)
    # Some networks add their class token late, so that what they declare does not hold everywhere.
    for prefix in (declared, 0) if isinstance(declared, int) else (0, 1, 2, 5):
        side = math.isqrt(max(count - prefix, 0))
        if side > 1 and side * side == count - prefix:
            return "BND", channels, side, side, prefix
    return None


def _stages(network: nn.Module, infos: dict[str, LevelInfo]) -> list[LevelInfo]:
    outer = [infos[n] for n in _outermost(network, "", infos)]
    outer.sort(key=lambda info: info.depth)
    groups: dict[float, list[LevelInfo]] = {}
    for info in outer:
        groups.setdefault(info.stride, []).append(info)
    if not groups:
        return []
    largest = max(groups.values(), key=len)
    tokens = [info for info in outer if info.kind == "tokens"]
    if len(tokens) >= 2 and len({info.stride for info in tokens}) == 1 and tokens[0] in largest:
        # A plain ViT: its repeated blocks, without the patch embedding before and the norm behind them.
        kinds = Counter(type(network.get_submodule(i.name)) for i in largest)
        block, repeats = kinds.most_common(1)[0]
        if repeats >= 2:
            return [i for i in largest if type(network.get_submodule(i.name)) is block]
    return [group[-1] for group in groups.values()]


def _outermost(module: nn.Module, name: str, infos: dict[str, LevelInfo]) -> Iterator[str]:
    """Names of the outermost modules whose whole inside has one resolution, containers of stages or blocks opened."""
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if full in infos and not _holds_stages(child, full, infos):
            yield full
        else:
            yield from _outermost(child, full, infos)


def _holds_stages(module: nn.Module, name: str, infos: dict[str, LevelInfo]) -> bool:
    inside = [f"{name}.{n}" for n, _ in module.named_children()]
    strides = {infos[n].stride for n in inside if n in infos}
    if isinstance(module, nn.Sequential) and len(strides) > 1:
        return True
    for child_name, child in module.named_modules(prefix=name):
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            blocks = [(n, c) for n, c in child.named_children() if next(c.children(), None) is not None]
            tokens = [f"{child_name}.{n}" in infos and infos[f"{child_name}.{n}"].kind == "tokens" for n, _ in blocks]
            if len(blocks) >= 2 and all(tokens) and len({type(c) for _, c in blocks}) == 1:
                return True
    return False
