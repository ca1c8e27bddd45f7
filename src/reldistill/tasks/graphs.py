"""Networks of one image size as ONNX graphs, whatever their outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reldistill.core.checks import UserError
from reldistill.networks.saved import Normalised, OpenedNetwork
from reldistill.tasks.base import GraphForm

PARITY = 1e-3
"""The largest difference of an output, relative to its size, that float32 kernels of two runtimes may have."""


def image_graph(
    opened: OpenedNetwork, network: nn.Module, *, raw: bool, said: str, outputs: Sequence[str]
) -> GraphForm:
    """A network with one image size: images (B, 3, H, W), RGB in [0, 1] or, `raw`, normalised → its outputs.

    The batch axis is free. The graph is compared with the network on five images of noise.

    Args:
        opened: the network, and how its images are normalised.
        network: the module whose outputs these are.
        raw: leave the normalisation out.
        said: what comes out, in words.
        outputs: names of the outputs.

    Raises:
        UserError: from `compare`, where the graph computes something else.
    """
    side = opened.card.input_size
    if not raw:
        network = Normalised(network, mean=opened.card.mean, std=opened.card.std)
    network.eval()
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    more = torch.rand(5, 3, side, side, generator=torch.Generator().manual_seed(1))
    given = "normalised" if raw else "RGB in [0, 1]"

    def compare(graph: Callable[[np.ndarray], list[np.ndarray]]) -> dict[str, Any]:
        with torch.no_grad():
            answer = network(more)
        expected: list[Tensor] = [answer] if isinstance(answer, Tensor) else list(answer)
        apart = [
            float(np.abs(one - other.numpy()).max() / max(float(other.abs().max()), 1e-12))
            for one, other in zip(graph(more.numpy()), expected, strict=True)
        ]
        if not max(apart) <= PARITY:
            raise UserError(
                f"the ONNX graph's {said} differ from the network's by {max(apart):.2g} (relative): not written"
            )
        return {
            "largest_relative_difference": max(apart),
            "said": f"images (B, 3, {side}, {side}) {given} → {said} {_shapes(expected)}; differs from PyTorch by at "
            f"most {max(apart):.1e} of the largest",
        }

    free = ({0: torch.export.Dim("batch")},)
    how: dict[str, Any] = {"dynamic_shapes": free, "dynamo": True, "external_data": False}
    return GraphForm(network, images, tuple(outputs), how, compare)


def _shapes(answers: Sequence[Tensor]) -> str:
    return " and ".join(f"(B, {', '.join(str(side) for side in one.shape[1:])})" for one in answers)
