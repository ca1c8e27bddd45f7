"""What every loss keeps, whatever its method. A new loss is a new row of ROWS, and nothing else here."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import reldistill.losses
from ddp_helpers import run_on_ranks
from reldistill.losses.fitnets import FitNets
from reldistill.losses.kd import KD
from reldistill.losses.rkd import RKD
from reldistill.losses.sekd import SEKD
from reldistill.losses.serkd import SeRKD


def normal(*student: int, teacher: tuple[int, ...] | None = None) -> Callable[[int], tuple[Tensor, Tensor]]:
    """seed → student and teacher of normal random numbers in float64, of one shape unless the teacher's is given."""

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        sizes = student, teacher or student
        return tuple(torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)  # type: ignore[return-value]

    return draw


@dataclass(frozen=True)
class Row:
    """One loss under test.

    Args:
        id: the name that the tests show; the file's name, and what is special about the row.
        loss: makes it.
        inputs: seed → tiny (student, teacher) in float64, at least four samples first.
        zero_at_equal: the loss is 0, its minimum, when the student's tensor is the teacher's.
        batch_order_invariant: a common permutation of the samples changes nothing.
        fullgraph: torch.compile takes it without a graph break.
    """

    id: str
    loss: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, Tensor]]
    zero_at_equal: bool = True
    batch_order_invariant: bool = True
    fullgraph: bool = True


CNN_AND_VIT = normal(4, 3, 4, 5, teacher=(4, 5, 6, 6))
ROWS = [
    Row("kd", KD, normal(4, 5)),
    Row("fitnets", FitNets, normal(4, 3, 2, 2)),
    Row("fitnets-relative", partial(FitNets, relative=True), normal(4, 3, 2, 2)),
    Row("rkd", RKD, normal(6, 3, teacher=(6, 5))),
    Row("serkd", SeRKD, CNN_AND_VIT),
    Row("serkd-teacher", partial(SeRKD, assignment="teacher"), CNN_AND_VIT),
    Row("serkd-local", partial(SeRKD, neighbourhood="local"), CNN_AND_VIT),
    Row("serkd-local-teacher", partial(SeRKD, neighbourhood="local", assignment="teacher"), CNN_AND_VIT),
    Row("serkd-tokens", SeRKD, normal(4, 16, 3, teacher=(4, 25, 5))),
    Row("sekd", partial(SEKD, rank=2), normal(4, 6, 3, 3)),
    Row("sekd-sample", partial(SEKD, rank=2, scope="sample", vertex="raw"), normal(4, 6, 3, 3)),
    Row("sekd-procrustes", partial(SEKD, rank=2, alignment="procrustes", groups=2), normal(4, 8, 3, 3)),
    Row("sekd-heat", partial(SEKD, alignment="heat", graph_weights="shifted"), normal(4, 6, 3, 3)),
]
every_loss = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)


