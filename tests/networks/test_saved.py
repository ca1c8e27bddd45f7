from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reldistill.core.checks import UserError
from reldistill.core.run_files import LAST_WEIGHTS, RECORD_FILE
from reldistill.core.safe_files import sha256
from reldistill.networks.cards import NetworkCard, read_card, write_weights
from reldistill.networks.saved import open_network, run_folder


def _finished(folder: Path) -> torch.nn.Module:
    made = open_network("resnet8", role="student", num_classes=3, image_size=16).extractor.network
    card = NetworkCard("resnet8", 3, 16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ("a", "b", "c"))
    folder.mkdir()
    write_weights(folder / LAST_WEIGHTS, made.state_dict(), card)
    return made


def test_a_run_folder_brings_network_weights_and_classes(tmp_path: Path) -> None:
    made = _finished(tmp_path / "run")
    opened = open_network(str(tmp_path / "run"), role="model", num_classes=None, image_size=None)
    assert opened.card.classes == ("a", "b", "c")
    assert opened.card.name == "resnet8"
    for name, value in made.state_dict().items():
        assert torch.equal(opened.extractor.network.state_dict()[name], value)


def test_card_round_trip(tmp_path: Path) -> None:
    card = NetworkCard("vit", 5, 32, (0.0,) * 3, (1.0,) * 3, tuple("vwxyz"), {"patch_size": 4})
    write_weights(tmp_path / "w.safetensors", {"a": torch.ones(5)}, card)
    assert read_card(tmp_path / "w.safetensors") == card


def test_a_folder_called_like_a_network_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _finished(tmp_path / "resnet20")
    assert run_folder("resnet20") is None
    assert run_folder("./resnet20") == Path("resnet20")
    assert (
        sum(
            p.numel()
            for p in open_network("resnet20", role="student", num_classes=3, image_size=16).extractor.parameters()
        )
        > 200_000
    )


def test_a_folder_called_like_a_detector_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("fcos_resnet18_fpn", "fcos_resnet18"):
        _finished(tmp_path / name)
    assert run_folder("fcos_resnet18_fpn") is None
    assert run_folder("fcos_resnet18") == Path("fcos_resnet18")


def test_a_run_of_another_task_says_what_it_needs(tmp_path: Path) -> None:
    made = _finished(tmp_path / "run")
    card = NetworkCard(
        "fcos_resnet18_fpn", 1, 64, (0.0,) * 3, (1.0,) * 3, ("a",), detector={"outputs": [1], "num_outputs": 2}
    )
    write_weights(tmp_path / "run" / LAST_WEIGHTS, made.state_dict(), card)
    with pytest.raises(
        UserError, match=r"run is a run of detection: labelled boxes are given as coco:DIR, voc:DIR, yo"
    ):
        open_network(str(tmp_path / "run"), role="model", num_classes=None, image_size=None)
    with pytest.raises(UserError, match=r"student fcos_resnet18_fpn: a network for detection only: labelled boxes are"):
        open_network("fcos_resnet18_fpn", role="student", num_classes=3, image_size=32)


def test_how_a_run_s_network_was_fed_and_made_is_kept(tmp_path: Path) -> None:
    _finished(tmp_path / "run")
    opened = open_network(str(tmp_path / "run"), role="model", num_classes=None, image_size=None)
    weights = tmp_path / "run" / LAST_WEIGHTS
    assert opened.card == read_card(weights)
    assert opened.extractor.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert opened.extractor.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert opened.pretrained == str(weights)
    assert opened.weights_sha256 == sha256(weights)


def test_a_folder_without_a_run_is_a_name(tmp_path: Path) -> None:
    assert run_folder(str(tmp_path)) is None


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).write_text("{}")
    with pytest.raises(UserError, match="not finished"):
        run_folder(str(tmp_path))


def test_weights_of_something_else_say_so(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="does not say which network"):
        read_card(tmp_path / "w.safetensors")


def test_a_run_folder_is_fed_as_its_card_says(tmp_path: Path) -> None:
    made = _finished(tmp_path / "run").eval()
    opened = open_network(str(tmp_path / "run"), role="model", num_classes=None, image_size=None)
    assert (opened.card.mean, opened.card.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    channels = [(images[:, 0] - 0.1) / 0.4, (images[:, 1] - 0.2) / 0.5, (images[:, 2] - 0.3) / 0.6]
    with torch.no_grad():
        said = opened.extractor.eval()(images, logits=True).logits
        torch.testing.assert_close(said, made(torch.stack(channels, dim=1)))
