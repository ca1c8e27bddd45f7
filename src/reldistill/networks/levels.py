"""Which places of a network hold a map or patch tokens, as a dry run found them, and which of them a method takes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from reldistill.core.types import LevelInfo

Layout = Literal["BCHW", "BHWC", "BND"]
_NO_MAP_OF_THEIR_OWN = (
    nn.Identity,
    nn.Softmax,
    nn.modules.dropout._DropoutNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)


@dataclass(frozen=True)
class Tap:
    """How to read one module's output.

    Args:
        info: the level.
        layout: of the output.
        prefix_tokens: how many tokens stand in front of the patches' and are dropped.
        overwritten: whether a later layer writes to the output, so that it must be copied.
        norm: path of the norm that the output is put through first; empty for none.
        class_token: whether the first token is read, as a map of one cell, in place of the patches.
    """

    info: LevelInfo
    layout: Layout
    prefix_tokens: int
    overwritten: bool
    norm: str = ""
    class_token: bool = False

    def read(self, output: Float[Tensor, "B *_"], *, aspect: float) -> Float[Tensor, "B C H W"]:
        """The module's output → (B, C, H, W), for images whose height is `aspect` times their width."""
        if self.overwritten:
            # A later layer works in place, and it would depend on an early stop whether it has.
            output = output.clone()
        if self.layout == "BCHW":
            return output
        if self.layout == "BHWC":
            return output.permute(0, 3, 1, 2)
        if self.class_token:
            return output[:, 0, :, None, None]
        tokens = output[:, self.prefix_tokens :]
        width = round(math.sqrt(tokens.shape[1] / aspect))
        return tokens.transpose(1, 2).unflatten(2, (tokens.shape[1] // width, width))


@dataclass(frozen=True)
class Seen:
    """A module's output in a dry run, and how often it had been written to by then."""

    name: str
    module: nn.Module
    output: Tensor
    version: int


def taps_of(network: nn.Module, seen: list[Seen], size: int) -> dict[str, Tap]:
    """Level name → how to read it, in order of execution.

    Args:
        network: the network.
        seen: its modules' outputs for two square images.
        size: their side.
    """
    calls = Counter(s.name for s in seen)
    channels_last = _says_channels_last(network, [s.output for s in seen])
    taps: dict[str, Tap] = {}
    for position, one in enumerate(seen, start=1):
        name, output = one.name, one.output
        # A module that runs twice (a shared activation) has no one output.
        if calls[name] > 1 or isinstance(one.module, _NO_MAP_OF_THEIR_OWN):
            continue
        if output.ndim < 3 or len(output) != 2 or not output.is_floating_point():
            continue
        read = _read_map(output, channels_last) if output.ndim == 4 else _read_tokens(output, network)
        if read is None:
            continue
        layout, channels, height, width, prefix = read
        kind: Literal["map", "tokens"] = "tokens" if layout == "BND" else "map"
        info = LevelInfo(name, channels, height, width, size / height, kind, position / len(seen))
        taps[name] = Tap(info, layout, prefix, overwritten=output._version != one.version)
    return taps


def stages_of(network: nn.Module, infos: dict[str, LevelInfo]) -> list[LevelInfo]:
    """The last block at each resolution, or all repeated blocks of a plain ViT."""
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
        kinds = Counter(type(network.get_submodule(i.name)) for i in largest if _is_block(network, i))
        block, repeats = kinds.most_common(1)[0] if kinds else (nn.Module, 0)
        if repeats >= 2:
            return [i for i in largest if type(network.get_submodule(i.name)) is block]
    # Blocks before single layers: the norm that opens the next stage has this stage's resolution still.
    return [([i for i in group if _is_block(network, i)] or group)[-1] for group in groups.values()]


def final_norm_of(blocks: Sequence[LevelInfo], seen: Sequence[Seen]) -> str | None:
    """Path of the norm that a transformer puts all tokens of its last block through; None where there is none.

    Args:
        blocks: the network's stages.
        seen: its modules' outputs in a dry run.
    """
    last = next((place for place, one in enumerate(seen) if blocks and one.name == blocks[-1].name), None)
    if last is None or blocks[-1].kind != "tokens":
        return None
    for one in seen[last + 1 :]:
        parameters = [*one.module.parameters()]
        is_norm = parameters and all(p.ndim == 1 for p in parameters)
        if is_norm and one.output.shape == seen[last].output.shape:
            return one.name
    return None


def has_class_token(network: nn.Module) -> bool:
    """Whether the first of its tokens is a class token, as timm and torchvision name it."""
    return any(getattr(network, name, None) is not None for name in ("cls_token", "class_token"))


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


def _is_block(network: nn.Module, info: LevelInfo) -> bool:
    module = network.get_submodule(info.name)
    if next(module.children(), None) is None:
        return False
    # A norm may hold its activation as a child, but no matrix; a lone 1×1 convolution with its norm and activation,
    # as MobileNets have in front of the classifier, belongs to no stage.
    holders = [m for m in module.modules() if any(p.ndim > 1 for p in m.parameters(recurse=False))]
    pointwise = len(holders) == 1 and isinstance(holders[0], nn.Conv2d) and set(holders[0].kernel_size) == {1}
    return bool(holders) and not pointwise


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
