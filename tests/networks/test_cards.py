"""A card is data: each field is checked, and nothing is run, fetched or allocated because a card says so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reldistill.core.checks import UserError
from reldistill.core.run_files import LAST_WEIGHTS
from reldistill.core.trust import forget, trust
from reldistill.networks.cards import WEIGHT_ARGUMENTS, NetworkCard, card_in, read_card, write_weights
from reldistill.networks.saved import open_network
from reldistill.networks.weights import read_weights
from reldistill.tasks.detection.networks.saved_detectors import finds_boxes, open_detector

CARD = NetworkCard("resnet8", 3, 16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ("a", "b", "c"))
HEAD = {"level": None, "channels": 8, "size": None, "bias": True, "rectified": True}
DETECTOR = {"outputs": [1, 2, 3], "num_outputs": 4}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    opened = open_network("resnet8", role="student", num_classes=3, image_size=16)
    return opened.extractor.network.state_dict()


@pytest.fixture
def run(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    (tmp_path / "run").mkdir()
    write_weights(tmp_path / "run" / LAST_WEIGHTS, state, CARD)
    return tmp_path / "run"


def with_card(run: Path, text: str) -> None:
    """The run's weights with another card."""
    save_file(load_file(run / LAST_WEIGHTS), run / LAST_WEIGHTS, metadata={"reldistill": text})


def changed(run: Path, **fields: Any) -> None:
    whole = {
        "name": "resnet8",
        "num_classes": 3,
        "input_size": 16,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "classes": ["a", "b", "c"],
        "arguments": {},
        "reused_head": None,
        "detector": None,
    }
    with_card(run, json.dumps({name: value for name, value in {**whole, **fields}.items() if value is not ...}))


def refused(run: Path) -> str:
    """The one line with which every way to open the run refuses it."""
    said = set()
    for opening in (
        lambda: open_network(str(run), role="teacher", num_classes=None, image_size=None),
        lambda: open_network(str(run), role="teacher", num_classes=3, classes=["a", "b", "c"], image_size=16),
        lambda: finds_boxes(str(run)),
        lambda: open_detector(str(run), role="teacher", classes=None),
    ):
        with pytest.raises(UserError) as error:
            opening()
        said.add(str(error.value))
    assert len(said) == 1
    text = said.pop()
    assert len(text.splitlines()) == 1
    assert len(text) < 400
    return text


BAD_FIELDS: list[tuple[str, Any]] = [
    *[("name", value) for value in (7, None, "", "  ", ["resnet8"], {"a": 1}, True)],
    *[("num_classes", value) for value in (-3, 3.0, "3", None, True, 10**9, 10**30, [3])],
    *[("input_size", value) for value in (0, -16, 16.5, "16", None, False, 10**9)],
    *[("mean", value) for value in ("abc", [0.1, 0.2], [0.1] * 4, [], None, 0.5, [0.1, "x", 0.3], [0.1, None, 0.3])],
    *[("mean", [0.1, value, 0.3]) for value in (math.nan, math.inf, -math.inf, True, [1])],
    *[("std", [0.4, value, 0.6]) for value in (0, 0.0, -0.5, math.nan, math.inf, "1")],
    *[("std", value) for value in ("abc", [0.4], {"a": 1}, None)],
    *[("classes", value) for value in ("abc", ["a", "b"], [*"abcd"], [1, 2, 3], ["a", None, "c"], {"a": 1}, 3)],
    *[("arguments", value) for value in ([], "x", None, 3, {"width": math.nan}, {"a": {"b": [math.inf]}})],
    *[("arguments", {name: "https://example.org/w.pth"}) for name in WEIGHT_ARGUMENTS],
    *[("reused_head", value) for value in ([], "x", {}, 3, {**HEAD, "channels": -1}, {**HEAD, "channels": 10**9})],
    *[("reused_head", {**HEAD, name: value}) for name, value in (("size", [1]), ("bias", 1), ("level", 3), ("a", 1))],
    *[("reused_head", {**HEAD, "size": value}) for value in ([0, 4], ["a", 4], [4, 10**9], 4)],
    *[("detector", value) for value in ([], "x", {}, 3, {"outputs": [1, 2, 3]}, {"num_outputs": 4})],
    *[
        ("detector", {**DETECTOR, "outputs": value})
        for value in ([], [0, 1, 2], [1, 1, 2], [1, 2, 4], "abc", [1, 2, "3"])
    ],
    *[("detector", {**DETECTOR, "num_outputs": value}) for value in (0, -1, 10**9, "4", None, 4.0)],
    ("detector", {"outputs": [1, 2], "num_outputs": 4}),
]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS)
def test_a_bad_field_is_named_with_its_file(run: Path, name: str, value: Any) -> None:
    changed(run, **{name: value})
    assert refused(run).startswith(f"{run / LAST_WEIGHTS}: {name} of its card must be ")


