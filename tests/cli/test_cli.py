"""The command line as its user meets it: help, configuration files, JSON, and one clear line for everything wrong."""

from __future__ import annotations

import dataclasses
import gc
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from reldistill.cli import main as command
from reldistill.cli.main import COMMANDS, main
from reldistill.networks.cards import read_card, write_weights
from reldistill.recipes import RECIPES
from small_runs import DISTILL, TRAIN, TRUST, environment, reldistill, with_options, write_world

COMMAND_WORDS = [*([name] for name in COMMANDS if name != "run"), *(["run", name] for name in RECIPES)]
HEAVY = ("torch", "torchvision", "timm", "lightning", "sklearn", "matplotlib", "numpy")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Images, networks and a finished teacher, with the working directory among them."""
    folder = write_world(tmp_path_factory.mktemp("world"))
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(with_options(TRAIN, epochs=4, out="teacher")) == 0
        yield folder
    finally:
        os.chdir(before)


class Said:
    """What a command printed, and its exit code."""

    def __init__(self, capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
        capfd.readouterr()
        self.code = main(arguments)
        self.out, self.err = capfd.readouterr()

    @property
    def last(self) -> str:
        return self.err.splitlines()[-1]


# Help ----------------------------------------------------------------------------------------------------------------


def test_help_and_wrong_options_import_nothing_heavy() -> None:
    program = f"""
import sys
from reldistill.cli.main import main
assert main([]) == 0
for words in {COMMAND_WORDS!r}:
    assert main([*words, "--help"]) == 0
    assert main([*words, "--nonsense"]) == 2
    assert main([*words, "--config", "nowhere.yaml"]) == 2
assert main(["nonsense"]) == 2
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("words", COMMAND_WORDS, ids=" ".join)
def test_every_help_explains_itself(
    words: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = Said(capfd, [*words, "--help"])
    assert said.code == 0
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0].startswith(f"usage: reldistill {' '.join(words)} ")
    assert len(said.out.split("\n\n")[0].splitlines()) <= 3
    assert max(map(len, lines)) <= 80
    for noise in ("<class", "{true,false}", "Union", "null", "typing", "[ITEM"):
        assert noise not in said.out
    options = re.findall(r"^  (--[\w-]+).*(?:\n {20,}.*)*", said.out, flags=re.MULTILINE)
    assert "--print_config" in options
    assert not [option for option in options if "_" in option and option != "--print_config"]
    entries = re.findall(r"^  --[\w-]+(?:, --[\w-]+)?(?: \S+)?\s+(\S.*)$", said.out, flags=re.MULTILINE)
    assert len(entries) == len(options), "an option without a word of help"


def test_help_of_distill_shows_groups_and_defaults(capfd: pytest.CaptureFixture[str]) -> None:
    out = " ".join(Said(capfd, ["distill", "--help"]).out.split())
    for text in ("Images:", "Teacher, student and method:", "Training:", "--batch-size N images per step"):
        assert text in out
    assert "by default 128, for detection 8" in out
    assert "strong | flip | multi-scale | jitter; default: auto" in out
    assert "--channels-last, --no-channels-last" in out