def value_and_gradient(loss: Callable[..., Tensor], student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = student.detach().clone().requires_grad_()
    value = loss(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


@every_loss
def test_scalar_finite_and_positive(row: Row) -> None:
    for seed in range(3):
        value = row.loss()(*row.inputs(seed))
        assert value.shape == ()
        assert value.isfinite()
        assert value.item() > 0


@every_loss
def test_minimum_at_equal(row: Row) -> None:
    if not row.zero_at_equal:
        pytest.skip("this loss documents no minimum at equal inputs")
    _, teacher = row.inputs(0)
    value, gradient = value_and_gradient(row.loss(), teacher, teacher)
    assert abs(value.item()) < 1e-12
    assert gradient.abs().max() < 1e-5


@every_loss
def test_no_gradient_to_the_teacher(row: Row) -> None:
    student, teacher = (part.requires_grad_() for part in row.inputs(0))
    row.loss()(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().max() > 0


@every_loss
def test_inputs_are_left_as_they_were(row: Row) -> None:
    student, teacher = row.inputs(0)
    before = student.clone(), teacher.clone()
    value_and_gradient(row.loss(), student, teacher)
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


@every_loss
def test_gradcheck(row: Row) -> None:
    student, teacher = row.inputs(0)
    loss = row.loss()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.requires_grad_(), eps=1e-6, atol=1e-6)


@every_loss
def test_float32_is_close_to_float64(row: Row) -> None:
    student, teacher = (part.float() for part in row.inputs(0))
    value, gradient = value_and_gradient(row.loss(), student, teacher)
    assert value.dtype == torch.float32
    expected, slope = value_and_gradient(row.loss(), student.double(), teacher.double())
    assert expected.dtype == torch.float64
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    assert (gradient - slope).abs().max() < 1e-3 * slope.abs().max()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(row: Row, dtype: torch.dtype) -> None:
    student, teacher = (part.to(dtype) for part in row.inputs(0))
    loss = row.loss()
    expected = loss(student.float(), teacher.float())
    found = loss(student, teacher)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@every_loss
def test_autocast_changes_nothing(row: Row) -> None:
    """Around the forward pass, where PyTorch says that it belongs."""
    student, teacher = (part.float() for part in row.inputs(0))
    expected, slope = value_and_gradient(row.loss(), student, teacher)
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = row.loss()(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert torch.equal(value.detach(), expected)
    assert torch.equal(gradient, slope)


@every_loss
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
@pytest.mark.parametrize("kind", ["zero", "constant", "one value a sample", "fp16 of ±6e4"])
def test_extreme_inputs_are_finite(row: Row, kind: str, who: str) -> None:
    def extreme(part: Tensor) -> Tensor:
        return {
            "zero": torch.zeros_like(part),
            "constant": torch.full_like(part, 0.1),
            "one value a sample": part.flatten(1)[:, :1].reshape(-1, *[1] * (part.ndim - 1)).expand_as(part),
            "fp16 of ±6e4": 6e4 * part.sign(),
        }[kind]

    student, teacher = row.inputs(0)
    student = extreme(student) if who != "teacher" else student
    teacher = extreme(teacher) if who != "student" else teacher
    dtype = torch.float16 if kind.startswith("fp16") else torch.float32
    value, gradient = value_and_gradient(row.loss(), student.to(dtype), teacher.to(dtype))
    assert value.isfinite()
    assert gradient.isfinite().all()


@every_loss
def test_order_of_the_samples(row: Row) -> None:
    if not row.batch_order_invariant:
        pytest.skip("this loss documents that the order of the samples matters")
    student, teacher = row.inputs(0)
    order = torch.arange(len(student)).flip(0)
    value, gradient = value_and_gradient(row.loss(), student, teacher)
    found, slope = value_and_gradient(row.loss(), student[order], teacher[order])
    torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slope, gradient[order], rtol=1e-6, atol=1e-9)


@every_loss
def test_falls_within_20_steps(row: Row) -> None:
    student, teacher = row.inputs(0)
    loss = row.loss()
    start = loss(student, teacher).item()
    student.requires_grad_()
    optimiser = torch.optim.Adam([student], lr=0.05)
    for _ in range(20):
        optimiser.zero_grad()
        loss(student, teacher).backward()
        optimiser.step()
    assert loss(student, teacher).item() < 0.8 * start


@every_loss
def test_state_round_trip(row: Row) -> None:
    student, teacher = row.inputs(0)
    loss = row.loss()
    loss(student, teacher)  # whatever state a call leaves is part of what must travel
    restored = row.loss()
    restored.load_state_dict(loss.state_dict())
    expected = copy.deepcopy(loss)(student, teacher)
    assert torch.equal(restored(student, teacher), expected)


@every_loss
def test_parts_are_what_the_loss_sums(row: Row) -> None:
    loss = row.loss()
    if not hasattr(loss, "parts"):
        assert not hasattr(loss, "weights")
        return
    student, teacher = row.inputs(0)
    parts = loss.parts(student, teacher)
    assert set(parts) == set(loss.weights)
    assert all(part.shape == () for part in parts.values())
    expected = sum(loss.weights[name] * part for name, part in parts.items())
    torch.testing.assert_close(loss(student, teacher), expected, rtol=1e-12, atol=0)
    for name in parts:
        alone = loss.parts(student, teacher, names=[name])
        assert set(alone) == {name}
        torch.testing.assert_close(alone[name], parts[name], rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match=r"part must be one of .*, got 'nonsense'"):
        loss.parts(student, teacher, names=["nonsense"])


@every_loss
def test_compiled_value_and_gradient_are_the_same(row: Row) -> None:
    torch._dynamo.reset()
    student, teacher = row.inputs(0)
    loss = row.loss()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=row.fullgraph)
    expected, slope = value_and_gradient(loss, student, teacher)
    found, gradient = value_and_gradient(compiled, student, teacher)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-6, atol=1e-9)


