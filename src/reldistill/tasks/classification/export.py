"""A classifier as an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reldistill.core.checks import UserError
from reldistill.networks.saved import Normalised, open_network
from reldistill.tasks.base import GraphForm

PARITY = 1e-3
"""The largest difference of logits, relative to their size, that float32 kernels of two runtimes may have."""


def classifier_graph(run: Path, *, source: Path, raw: bool) -> GraphForm:
    """A finished run's classifier: images (B, 3, H, W), RGB in [0, 1] or, `raw`, normalised → logits (B, K).

    The batch axis is free. The graph is compared with the network on five images of noise.
    """
    opened = open_network(str(run), role="model", num_classes=None, image_size=None, weights=str(source))
    network, side = opened.extractor.network.eval(), opened.card.input_size
    if not raw:
        network = Normalised(network, mean=opened.card.mean, std=opened.card.std).eval()
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    more = torch.rand(5, 3, side, side, generator=torch.Generator().manual_seed(1))
    given = "normalised" if raw else "RGB in [0, 1]"

    def compare(graph: Callable[[np.ndarray], list[np.ndarray]]) -> dict[str, Any]:
        with torch.no_grad():
            expected = network(more).numpy()
        found = graph(more.numpy())[0]
        difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))
        if not difference <= PARITY:
            raise UserError(
                f"the ONNX graph's logits differ from the network's by {difference:.2g} (relative): not written"
            )
        return {
            "largest_relative_difference": difference,
            "said": f"images (B, 3, {side}, {side}) {given} → logits (B, {len(opened.card.classes)}); differs from "
            f"PyTorch by at most {difference:.1e} of the largest logit",
        }

    free = ({0: torch.export.Dim("batch")},)
    how: dict[str, Any] = {"dynamic_shapes": free, "dynamo": True, "external_data": False}
    return GraphForm(network, images, ("logits",), how, compare)
