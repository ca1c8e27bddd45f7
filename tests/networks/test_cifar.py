from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from reldistill.networks import cifar
from reldistill.networks.extract import Extractor

# Trainable parameters at 100 classes, as the distillation literature's definitions give them.
PARAMETERS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "resnet50": 23_705_252,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "mobilenetv2_half": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
}
ONE_PER_FAMILY = ["resnet8", "resnet50", "wrn_16_2", "vgg8", "mobilenetv2_half", "shufflenetv1", "shufflenetv2"]


def create(name: str, **arguments: object) -> cifar.CifarNet:
    return timm.create_model(cifar.REGISTERED[name], **arguments)


def randomised(name: str) -> cifar.CifarNet:
    """A network in eval mode whose normalisation layers do something, too."""
    torch.manual_seed(0)
    network = create(name, num_classes=7).eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return network


def test_every_network_is_counted_here() -> None:
    assert set(PARAMETERS) == set(cifar.NETWORKS) == set(cifar.REGISTERED)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_literatures(name: str) -> None:
    with torch.device("meta"):
        network = create(name, num_classes=100)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


def test_resnet20_by_hand() -> None:
    def stage(channels_in: int, channels: int) -> int:
        first = 9 * channels_in * channels + 9 * channels**2 + 4 * channels
        shortcut = channels_in * channels + 2 * channels if channels_in != channels else 0
        return first + shortcut + 2 * (18 * channels**2 + 4 * channels)

    by_hand = 3 * 16 * 9 + 2 * 16 + stage(16, 16) + stage(16, 32) + stage(32, 64) + 64 * 100 + 100
    assert by_hand == PARAMETERS["resnet20"]


def test_names_of_timm_are_not_taken_over() -> None:
    clashing = {name for name, registered in cifar.REGISTERED.items() if registered != name}
    assert clashing == {"resnet50", "vgg11", "vgg13", "vgg16", "vgg19"}
    for name in clashing:
        assert cifar.REGISTERED[name] == f"{name}_cifar"
        assert timm.get_pretrained_cfg(name).num_classes == 1000
        assert timm.models.model_entrypoint(name).__module__ == f"timm.models.{name.rstrip('0123456789')}"


@pytest.mark.parametrize("name", PARAMETERS)
def test_default_config_fits_the_network(name: str) -> None:
    with torch.device("meta"):
        network = create(name)
    config = network.default_cfg
    assert config["input_size"] == (3, 32, 32)
    assert (config["mean"], config["std"], config["num_classes"]) == (cifar.MEAN, cifar.STD, network.num_classes)
    assert network.get_submodule(config["classifier"]) is network.get_classifier()
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    assert config["first_conv"] + ".weight" in network.state_dict()
    assert network.get_parameter(config["first_conv"] + ".weight") is first.weight


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
@pytest.mark.parametrize("side", [32, 64])
def test_stages_are_what_feature_info_says(name: str, side: int) -> None:
    network = randomised(name)
    maps: dict[str, torch.Tensor] = {}
    order: list[str] = []
    for path, module in network.named_modules():
        if path and not list(module.children()):
            module.register_forward_hook(lambda *_, path=path: order.append(path))
    for info in network.feature_info:
        module = network.get_submodule(info["module"])
        module.register_forward_hook(lambda _m, _i, out, key=info["module"]: maps.__setitem__(key, out))
    with torch.no_grad():
        assert network(torch.rand(2, 3, side, side)).shape == (2, 7)
    for info in network.feature_info:
        cells = side // info["reduction"]
        if name == "vgg8" and side == 64 and info["module"] == "layer5":
            cells //= 2  # pooled a fourth time
        assert maps[info["module"]].shape == (2, info["num_chs"], cells, cells)
    stages = [path.split(".")[0] for path in order if path.startswith("layer")]
    assert stages == sorted(stages)


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "shufflenetv1", "shufflenetv2"])
def test_stage_maps_are_rectified(name: str) -> None:
    network = randomised(name)
    lowest: list[float] = []
    for info in network.feature_info:
        network.get_submodule(info["module"]).register_forward_hook(lambda _m, _i, out: lowest.append(out.min().item()))
    network(torch.rand(2, 3, 32, 32))
    assert len(lowest) == len(network.feature_info)
    assert min(lowest) >= 0


def test_resnet50_computes_what_torchvisions_does_with_a_small_stem() -> None:
    network = randomised("resnet50")
    other = torchvision.models.resnet50(num_classes=7).eval()
    other.conv1, other.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    other.load_state_dict({key.replace("shortcut", "downsample"): value for key, value in network.state_dict().items()})
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(images), other(images))


