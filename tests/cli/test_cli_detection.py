"""Detection as a user of the command line meets it: train, distil, evaluate, export, and continue after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import several_lives
from drawn_boxes import CLASSES, draw_large, write_coco
from reldistill.cli.main import main
from reldistill.core.checks import UserError
from reldistill.export.onnx_files import onnx_file
from reldistill.export.student_files import export_run
from reldistill.tasks.base import GraphForm
from reldistill.tasks.detection.export import GRAPH, ExactResizing
from reldistill.tasks.detection.networks.saved_detectors import open_detector
from reldistill.tasks.detection.task import DetectionTask
from small_runs import environment, with_options, write_images

pytestmark = pytest.mark.slow

SMALL = '{"fpn_channels":16,"norm":"group"}'
FCOS = '{"fpn_channels":64,"norm":"group"}'
TWO_STAGE = (
    '{"fpn_channels":16,"norm":"group","rpn_post_nms_top_n_train":100,"rpn_post_nms_top_n_test":50,'
    '"box_batch_size_per_image":64}'
)
DATA = ["--data", "coco:drawn", "--image-size", "64", "--augment", "flip", "--workers", "0"]
HOW = ["--batch-size", "4", "--precision", "32-true", "--optimizer", "adamw", "--lr", "0.001", "--epochs", "1"]
TRAIN = ["train", *DATA, *HOW, "--model", "fcos_resnet18_fpn", "--model-arguments", FCOS]
RETINA = ["--student", "retinanet_mobilenet_v3_small_fpn", "--student-arguments", SMALL]
DISTILL = ["distill", *DATA, *HOW, *RETINA, "--teacher", "teacher", "--method", "sekd"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Drawn images, a teacher that finds what is on them, and one that has seen them once, with the folder entered."""
    folder = tmp_path_factory.mktemp("detection")
    before = Path.cwd()
    os.chdir(folder)
    try:
        write_coco(Path("drawn"), train=draw_large(16), val=draw_large(6, seed=1, first=16))
        assert main(with_options(TRAIN, epochs=4, out="teacher")) == 0
        yield folder
    finally:
        os.chdir(before)


def record(run: str | Path) -> dict[str, Any]:
    return json.loads((Path(run) / "record.json").read_text())


