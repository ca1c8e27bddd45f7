from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.mlp_mixer import MlpMixer
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

import reldistill.networks.cifar  # noqa: F401  (registers resnet20 and others)
from reldistill.core.checks import UserError
from reldistill.core.types import LevelInfo
from reldistill.networks.extract import Extractor
from reldistill.networks.levels import pick_levels

CLASSES = 5


class Plain(nn.Module):
    """A user's own network: one ReLU used everywhere, batch norm, pooling by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.early = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.late = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.drop = nn.Dropout2d(0.5)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.early(x)))
        x = self.drop(self.relu(self.late(x)))
        return self.head(x.mean(dim=(2, 3)))


def vit(**arguments: Any) -> VisionTransformer:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": CLASSES}
    return VisionTransformer(**{**sizes, **arguments})


def swin(side: int = 32) -> SwinTransformer:
    return SwinTransformer(
        img_size=side, patch_size=2, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 2), num_classes=CLASSES
    )


def mixer() -> MlpMixer:
    return MlpMixer(img_size=16, patch_size=4, num_blocks=3, embed_dim=24, num_classes=CLASSES)


def images(count: int = 3, side: int = 16, **like: Any) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(count), **like)


def hook_count(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def outputs_by_hand(network: nn.Module, x: Tensor, names: list[str]) -> dict[str, Tensor]:
    """What modules say, copied at once."""
    found: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(n).register_forward_hook(lambda _m, _i, out, n=n: found.__setitem__(n, out.clone()))
        for n in names
    ]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return found


# The network is left as it was ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{"logits": True}, {"logits": False}, {"pooled": True}])
def test_hooks_are_gone_after_the_call(asked: dict[str, bool]) -> None:
    network = Plain()
    Extractor(network)(images(), levels=("late",), **asked)
    assert hook_count(network) == 0


def test_hooks_are_gone_after_an_exception() -> None:
    class Fails(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x = self.early(x)
            if len(x) != 2:
                raise RuntimeError("no more than two")
            return self.head(functional.relu(self.late(x)).mean(dim=(2, 3)))

    extractor = Extractor(Fails())
    extractor.survey(16)
    with pytest.raises(RuntimeError, match="no more than two"):
        extractor(images(3), levels=("early", "late"), pooled=True)
    assert hook_count(extractor) == 0
    with pytest.raises(UserError, match="does not run"):
        Extractor(nn.Sequential(nn.Conv2d(4, 2, 1))).survey(8)


def test_survey_leaves_modes_statistics_weights_and_random_state() -> None:
    network = Plain().train()
    network.norm.eval()
    modes = {name: module.training for name, module in network.named_modules()}
    before = copy.deepcopy(network.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    Extractor(network).survey(16)
    assert torch.equal(torch.rand(1), expected)
    assert {name: module.training for name, module in network.named_modules()} == modes
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in network.parameters())
    assert hook_count(network) == 0


def test_modes_return_after_a_survey_that_fails() -> None:
    network = nn.Sequential(nn.Dropout(), nn.Conv2d(4, 2, 1)).train()
    with pytest.raises(UserError):
        Extractor(network).survey(8)
    assert network[0].training


def test_a_level_asked_for_first_in_training_mode_updates_batch_norm_once() -> None:
    plain, tapped = Plain().train(), Plain().train()
    tapped.load_state_dict(plain.state_dict())
    torch.manual_seed(0)
    expected = plain(images())
    torch.manual_seed(0)
    features = Extractor(tapped)(images(), levels=("late",))
    torch.testing.assert_close(features.logits, expected)
    torch.testing.assert_close(tapped.norm.running_mean, plain.norm.running_mean)
    assert int(tapped.norm.num_batches_tracked) == 1


# Early stop ----------------------------------------------------------------------------------------------------------


def test_early_stop_runs_nothing_behind_the_deepest_level() -> None:
    ran: list[str] = []
    network = Plain()
    extractor = Extractor(network)
    extractor.survey(16)
    for name, module in network.named_children():
        module.register_forward_pre_hook(lambda _m, _i, name=name: ran.append(name))
    features = extractor(images(), levels=("norm",), logits=False)
    assert ran == ["early", "norm"]
    assert features.logits is None
    assert features.pooled is None
    ran.clear()
    extractor(images(), levels=("late", "early"), logits=False)
    assert ran == ["early", "norm", "relu", "late"]
    ran.clear()
    extractor(images(), levels=("early",), logits=True)
    assert ran[-1] == "head"


def test_early_stop_gives_the_same_levels() -> None:
    extractor = Extractor(vit()).eval()
    names = ("blocks.0", "blocks.1")
    whole, stopped = extractor(images(), levels=names), extractor(images(), levels=names, logits=False)
    for name in names:
        assert torch.equal(whole.levels[name], stopped.levels[name])


def test_a_map_that_is_overwritten_in_place_is_the_same_with_and_without_early_stop() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, CLASSES))
    extractor = Extractor(network)
    x = images(side=8)
    whole, stopped = extractor(x, levels=("0",)), extractor(x, levels=("0",), logits=False)
    assert torch.equal(whole.levels["0"], network[0](x))
    assert torch.equal(stopped.levels["0"], network[0](x))
    whole.levels["0"].sum().backward()
    assert network[0].weight.grad is not None


# Normalisation, size, precision --------------------------------------------------------------------------------------


def test_normalisation_and_resize_are_those_done_by_hand() -> None:
    network = Plain().eval()
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    x = images(side=20)
    resized = functional.interpolate(x, (16, 16), mode="bilinear", antialias=True, align_corners=False)
    by_hand = torch.stack([(resized[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    features = Extractor(network, mean=mean, std=std, input_size=16)(x, levels=("early",))
    torch.testing.assert_close(features.logits, network(by_hand))
    torch.testing.assert_close(features.levels["early"], network.early(by_hand))


def test_images_of_the_networks_own_size_are_not_touched() -> None:
    extractor = Extractor(Plain(), input_size=16)
    assert torch.equal(extractor.prepare(images(side=16)), images(side=16))
    assert extractor.prepare(images(side=12)).shape == (3, 3, 16, 16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_take_the_networks_precision(dtype: torch.dtype) -> None:
    features = Extractor(Plain().to(dtype).eval())(images(), levels=("late",), pooled=True)
    assert features.logits is not None
    assert features.logits.dtype == features.levels["late"].dtype == dtype
    converted = Extractor(Plain()).to(dtype).eval()
    assert converted(images(dtype=torch.float64)).logits.dtype == dtype


def test_gradients_reach_the_images() -> None:
    x = images().requires_grad_()
    Extractor(Plain(), input_size=12)(x, levels=("late",)).levels["late"].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_images_that_are_no_images_are_refused(unchecked_types: None) -> None:
    extractor = Extractor(Plain())
    with pytest.raises(ValueError, match="C = 3"):
        extractor(torch.rand(2, 1, 16, 16))
    with pytest.raises(ValueError, match="B, C, H, W"):
        extractor(torch.rand(3, 16, 16))
    with pytest.raises(ValueError, match=r"floating point in \[0, 1\], got torch.uint8"):
        extractor(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


def test_a_network_of_one_channel_says_so_by_its_mean() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, CLASSES))
    extractor = Extractor(network, mean=(0.5,), std=(0.5,))
    assert [level.name for level in extractor.stages(8)] == ["0"]
    assert extractor(torch.rand(2, 1, 8, 8)).logits.shape == (2, CLASSES)


# Levels --------------------------------------------------------------------------------------------------------------

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "plain": (Plain, 16),
    "resnet20": (lambda: timm.create_model("resnet20", num_classes=CLASSES), 32),
    "test_resnet": (lambda: timm.create_model("test_resnet", num_classes=CLASSES), 32),
    "test_convnext": (lambda: timm.create_model("test_convnext", num_classes=CLASSES), 32),
    "mobilenetv2_half": (lambda: timm.create_model("mobilenetv2_half", num_classes=CLASSES), 32),
    "vit": (vit, 16),
    "vit of registers, mean pooled": (lambda: vit(reg_tokens=3, class_token=False, global_pool="avg"), 16),
    "vit of any size": (lambda: vit(dynamic_img_size=True), 16),
    "swin": (swin, 32),
    "mixer": (mixer, 16),
    "torchvision vit": (
        lambda: torchvision.models.VisionTransformer(16, 4, 2, 2, 24, 48, num_classes=CLASSES),
        16,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_survey_says_what_forward_gives_at_other_batch_sizes(name: str) -> None:
    make, side = NETWORKS[name]
    extractor = Extractor(make()).eval()
    infos = extractor.survey(side)
    assert infos
    for count in (1, 3):
        with torch.no_grad():
            features = extractor(images(count, side), levels=tuple(i.name for i in infos), pooled=True)
        for info in infos:
            assert features.levels[info.name].shape == (count, info.channels, info.height, info.width), info
            assert info.stride == side / info.height
        assert features.pooled is not None
        assert features.pooled.shape == (count, extractor.pooled_size)
        assert features.logits is not None
        assert features.logits.shape == (count, extractor.num_classes)
    assert [i.depth for i in infos] == sorted(i.depth for i in infos)
    assert all(0 < i.depth <= 1 for i in infos)


def test_a_cnns_levels_are_its_maps() -> None:
    network = timm.create_model("test_resnet", num_classes=CLASSES).eval()
    names = ["layer1", "layer2.0.conv1", "layer3"]
    features = Extractor(network)(images(side=32), levels=tuple(names))
    for name, expected in outputs_by_hand(network, images(side=32), names).items():
        assert torch.equal(features.levels[name], expected)


@pytest.mark.parametrize(
    ("arguments", "prefix"),
    [({}, 1), ({"reg_tokens": 4}, 5), ({"class_token": False, "global_pool": "avg"}, 0), ({"reg_tokens": 1}, 2)],
)
def test_class_and_register_tokens_are_dropped(arguments: dict[str, Any], prefix: int) -> None:
    network = vit(**arguments).eval()
    found = Extractor(network)(images(), levels=("blocks.1",)).levels["blocks.1"]
    tokens = outputs_by_hand(network, images(), ["blocks.1"])["blocks.1"]
    assert tokens.shape == (3, prefix + 16, 24)
    for row in range(4):
        for column in range(4):
            assert torch.equal(found[:, :, row, column], tokens[:, prefix + 4 * row + column])


def test_tokens_of_a_network_that_declares_no_class_token() -> None:
    network = torchvision.models.VisionTransformer(16, 4, 2, 2, 24, 48, num_classes=CLASSES).eval()
    name = "encoder.layers.encoder_layer_0"
    with torch.no_grad():
        found = Extractor(network)(images(), levels=(name,)).levels[name]
    tokens = outputs_by_hand(network, images(), [name])[name]
    assert torch.equal(found.flatten(2).transpose(1, 2), tokens[:, 1:])


def test_swins_channels_last_maps_are_turned() -> None:
    network = swin().eval()
    found = Extractor(network)(images(side=32), levels=("layers.0", "layers.1")).levels
    raw = outputs_by_hand(network, images(side=32), ["layers.0", "layers.1"])
    assert raw["layers.0"].shape == (3, 16, 16, 8)
    for name, value in raw.items():
        assert torch.equal(found[name], value.permute(0, 3, 1, 2))
    # As many channels as rows: only the network's own declaration tells the axes apart.
    square = Extractor(swin(64)).eval()
    info = square.level("layers.1", 64)
    assert (info.channels, info.height) == (16, 16)
    assert torch.equal(
        square(images(2, 64), levels=("layers.1",)).levels["layers.1"],
        outputs_by_hand(square.network, images(2, 64), ["layers.1"])["layers.1"].permute(0, 3, 1, 2),
    )


def test_mixers_tokens_lie_on_their_grid() -> None:
    network = mixer().eval()
    found = Extractor(network)(images(), levels=("blocks.2",)).levels["blocks.2"]
    tokens = outputs_by_hand(network, images(), ["blocks.2"])["blocks.2"]
    assert torch.equal(found.flatten(2).transpose(1, 2), tokens)


def test_tokens_of_images_that_are_not_square() -> None:
    extractor = Extractor(vit(dynamic_img_size=True)).eval()
    extractor.survey(16)
    x = torch.rand(2, 3, 8, 32)
    tokens = outputs_by_hand(extractor.network, x, ["blocks.0"])["blocks.0"]
    found = extractor(x, levels=("blocks.0",)).levels["blocks.0"]
    assert found.shape == (2, 24, 2, 8)
    assert torch.equal(found[:, :, 1, 0], tokens[:, 1 + 8])


def test_a_shared_module_is_no_level_and_does_no_harm() -> None:
    extractor = Extractor(Plain())
    names = [info.name for info in extractor.survey(16)]
    assert names == ["early", "norm", "late"]
    with pytest.raises(UserError, match="level 'relu' not in"):
        extractor(images(), levels=("relu",))


def test_odd_outputs_on_the_way_are_passed_over() -> None:
    class Odd(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.scalar, self.pair, self.nothing = Scalar(), Pair(), Nothing()

        def forward(self, x: Tensor) -> Tensor:
            self.nothing(x)
            first, second = self.pair(self.late(self.early(x)))
            return self.head((first + second).mean(dim=(2, 3))) * self.scalar(x)

    class Scalar(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor(2.0)

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, 2 * x

    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> None:
            return None

    extractor = Extractor(Odd())
    assert [info.name for info in extractor.survey(16)] == ["early", "late", "pair"]
    features = extractor(images(), levels=("pair", "late"))
    assert torch.equal(features.levels["pair"], features.levels["late"])


def test_unknown_level_names_the_alternatives() -> None:
    extractor = Extractor(timm.create_model("resnet20", num_classes=CLASSES), name="resnet20")
    message = (
        r"^level 'layer5' not in resnet20: it has layer1, layer2, layer3 \(see: reldistill layers resnet20 --all\)$"
    )
    with pytest.raises(UserError, match=message):
        extractor(images(side=32), levels=("layer5",))
    with pytest.raises(UserError, match=message):
        extractor.level("layer5", 32)
    with pytest.raises(UserError, match=r"it has blocks.0, blocks.1, blocks.2 … blocks.6 \("):
        Extractor(vit(depth=7)).level("block.0", 16)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, CLASSES))
    with pytest.raises(UserError, match="it has no place that holds a map"):
        Extractor(flat)(images(side=8), levels=("0",))


def test_a_survey_at_another_size_is_made_again() -> None:
    extractor = Extractor(timm.create_model("resnet20", num_classes=CLASSES))
    assert [level.height for level in extractor.stages(32)] == [32, 16, 8]
    assert [level.height for level in extractor.stages(64)] == [64, 32, 16]
    assert extractor.level("layer3", 32).height == 8
    fixed = Extractor(timm.create_model("resnet20", num_classes=CLASSES), input_size=32)
    assert fixed.level("layer3", 64).height == 8


# The classifier's input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("plain", "head"),
        ("resnet20", "fc"),
        ("test_convnext", "head.fc"),
        ("mobilenetv2_half", "fc"),
        ("vit", "head"),
        ("swin", "head.fc"),
        ("mixer", "head"),
        ("torchvision vit", "heads.head"),
    ],
)
def test_pooled_is_the_classifiers_input(name: str, classifier: str) -> None:
    make, side = NETWORKS[name]
    network = make().eval()
    given: list[Tensor] = []
    with torch.no_grad():
        features = Extractor(network)(images(3, side), pooled=True, levels=())
        handle = network.get_submodule(classifier).register_forward_pre_hook(lambda _m, i: given.append(i[0]))
        network(images(3, side))
        handle.remove()
    assert features.pooled is not None
    assert torch.equal(features.pooled, given[0].flatten(1))


def test_pooled_of_a_classifier_in_a_sequence() -> None:
    tail = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, CLASSES), nn.Identity())
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1), tail).eval()
    features = Extractor(network)(images(side=16), pooled=True)
    assert torch.equal(features.pooled, network[1][:4](network[0](images(side=16))))


def test_pooled_of_a_convolution_as_classifier() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, CLASSES, 1), nn.Flatten()).eval()
    features = Extractor(network)(images(side=8), pooled=True)
    torch.testing.assert_close(features.pooled, network[0](images(side=8)).mean(dim=(2, 3)))


def test_pooled_of_two_heads_is_the_last_ones_input() -> None:
    network = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        num_classes=CLASSES,
        img_size=16,
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=2,
    ).eval()
    features = Extractor(network)(images(), pooled=True)
    assert torch.equal(features.pooled, network.forward_features(images())[:, 1])


def test_pooled_of_a_classifier_on_maps_is_their_mean() -> None:
    class OnMaps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 6, 3, stride=2)
            self.classifier = nn.Sequential(nn.Conv2d(6, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.body(x))

    network = OnMaps()
    features = Extractor(network)(images(), pooled=True)
    torch.testing.assert_close(features.pooled, network.body(images()).mean(dim=(2, 3)))


def test_pooled_is_the_logits_where_no_module_makes_them() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(CLASSES, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=(2, 3)) @ self.weight.T

    extractor = Extractor(Bare())
    features = extractor(images(), pooled=True)
    assert torch.equal(features.pooled, features.logits)
    assert extractor.pooled_size == CLASSES


# What networks answer ------------------------------------------------------------------------------------------------


class Answers(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.wrap = Plain(), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.body(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: (y, y + 1),
        lambda y: [y],
        lambda y: {"logits": y, "aux": y + 1},
        lambda y: {"aux": y + 1, "logits": y},
        lambda y: {"aux": y + 1, "out": y},
        lambda y: {"scores": y, "aux": y + 1},
    ],
)
def test_tuples_and_dicts_of_logits(wrap: Callable[[Tensor], Any]) -> None:
    network = Answers(wrap).eval()
    features = Extractor(network)(images(), pooled=True, levels=("body.late",))
    assert torch.equal(features.logits, network.body(images()))
    assert features.pooled.shape == (3, 12)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda y: y[:, 0], r"\(2,\)"),
        (lambda y: y[..., None], r"\(2, 5, 1\)"),
        (lambda y: None, "NoneType"),
        (lambda y: "yes", "str"),
        (lambda y: (), "NoneType"),
    ],
)
def test_a_network_without_class_scores_is_refused(wrap: Callable[[Tensor], Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"thing must map images .* to class scores \(B, K\), but returned {said}$"):
        Extractor(Answers(wrap), name="thing").survey(16)


def test_images_of_a_size_that_does_not_fit() -> None:
    with pytest.raises(UserError, match=r"^small vit does not run on 20x20 images: .* \(try another --image-size\)$"):
        Extractor(vit(), name="small vit").survey(20)
    with pytest.raises(UserError, match="does not run on 1x1 images"):
        Extractor(swin()).stages(1)


def test_a_survey_inside_inference_mode() -> None:
    with torch.inference_mode():
        features = Extractor(vit()).eval()(images(), levels=("blocks.0",))
    assert features.levels["blocks.0"].shape == (3, 24, 4, 4)


# Stages --------------------------------------------------------------------------------------------------------------


def vgg() -> nn.Module:
    """torchvision's, with a small classifier; its pooling makes maps larger than the last ones."""
    features = torchvision.models.vgg.make_layers([8, "M", 16, "M", 24, 24, "M"])
    pool, classifier = nn.AdaptiveAvgPool2d(7), nn.Sequential(nn.Flatten(), nn.Linear(24 * 49, CLASSES))
    return nn.Sequential(OrderedDict(features=features, avgpool=pool, classifier=classifier))


