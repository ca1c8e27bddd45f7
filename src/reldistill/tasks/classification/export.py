"""A classifier as an ONNX graph."""

from __future__ import annotations

from pathlib import Path

from reldistill.networks.saved import open_network
from reldistill.tasks.base import GraphForm
from reldistill.tasks.graphs import image_graph


def classifier_graph(run: Path, *, source: Path, raw: bool) -> GraphForm:
    """A finished run's classifier: images (B, 3, H, W) → logits (B, K); see `tasks.graphs.image_graph`."""
    opened = open_network(str(run), role="model", num_classes=None, image_size=None, weights=str(source))
    return image_graph(opened, opened.extractor.network, raw=raw, said="logits", outputs=("logits",))
