from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from reldistill.core.checks import UserError
from reldistill.networks import cifar
from reldistill.networks.zoo import list_networks, load_network

TINY_VIT = {"patch_size": 4, "depth": 1, "embed_dim": 24, "num_heads": 2}


@pytest.fixture
def data() -> Path:
    folder = os.environ.get("RELDISTILL_DATA")
    if not folder:
        pytest.skip("RELDISTILL_DATA is unset: no real teacher to load")
    return Path(folder)


@pytest.mark.parametrize("name", ["resnet20", "wrn-16-2", "wrn_16_2", "MobileNetV2-half", "vgg8"])
def test_cifar_networks_by_any_spelling(name: str) -> None:
    network = load_network(name, num_classes=7, image_size=32)
    assert isinstance(network.module, cifar.CifarNet)
    assert (network.name, network.num_classes, network.pretrained) == (name, 7, "no")
    assert (network.mean, network.std) == (cifar.MEAN, cifar.STD)
    assert network.input_size is None


def test_namesakes(caplog: pytest.LogCaptureFixture) -> None:
    arguments = {"num_classes": 2, "image_size": 32}
    assert isinstance(load_network("vgg11-cifar", **arguments).module, cifar.CifarVGG)
    with caplog.at_level(logging.WARNING), torch.device("meta"):
        network = load_network("vgg11", **arguments)
    assert network.module.__class__.__module__ == "timm.models.vgg"
    assert "vgg11 is timm's ImageNet network; the one of the CIFAR literature is vgg11_cifar" in caplog.text


def test_precedence_of_timm_over_torchvision() -> None:
    def home(name: str) -> str:
        return type(load_network(name, num_classes=3).module).__module__

    assert home("resnet18") == "timm.models.resnet"
    assert home("torchvision/resnet18") == "torchvision.models.resnet"
    assert home("shufflenet_v2_x0_5") == "torchvision.models.shufflenetv2"


def test_transformer_is_made_for_the_images() -> None:
    for side in (16, 32):
        network = load_network("vit_tiny_patch16_224", num_classes=3, image_size=side, arguments=TINY_VIT)
        assert network.input_size == side
        assert network.module.patch_embed.num_patches == (side // 4) ** 2
        assert network.mean == (0.5, 0.5, 0.5)
    own = load_network("vit_tiny_patch16_224", num_classes=3, arguments={"depth": 1})
    assert own.input_size == 224
    chosen = load_network("vit_tiny_patch16_224", num_classes=3, image_size=32, arguments={**TINY_VIT, "img_size": 48})
    assert chosen.input_size == 48


def test_transformer_weights_decide_the_size(tmp_path: Path) -> None:
    """A transformer trained at its own size is used there, even where the data's images are smaller."""
    for side in (32, 224):
        made = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=side, **TINY_VIT)
        safetensors.torch.save_file(made.state_dict(), tmp_path / f"{side}.safetensors")
        network = load_network(
            "vit_tiny_patch16_224",
            num_classes=3,
            image_size=32,
            weights=tmp_path / f"{side}.safetensors",
            arguments=TINY_VIT,
            role="teacher",
        )
        assert network.input_size == side
        assert torch.equal(network.module.pos_embed, made.pos_embed)


def test_side_that_works_is_found() -> None:
    network = load_network("torchvision/alexnet", num_classes=2, image_size=28)
    assert network.input_size is not None
    assert network.input_size > 28