STAGES: dict[str, tuple[Callable[[], nn.Module], int, list[str]]] = {
    "resnet18": (
        lambda: timm.create_model("resnet18", num_classes=CLASSES),
        64,
        ["act1 32", "layer1 16", "layer2 8", "layer3 4", "layer4 2"],
    ),
    "torchvision resnet18": (
        lambda: torchvision.models.resnet18(num_classes=CLASSES),
        64,
        ["relu 32", "layer1 16", "layer2 8", "layer3 4", "layer4 2"],
    ),
    "resnet20": (
        lambda: timm.create_model("resnet20", num_classes=CLASSES),
        32,
        ["layer1 32", "layer2 16", "layer3 8"],
    ),
    "wrn_16_1": (
        lambda: timm.create_model("wrn_16_1", num_classes=CLASSES),
        32,
        ["layer1 32", "layer2 16", "layer3 8"],
    ),
    "convnext": (
        lambda: timm.create_model("convnext_atto", num_classes=CLASSES),
        64,
        ["stages.0 16", "stages.1 8", "stages.2 4", "stages.3 2"],
    ),
    "torchvision convnext": (
        lambda: torchvision.models.ConvNeXt(
            [torchvision.models.convnext.CNBlockConfig(a, b, 1) for a, b in ((8, 16), (16, 24), (24, None))],
            num_classes=CLASSES,
        ),
        64,
        ["features.1 16", "features.3 8", "features.5 4"],
    ),
    "efficientnet": (
        lambda: timm.create_model("efficientnet_b0", num_classes=CLASSES),
        64,
        ["blocks.0 32", "blocks.1 16", "blocks.2 8", "blocks.4 4", "blocks.6 2"],
    ),
    "vgg": (vgg, 32, ["features.1 32", "features.4 16", "features.9 8", "features.10 4"]),
    "mobilenetv2": (
        lambda: torchvision.models.mobilenet_v2(num_classes=CLASSES, width_mult=0.5),
        64,
        ["features.1 32", "features.3 16", "features.6 8", "features.13 4", "features.17 2"],
    ),
    "densenet": (
        lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=CLASSES),
        64,
        ["features.relu0 32", "features.denseblock1 16", "features.denseblock2 8"],
    ),
    "swin": (swin, 32, ["layers.0 16", "layers.1 8"]),
    "vit": (vit, 16, ["blocks.0 4", "blocks.1 4"]),
    "deit": (
        lambda: timm.create_model("deit_tiny_patch16_224", num_classes=CLASSES, depth=2, embed_dim=24, num_heads=2),
        224,
        ["blocks.0 14"],
    ),
    "torchvision vit": (NETWORKS["torchvision vit"][0], 16, ["encoder.layers.encoder_layer_0 4"]),
    "mixer": (mixer, 16, ["blocks.0 4", "blocks.1 4", "blocks.2 4"]),
    "plain": (Plain, 16, ["norm 16", "late 8"]),
}


