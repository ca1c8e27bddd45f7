"""Licences of weights: as their publishers name them, and passed on from run to run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from torch import nn

from reldistill.networks.cards import NetworkCard
from reldistill.networks.extract import Extractor
from reldistill.networks.saved import OpenedNetwork
from reldistill.networks.zoo import list_networks
from reldistill.report.record import DataRecord, NetworkRecord, RunRecord, write_record
from reldistill.runs.licences import licence_of, licence_warnings


def opened(name: str, pretrained: str) -> OpenedNetwork:
    card = NetworkCard(name, 2, 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return OpenedNetwork(Extractor(nn.Identity()), card, pretrained)


@pytest.mark.parametrize(
    ("name", "pretrained", "licence"),
    [
        ("resnet18", "no", None),
        ("resnet18.a1_in1k", "timm", "apache-2.0"),
        ("vit_base_patch16_224.mae", "timm", "cc-by-nc-4.0"),
        ("torchvision/resnet18", "torchvision", "unknown: torchvision names none"),
        ("nets.py:small", "factory", "unknown: nets.py:small"),
        ("resnet18", "downloaded.pth", "unknown: downloaded.pth"),
    ],
)
def test_licences_are_those_that_publishers_name(name: str, pretrained: str, licence: str | None) -> None:
    assert licence_of(opened(name, pretrained)) == licence


def test_a_run_passes_on_all_that_went_in(tmp_path: Path) -> None:
    student = NetworkRecord("resnet18", 1, 32, "timm", licence="apache-2.0")
    teacher = NetworkRecord("vit_base_patch16_224.mae", 1, 32, "timm", licence="cc-by-nc-4.0")
    data = DataRecord("pics", ["a", "b"], train_images=2, val_images=2, image_size=8)
    write_record(tmp_path, RunRecord("0", [], "", "classification", "serkd", {}, student, teacher, data))
    after = licence_of(opened("resnet18", str(tmp_path / "student.safetensors")))
    assert after == "apache-2.0; cc-by-nc-4.0"
    assert licence_warnings([dataclasses.replace(student, licence=after), None]) == [
        "the weights of resnet18 are under apache-2.0; cc-by-nc-4.0, which is not for commercial use: what is trained "
        "from them may fall under it too"
    ]


def test_only_what_says_so_is_warned_of() -> None:
    licences = ["apache-2.0", "mit", None, "unknown: research.pth", "fair-noncommercial-research-license"]
    warned = licence_warnings([NetworkRecord("net", 1, 32, licence=licence) for licence in licences])
    assert len(warned) == 1
    assert "fair-noncommercial-research-license" in warned[0]


def test_the_list_of_networks_has_them() -> None:
    found = {one.name: one.licence for one in list_networks("resnet18")}
    assert found["resnet18"] == "apache-2.0"