def test_dry_run_leaves_no_trace() -> None:
    network = load_network("resnet8", num_classes=3, image_size=32).module
    assert all(part.training for part in network.modules())
    assert network.bn1.num_batches_tracked == 0
    assert torch.equal(network.bn1.running_mean, torch.zeros(16))
    torch.manual_seed(3)
    first = load_network("resnet8", num_classes=3, image_size=32).module
    drawn = torch.rand(1)
    torch.manual_seed(3)
    second = timm.create_model("resnet8", num_classes=3)
    assert torch.equal(drawn, torch.rand(1)), "a dry run must not draw random numbers"
    assert torch.equal(first.fc.weight, second.fc.weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", r"^model resnet5O: no such network: did you mean resnet5.* or .*\(see: reldistill list models"),
        ("wrn-16-3", "did you mean .*wrn_16_2"),
        ("torchvision/resnet20", "did you mean torchvision/resnet50"),
        ("zzzzzzzzzz", r"no such network \(see"),
        ("some/folder", "no such network"),
        ("odd:name", "no such network"),
        ("resnet50.no_such_tag", r"timm has no such weights; it has .*resnet50\.a1_in1k"),
        ("local-dir:no/such/folder", "could not be made: FileNotFoundError"),
        ("", "no such network"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_network(name, num_classes=10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet20", "torchvision/shufflenet_v2_x0_5"])
def test_wrong_argument(name: str) -> None:
    with pytest.raises(UserError, match=r"could not be made with colour='red': TypeError: .*colour") as caught:
        load_network(name, num_classes=10, image_size=32, arguments={"colour": "red"})
    assert "\n" not in str(caught.value)


def test_bad_sizes() -> None:
    with pytest.raises(UserError, match="image size must be positive, got 0"):
        load_network("resnet20", num_classes=10, image_size=0)


def test_no_classes_are_a_network_of_features() -> None:
    assert load_network("resnet20", num_classes=0, image_size=32).num_classes == 0


def test_teacher_never_starts_from_random_weights() -> None:
    for name in ("resnet20", "resnet18", "torchvision/resnet18"):
        with pytest.raises(UserError, match=rf"^teacher {name}: its weights would be random: train a teacher first"):
            load_network(name, num_classes=10, role="teacher")
    with pytest.raises(UserError, match=r"no pretrained weights exist: train a teacher first .*--teacher-weights"):
        load_network("resnet20", num_classes=10, role="teacher", pretrained=True)
    with pytest.raises(UserError, match="no pretrained weights exist: start from random ones"):
        load_network("resnet20", num_classes=10, role="student", pretrained=True)


@pytest.mark.parametrize("name", ["resnet50", "torchvision/resnet50"])
def test_teacher_never_gets_a_random_head(name: str) -> None:
    """Known before anything is downloaded."""
    with pytest.raises(UserError) as caught:
        load_network(name, num_classes=10, role="teacher", pretrained=True)
    assert str(caught.value) == (
        f"teacher {name} expects 1000 classes, the data have 10: "
        "train a teacher first (reldistill train …), pass --teacher-weights FILE, or take it without its classes "
        "(--teacher-head none)"
    )


def test_teacher_weights_with_other_classes(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet8", num_classes=100).state_dict(), tmp_path / "teacher.pt")
    with pytest.raises(UserError, match=r"^teacher resnet8: .*teacher\.pt has 100 classes, not 10"):
        load_network("resnet8", num_classes=10, weights=tmp_path / "teacher.pt", role="teacher")
    network = load_network("resnet8", num_classes=100, weights=tmp_path / "teacher.pt", role="teacher")
    assert (network.num_classes, network.pretrained) == (100, str(tmp_path / "teacher.pt"))


@pytest.fixture
def pretrained_file(tmp_path: Path) -> tuple[nn.Module, dict[str, object]]:
    """A small network of timm with 1000 classes whose pretrained weights lie in a local file."""
    made = timm.create_model("test_resnet")
    safetensors.torch.save_file(made.state_dict(), tmp_path / "pretrained.safetensors")
    return made, {"pretrained_cfg_overlay": {"file": str(tmp_path / "pretrained.safetensors")}}


def test_pretrained_student_gets_a_new_head(
    pretrained_file: tuple[nn.Module, dict[str, object]], caplog: pytest.LogCaptureFixture
) -> None:
    made, arguments = pretrained_file
    with caplog.at_level(logging.INFO):
        network = load_network("test_resnet", num_classes=5, pretrained=True, arguments=arguments, role="student")
    assert (network.num_classes, network.pretrained) == (5, "timm")
    assert torch.equal(network.module.conv1[0].weight, made.conv1[0].weight)
    assert "its classifier for 5 classes starts from random weights" in caplog.text


def test_pretrained_teacher_keeps_its_head(pretrained_file: tuple[nn.Module, dict[str, object]]) -> None:
    made, arguments = pretrained_file
    network = load_network("test_resnet", num_classes=1000, pretrained=True, arguments=arguments, role="teacher")
    assert torch.equal(network.module.get_classifier().weight, made.get_classifier().weight)


def test_local_folder_of_timm(tmp_path: Path) -> None:
    made = timm.create_model("test_resnet", num_classes=5)
    timm.models.save_for_hf(made, tmp_path)
    name = f"local-dir:{tmp_path}"
    network = load_network(name, num_classes=5, pretrained=True, role="teacher")
    assert torch.equal(network.module.get_classifier().weight, made.get_classifier().weight)
    with pytest.raises(UserError, match="expects 5 classes, the data have 6"):
        load_network(name, num_classes=6, pretrained=True, role="teacher")


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_pretrained_student_of_torchvision_gets_a_new_head(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    made = torchvision.models.get_model(name)
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda *_, **__: made.state_dict())
    network = load_network(name, num_classes=5, pretrained=True, role="student")
    assert (network.num_classes, network.pretrained) == (5, "torchvision")
    fresh = {key for key, value in network.module.state_dict().items() if value.shape != made.state_dict()[key].shape}
    assert fresh in ({"classifier.1.weight", "classifier.1.bias"}, {"fc.weight", "fc.bias"})
    kept = [key for key in made.state_dict() if key not in fresh]
    assert all(torch.equal(network.module.state_dict()[key], made.state_dict()[key]) for key in kept)


def test_list_says_which_is_which() -> None:
    everything = {network.name: network for network in list_networks()}
    assert len(everything) == len(list_networks()), "no name twice"
    assert everything["resnet20"].source == "reldistill"
    assert "vgg13 is timm's" in everything["vgg13_cifar"].note
    assert everything["vgg13"].source == "timm"
    assert "vgg13_cifar" in everything["vgg13"].note
    assert everything["torchvision/vit_b_16"].note == "vit_b_16 for short"
    assert everything["torchvision/resnet18"].note == ""
    assert {network.name for network in list_networks("wrn-")} == {"wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"}
    assert [network.name for network in list_networks("resnet?0")][:1] == ["resnet20"]
    assert list_networks("no-such-network") == []


def test_the_real_teacher(data: Path) -> None:
    name = f"{data / 'teacher' / 'my_resnet.py'}:resnet56"
    file = data / "teacher" / "resnet56-cifar10jpeg.safetensors"
    network = load_network(name, num_classes=10, weights=file, image_size=32, role="teacher")
    assert (network.num_classes, network.input_size, network.pretrained) == (10, None, str(file))
    assert network.mean == (0.485, 0.456, 0.406)
    assert network.std == (0.229, 0.224, 0.225)
    state = safetensors.torch.load_file(file)
    assert set(state) == set(network.module.state_dict())
    assert all(torch.equal(network.module.state_dict()[key], value) for key, value in state.items())
    with pytest.raises(UserError, match="has 10 classes, not 100"):
        load_network(name, num_classes=100, weights=file, image_size=32, role="teacher")
    with pytest.raises(UserError, match=r"216 unexpected \(layer1\.3"):
        load_network(name.replace("56", "20"), num_classes=10, weights=file, role="teacher")