def test_the_last_block_counts_where_the_classifier_sees_its_patches() -> None:
    by_token, by_mean = (
        Extractor(
            timm.create_model(
                "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2, global_pool=pool
            )
        )
        for pool in ("token", "avg")
    )
    assert [level.name for level in by_token.stages(16)] == ["blocks.0", "blocks.1"]
    assert [level.name for level in by_mean.stages(16)] == ["blocks.0", "blocks.1", "blocks.2"]
    assert by_token.level("blocks.2", 16).kind == "tokens", "it can still be named"
    for parameter in by_token.network.parameters():
        parameter.requires_grad_(False)
    by_token.survey(16)
    with torch.no_grad():
        assert [level.name for level in by_token.stages(16)] == ["blocks.0", "blocks.1"], "frozen networks too"
    assert by_token.network.training
    assert all(p.grad is None for p in by_token.network.parameters())


@pytest.mark.parametrize("name", STAGES)
def test_stages(name: str) -> None:
    make, side, expected = STAGES[name]
    stages = Extractor(make()).stages(side)
    assert [f"{level.name} {level.height}" for level in stages] == expected
    tokens = name in ("vit", "deit", "torchvision vit", "mixer")
    assert {level.kind for level in stages} == ({"tokens"} if tokens else {"map"})