# The thirteen (teacher, student) pairs that papers since CRD compare on CIFAR-100.
PAIRS = (
    *(("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "wrn_40_1"), ("resnet56", "resnet20"), ("resnet110", "resnet20")),
    *(("resnet110", "resnet32"), ("resnet32x4", "resnet8x4"), ("vgg13", "vgg8"), ("vgg13", "mobilenetv2_half")),
    *(("resnet50", "mobilenetv2_half"), ("resnet50", "vgg8"), ("resnet32x4", "shufflenetv1")),
    *(("resnet32x4", "shufflenetv2"), ("wrn_40_2", "shufflenetv1")),
)


def test_all_thirteen_classic_pairs_can_be_built() -> None:
    assert len(set(PAIRS)) == 13
    for pair in PAIRS:
        with torch.device("meta"):
            teacher, student = (create(name, num_classes=100) for name in pair)
        sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in (teacher, student)]
        assert sizes[0] > sizes[1]


DEEPEST = {"mobilenetv2_half": "layer4", "resnet50": "layer4", "vgg8": "layer5", "wrn_16_2": "layer3"}


@pytest.mark.parametrize("name", DEEPEST)
def test_the_deepest_level_is_the_last_stage(name: str) -> None:
    assert Extractor(create(name)).stages(32)[-1].name == DEEPEST[name]


def test_wide_resnets_say_where_the_map_before_a_relu_is() -> None:
    network = randomised("wrn_16_2")
    seen: dict[str, torch.Tensor] = {}
    for path in (*network.before_relu, *network.before_relu.values()):
        network.get_submodule(path).register_forward_hook(lambda _m, _i, out, path=path: seen.__setitem__(path, out))
    network(torch.rand(2, 3, 32, 32))
    assert set(network.before_relu) == {info["module"] for info in network.feature_info}
    for stage, norm in network.before_relu.items():
        torch.testing.assert_close(seen[norm], network.get_submodule(norm)(seen[stage]))


def test_wide_resnet_taps_the_sum_and_pools_the_rectified_map() -> None:
    network = randomised("wrn_16_2")
    seen: dict[str, torch.Tensor] = {}
    for path in ("layer3", "relu"):
        network.get_submodule(path).register_forward_hook(lambda _m, _i, out, path=path: seen.__setitem__(path, out))
    logits = network(torch.rand(2, 3, 32, 32))
    assert seen["layer3"].min() < 0
    torch.testing.assert_close(seen["relu"], F.relu(network.bn1(seen["layer3"])))
    torch.testing.assert_close(logits, network.fc(seen["relu"].mean(dim=(2, 3))))


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_speaks_as_timm_does(name: str) -> None:
    network = randomised(name)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features = network.forward_features(images)
        pooled = network.forward_head(features, pre_logits=True)
        torch.testing.assert_close(network(images), network.get_classifier()(pooled))
    assert pooled.shape == (2, network.num_features)
    network.reset_classifier(3)
    assert network.num_classes == 3
    assert network(images).shape == (2, 3)
    network.reset_classifier(0)
    torch.testing.assert_close(network(images), pooled)
    with pytest.raises(ValueError, match="global_pool"):
        network.reset_classifier(3, global_pool="max")


def test_features_only_works() -> None:
    network = timm.create_model("resnet8", features_only=True, out_indices=(0, 1, 2))
    assert [tuple(m.shape) for m in network(torch.rand(1, 3, 32, 32))] == [
        (1, 16, 32, 32), (1, 32, 16, 16), (1, 64, 8, 8),
    ]  # fmt: skip


def test_the_names_settings_cannot_be_overridden() -> None:
    with pytest.raises(TypeError, match="depth"):
        timm.create_model("resnet20", depth=26)


def test_he_initialisation() -> None:
    torch.manual_seed(0)
    weight = create("resnet8x4").layer3[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)


# The first residual or inverted block of a stage as other codebases name it, and the classifier.
LITERATURE_KEYS = {
    "resnet20": {"layer2.0.downsample.0.weight": "layer2.0.downsample.0.weight", "fc.bias": "fc.bias"},
    "resnet50": {"layer4.0.shortcut.1.bias": "layer4.0.shortcut.1.bias", "linear.weight": "fc.weight"},
    "wrn_16_2": {
        "block1.layer.0.convShortcut.weight": "layer1.0.shortcut.weight",
        "block3.layer.1.bn2.running_var": "layer3.1.bn2.running_var",
        "fc.weight": "fc.weight",
    },
    "vgg13": {
        "block0.0.weight": "layer1.0.weight",
        "block4.4.running_mean": "layer5.4.running_mean",
        "classifier.bias": "fc.bias",
    },
    "mobilenetv2_half": {
        "blocks.0.0.conv.0.weight": "layer1.0.conv.0.weight",
        "blocks.1.1.conv.3.weight": "layer1.2.conv.3.weight",
        "blocks.4.2.conv.6.weight": "layer3.6.conv.6.weight",
        "blocks.6.0.conv.7.bias": "layer4.3.conv.7.bias",
        "classifier.0.weight": "fc.weight",
    },
    "shufflenetv1": {"layer1.0.conv3.weight": "layer1.0.conv3.weight", "linear.weight": "fc.weight"},
    "shufflenetv2": {"layer2.0.conv5.weight": "layer2.0.conv5.weight", "linear.bias": "fc.bias"},
}


@pytest.mark.parametrize("name", LITERATURE_KEYS)
def test_weights_of_other_codebases_find_their_place(name: str) -> None:
    with torch.device("meta"):
        network = create(name)
    ours = network.state_dict()
    renamed = network.rename_weights({theirs: theirs for theirs in LITERATURE_KEYS[name]})
    assert {theirs: mine for mine, theirs in renamed.items()} == LITERATURE_KEYS[name]
    assert set(renamed) <= set(ours)
    assert list(network.rename_weights(ours)) == list(ours)


def test_mobilenet_renames_each_block_to_its_own() -> None:
    with torch.device("meta"):
        network = create("mobilenetv2_half")
    runs = [1, 2, 3, 4, 3, 3, 1]
    theirs = [f"blocks.{run}.{i}.conv.0.weight" for run, blocks in enumerate(runs) for i in range(blocks)]
    ours = [key for key in network.state_dict() if key.startswith("layer") and key.endswith("conv.0.weight")]
    assert list(network.rename_weights(dict.fromkeys(theirs))) == ours
