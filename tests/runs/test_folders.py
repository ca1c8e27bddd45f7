"""A run's folder: as many threads as the run in it began with."""

from __future__ import annotations

from pathlib import Path

import torch

from reldistill.report.record import DataRecord, NetworkRecord, RunRecord, write_record
from reldistill.runs.folders import claimed


def test_a_continued_run_has_the_threads_it_began_with(tmp_path: Path) -> None:
    here = torch.get_num_threads()
    network = NetworkRecord("small", parameters=1, input_size=8, pretrained="no", weights_sha256=None, score=None)
    data = DataRecord("pics", ["a", "b"], train_images=2, val_images=2, image_size=8)
    settings = {"data": "pics", "epochs": 3}
    record = RunRecord("0", [], "", "classification", "none", settings, network, None, data, status="stopped")
    record.environment["threads"] = here + 1
    write_record(tmp_path, record)
    with claimed(tmp_path, settings, resume=True) as previous:
        assert previous is not None
        assert torch.get_num_threads() == here + 1
    assert torch.get_num_threads() == here