@every_loss
def test_other_numbers_of_samples_are_refused(row: Row) -> None:
    student, teacher = row.inputs(0)
    with pytest.raises(ValueError, match="student"):
        row.loss()(student, teacher[:-1])


@every_loss
def test_signature(row: Row) -> None:
    """`student` before `teacher`; settings by keyword, each with a default; nothing passed through blindly."""
    loss = row.loss()
    assert list(inspect.signature(loss.forward).parameters) == ["student", "teacher"]
    for parameter in inspect.signature(type(loss)).parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY, parameter
        assert parameter.default is not parameter.empty, parameter


def halves(rank: int, world_size: int) -> dict[str, dict[str, Tensor]]:
    results = {}
    for row in ROWS:
        student, teacher = (part.chunk(world_size)[rank] for part in row.inputs(0))
        value, gradient = value_and_gradient(row.loss(), student, teacher)
        results[row.id] = {"value": value, "gradient": gradient}
    return results


@pytest.fixture(scope="module")
def two_processes() -> list[dict[str, dict[str, Tensor]]]:
    return run_on_ranks(halves)


@every_loss
def test_two_processes_are_one(row: Row, two_processes: list[dict[str, dict[str, Tensor]]]) -> None:
    """Each with half of the samples; the mean of the ranks' values and, as DDP takes it, of their gradients."""
    expected, slope = value_and_gradient(row.loss(), *row.inputs(0))
    ranks = [results[row.id] for results in two_processes]
    torch.testing.assert_close((ranks[0]["value"] + ranks[1]["value"]) / 2, expected, rtol=1e-9, atol=1e-12)
    gradient = torch.cat([rank["gradient"] for rank in ranks]) / 2
    torch.testing.assert_close(gradient, slope, rtol=1e-6, atol=1e-9)


# Every loss of the package is here, has a page, and can be asked for by name.

FILES = sorted(p for p in Path(reldistill.losses.__file__).parent.glob("*.py") if not p.name.startswith("_"))
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def losses_in(file: Path) -> list[type[nn.Module]]:
    """The public modules that a file of losses defines."""
    module = importlib.import_module(f"reldistill.losses.{file.stem}")
    names = [n.name for n in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(n, ast.ClassDef)]
    public = [getattr(module, name) for name in names if not name.startswith("_")]
    return [found for found in public if issubclass(found, nn.Module)]


@every_file
def test_every_loss_has_a_row(file: Path) -> None:
    losses = losses_in(file)
    assert losses, f"{file.name} defines no loss"
    tested = {type(row.loss()) for row in ROWS}
    for loss in losses:
        assert loss in tested, f"add a row for {loss.__name__} to ROWS in this file"


@every_file
def test_every_loss_has_a_page(file: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "methods" / f"{file.stem}.md"
    assert page.is_file(), f"write docs/methods/{file.stem}.md"
    for loss in losses_in(file):
        assert loss.__name__ in page.read_text(encoding="utf-8"), f"docs/methods/{file.stem}.md: name {loss.__name__}"


@every_file
def test_every_loss_has_a_method(file: Path) -> None:
    from reldistill.methods import METHODS

    assert file.stem in METHODS, f"add '{file.stem}' to METHODS in src/reldistill/methods.py"


@every_file
def test_every_loss_names_its_paper(file: Path) -> None:
    module = importlib.import_module(f"reldistill.losses.{file.stem}")
    texts = [loss.__doc__ or "" for loss in losses_in(file)]
    texts += [
        f.__doc__ or "" for name, f in inspect.getmembers(module, inspect.isfunction) if name == f"{file.stem}_loss"
    ]
    text = "\n".join(texts)
    for part in ("arXiv", "Args:", "Raises:", "Invariances", "Differences from the paper", ">>>"):
        assert part in text, f"{file.name}: the docstring lacks '{part}'"
