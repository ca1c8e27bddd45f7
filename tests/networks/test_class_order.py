"""Classes are matched by name: in another order they are put into the data's, others are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import reldistill.networks.cifar  # noqa: F401 - registers the networks
from reldistill.core.checks import UserError
from reldistill.core.run_files import LAST_WEIGHTS
from reldistill.core.types import Wanted
from reldistill.networks.cards import NetworkCard, write_weights
from reldistill.networks.class_order import order_of, reorder
from reldistill.networks.extract import Extractor
from reldistill.networks.reused_head import reuse_head
from reldistill.networks.saved import open_network

CLASSES = ("ant", "bee", "cat", "dog", "emu")
MOVED = ("emu", "cat", "ant", "dog", "bee")
ORDER = [4, 2, 0, 3, 1]
SIDE = 32


@pytest.mark.parametrize(
    ("trained_on", "classes", "said"),
    [
        ("abc", "abd", "its weights don't know the class d of the data; the data lack its class c"),
        ("abc", "ab", "the data lack its class c"),
        ("ab", "abc", "its weights don't know the class c of the data"),
        ("abcdefghi", "ab", "the data lack its classes c, d, e, f, g … and 2 more"),
    ],
)
def test_other_classes_are_named(trained_on: str, classes: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        order_of([*trained_on], [*classes], what="teacher")
    assert str(error.value) == f"teacher was trained on other classes than the data's: {said}"


def test_names_that_look_alike_are_told_apart_in_the_message() -> None:
    with pytest.raises(UserError) as error:
        order_of(["a", "cafe\u0301", "blue "], ["a", "caf\u00e9", "blue"], what="teacher")
    said = "know the classes 'caf\\xe9', 'blue' of the data; the data lack its classes 'cafe\\u0301', 'blue '"
    assert str(error.value).endswith(said)


def test_names_that_stand_for_several_classes_tell_nothing_apart() -> None:
    with pytest.raises(UserError, match="teacher: its classes can't be told apart by name: 'a' stands for several"):
        order_of(["a", "a", "b"], ["a", "b", "a"], what="teacher")


def test_the_same_order_needs_nothing() -> None:
    assert order_of(CLASSES, CLASSES, what="teacher") is None
    assert order_of(CLASSES, MOVED, what="teacher") == ORDER
    assert [CLASSES[place] for place in ORDER] == [*MOVED]


class Scaled(nn.Module):
    """Class scores behind which each class has its own scale, which no layer's rows can move."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)
        self.scale = nn.Parameter(torch.arange(1.0, 6.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.mean(dim=(2, 3))) * self.scale


def of_width_five() -> nn.Module:
    """Inner layers with as many outputs as there are classes."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 5),
        nn.ReLU(),
        nn.Linear(5, 5),
    )


def simkd() -> nn.Module:
    student, teacher = (Extractor(timm.create_model(name, num_classes=5)) for name in ("resnet8", "resnet14"))
    return reuse_head(student, teacher, SIDE).network


VIT: dict[str, Any] = {"img_size": SIDE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}
NETWORKS: dict[str, Any] = {
    "linear": lambda: timm.create_model("resnet8", num_classes=5),
    "no bias": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5, bias=False)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "widths alike": of_width_five,
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", **VIT),
    "two heads": lambda: timm.create_model("deit_tiny_distilled_patch16_224", **VIT),
    "reused head": simkd,
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_everything_that_is_read_of_the_network_has_the_data_s_order(kind: str) -> None:
    torch.manual_seed(0)
    extractor = Extractor(NETWORKS[kind]().eval(), name=kind)
    for parameter in extractor.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(1.5)  # some networks begin with classes that all score 0
    extractor.survey(SIDE)
    images = torch.rand(3, 3, SIDE, SIDE)
    wanted = Wanted(distilled=extractor.has_distillation_token, pooled=True)
    with torch.no_grad():
        before = extractor.ask(images, wanted)
        reorder(extractor, ORDER, SIDE, what=kind)
        after = extractor.ask(images, wanted)
    torch.testing.assert_close(after.logits, before.logits[:, ORDER])
    assert (after.logits - before.logits).abs().max() > 1e-3
    if not torch.equal(before.pooled, before.logits):  # which they are where no one layer makes them
        torch.testing.assert_close(after.pooled, before.pooled)
    if before.distilled is not None:
        torch.testing.assert_close(after.distilled, before.distilled[:, ORDER])


def test_a_network_that_cannot_be_put_in_order_is_refused_and_stays_as_it_was() -> None:
    network = Scaled()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    extractor = Extractor(network)
    extractor.survey(SIDE)
    with pytest.raises(UserError, match="teacher runs/t was trained on these classes in another order, and no layer"):
        reorder(extractor, ORDER, SIDE, what="teacher runs/t")
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    made = open_network("resnet8", role="student", num_classes=5, image_size=SIDE).extractor.network
    (tmp_path / "run").mkdir()
    card = NetworkCard("resnet8", 5, SIDE, (0.5,) * 3, (0.25,) * 3, CLASSES)
    write_weights(tmp_path / "run" / LAST_WEIGHTS, made.state_dict(), card)
    return tmp_path / "run"


def ways(run: Path) -> list[tuple[str, str | None]]:
    """(name, weights) of the same network: a run, a run as weights, its file as weights."""
    return [(str(run), None), ("resnet8", str(run)), ("resnet8", str(run / LAST_WEIGHTS)), (str(run), str(run))]


@pytest.mark.parametrize("role", ["teacher", "student", "model"])
@pytest.mark.parametrize("way", range(4))
def test_a_run_s_classes_are_matched_however_it_is_named(run: Path, role: Any, way: int) -> None:
    name, weights = ways(run)[way]
    how = {"role": role, "num_classes": 5, "image_size": SIDE, "weights": weights}
    ours, moved = (open_network(name, classes=classes, **how) for classes in (CLASSES, MOVED))
    assert (ours.card.classes, moved.card.classes) == (CLASSES, MOVED)
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        said, moved_said = (one.extractor.eval()(images).logits for one in (ours, moved))
    torch.testing.assert_close(moved_said, said[:, ORDER])
    assert moved.weights_sha256 == ours.weights_sha256
    if role == "student":
        return
    with pytest.raises(
        UserError, match=rf"{role} .* don't know the class fly of the data; the data lack its class emu"
    ):
        open_network(name, classes=("ant", "bee", "cat", "dog", "fly"), **how)
    with pytest.raises(UserError, match=r"the data lack its classes cat, dog, emu"):
        open_network(name, classes=("ant", "bee"), **{**how, "num_classes": 2})


@pytest.mark.parametrize("classes", [("ant", "bee", "cat", "dog", "fly"), ("ant", "bee")])
@pytest.mark.parametrize("way", range(4))
def test_a_student_of_other_classes_gets_a_new_head(run: Path, way: int, classes: tuple[str, ...]) -> None:
    name, weights = ways(run)[way]
    how = {"role": "student", "image_size": SIDE, "weights": weights}
    before = open_network(name, classes=CLASSES, num_classes=5, **how).extractor.network.state_dict()
    opened = open_network(name, classes=classes, num_classes=len(classes), **how)
    after = opened.extractor.network.state_dict()
    assert opened.card.classes == classes
    assert after["fc.weight"].shape[0] == len(classes)
    assert len(classes) != 5 or not torch.equal(after["fc.weight"], before["fc.weight"])
    assert all(torch.equal(after[key], before[key]) for key in before if not key.startswith("fc."))


def test_weights_that_name_no_classes_stay_as_they_are(run: Path) -> None:
    from safetensors.torch import load_file, save_file

    plain = run / "plain.safetensors"
    save_file(load_file(run / LAST_WEIGHTS), plain)
    opened = open_network("resnet8", role="teacher", num_classes=5, image_size=SIDE, weights=str(plain), classes=MOVED)
    for name, value in load_file(plain).items():
        assert torch.equal(opened.extractor.network.state_dict()[name], value)
    assert opened.card.classes == ()