def said(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    capfd.readouterr()
    assert main([*arguments]) == 0
    return capfd.readouterr().out


def validation_images() -> list[Tensor]:
    """(3, H, W) in [0, 1]."""
    files = sorted(Path("drawn/images/val").glob("*.png"))
    return [torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255 for file in files]


# Runs ----------------------------------------------------------------------------------------------------------------


def test_a_retinanet_learns_from_an_fcos(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = with_options(DISTILL, out="retina")
    printed = json.loads(said(capfd, *command, "--json"))
    made = record("retina")
    assert printed["records"][0]["status"] == made["status"] == "finished"
    assert made["task"] == "detection"
    assert made["teacher"]["name"] == "fcos_resnet18_fpn"
    assert made["teacher"]["score"] == pytest.approx(record("teacher")["result"]["score_last"], abs=1e-9)
    assert made["teacher"]["score"] > 1
    assert [(term["name"], term["student"], term["teacher"]) for term in made["terms"]] == [
        ("sekd", level, level) for level in ("p3", "p4", "p5", "p6", "p7")
    ]
    losses = made["history"][0]["train"]
    assert {"task", "sekd.vertex", "sekd.edge", "sekd.spectral"} <= {name.partition("@")[0] for name in losses}
    assert losses["total"] > losses["task"] > 0
    page = Path("retina/report.html").read_text()
    assert "AP50" in page
    assert page.count("<svg") + page.count("<img") >= 3


def test_evaluate_measures_what_the_run_measured(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capfd, "evaluate", "teacher", "--data", "coco:drawn", "--json"))
    last = record("teacher")["history"][-1]["val"]
    assert found["images"] == 6
    assert {name: found[name] for name in ("AP", "AP50", "AR100")} == pytest.approx(
        {name: last[name] for name in ("AP", "AP50", "AR100")}
    )
    assert "AP50" in said(capfd, "evaluate", "teacher", "--data", "coco:drawn", "--task", "detection")
    smaller = json.loads(said(capfd, "evaluate", "teacher", "--data", "coco:drawn", "--image-size", "40", "--json"))
    assert smaller["AP"] < found["AP"]
    best = ["--weights", "teacher/student-best.safetensors", "--json"]
    found = json.loads(said(capfd, "evaluate", "teacher", "--data", "coco:drawn", *best))
    assert found["AP"] == pytest.approx(record("teacher")["result"]["score_best"])


@pytest.mark.usefixtures("unchecked_types")
def test_a_run_keeps_its_size_unless_it_is_trained_on(world: Path) -> None:
    images = SimpleNamespace(classes=CLASSES, image_size=96, longest_size=160)
    sizes = {
        role: DetectionTask().open("teacher", role=role, images=images).card.input_size  # type: ignore[arg-type]
        for role in ("student", "teacher")
    }
    assert sizes == {"student": 96, "teacher": 64}


def test_class_scores_of_a_two_stage_pair(world: Path) -> None:
    train = with_options(TRAIN, model="fasterrcnn_resnet18_fpn", model_arguments=TWO_STAGE, epochs=4)
    assert main(with_options(train, out="two-stage")) == 0
    pair = {"teacher": "two-stage", "student": "fasterrcnn_mobilenet_v3_small_fpn", "student_arguments": TWO_STAGE}
    assert main(with_options(DISTILL, method="head_kd", out="two-stage-student", **pair)) == 0
    made = record("two-stage-student")
    assert [(term["name"], term["student"]) for term in made["terms"]] == [("head_kd", "scores")]
    assert made["history"][0]["train"]["head_kd"] > 0


def test_an_ssdlite_learns_from_a_pyramid(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = [option for option in DISTILL if option not in ("--student-arguments", SMALL)]
    with_size = {"student": "ssdlite320_mobilenet_v3_large", "image_size": 320}
    assert main(with_options(command, out="ssdlite", **with_size)) == 0
    made = record("ssdlite")
    assert {term["student"] for term in made["terms"]} <= {"p4", "p5", "p6", "p7", "p8"}
    assert made["student"]["input_size"] == 320
    found = json.loads(said(capfd, "evaluate", "ssdlite", "--data", "coco:drawn", "--json"))
    assert found["AP"] == pytest.approx(made["result"]["score_last"])


def test_killed_and_resumed_is_bit_identical(world: Path) -> None:
    """Killed within the second epoch, with all that is random in it: MGD's masks, crops, flips, multi-scale boxes."""
    more = {"method": "sekd+mgd", "augment": "crop", "epochs": 2, "checkpoint_every": 1}
    command = with_options(DISTILL, **more, student_arguments='{"fpn_channels":16}')
    resume = with_options(command, out="killed", resume=True)
    lives = [(with_options(command, out="whole"), ""), (resume, "batch:6"), (resume, "")]
    done = subprocess.run(
        [sys.executable, several_lives.__file__, json.dumps([[" ".join(words), moment] for words, moment in lives])],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert json.loads(done.stdout) == [0, -signal.SIGKILL, 0], done.stderr
    whole, killed = (what_is_left(Path(run)) for run in ("whole", "killed"))
    assert [epoch["step"] for epoch in whole["history"]] == [4, 8]
    assert killed == whole


def what_is_left(run: Path) -> dict[str, Any]:
    """All that a run leaves, but for times."""
    kept = ["student.safetensors", "student-best.safetensors", "val_detections.npz", "detections.npz", "relations.npz"]
    made = record(run)
    times = ("seconds_per_step", "seconds_total", "images_per_second")
    return {
        **{name: (run / name).read_bytes() for name in kept},
        "history": [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in made["history"]],
        "result": {key: value for key, value in made["result"].items() if key not in times},
        "terms": made["terms"],
    }


# Exports -------------------------------------------------------------------------------------------------------------

STRANGER = """
import json, sys
sys.modules["reldistill"] = None  # importing it fails
sys.path.insert(0, sys.argv[1])
import numpy, torch
import export_detector
with torch.no_grad():
    found = export_detector.load()([torch.from_numpy(numpy.load(sys.argv[2]))])[0]
print(json.dumps({name: values.tolist() for name, values in found.items()}))
"""


def test_a_stranger_loads_the_detector_without_this_package(world: Path, tmp_path: Path) -> None:
    made = export_run(Path("teacher"), out=tmp_path / "given" / "export.safetensors")
    assert made["sha256"] == record("teacher")["result"]["weights"]["student.safetensors"]
    image = validation_images()[0]
    np.save(tmp_path / "image.npy", image.numpy())
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(tmp_path / "given"), str(tmp_path / "image.npy")],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    network = open_detector("teacher", role="model", classes=None).extractor.network.eval()
    with torch.no_grad():
        expected = network([image])[0]
    assert len(expected["boxes"]) > 0
    for name, values in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]), values, rtol=1e-4, atol=1e-4, check_dtype=False)
    card = json.loads((tmp_path / "given" / "export_detector.json").read_text())
    assert card["classes"] == {str(output): name for output, name in enumerate(CLASSES, start=1)}
    assert {path.name for path in (tmp_path / "given").iterdir()} == {
        "export.safetensors",
        "export_detector.py",
        "export_detector.json",
    }


