"""A backbone as an ONNX graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from reldistill.networks.saved import OpenedNetwork, open_network
from reldistill.tasks.base import GraphForm
from reldistill.tasks.graphs import image_graph


class WithLastMap(nn.Module):
    """A network of timm's or ours: images (B, 3, H, W) → pooled vectors (B, D), and the map or tokens they are of."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both."""
        last = self.network.forward_features(images)
        return self.network.forward_head(last), last


def backbone_graph(run: Path, *, source: Path, raw: bool) -> GraphForm:
    """A finished run's backbone: images (B, 3, H, W) → pooled vectors (B, D) and, where it is known, the last map."""
    opened = open_network(str(run), role="model", num_classes=None, image_size=None, weights=str(source))
    if _splits(opened):
        both = WithLastMap(opened.extractor.network)
        return image_graph(opened, both, raw=raw, said="features and last map", outputs=("features", "last_map"))
    return image_graph(opened, opened.extractor.network, raw=raw, said="features", outputs=("features",))


def _splits(opened: OpenedNetwork) -> bool:
    """Whether the network has separate steps for its last map and for its output."""
    return all(callable(getattr(opened.extractor.network, name, None)) for name in ("forward_features", "forward_head"))
