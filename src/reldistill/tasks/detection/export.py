"""A run's detector as files that need nothing of this package: weights with their code, or an ONNX graph."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from reldistill.core.checks import UserError
from reldistill.networks.cards import NetworkCard
from reldistill.tasks.base import Companions, GraphForm
from reldistill.tasks.detection.detections_file import PICTURES_FILE, read_detections
from reldistill.tasks.detection.networks import plain_detectors
from reldistill.tasks.detection.networks.saved_detectors import open_detector

OUTPUTS = ("boxes", "labels", "scores")

GRAPH = {"dynamo": False, "opset_version": 17}
"""How a detector is exported: torch's newer exporter cannot follow how many boxes pass the score's threshold."""

# The largest differences that float32 kernels of two runtimes may have: of corners, as a share of the longer side, and
# of scores.
BOX_PARITY, SCORE_PARITY = 1e-4, 1e-4

# The least share of detections with an equal: where two boxes that overlap have the same score up to rounding, either
# may suppress the other.
LEAST_EQUAL = 0.95

_LOADER = '''

def load() -> nn.Module:
    """The trained detector, in eval mode: [image (3, H, W) in [0, 1]] → [{boxes, labels, scores}].

    A label's name is `classes[str(label)]` of the file beside this one.
    """
    import json
    from pathlib import Path

    from safetensors.torch import load_file

    card = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    detector = make_detector(card["name"], num_outputs=card["num_outputs"], **card["arguments"])
    detector.load_state_dict(load_file(Path(__file__).with_name(card["weights"])))
    return detector.eval()
'''


def loader_files(card: NetworkCard, target: Path) -> Companions:
    """Beside a detector's weights in `target`: code that loads them by torchvision alone, and the card it reads."""
    code = target.with_name(f"{re.sub(r'[^0-9A-Za-z_]', '_', target.stem)}_detector.py")
    content = {
        "name": card.name,
        "num_outputs": _outputs_of(card)["num_outputs"],
        "arguments": dict(card.arguments),
        "classes": _names(card),
        "weights": target.name,
    }
    files = {
        code: inspect.getsource(plain_detectors) + _LOADER,
        code.with_suffix(".json"): json.dumps(content, indent=2, ensure_ascii=False) + "\n",
    }
    said = f"safetensors of torchvision's {card.name}; {code.name} beside it loads it: load()"
    return Companions(files, {"code": str(code)}, said)


def _outputs_of(card: NetworkCard) -> Mapping[str, Any]:
    if card.detector is None:
        raise UserError(f"{card.name} is not a detector: its run is not one of detection")
    return card.detector


def _names(card: NetworkCard) -> dict[int, str]:
    return dict(zip(_outputs_of(card)["outputs"], card.classes, strict=True))


