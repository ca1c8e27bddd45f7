"""A student leaves the package: plain safetensors and timm, or ONNX, say what the run's network says."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from reldistill.cli.main import main
from reldistill.core.checks import UserError
from reldistill.export.onnx_files import onnx_file
from reldistill.export.student_files import export_run
from reldistill.tasks.base import GraphForm
from small_runs import DISTILL, TRAIN, TRUST, with_options, write_world

pytestmark = pytest.mark.slow

VIT = {"patch_size": 4, "img_size": 12, "embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`cnn` and `vit`: students of a CNN by all relational parts, so that adapters were trained too."""
    folder = write_world(tmp_path_factory.mktemp("export"))
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(with_options(TRAIN, epochs=4, out="teacher")) == 0
        command = with_options(DISTILL, epochs=3, method="serkd+sekd", precision="32-true")
        vit = {"student": "vit_tiny_patch16_224", "student_arguments": json.dumps(VIT), "lr": 0.003}
        assert main(with_options(command, out="vit", **vit)) == 0
        assert main(with_options(command, out="cnn", student="resnet8", ema=0.5, lr=0.02)) == 0
        yield folder
    finally:
        os.chdir(before)


def bare(student: str) -> nn.Module:
    """The network as somebody without this package's run would make it."""
    if student == "vit":
        return timm.create_model("vit_tiny_patch16_224", num_classes=3, **VIT)
    return timm.create_model("resnet8", num_classes=3)


def normalised(images: Tensor, run: Path) -> Tensor:
    from reldistill.networks.cards import read_card

    card = read_card(run / "student.safetensors")
    return (images - torch.tensor(card.mean).view(3, 1, 1)) / torch.tensor(card.std).view(3, 1, 1)


@pytest.mark.parametrize("student", ["cnn", "vit"])
@pytest.mark.parametrize("best", [False, True])
def test_safetensors_load_strictly_into_the_bare_network(runs: Path, student: str, best: bool) -> None:
    out = runs / f"{student}-{best}.safetensors"
    result = export_run(runs / student, out=out, best=best)
    network = bare(student)
    network.load_state_dict(load_file(out), strict=True)
    source = "student-best.safetensors" if best else "student.safetensors"
    assert result["sha256"] == json.loads((runs / student / "record.json").read_text())["result"]["weights"][source]
    assert result["classes"] == ["blue", "green", "red"]
    assert result["input_size"] == 12


@pytest.mark.parametrize("student", ["cnn", "vit"])
def test_exported_network_is_as_right_as_the_record_says(runs: Path, student: str) -> None:
    from reldistill.data.image_data import load_images

    network = bare(student).eval()
    network.load_state_dict(load_file(runs / student / "student.safetensors"), strict=True)
    hits = count = 0
    for batch in load_images(str(runs / "pics"), batch_size=12, val_fraction=0.3).val:
        with torch.no_grad():
            hits += int((network(normalised(batch.images, runs / student)).argmax(1) == batch.targets.labels).sum())
        count += len(batch)
    recorded = json.loads((runs / student / "record.json").read_text())["result"]["score_last"]
    assert 100 * hits / count == pytest.approx(recorded, abs=1e-3)


@pytest.mark.parametrize("student", ["cnn", "vit"])
@pytest.mark.parametrize("raw", [False, True])
def test_onnx_equals_pytorch_for_any_batch(runs: Path, student: str, raw: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = runs / f"{student}-{raw}.onnx"
    result = export_run(runs / student, format="onnx", out=out, raw=raw)
    assert result["largest_relative_difference"] < 1e-4
    network = bare(student).eval()
    network.load_state_dict(load_file(runs / student / "student.safetensors"))
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["images"]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    for count in (1, 3, 8):
        images = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            expected = network(images if raw else normalised(images, runs / student)).numpy()
        found = session.run(["logits"], {"images": images.numpy()})[0]
        assert found.shape == (count, 3)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert not [*runs.glob("*.part")]
    assert [*runs.glob(f"{out.name}*")] == [out], "one file, no data beside it"


def test_onnx_of_a_network_of_ones_own(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    assert main(["export", "teacher", "--format", "onnx", *TRUST]) == 0
    assert "images (B, 3, 12, 12) RGB in [0, 1] → logits (B, 3)" in capfd.readouterr().out
    assert Path("teacher/export.onnx").is_file()
    specification = importlib.util.spec_from_file_location("nets", runs / "nets.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.small(3).load_state_dict(load_file("teacher/student.safetensors"), strict=True)


def test_the_runs_own_weights_are_never_overwritten(runs: Path) -> None:
    own = {name: (runs / "cnn" / name).read_bytes() for name in ("student.safetensors", "student-best.safetensors")}
    assert Path(export_run(runs / "cnn")["file"]) == runs / "cnn/export.safetensors"
    assert Path(export_run(runs / "cnn", best=True)["file"]) == runs / "cnn/export-best.safetensors"
    for name in own:
        with pytest.raises(UserError, match="is the run's own file"):
            export_run(runs / "cnn", best=True, out=runs / "cnn" / name)
    assert own == {name: (runs / "cnn" / name).read_bytes() for name in own}


def test_a_graph_that_computes_something_else_is_not_written(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    write = torch.onnx.export

    def other_weights(network: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        changed = bare("cnn").eval()
        return write(changed, *arguments, **keywords)

    monkeypatch.setattr(torch.onnx, "export", other_weights)
    with pytest.raises(UserError, match=r"differ from the network's by .*: not written"):
        export_run(runs / "cnn", format="onnx", out=runs / "wrong.onnx")
    assert not [*runs.glob("*wrong*")]


def test_a_graph_takes_the_place_of_a_file_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there stays as it was until the graph has been compared, and while it is written."""
    pytest.importorskip("onnxscript")
    target, images = tmp_path / "graph.onnx", torch.rand(1, 3, 2, 2)
    form = GraphForm(nn.Flatten(), images, outputs=("flat",), options={"dynamo": False}, compare=dict)
    target.write_bytes(b"before")

    def write(error: Exception | None = None, *, full: bool = False) -> None:
        with onnx_file(target, form) as graph:
            np.testing.assert_array_equal(graph(images.numpy())[0], images.flatten(1).numpy())
            if error is not None:
                raise error
            if full:
                monkeypatch.setattr(os, "replace", no_space)

    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="differs"):
        write(UserError("differs"))
    assert target.read_bytes() == b"before"
    with pytest.raises(UserError, match="No space left"):
        write(full=True)
    assert target.read_bytes() == b"before"
    monkeypatch.undo()
    write()
    assert target.read_bytes() != b"before"
    assert [*tmp_path.iterdir()] == [target]
