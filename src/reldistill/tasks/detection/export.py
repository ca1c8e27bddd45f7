"""A run's detector as files that need nothing of this package: weights with their code, or an ONNX graph."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from reldistill.core.checks import UserError
from reldistill.core.safe_files import write_bytes, write_text
from reldistill.export.onnx_files import onnx_file
from reldistill.networks.saved import NetworkCard
from reldistill.tasks.detection.detections_file import PICTURES_FILE, read_detections
from reldistill.tasks.detection.networks import plain_detectors
from reldistill.tasks.detection.networks.saved_detectors import open_detector

OUTPUTS = ("boxes", "labels", "scores")

GRAPH = {"dynamo": False, "opset_version": 17}
"""How a detector is exported: torch's newer exporter cannot follow how many boxes pass the score's threshold."""

# The largest differences that float32 kernels of two runtimes may have: of corners, as a share of the longer side, and
# of scores.
BOX_PARITY, SCORE_PARITY = 1e-4, 1e-4

# The least share of detections with an equal: where two boxes that overlap have the same score but for rounding, either
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


def export_detector(run: Path, card: NetworkCard, *, format: str, target: Path, source: Path) -> dict[str, Any]:
    """Write a finished run's detector.

    Args:
        run: the run's folder.
        card: of its student.
        format: `safetensors`: the state dict, and beside it the code that loads it by torchvision; `onnx`: the whole
            detector, resizing and non-maximum suppression included, compared with the network on the run's pictures.
        target: the file.
        source: the weights.

    Raises:
        UserError: the ONNX graph cannot be made or compared, or finds something else than the network.
    """
    assert card.detector is not None
    names = dict(zip(card.detector["outputs"], card.classes, strict=True))
    if format == "onnx":
        return _write_graph(run, target, source, names)
    write_bytes(target, source.read_bytes())
    code = target.with_name(f"{re.sub(r'[^0-9A-Za-z_]', '_', target.stem)}_detector.py")
    write_text(code, inspect.getsource(plain_detectors) + _LOADER)
    content = {
        "name": card.name,
        "num_outputs": card.detector["num_outputs"],
        "arguments": dict(card.arguments),
        "classes": names,
        "weights": target.name,
    }
    write_text(code.with_suffix(".json"), json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return {
        "code": str(code),
        "summary": f"{target}: safetensors of torchvision's {card.name}; {code.name} beside it loads it: load()",
    }


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
        """What the network finds, best first as it says it."""
        found = self.network([images[0]])[0]
        return tuple(found[name] for name in OUTPUTS)


class ExactResizing(GeneralizedRCNNTransform):
    """torchvision's resizing, which rounds an image's new size otherwise while it is traced than when it runs."""

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


def _write_graph(run: Path, target: Path, source: Path, names: dict[int, str]) -> dict[str, Any]:
    network = open_detector(str(run), role="model", classes=None, weights=str(source)).extractor.network.eval()
    images = _pictures(run)
    free = {"images": {2: "height", 3: "width"}, **{output: {0: "objects"} for output in OUTPUTS}}
    how: dict[str, Any] = {**GRAPH, "dynamic_axes": free}
    properties = {"classes": json.dumps(names, ensure_ascii=False)}
    with onnx_file(target, DetectorGraph(network), images[0], outputs=OUTPUTS, properties=properties, **how) as graph:
        differences = []
        for image in images:
            with torch.no_grad():
                said = network([image[0]])[0]
            expected = [said[name].numpy() for name in OUTPUTS]
            differences.append(_difference(graph(image.numpy()), expected, size=(image.shape[2], image.shape[3])))
        equal, lacking = (sum(column) for column in list(zip(*differences, strict=True))[:2])
        if not equal + lacking:
            raise UserError(f"{source} finds nothing in the pictures of {run}, so no graph can be compared with it")
        if equal < LEAST_EQUAL * (equal + lacking):
            raise UserError(
                f"the ONNX graph finds something else than the network: {lacking} of {equal + lacking} detections in "
                f"{len(images)} images have no equal: not written"
            )
    box, score = (max(column) for column in list(zip(*differences, strict=True))[2:])
    odd = f"; {lacking} more hang on how a tie is rounded" if lacking else ""
    return {
        "compared": equal,
        "without_equal": lacking,
        "largest_box_difference": box,
        "largest_score_difference": score,
        "summary": f"{target}: onnx, images (1, 3, H, W) RGB in [0, 1] → boxes (n, 4) in pixels, labels (n,), scores "
        f"(n,); {equal} detections in {len(images)} images differ from PyTorch's by at most {box:.1e} pixels and "
        f"{score:.1e} of score{odd}",
    }


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

    The order says nothing: scores that are equal but for rounding may change places.
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
