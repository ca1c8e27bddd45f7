"""Any network → Features: its own normalisation and input size, and the maps inside it, without editing it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from reldistill.core.checks import UserError, check_axes
from reldistill.core.types import CLASS_TOKEN, THROUGH_NORM, Features, FeatureSource, LevelInfo, Targets, Wanted
from reldistill.networks.classifier import Feed, as_vector, feed_of, find_classifier, is_linear
from reldistill.networks.hooks import evaluating, first_float, first_tensor, hooked, input_into
from reldistill.networks.levels import Seen, Tap, final_norm_of, has_class_token, stages_of, taps_of

DISTILLATION_HEAD = "head_dist"  # timm's name for it


class _DeepEnough(Exception):
    """Not an error: it ends a forward pass whose rest is not needed."""


class Extractor(FeatureSource):
    """A network that takes un-normalised images of any size and returns Features of them.

    The first use of a level (or `survey`) does a dry run that finds every place that can be tapped. Hooks are set
    for one forward pass and removed after it; a pass without logits stops at the deepest level asked for.

    Args:
        network: any module that maps (B, 3, H, W) to logits (B, K); one with the attribute `num_classes = 0` maps them
            to pooled vectors (B, D) and has no logits.
        mean: per-channel mean that the network expects to be subtracted; the default leaves images as they are. As
            many numbers as images have channels.
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

    mean: Float[Tensor, "C 1 1"]
    std: Float[Tensor, "C 1 1"]

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
        device = first_float(network).device
        self.register_buffer("mean", torch.tensor(mean, device=device).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, device=device).view(-1, 1, 1), persistent=False)
        self._taps: dict[str, Tap] = {}
        self._surveyed_size: int | None = None
        self._untrained: set[str] | None = None
        self._final_norm: str | None = None
        self._classifier: str | None = None
        self._exact = False
        self._feed: Feed | None = None
        self.pooled_is_rectified = False
        self.num_classes = 0
        self.pooled_size = 0

    @property
    def classifier_path(self) -> str | None:
        """Path of the module that makes the logits; None where none was found, or before the first survey."""
        return self._classifier

    @property
    def is_headless(self) -> bool:
        """Whether the network returns features instead of class scores."""
        return getattr(self.network, "num_classes", None) == 0

    def classifier(self, image_size: int) -> nn.Module | None:
        """The module that makes the logits alone; None where several heads are mixed, or none was found."""
        self._survey_at(image_size)
        return self.network.get_submodule(self._classifier) if self._classifier and self._exact else None

    @property
    def has_distillation_token(self) -> bool:
        """Whether it is a transformer with a distillation token and a head for it, as timm makes them."""
        return isinstance(getattr(self.network, DISTILLATION_HEAD, None), nn.Module)

    def prepare(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C _H _W"]:
        """(B, 3, H, W) in [0, 1] → the network's own size, normalisation and precision."""
        check_axes(images, "B C H W", name="images", C=len(self.mean))
        if not images.is_floating_point():
            raise ValueError(f"images: expected floating point in [0, 1], got {images.dtype}")
        size = self.input_size
        if size is not None and images.shape[-2:] != (size, size):
            images = functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return ((images - self.mean) / self.std).to(first_float(self.network, default=images).dtype)

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        *,
        levels: tuple[str, ...] = (),
        logits: bool = True,
        pooled: bool = False,
        distilled: bool = False,
        dense: bool = False,
    ) -> Features:
        """Features of images.

        Args:
            images: (B, 3, H, W) in [0, 1].
            levels: names of the levels wanted.
            logits: whether the logits are wanted.
            pooled: whether the classifier's input is wanted; it is the logits where no one layer makes them.
            distilled: whether the logits of the distillation token's own head are wanted.
            dense: whether the classifier's logits of each place are wanted; it takes a linear classifier with a `feed`.
        """
        return self.ask(images, Wanted(levels, logits, pooled, distilled, dense))

    def ask(self, images: Tensor, wanted: Wanted, *, targets: Targets | None = None) -> Features:
        """Features of images (B, 3, H, W) in [0, 1]; `targets` are ignored.

        A network without class scores gives its pooled vector where logits are wanted.

        Raises:
            ValueError: when a detector's `scores` are wanted.
        """
        if wanted.scores:
            raise ValueError(f"{self.name} is not a detector: it has no class scores of anchors or proposals")
        levels = wanted.levels
        if (levels or wanted.pooled or wanted.dense) and self._surveyed_size is None:
            self.survey(max(images.shape[-2:]))
        images = self.prepare(images)
        aspect = images.shape[-2] / images.shape[-1]
        source = self._feed.level.name if wanted.dense and self._feed else None
        taps = {name: self._tap(name) for name in ((*levels, source) if source else levels)}
        found: dict[str, Tensor] = {}
        classifier_input: list[Tensor] = []
        stop_early = bool(taps) and not (wanted.logits or wanted.pooled or wanted.distilled)
        token_logits: list[Tensor] = []

        def keep(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                found[name] = self._read(taps[name], first_tensor(output), aspect=aspect)
                if stop_early and len(found) == len(taps):
                    raise _DeepEnough

            return hook

        def keep_output(_module: nn.Module, _inputs: Any, output: Any) -> None:
            token_logits.append(output)

        hooks = [(name.partition("@")[0], keep(name)) for name in taps]
        if wanted.distilled:
            hooks.append((DISTILLATION_HEAD, keep_output))
        if wanted.pooled and self._classifier:
            hooks.append((self._classifier, input_into(classifier_input)))
        try:
            with hooked([(self.network.get_submodule(name), hook) for name, hook in hooks]):
                output = first_tensor(self.network(images))
        except _DeepEnough:
            output = None
        vector = as_vector(classifier_input[-1]) if classifier_input else output
        return Features(
            logits=output if wanted.logits and not self.is_headless else None,
            pooled=vector if wanted.pooled or (wanted.logits and self.is_headless) else None,
            distilled=token_logits[-1] if wanted.distilled else None,
            dense=self._of_each_place(found[source]) if source else None,
            levels={name: found[name] for name in levels},
        )

    def _read(self, tap: Tap, output: Tensor, *, aspect: float) -> Float[Tensor, "B C H W"]:
        if tap.norm:
            # The bare computation: hooks on the norm are for the network's own use of it.
            output = self.network.get_submodule(tap.norm).forward(output)
        return tap.read(output, aspect=aspect)

    def feed(self, image_size: int) -> Feed | None:
        """Where the classifier's input comes from; None where it is neither a level's mean nor one of its tokens."""
        self._survey_at(image_size)
        return self._feed

    def _of_each_place(self, feature_map: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """(B, C, H, W) → the classifier's (B, K, H, W)."""
        if self._classifier is None:
            raise ValueError(f"{self.name} has no classifier to apply at each place")
        layer = self.network.get_submodule(self._classifier)
        return layer(feature_map.movedim(1, -1)).movedim(-1, 1) if isinstance(layer, nn.Linear) else layer(feature_map)

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def survey(self, image_size: int) -> list[LevelInfo]:
        """Every place that can be tapped, in order of execution, found by a dry run on square images of that side.

        Raises:
            UserError: when the network does not map images of that size to (B, K) logits.
        """
        size = self.input_size or image_size
        images = self._noise(2, size)
        seen: list[Seen] = []
        inputs_of: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                tensor = first_tensor(output)
                if isinstance(tensor, Tensor):
                    seen.append(Seen(name, module, tensor, tensor._version))
                if inputs and isinstance(inputs[0], Tensor):
                    inputs_of[name] = inputs[0]

            return hook

        try:
            with evaluating(self.network), hooked([(m, keep(n)) for n, m in self.network.named_modules() if n]):
                logits = first_tensor(self.network(images))
        except UserError:
            raise
        except Exception as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{self.name} does not run on {size}x{size} images: {why} (try another --image-size)"
            ) from error
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2:
            returned = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(f"{self.name} must map images (B, 3, H, W) to class scores (B, K), but returned {returned}")
        if self.is_headless:
            self.num_classes, self._classifier, self._exact = 0, None, False
        else:
            self.num_classes = logits.shape[1]
            self._classifier, self._exact = find_classifier(seen, logits, inputs_of)
        vector = as_vector(inputs_of[self._classifier]) if self._classifier else logits
        self.pooled_size = vector.shape[1]
        self._taps = taps_of(self.network, seen, size)
        self.pooled_is_rectified = bool(vector.min() >= 0)
        linear = self._classifier is not None and is_linear(self.network.get_submodule(self._classifier))
        self._feed = feed_of(vector, seen, self._taps, linear=linear)
        self._surveyed_size, self._untrained = size, None
        self._final_norm = final_norm_of(stages_of(self.network, {n: t.info for n, t in self._taps.items()}), seen)
        return [tap.info for tap in self._taps.values()]

    def stages(self, image_size: int) -> list[LevelInfo]:
        """The levels `auto` chooses from: the last block at each resolution, or the repeated blocks of a plain ViT.

        A ViT that classifies by its class token never looks at the patch tokens that its last block makes: no label has
        trained them, and that block is left out. One that was trained without classes keeps it: its patch tokens are
        what it was trained for.
        """
        self._survey_at(image_size)
        found = stages_of(self.network, {n: t.info for n, t in self._taps.items()})
        if self._untrained is None:
            tokens = [level.name for level in found if level.kind == "tokens"]
            by_labels = not self.is_headless or getattr(self.network, "has_lost_head", False)
            unheard = self._unheard(tokens, self.input_size or image_size) if tokens and by_labels else set()
            self._untrained = unheard if len(unheard) < len(tokens) else set()
        return [level for level in found if level.name not in self._untrained]

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def _unheard(self, names: Sequence[str], size: int) -> set[str]:
        """Those of the levels that the classifier's input does not depend on."""
        outputs: dict[str, Tensor] = {}
        vectors: list[Tensor] = []

        def keep(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                outputs[name] = first_tensor(output)

            return hook

        hooks = [(self.network.get_submodule(name), keep(name)) for name in names]
        if self._classifier:
            hooks.append((self.network.get_submodule(self._classifier), input_into(vectors)))
        with evaluating(self.network), hooked(hooks):
            logits = first_tensor(self.network(self._noise(1, size).requires_grad_()))
        vector = vectors[-1] if vectors else logits
        pull = torch.rand(vector.shape, generator=torch.Generator().manual_seed(1)).to(vector)
        gradients = torch.autograd.grad(vector, [outputs[name] for name in names], pull, allow_unused=True)
        return {
            name
            for name, gradient in zip(names, gradients, strict=True)
            if gradient is None or not self._taps[name].read(gradient, aspect=1.0).any()
        }

    def _noise(self, batch_size: int, side: int) -> Float[Tensor, "{batch_size} _C {side} {side}"]:
        """Images for a dry run, in the network's precision; the same every time."""
        like = first_float(self.network, default=self.mean)
        shape = (batch_size, len(self.mean), side, side)
        return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)

    def level(self, name: str, image_size: int) -> LevelInfo:
        """One level by name.

        Raises:
            UserError: when it is not in the network.
        """
        self._survey_at(image_size)
        return self._tap(name).info

    def has_view(self, level: str, view: str) -> bool:
        """Whether a level can be read with `THROUGH_NORM` or `CLASS_TOKEN` at the end of its name."""
        tap = self._tap(level.partition("@")[0])
        if view == THROUGH_NORM:
            norm = self._taps.get(self._final_norm or "")
            return norm is not None and norm.layout == tap.layout and norm.info.channels == tap.info.channels
        return tap.prefix_tokens > 0 and has_class_token(self.network)

    def _survey_at(self, image_size: int) -> None:
        if self._surveyed_size != (self.input_size or image_size):
            self.survey(image_size)

    def _tap(self, name: str) -> Tap:
        path, *views = name.split("@")
        if views and path in self._taps and views in (["norm"], ["class"], ["norm", "class"]):
            return self._view(name, self._taps[path], [f"@{view}" for view in views])
        if name not in self._taps:
            names = [i.name for i in stages_of(self.network, {n: t.info for n, t in self._taps.items()})]
            listed = ", ".join(names) if len(names) < 6 else f"{', '.join(names[:3])} … {names[-1]}"
            listed = listed or "no place that holds a map or patch tokens"
            raise UserError(
                f"level '{name}' not in {self.name}: it has {listed} (see: reldistill layers {self.name} --all)"
            )
        return self._taps[name]

    def _view(self, name: str, tap: Tap, views: Sequence[str]) -> Tap:
        for view in views:
            if not self.has_view(tap.info.name, view):
                what = {THROUGH_NORM: "final norm that its patch tokens go through", CLASS_TOKEN: "class token there"}
                raise UserError(f"level '{name}': {self.name} has no {what[view]}: use '{tap.info.name}'")
        info, token = replace(tap.info, name=name), CLASS_TOKEN in views
        return replace(
            tap,
            info=replace(info, height=1, width=1) if token else info,
            norm=self._final_norm or "" if THROUGH_NORM in views else "",
            class_token=token,
        )
