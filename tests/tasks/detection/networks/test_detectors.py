from __future__ import annotations

import ast
import logging
import shutil
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import detection

from reldistill.core.checks import UserError
from reldistill.tasks.detection.networks import detectors, plain_detectors
from reldistill.tasks.detection.networks.detectors import COCO_OUTPUTS, class_layers, load_detector, outputs_of
from reldistill.tasks.detection.networks.plain_detectors import FIXED_SIZE, OWN_NAMES, make_detector, split_name

CLASSES = ("cat", "dog", "traffic light")
SMALL = {"fpn_channels": 32}


def load(name="retinanet_resnet18_fpn", **more):
    arguments = SMALL | more.pop("arguments", {}) if name not in OWN_NAMES else more.pop("arguments", {})
    return load_detector(name, classes=more.pop("classes", CLASSES), arguments=arguments, **more)


def saved(network: nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("name", "kind", "keys"),
    [
        ("retinanet_resnet18_fpn", detection.RetinaNet, ["0", "1", "2", "p6", "p7"]),
        ("fcos_mobilenet_v2_fpn", detection.FCOS, ["0", "1", "2", "p6", "p7"]),
        ("fasterrcnn_efficientnet_b0_fpn", detection.FasterRCNN, ["0", "1", "2", "3", "pool"]),
        ("retinanet_mobilenetv3_small_050_fpn", detection.RetinaNet, ["0", "1", "2", "p6", "p7"]),
    ],
)
def test_a_family_on_any_backbone(name, kind, keys):
    found = load(name, min_size=64, max_size=96)
    assert type(found.module) is kind
    assert found.outputs == (1, 2, 3)
    assert found.num_outputs == outputs_of(found.module) == 4
    assert found.sizes == (64, 96)
    with torch.no_grad():
        maps = found.module.eval().backbone(torch.zeros(1, 3, 128, 128))
    assert list(maps) == keys
    finest = 32 if kind is detection.FasterRCNN else 16
    assert [one.shape[-1] for one in maps.values()] == [finest // 2**place for place in range(5)]
    assert {one.shape[1] for one in maps.values()} == {32}
    assert all(p.requires_grad for p in found.module.parameters())


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"])
def test_torchvisions_own_names(name):
    found = load(name)
    expected = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=4)
    assert found.module.state_dict().keys() == expected.state_dict().keys()
    assert outputs_of(found.module) == 4


def test_it_can_be_built_again_without_this_package():
    found = load("fcos_resnet18_fpn", arguments={"norm": "group", "score_thresh": 0.1}, min_size=64)
    again = make_detector("fcos_resnet18_fpn", num_outputs=found.num_outputs, **found.arguments)
    again.load_state_dict(found.module.state_dict())
    assert again.score_thresh == 0.1
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(Path(plain_detectors.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom | ast.Import)
    }
    assert {name.partition(".")[0] for name in imported} <= {
        "__future__", "collections", "inspect", "math", "re", "timm", "torch", "torchvision", "typing",
    }  # fmt: skip


def test_every_module_is_of_torch_torchvision_timm_or_the_plain_file():
    for name in ("retinanet_resnet18_fpn", "fasterrcnn_mobilenetv3_small_050_fpn"):
        for module in load(name).module.modules():
            assert type(module).__module__.startswith(("torch", "timm", plain_detectors.__name__))


def test_norms(tmp_path):
    frozen = make_detector("retinanet_resnet18_fpn", num_outputs=4, norm="frozen", **SMALL)
    group = make_detector("retinanet_resnet18_fpn", num_outputs=4, norm="group", **SMALL)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in [*frozen.modules(), *group.modules()])
    assert any(isinstance(m, nn.GroupNorm) for m in group.backbone.modules())
    timm_one = make_detector("retinanet_mobilenetv3_small_050_fpn", num_outputs=4, norm="frozen", **SMALL)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in timm_one.modules())
    batch = make_detector("retinanet_resnet18_fpn", num_outputs=4, norm_eps=0.5, **SMALL)
    assert {m.eps for m in batch.modules() if isinstance(m, nn.BatchNorm2d)} == {0.5}
    for network, norm in ((frozen, "frozen"), (group, "group"), (batch, "batch")):
        assert load(weights=saved(network, tmp_path / "w.pt")).arguments["norm"] == norm


def test_frozen_norms_say_what_the_trained_ones_do():
    own = make_detector("fasterrcnn_mobilenet_v3_large_320_fpn", num_outputs=3).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = own.backbone(images)
        plain_detectors._exchange_norms(own.backbone.body, "frozen")
        for key, value in own.backbone(images).items():
            torch.testing.assert_close(value, expected[key])
        plain_detectors._exchange_norms(own.backbone.body, "batch")
        for key, value in own.eval().backbone(images).items():
            torch.testing.assert_close(value, expected[key])