@pytest.mark.parametrize("name", ["name", "num_classes", "input_size", "mean", "std"])
def test_a_field_that_is_lacking_is_named(run: Path, name: str) -> None:
    changed(run, **{name: ...})
    assert refused(run) == f"{run / LAST_WEIGHTS}: its card lacks the field {name}"


def test_an_unknown_field_is_named(run: Path) -> None:
    changed(run, code="import os")
    assert "its card has an unknown field 'code'" in refused(run)


@pytest.mark.parametrize("text", ["", "{", "no json", "[" * 200_000, '{"num_classes": ' + "9" * 5000 + "}", "\\ud800"])
def test_a_card_that_is_no_json(run: Path, text: str) -> None:
    with_card(run, text)
    assert refused(run) == f"{run / LAST_WEIGHTS}: its card is damaged: it is not JSON"


@pytest.mark.parametrize("text", ["[]", "null", "3", '"resnet8"'])
def test_a_card_that_is_no_object(run: Path, text: str) -> None:
    with_card(run, text)
    assert refused(run) == f"{run / LAST_WEIGHTS}: its card is damaged: it is not a mapping of fields"


def test_class_names_cannot_move_the_cursor(run: Path) -> None:
    changed(run, classes=["a", "b\x1b[2J", "c"])
    assert "class name 'b\\x1b[2J' has characters that cannot be printed" in refused(run)


def test_as_many_classes_as_the_tensors_can_say(run: Path) -> None:
    largest = max(side for tensor in load_file(run / LAST_WEIGHTS).values() for side in tensor.shape)
    changed(run, num_classes=largest + 1, classes=[])
    assert f"num_classes of its card must be at most {largest}" in refused(run)


def opened(run: Path, **more: Any) -> Any:
    return open_network(str(run), role="model", num_classes=None, image_size=None, **more)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "resnet9"}, "no such network"),
        ({"name": "fcos_hf-hub:owner/name_fpn"}, "for detection only"),
        ({"name": "../../etc/passwd"}, "no such network"),
        ({"arguments": {"wings": 2}}, "wings"),
        ({"arguments": {"depth": [[]]}}, "depth"),
        ({"name": "resnet20"}, "does not fit"),
        ({"reused_head": {**HEAD, "level": "layer9"}}, "level 'layer9' not in"),
        ({"reused_head": HEAD}, "does not fit resnet8 with a reused classifier"),
    ],
)
def test_a_network_that_cannot_be_made_names_the_card(run: Path, fields: dict[str, Any], said: str) -> None:
    changed(run, **fields)
    with pytest.raises(UserError) as error:
        opened(run)
    text = str(error.value)
    assert text.startswith(f"{run / LAST_WEIGHTS}: ")
    assert said in text
    assert len(text.splitlines()) == 1


def test_a_detector_s_card_that_cannot_be_made_names_the_card(run: Path) -> None:
    changed(run, name="resnet8", detector=DETECTOR)
    with pytest.raises(UserError, match=r"the network that its card describes: .*no such detector"):
        open_detector(str(run), role="model", classes=None)


# Code and hubs -------------------------------------------------------------------------------------------------------

EVIL = (
    "from pathlib import Path\nPath(__file__).with_name('it-ran').touch()\n\n\ndef make(**_):\n    raise SystemExit\n"
)


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    (tmp_path / "evil.py").write_text(EVIL)
    return tmp_path / "evil.py"


def test_a_card_runs_no_file(run: Path, evil: Path) -> None:
    forget()
    for name in (f"{evil}:make", f"{evil}:", f"{evil}", f"{run}/../evil.py:make"):
        changed(run, name=name)
        for more in ({}, {"weights": str(run / LAST_WEIGHTS)}, {"arguments": {"a": 1}}):
            with pytest.raises(UserError, match=r"never happens because a file of weights says so: .* add --trust"):
                opened(run, **more)
    assert not evil.with_name("it-ran").exists()