@pytest.fixture(scope="module")
def graph(world: Path) -> dict[str, Any]:
    pytest.importorskip("onnxruntime")
    return export_run(Path("teacher"), format="onnx")


def test_onnx_finds_what_pytorch_finds_in_images_of_any_size(world: Path, graph: dict[str, Any]) -> None:
    import onnxruntime

    assert graph["compared"] > 0
    assert graph["without_equal"] == 0
    assert graph["largest_box_difference"] < 0.01
    assert graph["largest_score_difference"] < 1e-4
    session = onnxruntime.InferenceSession(graph["file"], providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["images"]
    names = [one.name for one in session.get_outputs()]
    assert names == ["boxes", "labels", "scores"]
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    assert classes == {str(output): name for output, name in enumerate(CLASSES, start=1)}
    network = open_detector("teacher", role="model", classes=None).extractor.network.eval()
    for height, width in ((80, 96), (50, 47), (131, 300)):
        image = nn.functional.interpolate(validation_images()[1][None], (height, width), mode="bilinear")
        with torch.no_grad():
            expected = network([image[0]])[0]
        found = dict(zip(names, session.run(names, {"images": image.numpy()}), strict=True))
        assert len(expected["boxes"]) == len(found["boxes"])
        for name, tolerance in (("boxes", 1e-2), ("scores", 1e-4), ("labels", 0)):
            np.testing.assert_allclose(found[name], expected[name].numpy(), rtol=0, atol=tolerance)


def test_an_image_gets_the_same_size_in_onnx(world: Path) -> None:
    """Also where single precision, in which torchvision's own graph reckons, would be off by one pixel."""
    onnxruntime = pytest.importorskip("onnxruntime")
    own = GeneralizedRCNNTransform(64, 107, [0.5] * 3, [0.5] * 3).eval()

    class Resizing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.exact = ExactResizing(own).eval()

        def forward(self, images: Tensor) -> Tensor:
            return self.exact.resize(images[0])[0]

    free = {"images": {2: "height", 3: "width"}}
    how = {**GRAPH, "dynamic_axes": free}
    form = GraphForm(Resizing(), torch.rand(1, 3, 80, 96), ["sized"], how, compare=lambda graph: {})
    with onnx_file(world / "r.onnx", form):
        pass
    session = onnxruntime.InferenceSession(world / "r.onnx", providers=["CPUExecutionProvider"])
    rounded = 0
    for side in range(33, 200):
        for shape in ((side, side + 20), (side + 90, side)):
            image = torch.rand(1, 3, *shape, generator=torch.Generator().manual_seed(side))
            expected = own.resize(image[0])[0].numpy()
            found = session.run(["sized"], {"images": image.numpy()})[0]
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
            single = np.float32(side) * min(np.float32(64) / np.float32(side), np.float32(107) / np.float32(max(shape)))
            rounded += int(single) != min(expected.shape[1:])
    assert rounded > 10


def test_a_graph_that_finds_something_else_is_not_written(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    write = torch.onnx.export

    def other_size(network: Any, *arguments: Any, **keywords: Any) -> Any:
        network.network.transform.min_size = (60,)
        return write(network, *arguments, **keywords)

    monkeypatch.setattr(torch.onnx, "export", other_size)
    with pytest.raises(UserError, match=r"detections differ from the network's: \d+ of \d+ detections .* not written"):
        export_run(Path("teacher"), format="onnx", out=world / "wrong.onnx")
    assert not [*world.glob("*wrong*")]


def test_onnx_needs_the_pictures_to_compare_on(world: Path) -> None:
    pytest.importorskip("onnxruntime")
    pictures = Path("teacher/detections.npz")
    kept = pictures.read_bytes()
    pictures.unlink()
    try:
        with pytest.raises(UserError, match=r"detections.npz is not there: an ONNX graph is compared"):
            export_run(Path("teacher"), format="onnx", out=world / "blind.onnx")
    finally:
        pictures.write_bytes(kept)
    assert not [*world.glob("*blind*")]


# What can be named, and what is wrong --------------------------------------------------------------------------------


def test_layers_and_names_of_detectors(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(said(capfd, "layers", "teacher", "--json"))
    assert [(row["name"], row["channels"], row["height"], row["stride"]) for row in rows[:2]] == [
        ("p3", 64, 8, 8),
        ("p4", 64, 4, 16),
    ]
    assert all({"sekd", "fgd", "pkd"} <= set(row["auto"]) for row in rows)
    named = said(capfd, "layers", "fasterrcnn_mobilenet_v3_small_fpn", "--image-size", "256", "--arguments", SMALL)
    assert [line.split()[:3] for line in named.splitlines()[1:3]] == [["p2", "16", "64x64"], ["p3", "16", "32x32"]]
    listed = {row["name"]: row for row in json.loads(said(capfd, "list", "models", "net_", "--json"))}
    assert "detector" in listed["retinanet_BACKBONE_fpn"]["note"]
    assert listed["retinanet_resnet50_fpn_v2"]["source"] == "torchvision"


def test_report_compares_detectors(world: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    out = said(capfd, "report", "teacher", "--out", str(tmp_path / "page.html"), "--csv", str(table))
    assert "AP" in out
    assert len(table.read_text().splitlines()) == 2


def test_compare_looks_at_the_test_images_once(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [word for word in with_options(DISTILL, out="compared") if word != "sekd"]
    arguments.remove("--method")
    assert main(["compare", *arguments[1:], "--methods", "none", "pkd", "--seeds", "1", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [cell["status"] for cell in found["cells"]] == ["finished"] * 2
    assert found["data"]["test_images"] == 6
    assert found["teacher"]["test"] > 1
    for cell in found["cells"]:
        assert 0 <= cell["test_last"] <= 100
        assert cell["agreement"] is None
    between = found["summary"]["pkd"]["vs_none"]
    assert between["low"] <= between["points"] <= between["high"]
    assert found["summary"]["pkd"]["training_flops"] > found["summary"]["none"]["training_flops"] > 0
    page = Path("compared/compare.html").read_text()
    assert "test AP, last epoch, %" in page
    assert "t-SNE" not in page


@pytest.fixture(scope="module")
def traps(world: Path) -> Path:
    """Images without boxes, other classes, and a detector that has learned nothing."""
    write_images(world / "pics", count=10)
    write_coco(Path("other"), train=draw_large(8), val=draw_large(2, seed=1, first=8))
    for file in Path("other/annotations").iterdir():
        file.write_text(file.read_text().replace('"red"', '"purple"'))
    assert main(with_options(TRAIN, lr=1e-9, out="ignorant")) == 0
    return world


PICS = ["--data", "pics", "--batch-size", "4", "--epochs", "1"]
EVALUATE = ["evaluate", "teacher", "--data"]
WRONG_INPUT: list[tuple[list[str], str]] = [
    (
        ["train", *PICS, "--model", "retinanet_resnet18_fpn"],
        "retinanet_resnet18_fpn: a network for detection only: labelled boxes are given as",
    ),
    (["train", *PICS, "--model", "teacher"], "teacher is a run of detection"),
    (["train", *PICS, "--task", "detection", "--model", "teacher"], "labelled boxes are given as coco:DIR"),
    (["distill", *PICS, "--teacher", "teacher", "--student", "resnet8"], "teacher is a run of detection"),
    (with_options(TRAIN, model="resnet18"), "no such detector: did you mean retinanet_resnet18_fpn"),
    (with_options(TRAIN, model="fcos_resnet81_fpn"), "no such backbone 'resnet81': did you mean resnet18"),
    (with_options(TRAIN, model_arguments='{"depth":3}'), "fcos_resnet18_fpn has no setting 'depth'"),
    (with_options(TRAIN, task="classification"), "--task classification --data coco:drawn"),
    (with_options(TRAIN, label_smoothing=0.1), "--label-smoothing: a detector's own losses have none"),
    (with_options(TRAIN, augment="strong"), "augment 'strong' is unknown for detection"),
    (with_options(TRAIN, download=True), "--download: coco:drawn names a folder"),
    (with_options(TRAIN, data="coco:nowhere"), "data 'coco:nowhere': no such file or folder"),
    (with_options(TRAIN, image_size=16), "image size 16"),
    (with_options(DISTILL, teacher="ignorant"), "it finds next to nothing"),
    (with_options(DISTILL, teacher="resnet18"), "teacher resnet18: no such detector"),
    (with_options(DISTILL, teacher="fcos_resnet18_fpn"), "no pretrained detector of this name exists"),
    (with_options(DISTILL, data="coco:other"), "its weights don't know the class purple of the data"),
    (
        with_options(DISTILL, cache_teacher="cache"),
        "a teacher's outputs for detection can't be cached",
    ),
    (with_options(DISTILL, method="kd"), "method 'kd' is not for detection: choose one of none, fitnets"),
    (with_options(DISTILL, method="deit_hard"), "method 'deit_hard' is not for detection"),
    (with_options(DISTILL, method="sekd+simkd"), "method 'simkd' is not for detection"),
    (with_options(DISTILL, method="head_kd"), "head_kd compares two RetinaNets, FCOS or Faster R-CNNs"),
    (with_options(DISTILL, levels="p2:p3"), "level 'p2' not in retinanet_mobilenet_v3_small_fpn: it has p3, p4"),
    ([*EVALUATE, "coco:other"], "its weights don't know the class purple of the data"),
    ([*EVALUATE, "pics"], "teacher is a run of detection"),
    ([*EVALUATE, "coco:drawn", "--batch-size", "0"], "batch size 0"),
    (["evaluate", "fcos_resnet18_fpn", "--data", "coco:drawn"], "fcos_resnet18_fpn has no weights to evaluate"),
    (["export", "teacher", "--format", "onnx", "--raw"], "--raw: a detector's normalisation is part of it"),
    (["export", "ignorant", "--format", "onnx"], "finds nothing in the pictures of ignorant"),
    (["layers", "retinanet_nothing_fpn"], "no such backbone 'nothing'"),
    (["layers", "teacher", "--image-size", "-1"], "image size -1: give at least 1"),
]


@pytest.mark.parametrize(("arguments", "text"), WRONG_INPUT, ids=lambda value: "")
def test_wrong_input(
    arguments: list[str], text: str, traps: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] in ("train", "distill"):
        arguments = with_options(arguments, out=tmp_path / "run")
    capfd.readouterr()
    code = main(arguments)
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    assert text in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("reldistill: ")
    assert "Traceback" not in err


def test_published_weights_that_cannot_be_downloaded(
    world: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import urllib.error

    def no_network(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    capfd.readouterr()
    assert main(["evaluate", "retinanet_resnet50_fpn", "--pretrained", "--data", "coco:drawn"]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert "retinanet_resnet50_fpn: its pretrained weights could not be downloaded" in last
    assert "--" in last, "says what to do instead"