@pytest.mark.parametrize("scale", [0.1, 30])
def test_a_new_fcos_learns_from_every_box(scale):
    """A box regressed to nothing, behind torchvision's ReLU, would have no gradient."""
    head = make_detector("fcos_resnet18_fpn", num_outputs=3, fpn_channels=32).head.regression_head
    regression, _ = head([scale * torch.randn(2, 32, 9, 9)])
    assert regression.min() > 0.2
    assert regression.max() < 3


def test_trainable_layers():
    network = make_detector("retinanet_resnet18_fpn", num_outputs=2, trainable_backbone_layers=3, **SMALL)
    body = network.backbone.body
    assert [name for name, child in body.named_children() if not any(p.requires_grad for p in child.parameters())] == [
        "conv1", "bn1", "relu", "maxpool", "layer1",
    ]  # fmt: skip


def test_weights_from_a_file(tmp_path):
    first = load()
    file = saved(first.module, tmp_path / "w.pt")
    again = load(weights=file, role="teacher")
    assert again.pretrained == str(file)
    for name, value in again.module.state_dict().items():
        assert torch.equal(value, first.module.state_dict()[name])


def test_published_weights_are_matched_by_class_name(tmp_path):
    network = make_detector("ssdlite320_mobilenet_v3_large", num_outputs=91)
    file = saved(network, tmp_path / "coco.pth")
    teacher = load("ssdlite320_mobilenet_v3_large", weights=file, role="teacher")
    assert teacher.num_outputs == 91
    assert teacher.outputs == tuple(COCO_OUTPUTS.index(name) for name in CLASSES) == (17, 18, 10)
    whole = load("ssdlite320_mobilenet_v3_large", weights=file, classes=None)
    assert len(whole.classes) == 80
    assert [COCO_OUTPUTS[output] for output in whole.outputs] == list(whole.classes)
    voc = load("ssdlite320_mobilenet_v3_large", weights=file, classes=("aeroplane", "tvmonitor", "diningtable", "sofa"))
    assert [COCO_OUTPUTS[output] for output in voc.outputs] == ["airplane", "tv", "dining table", "couch"]
    with pytest.raises(UserError, match=r"don't know the class dragon of the data: train a teacher"):
        load("ssdlite320_mobilenet_v3_large", weights=file, classes=("cat", "dragon"), role="teacher")


def test_a_student_gets_new_class_outputs(tmp_path, caplog):
    network = make_detector("fasterrcnn_mobilenet_v3_large_320_fpn", num_outputs=91)
    file = saved(network, tmp_path / "coco.pth")
    with caplog.at_level(logging.INFO):
        student = load("fasterrcnn_mobilenet_v3_large_320_fpn", weights=file, classes=("dragon",), role="student")
    assert student.num_outputs == 2
    assert "class outputs start from random weights" in caplog.text
    new = student.module.state_dict()
    for name, value in network.state_dict().items():
        assert ("box_predictor" in name) or torch.equal(new[name], value)


def test_classes_that_the_weights_have_in_another_order(tmp_path):
    file = saved(load().module, tmp_path / "w.pt")
    assert load(weights=file, trained_on=("dog", "traffic light", "cat")).outputs == (3, 1, 2)
    with pytest.raises(UserError, match="weights have 4 outputs, not one for each of 2 classes"):
        load(weights=file, trained_on=("dog", "cat"))
    with pytest.raises(UserError, match=r"have 3 classes without names, the data have 2"):
        load(weights=file, classes=("dog", "cat"), role="teacher")


def test_names_of_older_torchvision_weights(tmp_path):
    network = load().module
    state = {name.replace("_blocks.0.0.", "_blocks.0."): value for name, value in network.state_dict().items()}
    assert state.keys() != network.state_dict().keys()
    torch.save({"model": state}, tmp_path / "old.pth")
    again = load(weights=tmp_path / "old.pth").module.state_dict()
    assert all(torch.equal(again[name], value) for name, value in network.state_dict().items())


def test_weights_that_do_not_fit(tmp_path):
    file = saved(load().module, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"student retinanet_resnet34_fpn: .*w.pt does not fit, of \d+ keys"):
        load("retinanet_resnet34_fpn", weights=file, role="student")
    with pytest.raises(UserError, match="these are not weights of a fasterrcnn_resnet18_fpn"):
        load("fasterrcnn_resnet18_fpn", weights=file)


