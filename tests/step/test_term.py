from __future__ import annotations

from collections.abc import Collection

import pytest
import torch
from torch import Tensor, nn

from reldistill.core.types import Batch, ClassLabels, Features
from reldistill.step.curriculum import WarmUp
from reldistill.step.term import Term, value_at


class Gap(nn.Module):
    """One scalar."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).abs().mean()


class Parts(nn.Module):
    """Two scalars; remembers which were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, ...]] = []

    def parts(
        self, student: Tensor, teacher: Tensor, *, names: Collection[str] = ("gap", "square")
    ) -> dict[str, Tensor]:
        self.asked.append(tuple(names))
        values = {"gap": (student - teacher).abs().mean(), "square": (student - teacher).square().mean()}
        return {name: value for name, value in values.items() if name in names}


STUDENT, TEACHER = torch.tensor([[1.0, 4.0]]), torch.tensor([[0.0, 1.0]])


def test_one_weight() -> None:
    term = Term("gap", Gap(), student="logits", teacher="logits", weights=3)
    values = term(STUDENT, TEACHER)
    assert {name: float(value) for name, value in values.items()} == {"gap": 6.0}


def test_a_weight_for_each_part() -> None:
    term = Term("t", Parts(), student="a", teacher="b", weights={"gap": 3.0, "square": 0.5})
    values = term(STUDENT, TEACHER)
    assert {name: float(value) for name, value in values.items()} == {"t.gap": 6.0, "t.square": 2.5}


@pytest.mark.parametrize("weights", [{"gap": 0.0, "square": 1.0}, {"square": 1.0}])
def test_a_part_of_no_weight_is_not_computed(weights: dict[str, float]) -> None:
    loss = Parts()
    values = Term("t", loss, student="a", teacher="b", weights=weights)(STUDENT, TEACHER)
    assert list(values) == ["t.square"]
    assert loss.asked == [("square",)]


def test_a_part_that_the_loss_does_not_have() -> None:
    term = Term("t", Parts(), student="a", teacher="b", weights={"gap": 1.0, "sqare": 1.0})
    with pytest.raises(ValueError, match="t: weights for the parts gap, sqare, but its loss has gap"):
        term(STUDENT, TEACHER)


@pytest.mark.parametrize(("loss", "weights"), [(Gap(), {"gap": 1.0}), (Parts(), 1.0)])
def test_weights_and_loss_must_go_together(loss: nn.Module, weights: float | dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^t: a loss with parts takes a weight for each part"):
        Term("t", loss, student="a", teacher="b", weights=weights)


def test_the_curriculum_multiplies_every_weight() -> None:
    term = Term(
        "t", Parts(), student="a", teacher="b", weights={"gap": 3.0, "square": 0.5}, curriculum=WarmUp(over=0.5)
    )
    values = term(STUDENT, TEACHER, progress=0.1)
    assert {name: float(value) for name, value in values.items()} == pytest.approx({"t.gap": 1.2, "t.square": 0.5})
    alone = Term("t", Gap(), student="a", teacher="b", weights=3, curriculum=WarmUp(over=0.5))
    assert float(alone(STUDENT, TEACHER, progress=0.1)["t"]) == pytest.approx(1.2)


def test_a_term_is_active_while_anything_counts() -> None:
    warm = Term("t", Gap(), student="a", teacher="b", weights=1.0, curriculum=WarmUp(over=0.5))
    assert not warm.is_active(0.0)
    assert warm.is_active(0.01)
    assert not Term("t", Gap(), student="a", teacher="b", weights=0.0).is_active(1.0)
    assert not Term("t", Parts(), student="a", teacher="b", weights={"gap": 0.0, "square": 0.0}).is_active(1.0)
    assert Term("t", Parts(), student="a", teacher="b", weights={"gap": 0.0, "square": 0.1}).is_active(0.0)


def test_a_losss_own_parameters_belong_to_the_term() -> None:
    loss = nn.Bilinear(2, 2, 1)
    term = Term("t", loss, student="a", teacher="b", weights=2.0)
    assert [id(p) for p in term.parameters()] == [id(p) for p in loss.parameters()]
    torch.testing.assert_close(term(STUDENT, TEACHER)["t"], 2 * loss(STUDENT, TEACHER))


def test_value_at_the_places_of_a_network() -> None:
    features = Features(logits=torch.ones(1, 2), pooled=torch.ones(1, 3), levels={"layer1": torch.ones(1, 4, 1, 1)})
    assert [value_at(features, place).shape[1] for place in ("logits", "pooled", "layer1")] == [2, 3, 4]


class ByLabel(nn.Module):
    """A loss that needs the labels, and both networks at two places."""

    needs = ("labels",)

    def forward(self, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], *, labels: Tensor) -> Tensor:
        return sum((s - t).abs().sum() for s, t in zip(student, teacher, strict=True)) + labels.sum()


