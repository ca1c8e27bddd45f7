"""Networks without class scores: what is left is what the classifier would have been given."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from reldistill.core.checks import UserError
from reldistill.core.types import Wanted
from reldistill.networks.extract import Extractor
from reldistill.networks.headless import freeze_backbone, head_weights, without_head
from reldistill.networks.probes import untrained_twin
from reldistill.networks.saved import open_network
from reldistill.networks.zoo import load_network

VIT = {"depth": 2, "embed_dim": 16, "num_heads": 2, "patch_size": 8, "img_size": 32}
NETWORKS = [
    ("resnet8", {}),
    ("vit_tiny_patch16_224", VIT),
    ("deit_tiny_distilled_patch16_224", VIT),
    ("mobilenetv3_small_050", {}),
    ("torchvision/resnet18", {}),
    ("torchvision/mobilenet_v3_small", {}),
]


@pytest.mark.parametrize(("name", "arguments"), NETWORKS, ids=[name for name, _ in NETWORKS])
def test_it_says_what_the_classifier_is_given(name: str, arguments: dict[str, int]) -> None:
    whole = load_network(name, num_classes=5, image_size=32, arguments=arguments).module.eval()
    images = torch.rand(2, 3, 32, 32)
    network = Extractor(whole)
    with torch.no_grad():
        expected = network(images, pooled=True).pooled
        if "distilled" in name:  # two classifiers, which are given a token each: timm takes their mean
            expected = whole.forward_features(images)[:, :2].mean(dim=1)
        without = without_head(whole, image_size=32, what="it")
        said = Extractor(without).ask(images, Wanted(logits=True, pooled=True))
    assert expected is not None
    torch.testing.assert_close(said.pooled, expected)
    assert said.logits is None


def test_the_head_of_a_network_without_one_linear_layer_cannot_be_left_out() -> None:
    with pytest.raises(UserError, match="no one linear layer makes its class scores"):
        load_network("torchvision/squeezenet1_1", num_classes=5, image_size=64, head="none")


def test_head_weights_are_named() -> None:
    network = load_network("resnet8", num_classes=5, image_size=32).module
    assert head_weights(network, image_size=32, what="it") == {"fc.weight", "fc.bias"}
    assert isinstance(network.fc, nn.Linear), "the network itself stays as it is"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Weights for seven classes."""
    torch.manual_seed(3)
    path = tmp_path / "published.safetensors"
    save_file(timm.create_model("resnet8", num_classes=7).state_dict(), path)
    return path


def test_a_teacher_for_other_classes_is_refused_or_taken_without_them(published: Path) -> None:
    with pytest.raises(UserError, match=r"has 7 classes, not 5.*--teacher-head none"):
        open_network("resnet8", role="teacher", num_classes=5, image_size=32, weights=str(published))
    opened = open_network("resnet8", role="teacher", num_classes=5, image_size=32, weights=str(published), head="none")
    assert opened.card.num_classes == 0
    assert opened.extractor.num_classes == 0
    whole = open_network("resnet8", role="teacher", num_classes=7, image_size=32, weights=str(published))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features = [one.extractor.eval()(images, pooled=True).pooled for one in (opened, whole)]
    torch.testing.assert_close(*features)


def test_weights_of_another_body_are_refused_without_a_head_too(published: Path) -> None:
    with pytest.raises(UserError, match="does not fit"):
        open_network("resnet14", role="teacher", num_classes=None, image_size=32, weights=str(published), head="none")


def test_a_teacher_that_never_had_classes_needs_no_saying_so(tmp_path: Path) -> None:
    name, arguments = "vit_small_patch14_dinov2.lvd142m", {"depth": 2, "embed_dim": 16, "num_heads": 2}
    path = tmp_path / "dino.safetensors"
    save_file(timm.create_model(name, img_size=28, **arguments).state_dict(), path)
    opened = open_network(
        name, role="teacher", num_classes=5, image_size=28, weights=str(path), arguments={**arguments, "img_size": 28}
    )
    assert opened.card.num_classes == 0
    blocks = [level.name for level in opened.extractor.stages(28)]
    assert blocks == ["blocks.0", "blocks.1"], "its last block's patch tokens are what it was trained for"


def test_a_student_s_head_for_other_classes_starts_anew(published: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        student = load_network("resnet8", num_classes=5, image_size=32, weights=published, role="student").module
    assert "its head starts from random weights" in caplog.text
    given = load_network("resnet8", num_classes=7, image_size=32, weights=published).module.state_dict()
    state = student.state_dict()
    assert state["fc.weight"].shape[0] == 5
    assert all(torch.equal(state[name], value) for name, value in given.items() if not name.startswith("fc."))


def test_a_factory_may_return_features_or_scores(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\nMEAN = STD = (0.5, 0.5, 0.5)\n"
        "def body():\n    return [nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]\n"
        "def scores():\n    return nn.Sequential(*body(), nn.Linear(6, 9))\n"
        "def features():\n    return nn.Sequential(*body(), nn.LayerNorm(6))\n"
    )
    for factory in ("scores", "features"):
        name = f"{tmp_path}/mine.py:{factory}"
        opened = open_network(name, role="teacher", num_classes=4, image_size=16, head="none")
        assert (opened.card.num_classes, opened.extractor.pooled_size) == (0, 6)


def test_the_twin_has_learned_nothing_and_is_the_same_every_time() -> None:
    network = load_network("vit_tiny_patch16_224", num_classes=3, image_size=32, arguments=VIT).module
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(7.0)
    state = torch.get_rng_state()
    twins = [untrained_twin(network).state_dict() for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn from the run's generator"
    for name, value in twins[0].items():
        assert torch.equal(value, twins[1][name])
        assert not (value == 7.0).any(), name
    assert all((p == 7.0).all() for p in network.parameters())


MIXED = """
import threading
from torch import nn

MEAN = STD = (0.5, 0.5, 0.5)


class Mixed(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 6, 3), nn.Linear(6, num_classes), nn.Linear(6, num_classes)

    def forward(self, x):
        x = self.conv(x).mean(dim=(2, 3))
        return self.a(x) + self.b(x)


class Locked(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.head, self.lock = nn.Conv2d(3, 6, 3), nn.Linear(6, num_classes), threading.Lock()

    def forward(self, x):
        return self.head(self.conv(x).mean(dim=(2, 3)))


def mixed(num_classes):
    return Mixed(num_classes)


def locked(num_classes):
    return Locked(num_classes)
"""


def test_scores_that_several_layers_make_are_not_taken_for_features(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MIXED)
    name, path = f"{tmp_path}/mine.py:mixed", tmp_path / "mixed.safetensors"
    whole = load_network(name, num_classes=5, image_size=16).module
    save_file(whole.state_dict(), path)
    for weights in (None, str(path)):
        with pytest.raises(UserError, match="no one linear layer makes its class scores"):
            open_network(name, role="teacher", num_classes=5, image_size=16, weights=weights, head="none")
    with pytest.raises(UserError, match="--freeze backbone: no one linear layer of it makes its class scores"):
        freeze_backbone(whole, image_size=16, what="it")


def test_the_head_of_a_network_that_cannot_be_copied_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MIXED)
    network = load_network(f"{tmp_path}/mine.py:locked", num_classes=5, image_size=16).module
    freeze_backbone(network, image_size=16, what="it")
    assert {name for name, p in network.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