@pytest.mark.parametrize("name", RECIPES)
def test_help_of_a_recipe_says_command_cost_and_score(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    out = Said(capfd, ["run", name, "--help"]).out
    for word in ("Command:", "Cost:", "Expected score:"):
        assert word in out
    assert f"reldistill run {name} " in " ".join(out.split())


def test_no_command_shows_all_commands(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        said = Said(capfd, arguments)
        assert said.code == 0
        assert all(re.search(rf"^  {name} ", said.out, flags=re.MULTILINE) for name in COMMANDS)
    assert all(f"  {name} " in Said(capfd, ["run"]).out for name in RECIPES)


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert re.fullmatch(r"reldistill \d+\.\d+\.\d+\S*\n", Said(capfd, ["--version"]).out)


# Options -------------------------------------------------------------------------------------------------------------

ALL_KINDS = with_options(
    DISTILL,
    out="round",
    method="serkd",
    epochs=1,
    levels="layer2:layer2",
    weights='{"kd": 2, "serkd.angle": 3.5}',
    settings='{"serkd": {"iterations": 2}}',
    student_arguments='{"width": 4}',
    milestones="0.25,0.5",
    precision="32-true",
    skip_bad_images=True,
    no_channels_last=True,
)


@pytest.mark.slow
def test_print_config_and_config_give_the_same_run(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    printed = Said(capfd, [*ALL_KINDS, "--print_config"])
    assert printed.code == 0
    Path("run.yaml").write_text(printed.out)
    assert Said(capfd, ["distill", "--config", "run.yaml", "--print-config"]).out == printed.out
    assert "skip_bad_images: true" in printed.out
    assert "channels_last: false" in printed.out
    assert not Path("round").exists()

    assert Said(capfd, ALL_KINDS).code == 0
    assert Said(capfd, ["distill", "--config", "run.yaml", "--out", "again"]).code == 0
    assert Path("round/student.safetensors").read_bytes() == Path("again/student.safetensors").read_bytes()
    flags, file = (json.loads(Path(f"{run}/record.json").read_text()) for run in ("round", "again"))
    assert flags["settings"] == file["settings"]
    assert flags["settings"]["milestones"] == [0.25, 0.5]
    assert flags["settings"]["weights"] == {"kd": 2.0, "serkd.angle": 3.5}


def test_options_go_over_the_file_and_numbers_may_be_words(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("some.yaml").write_text("data: digits\nmodel: resnet8\ndevices: 2\nlr: 1e-2\nbatch_size: 32\nout: x\n")
    out = Said(capfd, ["train", "--config", "some.yaml", "--batch-size=64", "--resume", "false", "--print_config"]).out
    for line in ("data: digits", "devices: 2", "lr: 0.01", "batch_size: 64", "resume: false"):
        assert f"{line}\n" in out


@pytest.mark.parametrize("given", [["a:b", "c:d"], ["a:b,c:d"], ['["a:b", "c:d"]']])
def test_lists_may_be_words_or_yaml(given: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    out = Said(capfd, ["distill", "--levels", *given, "--seed", "3", "--print_config"]).out
    assert "levels:\n- a:b\n- c:d\n" in out
    assert "seed: 3\n" in out


# Everything wrong is one line ----------------------------------------------------------------------------------------

WRONG_WORDS: list[tuple[list[str], str]] = [
    (["distil"], "did you mean distill?"),
    (["frobnicate"], "has no 'frobnicate': choose one of quickstart, distill"),
    (["--data", "pics"], "--data must come after one of quickstart"),
    (["run", "imagenet"], "reldistill run has no 'imagenet'"),
    (["distill", "--epoch", "3"], "there is no option --epoch: did you mean --epochs?"),
    (["distill", "--epochs", "x"], "--epochs: expected a whole number, got 'x'"),
    (["distill", "--image-size", "big"], "--image-size: expected a whole number, got 'big'"),
    (["distill", "--lr", "x"], "--lr: expected a number, got 'x'"),
    (["distill", "--augment", "x"], "strong, flip, multi-scale, jitter, got 'x'"),
    (["distill", "--weights", "3"], "--weights: expected a mapping"),
    (["distill", "--settings", "kd"], "--settings: expected a mapping of mappings"),
    (["distill", "--milestones", "0.5", "x"], "--milestones: expected numbers, got 'x'"),
    (["distill", "--resume=perhaps"], "--resume: expected true or false, got 'perhaps'"),
    (["distill", "--out"], "--out: expected one argument"),
    (["distill", "more"], "'more' is one argument too many"),
    (["distill", "--teacher", "x"], "--out, --data, --student must be given (see: reldistill distill --help)"),
    (["layers"], "model must be given"),
    (["train", "--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
    (["list", "things"], "there is no list of 'things': choose methods, models or recipes"),
    (["list", "models", "zzzz"], "none of the models has 'zzzz' in its name"),
]


@pytest.mark.parametrize(("arguments", "text"), WRONG_WORDS, ids=lambda value: "")
def test_wrong_words(arguments: list[str], text: str, capfd: pytest.CaptureFixture[str]) -> None:
    said = Said(capfd, arguments)
    assert said.code == 2
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("reldistill: ")
    assert text in said.err


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("zz: 3", "there is no setting 'zz'"),
        ("batch-size: 3", "did you mean batch_size?"),
        ("epochs: [", "bad.yaml: is not YAML"),
        ("just words", "expected settings as NAME: VALUE"),
        ("epochs: many", "--epochs: expected a whole number, got 'many'"),
    ],
)
def test_wrong_configuration(content: str, text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    said = Said(capfd, ["train", "--config", str(file)])
    assert said.code == 2
    assert len(said.err.splitlines()) == 1
    assert text in said.err


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it-ran",)


@pytest.fixture(scope="module")
def traps(world: Path) -> Path:
    """Everything that a user might hand over by mistake."""
    (world / "one/a").mkdir(parents=True)
    shutil.copy(world / "pics/red/00.png", world / "one/a")
    shutil.copytree(world / "pics", world / "damaged")
    (world / "damaged/red/05.png").write_bytes((world / "damaged/red/05.png").read_bytes()[:-40])
    (world / "damaged/blue/07.png").write_bytes(b"")
    shutil.copytree(world / "pics", world / "two")
    shutil.rmtree(world / "two/blue")
    shutil.copytree(world / "pics", world / "renamed")
    (world / "renamed/red").rename(world / "renamed/reds")
    (world / "a-file").write_text("x")
    torch.save({"state_dict": Evil()}, world / "malicious.pth")
    torch.save({"fc.weight": torch.zeros(3)}, world / "other.pth")
    nothing_learned = with_options(TRAIN, out="ignorant", epochs=1, lr=1e-9)
    assert main(nothing_learned) == 0
    state = load_file(world / "teacher/student.safetensors")
    state["head.bias"][1] = float("nan")
    shutil.copytree(world / "teacher", world / "spoilt")
    write_weights(world / "spoilt/student.safetensors", state, read_card(world / "teacher/student.safetensors"))
    unfinished = world / "unfinished"
    shutil.copytree(world / "teacher", unfinished)
    record = json.loads((unfinished / "record.json").read_text())
    (unfinished / "record.json").write_text(json.dumps({**record, "status": "running"}))
    (unfinished / "student.safetensors").unlink()
    shutil.copytree(unfinished, world / "broken")
    (world / "broken/last.ckpt").write_bytes((unfinished / "last.ckpt").read_bytes()[:-500])
    (world / "no-record").mkdir()
    (world / "no-record/record.json").write_text("{")
    return world


KD = with_options(DISTILL, method="kd", epochs=1)
WRONG_INPUT: list[tuple[list[str], str]] = [
    (with_options(TRAIN, data="nowhere"), "data 'nowhere': no such file or folder"),
    (with_options(TRAIN, data="one"), "one: only one class, 'a'"),
    (with_options(TRAIN, data="a-file"), "a-file: not a readable zip archive"),
    (with_options(TRAIN, data="damaged"), "bad image damaged/blue/07.png: empty file (1 more bad image)"),
    (with_options(TRAIN, batch_size=5000), "batch size 5000 is larger than the 42 training images"),
    (with_options(TRAIN, batch_size=11, devices=2), "batch size 11 can't be shared evenly by 2 devices"),
    (with_options(TRAIN, image_size=2), "image size 2"),
    (with_options(TRAIN, val_fraction=2), "val fraction 2.0"),
    (with_options(TRAIN, epochs=0), "epochs 0: give at least 1"),
    (with_options(TRAIN, lr=-1), "lr -1.0: give more than 0"),
    (with_options(TRAIN, batch_size=0), "batch size 0: give at least 1"),
    (with_options(TRAIN, ema=1), "ema 1.0: give at least 0 and less than 1"),
    (with_options(TRAIN, devices="some"), "devices: expected a number or auto, got 'some'"),
    (with_options(TRAIN, model="nets.py:nothing"), "nets.py defines no 'nothing'"),
    (with_options(TRAIN, model="nowhere.py:net"), "no such Python file: nowhere.py"),
    (with_options(TRAIN, model="resnet9"), "no such network: did you mean resnet8"),
    (with_options(TRAIN, model_arguments='{"depth": 3}'), "takes no argument 'depth'"),
    (with_options(TRAIN, model="two"), "network two: no such network"),
    (with_options(TRAIN, lr=1e12, epochs=3), "the loss is not finite at batch"),
    (with_options(KD, method="wishful"), "method 'wishful' is unknown: choose one of none, kd"),
    (with_options(KD, method="serkd", levels="layer9:layer2"), "level 'layer9' not in nets.py:small"),
    (with_options(KD, method="serkd", levels="layer2:layer9"), "level 'layer9' not in nets.py:small"),
    (with_options(KD, method="serkd", levels="layer2:"), "expected STUDENT_LEVEL:TEACHER_LEVEL, got 'layer2:'"),
    (with_options(KD, weights='{"angle": 1}'), "'angle' is not a part of method 'kd': it has task, kd"),
    (with_options(KD, weights='{"kd": -1}'), "weight of kd -1.0: give at least 0"),
    (with_options(KD, settings='{"rkd": {}}'), "settings for 'rkd', which is not a term of method 'kd'"),
    (with_options(KD, settings='{"kd": {"heat": 1}}'), "'heat' is not a setting of kd: it has temperature"),
    (with_options(KD, settings='{"kd": {"temperature": -1}}'), "temperature must be above 0"),
    (with_options(KD, teacher="resnet8", teacher_weights="malicious.pth"), "could execute code, so it is not loaded"),
    (with_options(KD, teacher="resnet8", teacher_weights="other.pth"), "other.pth does not fit"),
    (with_options(KD, teacher="resnet8", teacher_weights="gone.pth"), "no such weights file: gone.pth"),
    (with_options(KD, teacher="resnet8", teacher_weights="a-file"), "a-file is not a weights file"),
    (with_options(KD, teacher="resnet8"), "no pretrained weights exist"),
    (with_options(KD, teacher="resnet18"), "teacher resnet18 expects 1000 classes, the data have 3"),
    (with_options(KD, data="two"), "the data lack its class blue"),
    (with_options(KD, teacher="ignorant"), "its weights are not for these classes"),
    (with_options(KD, teacher="nets.py:small"), "its weights are not for these classes"),
    (with_options(TRAIN, out="teacher"), "teacher already holds a run: continue it with --resume"),
    (with_options(TRAIN, out="a-file"), "--out a-file: that is a file"),
    (with_options(TRAIN, out="a-file/run"), "--out a-file/run: that is a file, or lies in one"),
    (with_options(TRAIN, out="teacher", epochs=9, resume=True), "was started with epochs = 4, not 9"),
    (with_options(KD, out="teacher", resume=True), "the run in teacher was started with"),
    (with_options(TRAIN, out="broken", epochs=4, resume=True), "cannot read checkpoint broken/last.ckpt"),
    (with_options(TRAIN, out="no-record", resume=True), "no-record/record.json is not JSON"),
    (["evaluate", "two", "--data", "pics"], "two has no weights to evaluate"),
    (["evaluate", "unfinished", "--data", "pics"], "the run in unfinished is not finished"),
    (
        ["evaluate", "teacher", "--data", "two"],
        "was trained on other classes than the data's: the data lack its class blue",
    ),
    (["evaluate", "teacher", "--data", "renamed"], "its weights don't know the class"),
    (["evaluate", "teacher", "--data", "pics", "--weights", "other.pth", *TRUST], "other.pth does not fit"),
    (["evaluate", "teacher", "--data", "pics", "--batch-size", "0"], "batch size 0"),
    (["evaluate", "resnet8", "--data", "pics"], "resnet8 has no weights to evaluate"),
    (["export", "pics"], "no record at pics/record.json"),
    (["export", "unfinished"], "unfinished has no student.safetensors: the run is not finished"),
    (["export", "teacher", "--format", "tflite"], "format 'tflite' is unknown: choose one of safetensors, onnx"),
    (["export", "teacher", "--out", "a-file/x"], "cannot write a-file/x"),
    (["export", "teacher", "--out", "teacher/student.safetensors"], "is the run's own file"),
    (["report", "pics"], "no run in pics"),
    (["report", "nowhere"], "no folder nowhere"),
    (["report", "teacher", "--out", "a-file/x.html"], "cannot write a-file/x.html"),
    (["evaluate", "teacher", "--data", "pics"], "its network is nets.py:small, and to open it would run that file"),
    (["layers", "teacher"], "where you trust it, add --trust nets.py:small"),
    (["export", "teacher", "--format", "onnx"], "add --trust nets.py:small"),
    (with_options(KD, student="resnet8", trust="elsewhere/nets.py:other"), "add --trust nets.py:small"),
    (["layers", "teacher", "--trust", "nets.py"], "--trust nets.py: give FILE.py:factory"),
    (["evaluate", "spoilt", "--data", "pics", *TRUST], "spoilt/student.safetensors holds values that are not finite"),
    (["export", "spoilt"], "spoilt/student.safetensors holds values that are not finite, first in head.bias"),
    (with_options(KD, teacher="spoilt"), "values that are not finite, first in head.bias"),
    (with_options(TRAIN, model_weights="spoilt"), "spoilt holds values that are not finite, first in head.bias"),
    (["export", "teacher", "--out", "/dev/full"], "cannot write /dev/full: it is a device"),
    (["report", "teacher", "--csv", "/dev/stdout"], "cannot write /dev/stdout: it is "),
    (["layers", "nowhere"], "no such network"),
    (["layers", "pics"], "model pics: no such network"),
    (["quickstart", "--methods", "none", "wishful", "--out", "q"], "method 'wishful' is unknown"),
    (["run", "cifar10-resnet20", "--teacher", "teacher", "--out", "q", "--data", "nowhere"], "data 'nowhere'"),
]


@pytest.mark.parametrize(("arguments", "text"), WRONG_INPUT, ids=lambda value: "")
def test_wrong_input(
    arguments: list[str], text: str, traps: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] in ("train", "distill") and "--out" not in arguments:
        arguments = with_options(arguments, out=tmp_path / "run")
    before = {path: path.read_bytes() for path in (traps / "teacher").iterdir() if path.is_file()}
    said = Said(capfd, arguments)
    assert said.code == 2
    assert said.out == ""
    assert said.last.startswith("reldistill: ")
    assert text in said.last
    assert "Traceback" not in said.err
    assert sum(line.startswith("reldistill: ") for line in said.err.splitlines()) == 1
    assert not Path("it-ran").exists()
    assert before == {path: path.read_bytes() for path in (traps / "teacher").iterdir() if path.is_file()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize(
    ("options", "text"),
    [({"accelerator": "gpu"}, "--accelerator gpu"), ({"precision": "16-mixed"}, "16-mixed needs a GPU")],
)
def test_a_device_that_is_not_there_leaves_no_run_behind(
    options: dict[str, str], text: str, world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = with_options(TRAIN, out=tmp_path / "run", epochs=1)
    said = Said(capfd, with_options(command, **options))
    assert said.code == 2
    assert text in said.last
    assert Said(capfd, command).code == 0


def test_weights_that_cannot_be_downloaded(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from reldistill.networks import sources

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*_: Any, **__: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(sources.socket, "create_connection", no_network)
    said = Said(capfd, with_options(TRAIN, model="torchvision/resnet18", model_pretrained=True, out=tmp_path / "run"))
    assert said.code == 2
    assert "torchvision/resnet18" in said.last
    assert "--" in said.last, "says what to do instead"
    assert "Traceback" not in said.err


def test_bad_images_are_left_out_and_counted(traps: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = with_options(TRAIN, data="damaged", epochs=1, out=tmp_path / "run", skip_bad_images=True)
    said = Said(capfd, command)
    assert said.code == 0
    assert "2 bad images left out" in said.err
    assert json.loads((tmp_path / "run/record.json").read_text())["data"]["skipped"] == 2


def test_images_that_are_in_two_parts_are_on_record(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(world / "pics", world / "copied")
    for number in range(20):
        shutil.copy(world / f"pics/red/{number:02}.png", world / f"copied/red/again-{number:02}.png")
    said = Said(capfd, with_options(TRAIN, data="copied", epochs=1, out="of-copies"))
    assert said.code == 0
    notes = json.loads(Path("of-copies/record.json").read_text())["notes"]
    assert len(notes) == 1
    assert notes[0].startswith("val images that are training images too, byte by byte: ")
    assert f"warning: {notes[0]}" in said.err


def test_a_run_folder_serves_as_weights(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = with_options(KD, teacher="nets.py:small", teacher_weights="teacher", out=tmp_path / "run")
    assert Said(capfd, command).code == 0
    teacher = json.loads((tmp_path / "run/record.json").read_text())["teacher"]
    trained = json.loads(Path("teacher/record.json").read_text())["result"]["weights"]["student.safetensors"]
    assert teacher["weights_sha256"] == trained


@pytest.mark.parametrize("arguments", [["--help"], ["list", "methods", "--json"]])
def test_an_output_that_is_full_is_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "reldistill", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=600,
        )
    assert (done.returncode, done.stderr) == (2, "reldistill: No space left on device\n")


def test_an_interrupt_is_no_traceback(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from reldistill.training.keeper import RunKeeper

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunKeeper, "on_train_epoch_end", interrupt)
        said = Said(capfd, with_options(TRAIN, epochs=1, out=tmp_path / "run"))
    assert said.code == 130
    assert "--resume" in said.last
    assert "Traceback" not in said.err
    assert json.loads((tmp_path / "run/record.json").read_text())["status"] == "stopped"
    assert Said(capfd, with_options(TRAIN, epochs=1, out=tmp_path / "run", resume=True)).code == 0


# Results -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        with_options(TRAIN, epochs=1, out="json-train"),
        with_options(KD, out="json-distill"),
        ["evaluate", "teacher", "--data", "pics", *TRUST],
        ["layers", "teacher", *TRUST],
        ["layers", "resnet8", "--image-size", "32", "--all"],
        ["list", "methods"],
        ["list", "models", "resnet2"],
        ["list", "recipes"],
        ["export", "teacher", "--out", "exported.safetensors"],
        ["report", "teacher", "--out", "page.html"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_json_is_one_document_and_nothing_else(
    arguments: list[str], world: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = Said(capfd, [*arguments, "--json"])
    assert said.code == 0, said.err
    assert json.loads(said.out)


@pytest.mark.slow
def test_what_libraries_print_stays_out_of_standard_output(world: Path, tmp_path: Path) -> None:
    """Also what a child process or compiled code prints, which no Python stream sees."""
    noisy = (world / "nets.py").read_text() + "\nimport os\nos.system('echo NOISE')\nprint('NOISE')\n"
    (world / "noisy.py").write_text(noisy)
    done = reldistill(
        *with_options(TRAIN, model="noisy.py:small", epochs=1, out=tmp_path / "run", json=True), cwd=world
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"][0]["status"] == "finished"
    assert done.stderr.count("NOISE") >= 2
    assert "Warning" not in done.stderr
    assert "site-packages" not in done.stderr


def test_evaluate_measures_what_the_run_measured(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On the same split, though the run's was not the default."""
    evaluate = ["evaluate", "teacher", "--data", "pics", *TRUST]
    found = json.loads(Said(capfd, [*evaluate, "--json"]).out)
    record = json.loads(Path("teacher/record.json").read_text())
    assert found["images"] == record["data"]["val_images"] == 18
    assert found["accuracy"] == pytest.approx(record["result"]["score_last"], abs=1e-4)
    low, high = found["accuracy_interval"]
    assert low <= found["accuracy"] <= high
    few = json.loads(Said(capfd, [*evaluate, "--val-fraction", "0.1", "--json"]).out)
    assert few["images"] == 6
    text = Said(capfd, evaluate).out
    assert re.match(r"teacher: [\d.]+ % of the 18 validation images right \(95 % interval", text)


def test_a_teacher_of_the_same_classes_in_another_order_teaches_the_same(
    world: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its logits, what is kept of them in a cache, and the classifier that a student takes over."""
    card = read_card(world / "teacher/student.safetensors")
    state = load_file(world / "teacher/student.safetensors")
    order = [2, 0, 1]
    state |= {name: state[name][order] for name in ("head.weight", "head.bias")}
    moved = dataclasses.replace(card, classes=tuple(card.classes[place] for place in order))
    shutil.copytree(world / "teacher", world / "moved")
    write_weights(world / "moved/student.safetensors", state, moved)
    values = [
        json.loads(Said(capfd, ["evaluate", run, "--data", "pics", *TRUST, "--json"]).out)
        for run in ("teacher", "moved")
    ]
    assert values[1]["accuracy"] == values[0]["accuracy"] > 80
    assert values[1]["loss"] == pytest.approx(values[0]["loss"], rel=1e-5)
    for run in ("teacher", "moved"):
        how = {"epochs": 1, "teacher": run, "precision": "32-true", "cache_teacher": f"{run}-kept"}
        for method in ("kd", "simkd"):
            assert Said(capfd, with_options(DISTILL, method=method, out=f"by-{run}-{method}", **how)).code == 0
            how.pop("cache_teacher", None)
    for method in ("kd", "simkd"):
        first, second = (load_file(world / f"by-{run}-{method}/student.safetensors") for run in ("teacher", "moved"))
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5)


def test_report_compares_runs(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for method in ("none", "serkd+sekd"):
        assert Said(capfd, with_options(DISTILL, method=method, epochs=1, out=f"compared/{method}")).code == 0
    said = Said(capfd, ["report", "compared", "--markdown", "table.md", "--csv", "table.csv"])
    assert said.code == 0
    assert "student alone" in said.out
    assert "serkd+sekd" in said.out
    assert "report: compared/report.html" in said.out
    assert "<svg" in Path("compared/report.html").read_text() or "<img" in Path("compared/report.html").read_text()
    assert Path("table.md").read_text().startswith("| Run")
    assert len(Path("table.csv").read_text().splitlines()) >= 3


def test_warnings_of_our_own_are_one_line(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = Said(capfd, with_options(KD, weights='{"kd": 1e5}', lr=1e-6, out=tmp_path / "run"))
    assert said.code == 0
    warning = next(line for line in said.err.splitlines() if line.startswith("warning: "))
    assert "kd is" in warning
    assert "more than a hundred times the task's loss" in warning
    assert json.loads((tmp_path / "run/record.json").read_text())["notes"] == [warning.removeprefix("warning: ")]


def test_a_weak_teacher_is_accepted_where_that_is_asked_for(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weak = with_options(KD, teacher="nets.py:small")
    said = Said(capfd, with_options(weak, out=tmp_path / "refused"))
    assert said.code == 2
    assert re.search(r"of the 18 validation images right \(95 % interval \S+ to \S+\), guessing gets 33.3 %", said.last)
    assert "--accept-weak-teacher takes it as it is" in said.last
    assert not (tmp_path / "refused").exists()
    said = Said(capfd, with_options(weak, accept_weak_teacher=True, out=tmp_path / "run"))
    assert said.code == 0
    (note,) = json.loads((tmp_path / "run/record.json").read_text())["notes"]
    assert note.startswith("accepted by --accept-weak-teacher: the teacher nets.py:small gets ")
    assert f"warning: {note}" in said.err.splitlines()
    assert "accepted by --accept-weak-teacher" in (tmp_path / "run/report.html").read_text()


def test_a_batch_size_that_nobody_gave_is_at_most_the_training_images(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = ["train", "--data", "pics", "--val-fraction", "0.3", "--model", "nets.py:small", "--out", str(tmp_path / "r")]
    said = Said(capfd, [*run, "--epochs", "1"])
    assert said.code == 0
    assert "batch size: 42 instead of 128, as there are 42 training images" in said.err
    settings = json.loads((tmp_path / "r/record.json").read_text())["settings"]
    assert settings["batch_size"] == 42
    assert settings["used_lr"] == pytest.approx(0.1 * 42 / 128)
    assert Said(capfd, [*run, "--epochs", "1", "--resume"]).code == 0
    assert "started with batch_size = 42, not 7" in Said(capfd, [*run, "--epochs=1", "--resume", "--batch-size=7"]).last


def test_images_that_are_skipped_are_named_in_the_record(
    world: Path, traps: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = with_options(TRAIN, data="damaged", epochs=1, out=tmp_path / "run", skip_bad_images=True)
    assert Said(capfd, run).code == 0
    notes = json.loads((tmp_path / "run/record.json").read_text())["notes"]
    assert notes == ["unreadable and left out: blue/07.png, red/05.png"]


def test_json_holds_no_character_that_moves_the_cursor() -> None:
    names = ["\x1b[31m", "\x9b1m", "half \udcff", "\u2028", 'a "quote"', "ä\n"]
    text = command._json({"names": names})
    assert text.replace("\n", "").isprintable()
    assert json.loads(text) == {"names": names}


def test_a_run_leaves_no_process_behind(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []
    start = multiprocessing.process.BaseProcess.start
    monkeypatch.setattr(
        multiprocessing.process.BaseProcess, "start", lambda process: (begun.append(process), start(process))
    )
    others = set(multiprocessing.active_children())
    gc.disable()
    try:
        assert main(with_options(KD, image_size=72, workers=1, out=tmp_path / "run")) == 0
        left = set(multiprocessing.active_children()) - others
    finally:
        gc.enable()
    assert begun
    assert not left


@pytest.mark.slow
def test_closed_pipe_is_no_traceback(world: Path) -> None:
    process = subprocess.run(
        f"{sys.executable} -m reldistill list models | head -n 1",
        shell=True,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stdout
    assert "Traceback" not in process.stderr
    assert "BrokenPipe" not in process.stderr
