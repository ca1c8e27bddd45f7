from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch

from reldistill.core.checks import UserError
from reldistill.networks.zoo import LoadedNetwork, load_network

NETWORK = """
from torch import nn

MEAN = [0.1, 0.2, 0.3]
STD = [0.4, 0.5, 0.6]


class Net(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))


def small(num_classes=10, width=4):
    return Net(num_classes, width)


def ten():
    return Net(10)


def flexible(**settings):
    return Net(**settings)


def no_network():
    return 3


def maps():
    return nn.Conv2d(3, 4, 3)


def broken():
    raise RuntimeError("no luck\\nat all")


def loads(num_classes, pretrained=False):
    net = Net(num_classes)
    nn.init.constant_(net.fc.bias, float(pretrained))
    return net
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_net.py"
    path.write_text(NETWORK)
    return path


def load(file: Path, factory: str, num_classes: int | None = 10, **settings: object) -> LoadedNetwork:
    return load_network(f"{file}:{factory}", num_classes=num_classes, image_size=16, **settings)


def test_factory_gets_classes_and_arguments(file: Path) -> None:
    network = load(file, "small", 7, arguments={"width": 6})
    assert network.num_classes == 7
    assert (network.mean, network.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert network.pretrained == "factory"
    assert network.input_size is None
    assert network.module.fc.in_features == 6
    assert network.module.training


def test_a_class_and_keyword_factories_serve_too(file: Path) -> None:
    assert load(file, "Net", 3).num_classes == 3
    assert load(file, "flexible", 3, arguments={"width": 2}).module.conv.out_channels == 2


def test_factory_without_num_classes_is_measured(file: Path) -> None:
    assert load(file, "ten").num_classes == 10
    assert load(file, "ten", None).num_classes == 10
    with pytest.raises(UserError, match=r"expects 10 classes, the data have 100: let its factory take num_classes"):
        load(file, "ten", 100, role="student")
    with pytest.raises(UserError, match=r"expects 10 classes, the data have 100: train a teacher first"):
        load(file, "ten", 100, role="teacher")


def test_factory_may_load_its_own_weights(file: Path) -> None:
    network = load(file, "loads", role="teacher", pretrained=True)
    assert network.pretrained == "factory"
    assert network.module.fc.bias.tolist() == [1.0] * 10
    assert load(file, "small", role="teacher", pretrained=True).pretrained == "factory"


def test_weights_file(file: Path, tmp_path: Path) -> None:
    source = load(file, "small").module
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    network = load(file, "small", role="teacher", weights=tmp_path / "weights.pt")
    assert network.pretrained == str(tmp_path / "weights.pt")
    assert torch.equal(network.module.fc.weight, source.fc.weight)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("absent", r"my_net\.py defines no 'absent': it has Net, small, ten"),
        ("MEAN", r"my_net\.py defines no 'MEAN'"),
        ("no_network", r"returned int: expected a torch\.nn\.Module"),
        ("maps", r"returns \(1, 4, 14, 14\) for one image: expected logits of shape \(1, K\)"),
        ("broken", r"could not be made: RuntimeError: no luck$"),
        ("", r"name the function that makes the network, as in my_net\.py:factory"),
    ],
)
def test_bad_factories(file: Path, factory: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(file, factory)
    assert "\n" not in str(caught.value)


def test_unknown_argument(file: Path) -> None:
    with pytest.raises(UserError, match=r"takes no argument 'depth': it takes num_classes, width"):
        load(file, "small", arguments={"depth": 3})
    with pytest.raises(UserError, match="'num_classes' can't be among the arguments"):
        load(file, "small", arguments={"num_classes": 3})


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such Python file: .*absent\.py"):
        load(tmp_path / "absent.py", "small")
    (tmp_path / "syntax.py").write_text("def small(:\n")
    with pytest.raises(UserError, match=r"syntax\.py could not be run: SyntaxError: .*line 1"):
        load(tmp_path / "syntax.py", "small")
    (tmp_path / "failing.py").write_text("import math\nimport no_such_module_anywhere\n")
    with pytest.raises(UserError, match=r"ModuleNotFoundError: .*no_such_module_anywhere' \(line 2\)"):
        load(tmp_path / "failing.py", "small")
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(UserError, match=r"could not be run: SystemExit: 3"):
        load(tmp_path / "leaving.py", "small")


def test_a_changed_file_is_run_again(file: Path) -> None:
    first = load(file, "small")
    file.write_text(NETWORK.replace("0.1, 0.2, 0.3", "0.3, 0.2, 0.1"))
    second = load(file, "small")
    assert (first.mean[0], second.mean[0]) == (0.1, 0.3)
    assert type(load(file, "small").module) is type(second.module)


def test_neighbours_can_be_imported(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, file.stem, raising=False)
    user = tmp_path / "user.py"
    user.write_text(f"def make(num_classes):\n    from {file.stem} import Net\n    return Net(num_classes)\n")
    path = list(sys.path)
    try:
        assert load(user, "make", 4).num_classes == 4
    finally:
        sys.modules.pop(file.stem, None)
    assert sys.path == path


def test_normalisation_constants(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = NETWORK.replace("MEAN = [0.1, 0.2, 0.3]\nSTD = [0.4, 0.5, 0.6]\n", "CONSTANTS\n")
    cases = {
        "MEAN = (0.5,) * 3": "defines only one of MEAN and STD",
        "MEAN = (125.3, 123.0, 113.9); STD = (63.0, 62.1, 66.7)": r"MEAN must fit images in .* \(divide by 255\?\)",
        "MEAN = 0.5; STD = 0.5": "MEAN must hold three numbers",
        "MEAN = (0.5,) * 3; STD = (0.0,) * 3": "STD must fit",
    }
    for constants, message in cases.items():
        (tmp_path / "constants.py").write_text(body.replace("CONSTANTS", constants))
        with pytest.raises(UserError, match=message):
            load(tmp_path / "constants.py", "small")
    (tmp_path / "without.py").write_text(body.replace("CONSTANTS", ""))
    with caplog.at_level(logging.WARNING):
        network = load(tmp_path / "without.py", "small")
    assert network.mean == (0.485, 0.456, 0.406)
    assert "without.py defines no MEAN and STD, so ImageNet's are used" in caplog.text