def test_stages_of_a_real_users_file() -> None:
    folder = os.environ.get("RELDISTILL_DATA")
    if not folder:
        pytest.skip("RELDISTILL_DATA is unset: no real teacher to load")
    from reldistill.networks.zoo import load_network

    teacher = Path(folder) / "teacher"
    loaded = load_network(
        f"{teacher}/my_resnet.py:resnet56",
        num_classes=10,
        weights=teacher / "resnet56-cifar10jpeg.safetensors",
        role="teacher",
    )
    extractor = Extractor(loaded.module, mean=loaded.mean, std=loaded.std, name="resnet56")
    stages = extractor.stages(32)
    assert [(s.name, s.channels, s.height) for s in stages] == [
        ("layer1", 16, 32),
        ("layer2", 32, 16),
        ("layer3", 64, 8),
    ]
    features = extractor.eval()(images(side=32), levels=("layer3",), pooled=True)
    torch.testing.assert_close(features.levels["layer3"].mean(dim=(2, 3)), features.pooled)


def level(name: str, side: int) -> LevelInfo:
    return LevelInfo(name, 8, side, side, 64 / side, "map", 0.5)


def test_pick_levels_takes_the_deepest_of_a_pyramid() -> None:
    stages = [level(n, s) for n, s in (("a", 32), ("b", 16), ("c", 8), ("d", 4))]
    assert [s.name for s in pick_levels(stages, 1)] == ["d"]
    assert [s.name for s in pick_levels(stages, 3)] == ["b", "c", "d"]
    assert [s.name for s in pick_levels(stages, 9)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 12])