class DetectorGraph(nn.Module):
    """A detector on one image of any size, (1, 3, H, W) in [0, 1] → boxes (n, 4), labels (n,), scores (n,).

    Args:
        network: a detector of torchvision's.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).eval()
        self.network.transform = ExactResizing(network.transform)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """What the network finds, best first in its own order."""
        found = self.network([images[0]])[0]
        return tuple(found[name] for name in OUTPUTS)


class ExactResizing(GeneralizedRCNNTransform):
    """torchvision's resizing, which rounds an image's new size differently when traced and when run."""

    def __init__(self, own: GeneralizedRCNNTransform) -> None:
        super().__init__(
            own.min_size,
            own.max_size,
            own.image_mean,
            own.image_std,
            size_divisible=own.size_divisible,
            fixed_size=own.fixed_size,
        )

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        """As torchvision does it: the shorter side to `min_size`, but no side above `max_size`, in double precision."""
        if self.fixed_size is not None:
            return super().resize(image, target)
        sides = torch._shape_as_tensor(image)[-2:].double()
        # of one element each, as a scalar would be exported in single precision
        shorter, longer = sides.amin(dim=0, keepdim=True), sides.amax(dim=0, keepdim=True)
        scale = torch.minimum(
            sides.new_tensor([self.min_size[-1]]) / shorter, sides.new_tensor([self.max_size]) / longer
        )
        height, width = (sides * scale).floor().long().unbind()
        sized = functional.interpolate(image[None], size=(height, width), mode="bilinear", align_corners=False)[0]  # type: ignore[arg-type]
        return sized, target


def detector_graph(run: Path, *, source: Path) -> GraphForm:
    """The whole detector, resizing and non-maximum suppression included, compared with it on the run's pictures.

    Raises:
        UserError: the run kept no pictures; from `compare`, where the graph's detections differ from the network's.
    """
    opened = open_detector(str(run), role="model", classes=None, weights=str(source))
    network, images = opened.extractor.network.eval(), _pictures(run)

    def compare(graph: Callable[[np.ndarray], list[np.ndarray]]) -> dict[str, Any]:
        differences = []
        for image in images:
            with torch.no_grad():
                detections = network([image[0]])[0]
            expected = [detections[name].numpy() for name in OUTPUTS]
            differences.append(_difference(graph(image.numpy()), expected, size=(image.shape[2], image.shape[3])))
        equal, lacking, box, score = _judged(differences, images=len(images), run=run, source=source)
        odd = f"; {lacking} more depend on how a tie is rounded" if lacking else ""
        return {
            "compared": equal,
            "without_equal": lacking,
            "largest_box_difference": box,
            "largest_score_difference": score,
            "said": f"images (1, 3, H, W) RGB in [0, 1] → boxes (n, 4) in pixels, labels (n,), scores (n,); {equal} "
            f"detections in {len(images)} images differ from PyTorch's by at most {box:.1e} pixels and {score:.1e} of "
            f"score{odd}",
        }

    free = {"images": {2: "height", 3: "width"}, **{output: {0: "objects"} for output in OUTPUTS}}
    return GraphForm(
        DetectorGraph(network),
        images[0],
        OUTPUTS,
        {**GRAPH, "dynamic_axes": free},
        compare,
        properties={"classes": json.dumps(_names(opened.card), ensure_ascii=False)},
    )


def _judged(
    differences: Sequence[tuple[int, int, float, float]], *, images: int, run: Path, source: Path
) -> tuple[int, int, float, float]:
    """Over all images; UserError where the graph's detections differ from the network's."""
    equals, lackings, boxes, scores = zip(*differences, strict=True)
    equal, lacking = sum(equals), sum(lackings)
    if not equal + lacking:
        raise UserError(f"{source} finds nothing in the pictures of {run}, so no graph can be compared with it")
    if equal < LEAST_EQUAL * (equal + lacking):
        raise UserError(
            f"the ONNX graph's detections differ from the network's: {lacking} of {equal + lacking} detections in "
            f"{images} images have no equal: not written"
        )
    return equal, lacking, max(boxes), max(scores)


def _pictures(run: Path) -> list[Tensor]:
    """The validation images that the run kept, (1, 3, H, W) in [0, 1]."""
    kept = read_detections(run)
    if kept is None or not kept.images:
        raise UserError(f"{run / PICTURES_FILE} is not there: an ONNX graph is compared with the network on its images")
    return [torch.from_numpy(one.image).permute(2, 0, 1)[None].float() / 255 for one in kept.images]


def _difference(
    found: Sequence[np.ndarray], expected: Sequence[np.ndarray], *, size: tuple[int, int]
) -> tuple[int, int, float, float]:
    """Detections in both and in one only, and the largest differences of corners in pixels and of scores.

    The order does not matter: scores that are equal up to rounding may swap.
    """
    (boxes, labels, scores), (our_boxes, our_labels, our_scores) = found, expected
    corners = np.abs(our_boxes[:, None] - boxes[None]).max(axis=2, initial=0)
    apart = np.abs(our_scores[:, None] - scores[None])
    equal = (corners <= BOX_PARITY * max(size)) & (apart <= SCORE_PARITY) & (our_labels[:, None] == labels[None])
    rows, columns = linear_sum_assignment(~equal)
    paired = equal[rows, columns]
    rows, columns = rows[paired], columns[paired]
    lacking = max(equal.shape) - len(rows)
    return len(rows), lacking, float(corners[rows, columns].max(initial=0)), float(apart[rows, columns].max(initial=0))
