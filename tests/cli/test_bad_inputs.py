"""Everything that can be given wrongly, at every command: generated from the options' own types, so that a new option
or command is tried without a line here. Whatever it is, there is one line, exit code 2, and nothing is left behind."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import small_runs
from reldistill.cli import main as command
from reldistill.cli.forms import Command, Group
from reldistill.cli.options import Options
from reldistill.cli.table import COMMANDS
from reldistill.cli.values import outer, without_none
from small_runs import DATA, DISTILL, with_options, write_world

pytestmark = pytest.mark.slow

JARGON = (
    "<class", "Traceback", "NoneType", "object at 0x", "not supported between", "given config", "Parser key",
    "ArgumentError", "jsonargparse", "Namespace", "typing.", "errno", "positional argument", "unexpected keyword",
)  # fmt: skip
NEVER = {
    "nothing": "",
    "blank": " ",
    "null byte": "a\0b",
    "escape": "\x1b[31mred",
    "two lines": "a\nb",
    "half a character": "\udcff",
    "very long": "x" * 5000,
}
"""What no option takes."""
NOT_WHOLE = {**NEVER, "word": "x", "fraction": "1.5", "infinite": "1e400", "huge": str(10**30), "negative": "-1"}
NOT_NUMBER = {**NEVER, "word": "x", "nan": "nan", "NaN": ".nan", "inf": "inf", "infinite": "1e400", "negative": "-1"}
BROKEN = {
    **NEVER,
    "open": "[",
    "deep": "[" * 3000,
    "bomb": "[&a [x,x,x,x,x,x,x,x,x], &b [" + "*a," * 99 + "], &c [" + "*b," * 99 + "], [" + "*c," * 99 + "]]",
    "code": "!!python/object/apply:os.mkdir [it-ran]",
}
OF_KIND: dict[Any, dict[str, str]] = {
    int: NOT_WHOLE,
    float: NOT_NUMBER,
    bool: {"nothing": "", "word": "perhaps", "number": "1", "null": "null"},
    str: NEVER,
    Path: NEVER,
    list: NEVER,
    dict: {**BROKEN, "number": "3", "word": "x", "no key": "{1: 2}", "nan": "{a: .nan}", "twice": "{a: 1, a: 2}"},
}
ZERO = {"seed", "workers", "patience", "checkpoint_every", "clip", "weight_decay", "label_smoothing", "ema", "balance",
        "lr_warm_up", "warm_up"}  # fmt: skip
"""Numbers that may be 0."""
GIVEN = {
    "data": "pics", "model": "nets.py:small", "teacher": "teacher", "student": "nets.py:small", "out": "new",
    "methods": "kd", "students": "nets.py:small", "over": "lr=0.1", "what": "models", "run": "teacher",
    "runs": "teacher", "teacher_weights": "teacher",
}  # fmt: skip
"""Where an option must be given: a value that is fine."""


def commands(
    members: dict[str, Command | Group] = COMMANDS, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Command]]:
    """Every command with its words."""
    for word, member in members.items():
        if isinstance(member, Group):
            yield from commands(dict(member.members()), (*words, word))
        else:
            yield (*words, word), member


ALL = dict(commands())


@functools.cache
def options_of(words: tuple[str, ...]) -> Options:
    return ALL[words].options(" ".join(("reldistill", *words)))


@functools.cache
def members_once() -> dict[str, Command | Group]:
    """The commands with options that are derived once for the whole table."""

    def once(member: Command | Group, words: tuple[str, ...]) -> Command | Group:
        if isinstance(member, Command):
            return dataclasses.replace(member, options=lambda _: options_of(words))
        members = {word: once(one, (*words, word)) for word, one in member.members().items()}
        return Group(member.summary, lambda: members)

    return {word: once(member, (word,)) for word, member in COMMANDS.items()}


def wrong_values(name: str, kind: Any) -> dict[str, str]:
    """What an option of that kind must refuse, by what is wrong with it."""
    kind = without_none(kind)
    if typing.get_origin(kind) is Literal:
        return {**NEVER, "word": "frob", "case": typing.get_args(kind)[0].swapcase()}
    inner = typing.get_args(kind)
    values = dict(OF_KIND[outer(kind)])
    if outer(kind) is list:
        values |= {
            "open": "[",
            "null": "[null]",
            "mapping": "[{a: 1}]",
            "number": "[x]" if inner[0] is float else "[1]",
        }
        values |= {k: v for k, v in OF_KIND[inner[0]].items() if inner[0] in (int, float)}
    if outer(kind) is str and inner:
        values |= {"negative": "-1", "zero": "0", "huge": str(10**30), "word": "some"}
    if kind in (int, float) and name not in ZERO:
        values["zero"] = "0"
    return values


ROWS = [(words, name) for words, _ in commands() for name in options_of(words).kinds]


class Begun(Exception):
    """Images, networks or other processes were touched before what was wrong was said."""


def _begin(*_: Any, **__: Any) -> typing.NoReturn:
    raise Begun


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Images, networks and a finished run, with the working directory among them."""
    folder = write_world(tmp_path_factory.mktemp("world"))
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert command.main(with_options(small_runs.TRAIN, epochs=2, out="teacher")) == 0
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture
def nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read, built or started: whatever can be known to be wrong without it must be refused without it."""
    from reldistill.comparison import compare
    from reldistill.export import student_files
    from reldistill.networks import saved
    from reldistill.tasks.classification.task import ClassificationTask
    from reldistill.tasks.detection.task import DetectionTask

    for task in (ClassificationTask, DetectionTask):
        for work in ("read", "open", "open_alone", "graph"):
            monkeypatch.setattr(task, work, _begin)
    monkeypatch.setattr(compare, "run_all", _begin)
    for where, what in ((student_files, "open_network"), (saved, "open_network")):
        monkeypatch.setattr(where, what, _begin, raising=False)
    for word, member in members_once().items():
        monkeypatch.setitem(COMMANDS, word, member)


def content(folder: Path) -> dict[str, int]:
    """Every file and folder, with its size."""
    return {str(path.relative_to(folder)): path.lstat().st_size for path in sorted(folder.rglob("*"))}


class Refused:
    """Runs commands that must be refused, and says what is wrong with how they are."""

    def __init__(self, world: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd, self.world = capfd, world
        self.before = content(world)

    def faults(self, arguments: list[str], *names: str) -> list[str]:
        self.capfd.readouterr()
        try:
            code: object = command.main(arguments)
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"[:200]
        out, err = self.capfd.readouterr()
        lines = [line for line in err.splitlines() if not line.startswith(("looking at", "pics: ", "warning: "))]
        said = err.replace("-", " ").replace("_", " ")
        found = {
            f"exit code {code}": code != 2,
            f"standard output: {out[:200]}": bool(out),
            f"{len(lines)} lines": len(lines) != 1,
            "does not begin with reldistill": not (lines and lines[-1].startswith("reldistill: ")),
            "is not named": not any(name.replace("-", " ").replace("_", " ") in said for name in names),
            "longer than 500 characters": len(err) > 500,
            "unprintable": any(not (c.isprintable() or c == "\n") for c in err),
            f"left {content(self.world).keys() - self.before.keys()}": content(self.world) != self.before,
            **{f"jargon: {word}": word in err for word in JARGON},
        }
        if (made := self.world / "new").exists():
            shutil.rmtree(made)
        return [f"{fault} | {err[:300]!r}" for fault, is_so in found.items() if is_so]


@pytest.fixture
def refused(world: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    return Refused(world, capfd)


def command_with(words: tuple[str, ...], name: str, value: str) -> list[str]:
    """The command with everything that it needs, and one option as given."""
    options = options_of(words)
    given = {needed: GIVEN[needed] for needed in options.required()}
    given[name] = value
    places = [given.pop(place) for place in options.positional if place in given]
    return [*words, *(f"--{option.replace('_', '-')}={said}" for option, said in given.items()), "--", *places]


@pytest.mark.parametrize(("words", "name"), ROWS, ids=[" ".join((*words, name)) for words, name in ROWS])
def test_every_option_refuses_what_is_not_of_its_kind(
    words: tuple[str, ...], name: str, refused: Refused, nothing_begins: None
) -> None:
    kind = options_of(words).kinds[name]
    faults = {
        f"{what}: {fault}"
        for what, value in wrong_values(name, kind).items()
        for fault in refused.faults(command_with(words, name, value), name)
    }
    assert not faults, "\n".join(sorted(faults))


def test_the_table_is_as_large_as_it_should_be() -> None:
    assert sum(len(wrong_values(name, options_of(words).kinds[name])) for words, name in ROWS) > 2000


TRAIN = with_options(small_runs.TRAIN, epochs=1)
PAIR = with_options(DISTILL, epochs=1, out="new")
SWEEP = ["sweep", *DATA, "--teacher", "teacher", "--students", "nets.py:small", "--method", "kd", "--out", "new"]

# Files ---------------------------------------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[bytes | str, str]] = {
    "UTF-16": ("epochs: x".encode("utf-16"), "--epochs: expected a whole number, got 'x'"),
    "UTF-16 without its mark": ("epochs: 1".encode("utf-16-le"), "is not UTF-8 text"),
    "binary": (bytes(range(256)), "is not UTF-8 text"),
    "Latin-1": ("out: caf\xe9".encode("latin-1"), "is not UTF-8 text"),
    "empty": ("", "expected settings as NAME: VALUE"),
    "a list": ("- epochs", "expected settings as NAME: VALUE"),
    "words": ("epochs", "expected settings as NAME: VALUE"),
    "two documents": ("epochs: 1\n---\nepochs: 2", "is not YAML"),
    "open": ("epochs: [", "is not YAML"),
    "a tab": ("epochs:\n\t- 1", "is not YAML"),
    "a tag": ("epochs: !!python/name:os.system", "is not YAML"),
    "twice": ("epochs: 1\nepochs: 2", "'epochs' is named twice"),
    "unknown": ("epoch: 1", "did you mean epochs?"),
    "itself": ("config: c.yaml", "there is no setting 'config'"),
    "key": ("? [a]\n: 1", "a key must be text"),
    "deep": ("a: " + "[" * 200_000, "is nested too deep"),
    "deep by lines": ("\n".join(" " * i + "a:" for i in range(500)), "is nested too deep"),
    "bomb": (
        "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)),
        "more than 100,000 values",
    ),
    "circle": ("a: &a [*a]", "values"),
    "long": ("# " + "x" * (1 << 21), "2,097,154 bytes"),
    "epochs null": ("epochs: null", "--epochs: expected a whole number, got null"),
    "epochs empty": ("epochs:", "--epochs: expected a whole number, got null"),
    "epochs text": ("epochs: '3'", "--epochs: expected a whole number, got '3'"),
    "epochs true": ("epochs: true", "--epochs: expected a whole number, got true"),
    "epochs list": ("epochs: [3]", "--epochs: expected a whole number, got a list"),
    "epochs fraction": ("epochs: 3.0", "--epochs: expected a whole number, got 3.0"),
    "epochs long": ("epochs: " + "9" * 5000, "a number of too many digits"),
    "epochs by minutes": ("epochs: 1:30", "--epochs: expected a whole number, got '1:30'"),
    "epochs in YAML 1.1": ("epochs: 1_000", "--epochs: expected a whole number, got '1_000'"),
    "switch in YAML 1.1": ("skip_bad_images: yes", "--skip-bad-images: expected true or false, got 'yes'"),
    "method null": ("method: null", "--method: expected text, got null"),
    "method list": ("method: [kd]", "--method: expected text, got a list"),
    "a number for text": ("task: 12", "--task: expected text, got 12; put it in quotes"),
    "lr nan": ("lr: .nan", "--lr: expected a number, got nan"),
    "lr inf": ("lr: 1e999", "--lr: expected a number, got inf"),
    "levels": ("levels: 1", "--levels: expected a list, got 1"),
    "a level": ("levels: [null]", "--levels: expected a list, got null"),
    "weights": ("weights: {kd: heavy}", "--weights: expected a mapping such as"),
    "weight nan": ("weights: {kd: .nan}", "--weights: expected a mapping such as"),
    "settings": ("settings: {kd: 1}", "--settings: expected a mapping of mappings"),
    "settings nan": ("settings: {kd: {temperature: .inf}}", "--settings: expected a mapping of mappings"),
    "escape": ('task: "\\e[31m"', "--task: expected text, got '\\x1b[31m', which has characters"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_bad_configuration(what: str, refused: Refused, nothing_begins: None, tmp_path: Path) -> None:
    content, said = CONFIGS[what]
    file = tmp_path / "c.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert not refused.faults([*PAIR, "--config", str(file)], said)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def circle(path: Path) -> None:
    path.symlink_to(path.name)


SPECIAL: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: None,
    "folder": Path.mkdir,
    "pipe": pipe,
    "circle": circle,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "empty": Path.touch,
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "deep": lambda path: path.write_text("[" * 200_000),
    "digits": lambda path: path.write_text("9" * 5000),
    "a list": lambda path: path.write_text("[]"),
    "nothing in it": lambda path: path.write_text("{}"),
    "nan": lambda path: path.write_text('{"schema": NaN}'),
    "half a character": lambda path: path.write_text('{"schema": "\\udcff\\u001b[31m"}'),
}
"""What can lie where a file is expected."""
PLACES: dict[str, tuple[str, list[str]]] = {
    "a record, reported": ("run/record.json", ["report", "{}/run"]),
    "a record, continued": ("run/record.json", [*TRAIN, "--out", "{}/run", "--resume"]),
    "a record, exported": ("run/record.json", ["export", "{}/run"]),
    "a comparison": ("run/compare.json", ["report", "{}/run"]),
    "a sweep": ("run/sweep.json", ["report", "{}/run"]),
    "a configuration": ("x.yaml", [*PAIR, "--config", "{}/x.yaml"]),
    "weights": ("x.pth", with_options(PAIR, teacher_weights="{}/x.pth")),
    "safetensors": ("x.safetensors", [*TRAIN, "--out", "new", "--model-weights", "{}/x.safetensors"]),
    "a network's file": ("x.py", ["layers", "{}/x.py:net"]),
    "a task's file": ("x.py", [*TRAIN, "--out", "new", "--task", "{}/x.py:Mine"]),
    "data": ("x.zip", with_options(TRAIN, data="{}/x.zip", out="new")),
    "COCO": ("annotations/instances_train.json", with_options(TRAIN, data="coco:{}", out="new")),
    "YOLO": ("data.yaml", with_options(TRAIN, data="yolo:{}", out="new")),
    "VOC": ("Annotations/a.xml", with_options(TRAIN, data="voc:{}", out="new")),
}
"""Where a file is expected: its path in a folder of its own, and the command that reads it."""
FINE = {("a record, continued", "missing"), ("a configuration", "nothing in it")}
"""A new run, and no settings."""


@pytest.mark.parametrize("place", PLACES)
def test_what_lies_where_a_file_is_expected(place: str, refused: Refused, tmp_path: Path) -> None:
    path, arguments = PLACES[place]
    faults = []
    for number, (what, make) in enumerate(SPECIAL.items()):
        if (place, what) in FINE:
            continue
        root = tmp_path / str(number)
        (root / path).parent.mkdir(parents=True)
        make(root / path)
        there = content(root)
        given = [word.replace("{}", str(root)) for word in arguments]
        faults += [f"{what}: {fault}" for fault in refused.faults(given, str(root))]
        faults += [f"{what}: changed {content(root).keys()}"] * (content(root) != there)
    assert not faults, "\n".join(faults)


OBJECTS: dict[str, object] = {
    "a truth": [True, 1, 4, 4], "text": [1, "1", 4, 4], "three": [1, 1, 4], "nothing": None, "a word": "1144",
    "nan": [float("nan"), 1, 4, 4], "infinite": [1e400, 1, 4, 4], "huge": [10**400, 1, 4, 4], "a mapping": {"x": 1},
    "lists": [[1], 1, 4, 4],
}  # fmt: skip


@pytest.mark.parametrize("what", OBJECTS)
def test_a_box_that_is_none(what: str, refused: Refused, tmp_path: Path) -> None:
    from PIL import Image

    for folder in ("annotations", "train"):
        (tmp_path / folder).mkdir()
    images = [{"id": i, "file_name": f"{i}.png", "width": 12, "height": 12} for i in range(1, 5)]
    for image in images:
        Image.new("RGB", (12, 12), (60 * image["id"], 0, 0)).save(tmp_path / "train" / image["file_name"])  # type: ignore[operator]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 4, 4]} for i in range(1, 5)]
    boxes[0]["bbox"] = OBJECTS[what]  # type: ignore[assignment]
    told = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "annotations/instances_train.json").write_text(json.dumps(told))
    data = f"coco:{tmp_path}"
    arguments = with_options(TRAIN, data=data, model="retinanet_mobilenet_v2_fpn", batch_size=2, out="new")
    assert not refused.faults(arguments, "bbox", "four")


FACTORIES = """
from torch import nn

