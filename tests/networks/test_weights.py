from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from reldistill.core.checks import UserError
from reldistill.networks import cifar
from reldistill.networks.weights import load_weights, read_weights

WHAT = "teacher resnet8"


def network(num_classes: int = 5) -> nn.Module:
    return timm.create_model("resnet8", num_classes=num_classes)


def assert_same(first: nn.Module, second: nn.Module) -> None:
    for key, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[key], value, rtol=0, atol=0)


class Attack:
    """A pickle that would make a file if it were executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


WRAPPINGS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"epoch": 240, "model": state, "accuracy": torch.tensor(70.0)},
    "net": lambda state: {"net": state},
    "parallel": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "compiled": lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    "compiled and parallel": lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
    "lightning": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}, "hyper_parameters": {}},
    "with arguments": lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1, model="resnet8")},
    "without counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_usual_checkpoints(tmp_path: Path, wrapping: str) -> None:
    source, target = network(), network()
    torch.save(WRAPPINGS[wrapping](source.state_dict()), tmp_path / "model.pth")
    load_weights(target, tmp_path / "model.pth", what=WHAT)
    assert_same(source, target)


def test_safetensors_and_run_folder(tmp_path: Path) -> None:
    source = network()
    safetensors.torch.save_file(source.state_dict(), tmp_path / "student.safetensors")
    for path in (tmp_path, tmp_path / "student.safetensors", str(tmp_path)):
        target = network()
        load_weights(target, path, what=WHAT)
        assert_same(source, target)


def test_literature_names(tmp_path: Path) -> None:
    source, target = timm.create_model("shufflenetv1"), timm.create_model("shufflenetv1")
    theirs = {key.replace("fc.", "linear."): value for key, value in source.state_dict().items()}
    torch.save({"model": theirs}, tmp_path / "shuffle.pth")
    load_weights(target, tmp_path / "shuffle.pth", what=WHAT)
    assert_same(source, target)


def test_prefix_of_the_network_itself_is_kept(tmp_path: Path) -> None:
    source, target = (nn.ModuleDict({"model": nn.Linear(2, 3)}) for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "model.pt")
    load_weights(target, tmp_path / "model.pt", what=WHAT)
    assert_same(source, target)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_execute_code_does_not(tmp_path: Path, legacy: bool) -> None:
    trace, file = tmp_path / "executed", tmp_path / "model.pth"
    content = {"state_dict": network().state_dict(), "extra": Attack(trace)}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"^teacher resnet8: .*model\.pth holds more than tensors \(\w+\.mkdir\)"):
        read_weights(file, what=WHAT)
    assert not trace.exists()


def test_a_plain_pickle_does_not_execute_either(tmp_path: Path) -> None:
    trace, file = tmp_path / "executed", tmp_path / "model.bin"
    file.write_bytes(pickle.dumps(Attack(trace)))
    with pytest.raises(UserError, match=r"a pickle of more than tensors.*safetensors"):
        read_weights(file, what=WHAT)
    assert not trace.exists()


def test_a_whole_pickled_network_says_what_it_holds(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"holds more than tensors \(torch\.nn\.modules\.linear\.Linear\)"):
        read_weights(tmp_path / "model.pt", what=WHAT)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.6])
def test_truncated_files(tmp_path: Path, suffix: str, kept: float) -> None:
    whole, file = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(network().state_dict(), whole)
    content = whole.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=rf"^teacher resnet8: .*cut{suffix} is damaged") as caught:
        read_weights(file, what=WHAT)
    assert "\n" not in str(caught.value)


def test_garbage(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_text("not a checkpoint at all")
    with pytest.raises(UserError, match="is damaged"):
        read_weights(tmp_path / "model.pt", what=WHAT)


def test_no_file_no_folder_no_suffix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such weights file: .*absent\.pth"):
        read_weights(tmp_path / "absent.pth", what=WHAT)
    with pytest.raises(UserError, match=r"a folder without student\.safetensors"):
        read_weights(tmp_path, what=WHAT)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.onnx is not a weights file: expected one of \.safetensors"):
        read_weights(tmp_path / "model.onnx", what=WHAT)
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(UserError, match=r"empty\.pt holds no weights: expected a state dict, found dict"):
        read_weights(tmp_path / "empty.pt", what=WHAT)


def test_other_class_count(tmp_path: Path) -> None:
    torch.save(network(100).state_dict(), tmp_path / "model.pt")
    target = network(10)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(UserError, match=r"model\.pt has 100 classes, not 10: train .*10 classes$"):
        load_weights(target, tmp_path / "model.pt", what=WHAT)
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items()), "nothing is half loaded"


def test_missing_unexpected_and_misshapen_are_counted_with_examples(tmp_path: Path) -> None:
    state = network().state_dict()
    del state["fc.bias"]
    state |= {"head.a": torch.zeros(1), "head.b": torch.zeros(1), "head.c": torch.zeros(1)}
    state["conv1.weight"] = torch.zeros(16, 1, 3, 3)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError) as caught:
        load_weights(network(), tmp_path / "model.pt", what=WHAT)
    message = str(caught.value)
    assert "1 missing (fc.bias)" in message
    assert "3 unexpected (head.a, head.b, …)" in message
    assert "1 misshapen (conv1.weight 16×1×3×3 for 16×3×3×3)" in message
    assert "\n" not in message


def test_another_width_is_not_taken_for_another_class_count(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet8x4", num_classes=5).state_dict(), tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"\d+ misshapen \(conv1\.weight 32×3×3×3 for 16×3×3×3, "):
        load_weights(network(), tmp_path / "model.pt", what=WHAT)


def test_every_cifar_network_takes_its_own_weights() -> None:
    from reldistill.networks.weights import fitting_names, mismatch

    for name in cifar.REGISTERED.values():
        with torch.device("meta"):
            one = timm.create_model(name)
        assert mismatch(one, fitting_names(one, one.state_dict())) is None, name
