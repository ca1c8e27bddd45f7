"""What can be named, and the places inside a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from reldistill.cli.listing import layers_of, print_layers, print_listing, rows_of
from reldistill.core.checks import UserError
from reldistill.methods.table import METHODS
from reldistill.recipes import RECIPES
from small_runs import NETWORKS


def names(what: str, pattern: str = "") -> list[str]:
    return [row["name"] for row in rows_of(what, pattern)]


def test_every_method_and_recipe_is_listed() -> None:
    assert names("methods") == [*METHODS]
    assert names("recipes") == [*RECIPES]
    assert all(row["transfers"] for row in rows_of("methods"))
    needs = {row["name"]: (row["needs"], row["uses"]) for row in rows_of("methods")}
    assert needs["dkd"] == (["labels", "class scores"], [])
    assert needs["serkd"] == ([], ["class scores"])
    assert needs["crd"] == ([], ["labels"])
    assert needs["fgd"] == (["labelled boxes"], [])
    assert all(row["what"].endswith(".") for row in rows_of("recipes"))


def test_models_come_from_three_sources_with_what_could_be_confused() -> None:
    rows = {row["name"]: row for row in rows_of("models")}
    assert rows["resnet20"]["source"] == "reldistill"
    assert rows["resnet18"]["source"] == "timm"
    assert rows["torchvision/resnet18"]["source"] == "torchvision"
    assert "32×32" in rows["resnet20"]["note"]


def test_pattern_narrows_and_unknown_lists_are_refused() -> None:
    assert names("models", "WRN_16") == ["wrn_16_1", "wrn_16_2"]
    assert names("methods", "rkd") == ["rkd", "serkd"]
    with pytest.raises(UserError, match="choose methods, models or recipes"):
        rows_of("networks")
    with pytest.raises(UserError, match="none of the models has 'zzz' in its name"):
        rows_of("models", "zzz")


def test_listing_ends_lines_where_their_text_ends(capsys: pytest.CaptureFixture[str]) -> None:
    print_listing(rows_of("models", "resnet2"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "source", "licence", "note"]
    assert any(line.startswith("resnet20 ") for line in lines)


def test_layers_of_a_cnn_and_of_a_transformer(capsys: pytest.CaptureFixture[str]) -> None:
    cnn = layers_of("resnet8", arguments={}, image_size=32, num_classes=10, everything=False)
    assert [(row["name"], row["channels"], row["height"], row["kind"]) for row in cnn] == [
        ("layer1", 16, 32, "map"),
        ("layer2", 32, 16, "map"),
        ("layer3", 64, 8, "map"),
    ]
    every = layers_of("resnet8", arguments={}, image_size=32, num_classes=10, everything=True)
    assert {row["name"] for row in cnn} < {row["name"] for row in every}
    small = {"patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2}
    vit = layers_of("vit_tiny_patch16_224", arguments=small, image_size=16, num_classes=10, everything=False)
    assert all((row["kind"], row["channels"], row["height"], row["stride"]) == ("tokens", 24, 4, 4) for row in vit)
    for rows in (cnn, vit):
        assert any("serkd" in row["auto"] for row in rows)
        assert any("sekd" in row["auto"] for row in rows)
    print_layers(vit)
    out = capsys.readouterr().out
    assert "taken by auto" in out
    assert vit[-1]["name"] in out


def test_layers_of_a_network_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETWORKS)
    rows = layers_of(
        f"{tmp_path}/nets.py:small", arguments={"width": 4}, image_size=12, num_classes=2, everything=False
    )
    assert [(row["name"], row["channels"], row["height"]) for row in rows] == [("layer1", 4, 12), ("layer2", 8, 6)]