MEAN = STD = (0.5, 0.5, 0.5)


class Odd(BaseException):
    pass


def leaves(num_classes=3):
    raise SystemExit(0)


def odd(num_classes=3):
    raise Odd


def closes(num_classes=3):
    raise GeneratorExit


def nothing(num_classes=3):
    return None


def not_made(num_classes=3):
    return nn.Linear


def empty(num_classes=3):
    return nn.Sequential()


def of_none(num_classes=3, width=None):
    return nn.Linear(width + 1, 2)


class Words(nn.Module):
    def forward(self, x):
        return "words"
"""


@pytest.mark.parametrize(
    "factory", ["leaves", "odd", "closes", "nothing", "not_made", "empty", "of_none", "Words", "gone"]
)
def test_a_factory_of_ones_own_that_makes_no_network(factory: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(FACTORIES)
    assert not refused.faults(["layers", f"{tmp_path}/odd.py:{factory}"], "odd.py")
    assert not refused.faults(with_options(TRAIN, model=f"{tmp_path}/odd.py:{factory}", out="new"), "odd.py")


WRONG: list[tuple[list[str], str]] = [
    (with_options(PAIR, method="none+kd"), "none is the student alone"),
    (with_options(PAIR, method="kd+kd"), "kd is given twice"),
    (with_options(PAIR, method="KD"), "method 'KD' is unknown: did you mean kd?"),
    (["compare", *PAIR[1:], "--methods", "kd", "KD"], "method 'KD' is unknown: did you mean kd?"),
    (["quickstart", "--methods", "Kd", "--out", "new"], "method 'Kd' is unknown: did you mean kd?"),
    (with_options(TRAIN, model="zzz", out="new"), "network zzz: no such network (see:"),
    (with_options(TRAIN, teacher_weights="x", out="new"), "there is no option --teacher-weights"),
    (with_options(PAIR, teacher_weights="gone.pth"), "no such weights file: gone.pth"),
    (with_options(PAIR, student_weights="gone.pth"), "no such weights file: gone.pth"),
    *(
        (with_options(SWEEP, over=over), said)
        for over, said in {
            "epochs=1.5": "epochs takes whole numbers, got 1.5",
            "epochs=true": "epochs takes whole numbers, got true",
            "lr=1e999": "lr takes numbers, got inf",
            "lr=nan": "lr takes numbers, got 'nan'",
            "lr=0": "lr 0: give more than 0",
            "seed=1": "seed is not a number to choose",
            "data=1": "data is not a number to choose",
            "kd:temperature=[1]": "kd:temperature takes numbers and words",
            "kd": "expected NAME=VALUE",
            "=1": "expected NAME=VALUE",
            "lr=1,1": "'lr' names a value twice",
        }.items()
    ),
    (with_options(SWEEP, over="lr=1", seeds=10**6), "at most 1000"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=lambda value: "")
def test_what_is_refused_before_anything_begins(
    arguments: list[str], said: str, refused: Refused, nothing_begins: None
) -> None:
    assert not refused.faults(arguments, said)


def test_a_network_that_is_none_or_sees_nothing(refused: Refused) -> None:
    assert not refused.faults(["layers", "no/such"], "model no/such: no such network (see:")
    assert not refused.faults(["layers", "resnet8", "--image-size", "1"], "resnet8 has no level at 1x1 pixels: give a")


SETTINGS = ["{temperature: null}", "{temperature: x}", "{temperature: [4]}", "{temperature: true}", "{temperature: 0}"]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_setting_that_is_not_of_its_type(settings: str, refused: Refused) -> None:
    given = with_options(PAIR, method="kd", val_fraction=0.3, settings=f"{{kd: {settings}}}", batch_size=12)
    assert not refused.faults(given, "temperature must be")