def test_a_teacher_without_weights_is_refused():
    with pytest.raises(
        UserError, match=r"teacher retinanet_resnet18_fpn: its weights would be random: train a teacher"
    ):
        load(role="teacher", pretrained_backbone=True)
    with pytest.raises(UserError, match="no pretrained detector of this name exists"):
        load(role="teacher", pretrained=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("retinanet_resnet19_fpn", r"no such backbone 'resnet19': did you mean .*resnet18"),
        ("yolo", "no such detector: choose one of"),
        ("maskrcnn_resnet50_fpn", "no such detector"),
        ("retinanet_vit_b_16_fpn", "not a chain of layers with maps at strides 8, 16, 32"),
    ],
)
def test_names_that_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        load(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "none"}, "norm must be one of batch, frozen, group"),
        ({"anchor_sizes": [8]}, "anchor_sizes are five numbers"),
        ({"colour": 1}, "retinanet_resnet18_fpn has no setting 'colour'"),
        ({"trainable_backbone_layers": 6}, "must be in 0 … 5"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_arguments_that_are_refused(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        load(arguments=arguments)
    assert "\n" not in str(error.value)


def test_anchor_sizes():
    network = make_detector("fasterrcnn_resnet18_fpn", num_outputs=2, anchor_sizes=[8, 16, 32, 64, 128], **SMALL)
    assert network.rpn.anchor_generator.sizes == ((8,), (16,), (32,), (64,), (128,))
    network = make_detector("retinanet_resnet18_fpn", num_outputs=2, **SMALL)
    default = detection.retinanet._default_anchorgen()
    assert network.anchor_generator.sizes == default.sizes


def offline(*args, **kwargs):
    raise urllib.error.URLError("no route")


def test_a_failed_download_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    for more in ({"pretrained_backbone": True}, {"name": "ssdlite320_mobilenet_v3_large", "pretrained": True}):
        with pytest.raises(UserError, match="pretrained weights could not be downloaded") as error:
            load(**more)
        assert "\n" not in str(error.value)


def test_published_weights(monkeypatch):
    """As if they had been downloaded: the class outputs are COCO's, the backbone is frozen, without an epsilon."""
    network = make_detector("fasterrcnn_resnet50_fpn", num_outputs=91, norm="frozen")
    state = network.state_dict()
    monkeypatch.setattr(detectors, "_published", lambda name, what: state)
    teacher = load("fasterrcnn_resnet50_fpn", pretrained=True, role="teacher", min_size=64)
    assert teacher.pretrained == "torchvision"
    assert teacher.outputs == (17, 18, 10)
    assert teacher.arguments["norm"] == "frozen"
    assert teacher.arguments["norm_eps"] == 0.0
    assert all(torch.equal(state[name], value) for name, value in teacher.module.state_dict().items())


@pytest.mark.slow
def test_the_layers_of_the_classes():
    for name in ("ssd300_vgg16", "ssdlite320_mobilenet_v3_large", "fcos_resnet18_fpn", "fasterrcnn_resnet18_fpn"):
        network = make_detector(name, num_outputs=3)
        few, many = network.state_dict(), make_detector(name, num_outputs=6).state_dict()
        differ = {key.rpartition(".")[0] for key, value in few.items() if many[key].shape != value.shape}
        assert set(class_layers(network)) == differ - {"roi_heads.box_predictor.bbox_pred"}
    assert set(FIXED_SIZE) == {"ssd300_vgg16", "ssdlite320_mobilenet_v3_large"}
    assert split_name("resnet18") is None


ALONE = """
import sys
import torch
from detector import make_detector

settings = {"min_size": 64, "max_size": 96, "fpn_channels": 32}
network = make_detector("fasterrcnn_mobilenetv3_small_050_fpn", num_outputs=4, **settings)
network.load_state_dict(torch.load("weights.pt", weights_only=True))
torch.save(network.eval()([torch.load("image.pt")])[0], "found.pt")
assert not any(name.startswith("reldistill") for name in sys.modules)
"""


@pytest.mark.slow
def test_the_plain_file_alone_makes_the_same_network(tmp_path):
    """Copied elsewhere, under another name, in a fresh interpreter."""
    torch.manual_seed(0)
    found = load("fasterrcnn_mobilenetv3_small_050_fpn", min_size=64, max_size=96)
    image = torch.rand(3, 64, 90)
    shutil.copy(plain_detectors.__file__, tmp_path / "detector.py")
    saved(found.module, tmp_path / "weights.pt")
    torch.save(image, tmp_path / "image.pt")
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = found.module.eval()([image])[0]
    said = torch.load(tmp_path / "found.pt")
    assert len(expected["boxes"])
    for name, value in expected.items():
        torch.testing.assert_close(said[name], value)
