"""When the logits of two runtimes count as equal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from reldistill.core.checks import UserError
from reldistill.core.run_files import LAST_WEIGHTS
from reldistill.networks.cards import NetworkCard, write_weights
from reldistill.networks.saved import open_network
from reldistill.tasks.classification.export import classifier_graph


@pytest.mark.parametrize(("off", "equal"), [(0.0, True), (0.0009, True), (0.0011, False), (-0.05, False)])
def test_logits_of_a_graph_are_equal_up_to_a_thousandth_of_the_largest(off: float, equal: bool, tmp_path: Path) -> None:
    made = open_network("resnet8", role="student", num_classes=3, image_size=16).extractor.network
    card = NetworkCard("resnet8", 3, 16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ("a", "b", "c"))
    source = tmp_path / LAST_WEIGHTS
    write_weights(source, made.state_dict(), card)
    form = classifier_graph(tmp_path, source=source, raw=False)

    @torch.no_grad()
    def graph(images: np.ndarray) -> list[np.ndarray]:
        return [form.network(torch.from_numpy(images)).numpy() * (1 + off)]

    if equal:
        assert form.compare(graph)["largest_relative_difference"] == pytest.approx(off, rel=1e-2)
    else:
        with pytest.raises(UserError, match="the ONNX graph's logits differ from the network's by"):
            form.compare(graph)