def test_pick_levels_spreads_over_blocks_and_ends_with_the_last(depth: int) -> None:
    blocks = [level(str(i), 8) for i in range(depth)]
    for count in range(1, depth + 1):
        picked = [int(s.name) for s in pick_levels(blocks, count)]
        assert len(set(picked)) == count
        assert picked == sorted(picked)
        assert picked[-1] == depth - 1
        gaps = [b - a for a, b in zip([-1, *picked], picked, strict=False)]
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("network", "by_mean"),
    [
        (torchvision.models.resnet18(num_classes=CLASSES), True),
        (timm.create_model("resnet8", num_classes=CLASSES), True),
        (swin(64), True),
        (vit(), False),
        (vit(global_pool="avg", class_token=False, fc_norm=False), True),
        (timm.create_model("mobilenetv4_conv_small", num_classes=CLASSES), None),
    ],
    ids=["resnet18", "cifar resnet", "swin", "vit", "vit without token", "mobilenet v4"],
)
def test_what_the_classifier_says_of_each_place(network: nn.Module, by_mean: bool | None) -> None:
    extractor = Extractor(network.eval())
    side = 16 if isinstance(network, VisionTransformer) else 64
    images = torch.rand(2, 3, side, side)
    feed = extractor.feed(side)
    if by_mean is None:  # a convolution and its activation stand between the mean and the classifier
        assert feed is None
        assert extractor(images, dense=True).dense is None
        return
    assert feed is not None
    assert feed.linear
    assert feed.by_mean == by_mean
    said = extractor(images, dense=True, levels=(feed.level.name,))
    assert said.dense is not None
    assert said.dense.shape == (2, CLASSES, feed.level.height, feed.level.width)
    layer = network.get_submodule(extractor.classifier_path or "")
    expected = layer(said.levels[feed.level.name][1, :, -1, 0][None].reshape(1, -1, *[1] * (layer.weight.ndim - 2)))
    torch.testing.assert_close(said.dense[1, :, -1, 0], expected.flatten())
    if by_mean:
        torch.testing.assert_close(said.dense.mean(dim=(2, 3)), said.logits, rtol=1e-4, atol=1e-5)
    alone = extractor(images, dense=True, logits=False)
    assert alone.logits is None
    assert not alone.levels
    torch.testing.assert_close(alone.dense, said.dense)