@pytest.mark.parametrize("name", ["hf-hub:owner/name", "hf_hub:owner/name", "local-dir:/tmp", "HF-HUB:owner/name"])
def test_a_card_asks_no_hub(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    forget()
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was asked"))
    changed(run, name=name)
    with pytest.raises(UserError, match=r"add --trust|no such network"):
        opened(run)


def test_weights_are_never_fetched_for_a_card(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    asked: list[dict[str, Any]] = []
    create = timm.create_model

    def noted(name: str, **settings: Any) -> Any:
        asked.append(settings)
        return create(name, **settings)

    monkeypatch.setattr(timm, "create_model", noted)
    opened(run, pretrained=True)
    assert asked
    assert not any(settings["pretrained"] for settings in asked)


NETWORK = """
from os import system
from torch import nn

MEAN = STD = (0.5, 0.5, 0.5)


def make(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))


def other(num_classes):
    raise RuntimeError("not this one")
"""


@pytest.fixture
def filed(tmp_path: Path) -> Path:
    """A run whose network a file makes that lay elsewhere then."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "my_nets.py").write_text(NETWORK)
    (tmp_path / "filed").mkdir()
    state = {"2.weight": torch.ones(3, 3), "2.bias": torch.zeros(3)}
    card = NetworkCard("/gone/my_nets.py:make", 3, 8, (0.5,) * 3, (0.5,) * 3, ("a", "b", "c"))
    write_weights(tmp_path / "filed" / LAST_WEIGHTS, state, card)
    return tmp_path / "filed"


def test_a_file_that_the_user_names_is_run(filed: Path) -> None:
    mine = f"{filed.parent}/here/my_nets.py:make"
    forget()
    with pytest.raises(UserError, match=r"add --trust /gone/my_nets\.py:make"):
        opened(filed)
    trust([mine])
    assert opened(filed).card.name == mine
    forget()
    open_network(mine, role="student", num_classes=3, image_size=8)
    assert opened(filed).card.name == mine, "named as another network of the same command"


@pytest.mark.parametrize("name", ["my_nets.py:system", "my_nets.py:other", "nets.py:make"])
def test_what_is_named_is_a_file_and_its_function(filed: Path, name: str) -> None:
    forget()
    trust([f"{filed.parent}/here/my_nets.py:make"])
    changed(filed, name=f"/gone/{name}", arguments={"command": "true"})
    with pytest.raises(UserError, match="add --trust"):
        opened(filed)


def test_two_files_of_one_name_leave_it_open(filed: Path) -> None:
    other = filed.parent / "there" / "my_nets.py"
    other.parent.mkdir()
    other.write_text(NETWORK)
    forget()
    trust([f"{filed.parent}/here/my_nets.py:make", f"{other}:make"])
    with pytest.raises(UserError, match="add --trust"):
        opened(filed)
    changed(filed, name=f"{other}:make")
    assert opened(filed).card.name == f"{other}:make"


@pytest.mark.parametrize("name", ["resnet18", "nets.py", "nets.py:", "", "nets:small"])
def test_only_files_and_hubs_can_be_trusted(name: str) -> None:
    with pytest.raises(UserError, match=r"--trust .*: give FILE\.py:factory"):
        trust([name])


# What is written -----------------------------------------------------------------------------------------------------


def test_where_weights_came_from_does_not_stand_on_a_card(run: Path, state: dict[str, torch.Tensor]) -> None:
    given = {"checkpoint_path": "/home/me/start.pth", "drop_rate": 0.1}
    write_weights(run / LAST_WEIGHTS, state, NetworkCard("resnet8", 3, 16, (0.1,) * 3, (0.2,) * 3, arguments=given))
    assert read_card(run / LAST_WEIGHTS).arguments == {"drop_rate": 0.1}


def test_weights_without_a_card_have_none(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    assert card_in(tmp_path / "w.safetensors") is None
    assert card_in(tmp_path / "w.pth") is None


# Values that are not finite ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite(tmp_path: Path, value: float, suffix: str, dtype: torch.dtype) -> None:
    state = {"a.weight": torch.ones(2, 2, dtype=dtype), "b.weight": torch.ones(3, dtype=dtype), "n": torch.tensor(3)}
    state["b.weight"][1] = value
    file = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state}, file)
    with pytest.raises(UserError, match=r"the teacher: .* not finite, first in b\.weight"):
        read_weights(file, what="the teacher")


def test_a_run_that_is_not_finite_is_opened_by_nobody(run: Path, state: dict[str, torch.Tensor]) -> None:
    last = list(state)[-2]
    write_weights(run / LAST_WEIGHTS, {**state, last: state[last] * math.nan}, CARD)
    for more in ({}, {"classes": ["a", "b", "c"]}):
        with pytest.raises(UserError, match=rf"not finite, first in {last}"):
            opened(run, **more)


def test_a_factory_that_makes_what_is_not_finite(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        NETWORK + "\n\ndef nan(num_classes):\n    net = make(num_classes)\n"
        "    net[2].bias.data.fill_(float('nan'))\n    return net\n"
    )
    with pytest.raises(UserError, match=r"has values that are not finite, first in 2\.bias"):
        open_network(f"{tmp_path}/nets.py:nan", role="teacher", num_classes=3, image_size=8)