def test_several_places_and_what_the_loss_names_of_the_batch() -> None:
    term = Term("t", ByLabel(), student=("a", "logits"), teacher=("b", "logits"), weights=2.0)
    student = Features(logits=torch.zeros(1, 2), levels={"a": torch.ones(1, 1, 1, 1)})
    teacher = Features(logits=torch.ones(1, 2), levels={"b": torch.zeros(1, 1, 1, 1)})
    batch = Batch(torch.rand(1, 3, 2, 2), ClassLabels(torch.tensor([4])))
    values = term(value_at(student, term.student), value_at(teacher, term.teacher), batch=batch)
    assert values["t"].item() == 2.0 * (1 + 2 + 4)
    assert term.student_places == ("a", "logits")
    assert term.looks_inside


def test_progress_is_one_of_the_needs() -> None:
    class ByProgress(nn.Module):
        needs = ("progress", "labels")

        def forward(self, student: Tensor, teacher: Tensor, *, progress: float, labels: Tensor) -> Tensor:
            return progress * labels.sum() + 0 * student.sum()

    batch = Batch(torch.rand(1, 3, 2, 2), ClassLabels(torch.tensor([4])))
    term = Term("t", ByProgress(), student="a", teacher="a", weights=2.0)
    assert term(STUDENT, TEACHER, batch=batch, progress=0.25)["t"].item() == 2.0


def test_a_function_is_a_loss() -> None:
    term = Term("gap", lambda student, teacher: (student - teacher).abs().mean(), student="a", teacher="a", weights=3)
    assert term(STUDENT, TEACHER)["gap"].item() == 6.0
    assert not [*term.parameters()]


def test_a_loss_that_chooses_a_place() -> None:
    class Second(Gap):
        def chosen(self) -> int:
            return 1

    term = Term("t", Second(), student="a", teacher=("x", "y", "z"), weights=1.0)
    assert term.chooses_place
    assert term.teacher_places == ("y",)
    assert term.of_teacher({"y": TEACHER}) is TEACHER


def test_a_loss_that_chooses_after_it_has_seen_all() -> None:
    class Last(Gap):
        number: int | None = None

        def chosen(self) -> int | None:
            return self.number

    loss = Last()
    term = Term("t", loss, student="a", teacher=(("x", "x@class"), ("y", "y@class")), weights=1.0)
    said = {"x": 1 * TEACHER, "x@class": 2 * TEACHER, "y": 3 * TEACHER, "y@class": 4 * TEACHER}
    assert term.teacher_places == tuple(said)
    assert term.of_teacher(said) == ((said["x"], said["x@class"]), (said["y"], said["y@class"]))
    loss.number = 1
    assert term.teacher_places == ("y", "y@class")
    assert term.of_teacher(said) == (said["y"], said["y@class"])


@pytest.mark.parametrize("batch", [None, Batch(torch.rand(1, 3, 2, 2), ClassLabels(torch.tensor([4])))])
def test_what_the_batch_lacks(batch: Batch | None) -> None:
    class ByIndex(nn.Module):
        needs = ("indices",)

        def forward(self, student: Tensor, teacher: Tensor, *, indices: Tensor) -> Tensor:
            return (student - teacher).abs().mean() * indices.sum()

    term = Term("memory", ByIndex(), student="pooled", teacher="pooled", weights=1.0)
    assert not term.looks_inside
    with pytest.raises(ValueError, match="memory needs the indices of a batch"):
        term(STUDENT, TEACHER, batch=batch)
