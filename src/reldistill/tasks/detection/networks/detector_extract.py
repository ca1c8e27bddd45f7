"""Any torchvision detector → Features: its pyramid's levels, class scores and own losses, without editing it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList

from reldistill.core.checks import UserError, check_axes
from reldistill.core.types import Batch, Features, FeatureSource, LevelInfo, Targets, Wanted
from reldistill.networks.hooks import evaluating, first_float, hooked
from reldistill.tasks.detection.boxes import Boxes
from reldistill.tasks.detection.networks.detectors import outputs_of

_DRY_SIDE = 256
Labelled = list[dict[str, Tensor]]


class DetectorExtractor(FeatureSource):
    """A detector that takes un-normalised images at their final size, and returns Features of them.

    The network's own resizing is left out of these passes, and stays in the network: `detect` uses it, as a
    deployed network does. Levels are named by their stride, `p3` for 2³ pixels per cell. A pass from which only
    levels are wanted ends behind the feature pyramid.

    Args:
        network: a RetinaNet, FCOS, Faster R-CNN or SSD of torchvision's.
        outputs: for each class of the data the number of the network's class output; by default all of them in
            order, except the first, which is the background's.
        name: what to call the network in messages.

    Raises:
        UserError: when it is another kind of network, or a level is not in it.
    """

    def __init__(self, network: nn.Module, *, outputs: Sequence[int] | None = None, name: str = "network") -> None:
        super().__init__()
        if not is_detector(network):
            raise UserError(
                f"{name} is no RetinaNet, FCOS, Faster R-CNN or SSD of torchvision: {type(network).__name__}"
            )
        self.network: Any = network
        self.name = name
        self.outputs = tuple(outputs or range(1, outputs_of(network)))
        self.num_classes = len(self.outputs)  # K of the data
        self._levels: dict[str, tuple[str, LevelInfo]] = {}

    @property
    def two_stage(self) -> bool:
        """Whether its class scores are of proposals, which it makes itself, and not of all its anchors."""
        return isinstance(self.network, detection.FasterRCNN)

    @property
    def softmax(self) -> bool:
        """Whether its class scores exclude each other, the background's coming first among them."""
        return isinstance(self.network, detection.FasterRCNN | detection.ssd.SSD)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width that it squeezes every image to, where it does."""
        size = self.network.transform.fixed_size
        return None if size is None else (int(size[1]), int(size[0]))

    @property
    def anchors_per_cell(self) -> tuple[int, ...]:
        """How many class scores every cell of each level has; empty for one that scores proposals."""
        return () if self.two_stage else tuple(self.network.anchor_generator.num_anchors_per_location())

    def forward(
        self,
        images: Float[Tensor, "B 3 H W"],
        *,
        targets: Boxes | None = None,
        levels: tuple[str, ...] = (),
        logits: bool = True,
        scores: bool = False,
        proposals: Sequence[Float[Tensor, "_n 4"]] = (),
    ) -> Features:
        """Features of images.

        Args:
            images: (B, 3, H, W) in [0, 1], padded on the right and below.
            targets: the objects in the images; they also tell how far each image reaches inside the padding.
            levels: names of the pyramid's levels that are wanted.
            logits: whether the network's own losses are wanted; it has them in training mode, of boxes.
            scores: whether the class scores are wanted, of the data's classes in their order: (B, anchors, K), or
                (B, anchors, 1 + K) where they exclude each other and the background's come first; of a two-stage
                network (proposals, 1 + K).
            proposals: the (n, 4) boxes of each image, in its pixels, that a two-stage network is to score; in training
                it takes those that it samples itself.
        """
        wanted = Wanted(levels, logits, scores=scores, proposals=tuple(proposals))
        return self.ask(images, wanted, targets=targets)

    def ask(self, images: Tensor, wanted: Wanted, *, targets: Targets | None = None) -> Features:
        """Features of images; `targets` are Boxes."""
        if wanted.pooled or wanted.distilled or wanted.dense:
            raise ValueError(f"{self.name} is a detector: it has levels and class scores, no vector of an image")
        if targets is not None and not isinstance(targets, Boxes):
            raise ValueError(
                f"{self.name} is a detector: its images are labelled by Boxes, not {type(targets).__name__}"
            )
        if wanted.levels and not self._levels:
            self.survey(_DRY_SIDE)
        keys = {level: self._level(level)[0] for level in wanted.levels}
        sized, boxes = self._sized(images, targets)
        if wanted.logits and self.training and boxes is not None:
            return self._own_pass(sized, self._targets(boxes, len(images)), keys, scores=wanted.scores)
        maps = _as_maps(self.network.backbone(sized.tensors))
        found, asked = None, wanted.proposals
        if wanted.scores and self.two_stage:
            if not asked:
                raise ValueError(f"{self.name} scores proposals: give it some, or boxes in training mode")
            heads = self.network.roi_heads
            pooled_regions = heads.box_roi_pool(maps, list(asked), sized.image_sizes)
            found = heads.box_predictor(heads.box_head(pooled_regions))[0]
        elif wanted.scores:
            found, asked = self.network.head.classification_head(list(maps.values())), ()
        return Features(
            levels={level: maps[key] for level, key in keys.items()},
            scores=None if found is None else self._of_the_data(found),
            proposals=asked if found is not None else (),
        )

    @torch.no_grad()
    def detect(self, batch: Batch) -> list[dict[str, Tensor]]:
        """What the network finds in images, by its whole own path, resizing included.

        Images of unlike shapes go through apart: padding one to another's costs time and moves what group norm sees.

        Args:
            batch: images, each of which is cut out of its padding.

        Returns:
            For each image `boxes` (n, 4) in its pixels, `labels` (n,) class indices of the data and `scores` (n,) in
            [0, 1], best first. What the data has no class for is left out.
        """
        whole = batch.targets is None
        sizes = [batch.images.shape[-2:]] * len(batch) if whole else batch.targets_as(Boxes).sizes.tolist()
        like = first_float(self.network, default=batch.images)
        pairs = zip(batch.images.to(like.dtype), sizes, strict=True)
        images = [image[:, :height, :width] for image, (height, width) in pairs]
        found: list[dict[str, Tensor]] = [{}] * len(images)
        with evaluating(self.network):
            for alike in self._alike(sizes):
                for place, result in zip(alike, self.network([images[i] for i in alike]), strict=True):
                    found[place] = result
        index = torch.full((outputs_of(self.network),), -1, device=batch.images.device)
        index[list(self.outputs)] = torch.arange(self.num_classes, device=index.device)
        results = []
        for one in found:
            labels = index[one["labels"]]
            known = labels >= 0
            kept = {"boxes": one["boxes"][known], "labels": labels[known], "scores": one["scores"][known]}
            order = kept["scores"].argsort(descending=True, stable=True)
            results.append({name: values[order] for name, values in kept.items()})
        return results

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def survey(self, image_size: int) -> list[LevelInfo]:
        """The levels of the feature pyramid, from fine to coarse, for square images of that side.

        Raises:
            UserError: when the network does not run on images.
        """
        height = self.fixed_size[0] if self.fixed_size else _DRY_SIDE
        like = first_float(self.network, default=torch.empty(0))
        images = torch.zeros(2, 3, height, self.fixed_size[1] if self.fixed_size else height)
        try:
            with evaluating(self.network):
                maps = _as_maps(self.network.backbone(images.to(like.device, like.dtype)))
        except Exception as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{self.name} does not run on {height}x{height} images: {why}") from error
        self._levels = {}
        for place, (key, one) in enumerate(maps.items(), start=1):
            octave = round(math.log2(height / one.shape[2]))
            if self.fixed_size:
                rows, columns, stride = one.shape[2], one.shape[3], image_size / one.shape[2]
            else:
                rows = columns = math.ceil(self._padded(image_size) / 2**octave)
                stride = float(2**octave)
            info = LevelInfo(f"p{octave}", one.shape[1], rows, columns, stride, "map", place / len(maps))
            # of two maps of one stride the deeper one
            self._levels[info.name] = (key, info)
        return [info for _, info in self._levels.values()]

    @property
    def pooled_level(self) -> str | None:
        """The level of a two-stage network that takes every other cell of the one above it, and learns nothing."""
        return next((name for name, (key, _) in self._levels.items() if key == "pool"), None)

    def stages(self, image_size: int) -> list[LevelInfo]:
        """The levels that pairs are made of: all of the feature pyramid."""
        return self.survey(image_size)

    def level(self, name: str, image_size: int) -> LevelInfo:
        """One level by name.

        Raises:
            UserError: when it is not in the network.
        """
        self.survey(image_size)
        return self._level(name)[1]

    def _level(self, name: str) -> tuple[str, LevelInfo]:
        if name not in self._levels:
            raise UserError(
                f"level '{name}' not in {self.name}: it has {', '.join(self._levels)} (see: reldistill layers "
                f"{self.name})"
            )
        return self._levels[name]

    def _alike(self, sizes: Sequence[Sequence[int]]) -> list[list[int]]:
        """The images that the network resizes and pads to one shape, together."""
        transform = self.network.transform
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, size in enumerate(sizes):
            scale = min(transform.min_size[-1] / min(size), transform.max_size / max(size))
            shape = () if self.fixed_size else tuple(self._padded(int(side * scale)) for side in size)
            groups[shape].append(place)
        return list(groups.values())

    def _padded(self, side: int) -> int:
        multiple = self.network.transform.size_divisible
        return math.ceil(side / multiple) * multiple

    def _sized(self, images: Float[Tensor, "B 3 H W"], boxes: Boxes | None) -> tuple[ImageList, Boxes | None]:
        """Normalised images with padding of 0 to what the network's strides need, and the boxes in their pixels."""
        check_axes(images, "B C H W", name="images", C=3)
        if not images.is_floating_point():
            raise ValueError(f"images: expected floating point in [0, 1], got {images.dtype}")
        count, _, height, width = images.shape
        sizes = [(height, width)] * count if boxes is None else [(int(h), int(w)) for h, w in boxes.sizes.tolist()]
        tensors = self.network.transform.normalize(images)
        for image, (inside_height, inside_width) in enumerate(sizes):
            # torchvision pads what is normalised
            tensors[image, :, inside_height:] = 0
            tensors[image, :, :, inside_width:] = 0
        if self.fixed_size is not None:
            tensors = functional.interpolate(tensors, self.fixed_size, mode="bilinear", align_corners=False)
            factors = [ours / theirs for ours, theirs in zip(self.fixed_size, (height, width), strict=True)]
            sizes = [(round(h * factors[0]), round(w * factors[1])) for h, w in sizes]
            if boxes is not None:
                scale = boxes.corners.new_tensor([factors[1], factors[0]] * 2)
                boxes = Boxes(boxes.corners * scale, boxes.labels, boxes.images, boxes.sizes)
        else:
            missing = [self._padded(side) - side for side in (height, width)]
            tensors = functional.pad(tensors, (0, missing[1], 0, missing[0]))
        return ImageList(tensors.to(first_float(self.network, default=images).dtype), sizes), boxes

    def _targets(self, boxes: Boxes, count: int) -> Labelled:
        outputs = torch.tensor(self.outputs, device=boxes.labels.device)
        targets = []
        for image in range(count):
            inside = boxes.images == image
            targets.append({"boxes": boxes.corners[inside].float(), "labels": outputs[boxes.labels[inside]]})
        return targets

    def _own_pass(self, sized: ImageList, targets: Labelled, keys: dict[str, str], *, scores: bool) -> Features:
        """The network's own forward pass in training mode, listened to."""
        maps: dict[str, Tensor] = {}
        outputs: list[Tensor] = []
        proposals: list[Tensor] = []

        def keep_maps(_module: nn.Module, _inputs: Any, output: Any) -> None:
            maps.update(_as_maps(output))

        def keep_scores(_module: nn.Module, _inputs: Any, output: Any) -> None:
            outputs.append(output[0] if self.two_stage else output)

        def keep_proposals(_module: nn.Module, inputs: Any, _output: Any) -> None:
            proposals.extend(inputs[1])

        hooks: list[tuple[nn.Module, Any]] = [(self.network.backbone, keep_maps)]
        if scores and self.two_stage:
            hooks.append((self.network.roi_heads.box_roi_pool, keep_proposals))
            hooks.append((self.network.roi_heads.box_predictor, keep_scores))
        elif scores:
            hooks.append((self.network.head.classification_head, keep_scores))
        with hooked(hooks), _sized_already(self.network, sized, targets):
            losses = self.network(list(sized.tensors), targets)
        return Features(
            levels={level: maps[key] for level, key in keys.items()},
            scores=self._of_the_data(outputs[0]) if outputs else None,
            proposals=tuple(proposals),
            losses=losses,
        )

    def _of_the_data(self, scores: Float[Tensor, "*anchors _"]) -> Float[Tensor, "*anchors _"]:
        """The scores of the data's classes, in their order, behind the background's where there are such."""
        wanted = [0, *self.outputs] if self.softmax else list(self.outputs)
        return scores if wanted == list(range(scores.shape[-1])) else scores[..., wanted]


def is_detector(network: nn.Module) -> bool:
    """Whether it is a detector of torchvision's that a DetectorExtractor takes."""
    kinds = (detection.RetinaNet, detection.FCOS, detection.FasterRCNN, detection.ssd.SSD)
    return isinstance(network, kinds)


class _SizedAlready(nn.Module):
    """Stands for a detector's transform in a pass whose images are ready."""

    def __init__(self, images: ImageList, targets: Labelled) -> None:
        super().__init__()
        self.images, self.targets = images, targets

    def forward(self, images: Any, targets: Any) -> tuple[ImageList, Labelled]:
        return self.images, self.targets

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        return result


@contextmanager
def _sized_already(network: Any, images: ImageList, targets: Labelled) -> Iterator[None]:
    """Leave the network's resizing out, for one pass."""
    own = network.transform
    network.transform = _SizedAlready(images, targets)
    try:
        yield
    finally:
        network.transform = own


def _as_maps(output: Any) -> dict[str, Tensor]:
    return {"0": output} if isinstance(output, Tensor) else dict(output)
