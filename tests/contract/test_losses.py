"""What every loss keeps, whatever its method. A new loss is a new row of ROWS, and nothing else here."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import reldistill.losses
from ddp_helpers import run_on_ranks
from reldistill.losses.at import AT
from reldistill.losses.cc import CC
from reldistill.losses.crd import CRD
from reldistill.losses.cskd import CSKD
from reldistill.losses.cwd import CWD
from reldistill.losses.deit_hard import DeiTHard
from reldistill.losses.deit_soft import DeiTSoft
from reldistill.losses.dist import DIST
from reldistill.losses.dkd import DKD
from reldistill.losses.features import ProjectedFeatures
from reldistill.losses.fgd import FGD
from reldistill.losses.fitnets import FitNets
from reldistill.losses.head_kd import HeadKD
from reldistill.losses.ickd import ICKD
from reldistill.losses.kd import KD
from reldistill.losses.leap import LEAP
from reldistill.losses.logit_std import LogitStd
from reldistill.losses.mgd import MGD
from reldistill.losses.ofd import OFD
from reldistill.losses.patch_kl import PatchKL
from reldistill.losses.pkd import PKD
from reldistill.losses.pkt import PKT
from reldistill.losses.reviewkd import ReviewKD
from reldistill.losses.rkd import RKD
from reldistill.losses.sekd import SEKD
from reldistill.losses.serkd import SeRKD
from reldistill.losses.simkd import SimKD
from reldistill.losses.sp import SP
from reldistill.losses.spectralkd import SpectralKD
from reldistill.losses.vid import VID
from reldistill.losses.vrm import VRM

Side = Tensor | tuple[Tensor, ...]


def each(side: Side, change: Callable[[Tensor], Tensor]) -> Side:
    """The side of a network with every tensor of it changed."""
    return change(side) if isinstance(side, Tensor) else tuple(change(tensor) for tensor in side)


def tensors(side: Side) -> tuple[Tensor, ...]:
    return (side,) if isinstance(side, Tensor) else side


@dataclass(frozen=True)
class Inputs:
    """What a loss is called with: what two networks said, a tensor or a tuple of them each, and keywords of the batch.

    Args:
        student: of the student, samples first.
        teacher: of the teacher.
        of_the_batch: `labels`, `indices`, `boxes`.
    """

    student: Side
    teacher: Side
    of_the_batch: dict[str, Tensor] = field(default_factory=dict)

    def to(self, dtype: torch.dtype) -> Inputs:
        """The networks' tensors in another type."""
        return Inputs(
            each(self.student, lambda t: t.to(dtype)), each(self.teacher, lambda t: t.to(dtype)), self.of_the_batch
        )

    def on_the_gpu(self) -> Inputs:
        """Everything there."""
        more = {name: tensor.cuda() for name, tensor in self.of_the_batch.items()}
        return Inputs(each(self.student, Tensor.cuda), each(self.teacher, Tensor.cuda), more)

    def samples(self, choose: Callable[[Tensor], Tensor]) -> Inputs:
        """Some of the samples of everything, or all in another order."""
        more = {name: choose(tensor) for name, tensor in self.of_the_batch.items()}
        return Inputs(each(self.student, choose), each(self.teacher, choose), more)


Draw = Callable[[int], Inputs]


def normal(*student: int, teacher: tuple[int, ...] | None = None) -> Draw:
    """seed → student and teacher of normal random numbers in float64, of one shape unless the teacher's is given."""

    def draw(seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        sizes = student, teacher or student
        return Inputs(*(torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes))

    return draw


def several(*draws: Draw) -> Draw:
    """seed → a tuple of tensors for each network, one of each draw."""

    def draw(seed: int) -> Inputs:
        drawn = [one(seed + 100 * place) for place, one in enumerate(draws)]
        return Inputs(
            tuple(tensor for one in drawn for tensor in tensors(one.student)),
            tuple(tensor for one in drawn for tensor in tensors(one.teacher)),
        )

    return draw


def with_labels(inputs: Draw, *, classes: int) -> Draw:
    """The same with `labels` that go through the classes."""

    def draw(seed: int) -> Inputs:
        drawn = inputs(seed)
        labels = (torch.arange(len(tensors(drawn.student)[0])) + seed) % classes
        return Inputs(drawn.student, drawn.teacher, {**drawn.of_the_batch, "labels": labels})

    return draw


def with_indices(inputs: Draw, *, of: int) -> Draw:
    """The same with distinct `indices` into a data set of so many images."""

    def draw(seed: int) -> Inputs:
        drawn = inputs(seed)
        order = torch.randperm(of, generator=torch.Generator().manual_seed(seed))
        indices = order[: len(tensors(drawn.student)[0])]
        return Inputs(drawn.student, drawn.teacher, {**drawn.of_the_batch, "indices": indices})

    return draw


def with_boxes(inputs: Draw, *, count: int) -> Draw:
    """The same with `count` boxes an image, as fractions of its sides; the last image has one fewer."""

    def draw(seed: int) -> Inputs:
        drawn = inputs(seed)
        generator = torch.Generator().manual_seed(seed)
        size = (len(tensors(drawn.student)[0]), count, 2, 2)
        boxes = torch.rand(size, generator=generator, dtype=torch.float64).sort(dim=2).values.flatten(2)
        boxes[-1, -1] = 0
        return Inputs(drawn.student, drawn.teacher, {**drawn.of_the_batch, "boxes": boxes})

    return draw


@dataclass(frozen=True)
class Row:
    """One loss under test.

    Args:
        id: the name that the tests show; the file's name, and what is special about the row.
        loss: makes it.
        inputs: seed → tiny inputs in float64, at least four samples first.
        zero_at_equal: the loss is 0, its minimum, when the student's tensor is the teacher's.
        batch_order_invariant: a common permutation of the samples changes nothing.
        fullgraph: torch.compile takes it without a graph break.
        draws_on_its_device: what it draws at random is another on a GPU.
        without_effect: ends of the names of parameters that change nothing, as a constant in front of a softmax does.
    """

    id: str
    loss: Callable[[], nn.Module]
    inputs: Draw
    zero_at_equal: bool = True
    batch_order_invariant: bool = True
    fullgraph: bool = True
    draws_on_its_device: bool = False
    without_effect: tuple[str, ...] = ()


def fresh(row: Row, *, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The row's loss as it is before its first call, always with the same parameters."""
    torch.default_generator.manual_seed(0)
    return row.loss().to(dtype)


def call(loss: Callable[..., Any], inputs: Inputs, **more: Any) -> Any:
    """The loss of the inputs; what it draws is the same in every call. Ranks are seeded apart, as in a run."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.default_generator.manual_seed(1 + rank)
    return loss(inputs.student, inputs.teacher, **inputs.of_the_batch, **more)


def with_gradient(side: Side) -> Side:
    return each(side, lambda tensor: tensor.detach().clone().requires_grad_())


def value_and_gradient(loss: Callable[..., Tensor], inputs: Inputs) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Value, and the gradient of each of the student's tensors."""
    student = with_gradient(inputs.student)
    value = call(loss, Inputs(student, inputs.teacher, inputs.of_the_batch))
    return value.detach(), torch.autograd.grad(value, tensors(student))


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], *, rtol: float, atol: float) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def crd_after_its_first_step() -> CRD:
    """The first step sets a constant, which is none of the value's gradient."""
    loss = CRD(student_dim=4, teacher_dim=5, images=12, dim=3, negatives=6)
    loss.log_scales.fill_(0.5)
    return loss


def fgd_after_its_first_steps() -> FGD:
    """The relations begin as the identity, where the parameters in front have no gradient."""
    loss = FGD(channels=4)
    for relations in (loss.student_relations, loss.teacher_relations):
        torch.nn.init.normal_(relations.transform[-1].weight)
    return loss


POOLED = normal(6, 3, teacher=(6, 5))
CNN_AND_VIT = normal(4, 3, 4, 5, teacher=(4, 5, 6, 6))
ROWS = [
    Row("kd", KD, normal(4, 5)),
    Row("dkd", DKD, with_labels(normal(4, 5), classes=5)),
    Row("logit_std", LogitStd, normal(4, 5)),
    Row("dist", DIST, normal(6, 5)),
    Row("fitnets", FitNets, normal(4, 3, 2, 2)),
    Row("fitnets-relative", partial(FitNets, relative=True), normal(4, 3, 2, 2)),
    Row("at", AT, normal(4, 3, 4, 2, teacher=(4, 5, 2, 3))),
    Row("at-linear", partial(AT, power=1), normal(4, 3, 2, 2)),
    Row("cwd", CWD, normal(4, 3, 2, 3)),
    Row("ickd", ICKD, normal(4, 3, 2, 2, teacher=(4, 3, 3, 2))),
    Row("patch_kl", PatchKL, normal(4, 3, 2, 2, teacher=(4, 5, 4, 2))),
    Row("features", ProjectedFeatures, several(normal(4, 5), normal(4, 3, 2, 3))),
    Row("features-mse", partial(ProjectedFeatures, distance="mse"), several(normal(4, 5), normal(4, 3, 2, 3))),
    Row("sp", SP, normal(6, 2, 2, 1, teacher=(6, 5, 1, 2))),
    Row("cc", CC, POOLED),
    Row("pkt", PKT, POOLED),
    Row("rkd", RKD, POOLED),
    Row("serkd", SeRKD, CNN_AND_VIT),
    Row("serkd-teacher", partial(SeRKD, assignment="teacher"), CNN_AND_VIT),
    Row("serkd-local", partial(SeRKD, neighbourhood="local"), CNN_AND_VIT),
    Row("serkd-local-teacher", partial(SeRKD, neighbourhood="local", assignment="teacher"), CNN_AND_VIT),
    Row("serkd-tokens", SeRKD, normal(4, 16, 3, teacher=(4, 25, 5))),
    Row("sekd", partial(SEKD, rank=2), normal(4, 6, 3, 3)),
    Row("sekd-sample", partial(SEKD, rank=2, scope="sample", vertex="raw"), normal(4, 6, 3, 3)),
    Row("sekd-procrustes", partial(SEKD, rank=2, alignment="procrustes", groups=2), normal(4, 8, 3, 3)),
    Row("sekd-heat", partial(SEKD, alignment="heat", graph_weights="shifted"), normal(4, 6, 3, 3)),
    Row("vrm", VRM, several(normal(4, 5), normal(4, 5))),
    Row("vrm-pruned", partial(VRM, keep=0.5, instance_weight=0.3), several(normal(4, 5), normal(4, 5))),
    Row(
        "crd",
        crd_after_its_first_step,
        with_indices(with_labels(normal(4, 4, teacher=(4, 5)), classes=3), of=12),
        zero_at_equal=False,
        batch_order_invariant=False,
        fullgraph=False,
        draws_on_its_device=True,
    ),
    Row("reviewkd", ReviewKD, several(normal(4, 3, 5, 5), normal(4, 2, 3, 2), normal(4, 6))),
    Row("spectralkd", SpectralKD, several(normal(4, 3, 4, 2, teacher=(4, 5, 2, 3)), normal(4, 2, 3, 3))),
    Row("vid", partial(VID, channels=3), normal(4, 3, 2, 2), zero_at_equal=False),
    Row("ofd", OFD, several(normal(4, 3, 3, 2), normal(4, 5, 2, 2))),
    Row(
        "mgd",
        partial(MGD, channels=3),
        normal(4, 3, 3, 2),
        zero_at_equal=False,
        batch_order_invariant=False,
        fullgraph=False,
        draws_on_its_device=True,
    ),
    Row(
        "fgd",
        fgd_after_its_first_steps,
        with_boxes(normal(4, 4, 3, 5), count=2),
        zero_at_equal=False,
        without_effect=("attend.bias",),
    ),
    Row("pkd", PKD, normal(4, 3, 2, 3)),
    Row("head_kd", HeadKD, normal(4, 3, 2)),
    Row("simkd", SimKD, normal(4, 3, 2, 2, teacher=(4, 3, 4, 4))),
    Row("simkd-vectors", SimKD, normal(4, 5)),
    Row("deit_hard", DeiTHard, normal(4, 5), zero_at_equal=False),
    Row("deit_soft", DeiTSoft, normal(4, 5)),
    Row("cskd", CSKD, normal(4, 5, 4, 4, teacher=(4, 5, 2, 2)), zero_at_equal=False),
    Row("cskd-soft", partial(CSKD, targets="soft"), normal(4, 5, 3, 2)),
    Row("leap", partial(LEAP, layers=3, start="first"), normal(4, 3, 2, 2), fullgraph=False),
    Row(
        "leap-class",
        partial(LEAP, layers=3, start="first", relative=True, class_token=True),
        several(normal(4, 3, 2, 2), normal(4, 5)),
        fullgraph=False,
    ),
]
every_loss = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)


@every_loss
def test_scalar_finite_and_positive(row: Row) -> None:
    for seed in range(3):
        value = call(fresh(row), row.inputs(seed))
        assert value.shape == ()
        assert value.isfinite()
        assert value.item() > 0


@every_loss
def test_minimum_at_equal(row: Row) -> None:
    if not row.zero_at_equal:
        pytest.skip("this loss documents no minimum at equal inputs")
    inputs = row.inputs(0)
    value, gradients = value_and_gradient(fresh(row), Inputs(inputs.teacher, inputs.teacher, inputs.of_the_batch))
    assert abs(value.item()) < 1e-12
    assert all(gradient.abs().max() < 1e-5 for gradient in gradients)


@every_loss
def test_no_gradient_to_the_teacher(row: Row) -> None:
    inputs = row.inputs(0)
    student, teacher = with_gradient(inputs.student), with_gradient(inputs.teacher)
    call(fresh(row), Inputs(student, teacher, inputs.of_the_batch)).backward()
    assert all(tensor.grad is None for tensor in tensors(teacher))
    for tensor in tensors(student):
        assert tensor.grad is not None
        assert tensor.grad.abs().max() > 0


@every_loss
def test_every_learnable_parameter_gets_a_gradient(row: Row) -> None:
    loss = fresh(row)
    parameters = dict(loss.named_parameters())
    if not parameters:
        pytest.skip("this loss learns nothing")
    call(loss, row.inputs(0)).backward()
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert bool(parameter.grad.abs().max() > 1e-12) is not name.endswith(row.without_effect), name


@every_loss
def test_inputs_are_left_as_they_were(row: Row) -> None:
    inputs, before = row.inputs(0), copy.deepcopy(row.inputs(0))
    value_and_gradient(fresh(row), inputs)
    given = [*tensors(inputs.student), *tensors(inputs.teacher), *inputs.of_the_batch.values()]
    copies = [*tensors(before.student), *tensors(before.teacher), *before.of_the_batch.values()]
    for tensor, other in zip(given, copies, strict=True):
        assert torch.equal(tensor, other)


@every_loss
@pytest.mark.slow
def test_gradcheck(row: Row) -> None:
    inputs, loss = row.inputs(0), fresh(row)
    several = isinstance(inputs.student, tuple)

    def value(*student: Tensor) -> Tensor:
        side = student if several else student[0]
        # A copy: a loss with a memory must see the same one in every call.
        return call(copy.deepcopy(loss), Inputs(side, inputs.teacher, inputs.of_the_batch))

    assert torch.autograd.gradcheck(value, tensors(with_gradient(inputs.student)), eps=1e-6, atol=1e-6)


@every_loss
def test_float32_is_close_to_float64(row: Row) -> None:
    inputs = row.inputs(0).to(torch.float32)
    value, gradients = value_and_gradient(fresh(row, dtype=torch.float32), inputs)
    assert value.dtype == torch.float32
    expected, slopes = value_and_gradient(fresh(row), inputs.to(torch.float64))
    assert expected.dtype == torch.float64
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert (gradient - slope).abs().max() < 1e-3 * slope.abs().max()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(row: Row, dtype: torch.dtype) -> None:
    inputs = row.inputs(0).to(dtype)
    expected = call(fresh(row, dtype=torch.float32), inputs.to(torch.float32))
    found = call(fresh(row, dtype=torch.float32), inputs)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@every_loss
def test_autocast_changes_nothing(row: Row) -> None:
    """Around the forward pass, where PyTorch says that it belongs."""
    inputs = row.inputs(0).to(torch.float32)
    expected, slopes = value_and_gradient(fresh(row, dtype=torch.float32), inputs)
    student, loss = with_gradient(inputs.student), fresh(row, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = call(loss, Inputs(student, inputs.teacher, inputs.of_the_batch))
    gradients = torch.autograd.grad(value, tensors(student))
    assert torch.equal(value.detach(), expected)
    assert all(torch.equal(gradient, slope) for gradient, slope in zip(gradients, slopes, strict=True))


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

    inputs = row.inputs(0)
    student = each(inputs.student, extreme) if who != "teacher" else inputs.student
    teacher = each(inputs.teacher, extreme) if who != "student" else inputs.teacher
    dtype = torch.float16 if kind.startswith("fp16") else torch.float32
    loss = fresh(row, dtype=torch.float32)
    value, gradients = value_and_gradient(loss, Inputs(student, teacher, inputs.of_the_batch).to(dtype))
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@every_loss
def test_order_of_the_samples(row: Row) -> None:
    if not row.batch_order_invariant:
        pytest.skip("this loss documents that the order of the samples matters")
    inputs = row.inputs(0)
    value, gradients = value_and_gradient(fresh(row), inputs)
    found, slopes = value_and_gradient(fresh(row), inputs.samples(lambda tensor: tensor.flip(0)))
    torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-12)
    assert_close(slopes, [gradient.flip(0) for gradient in gradients], rtol=1e-6, atol=1e-9)


@every_loss
def test_falls_within_20_steps(row: Row) -> None:
    inputs, loss = row.inputs(0), fresh(row)
    student = with_gradient(inputs.student)
    inputs = Inputs(student, inputs.teacher, inputs.of_the_batch)
    start = call(loss, inputs).item()
    optimiser = torch.optim.Adam([*tensors(student), *loss.parameters()], lr=0.05)
    for _ in range(20):
        optimiser.zero_grad()
        call(loss, inputs).backward()
        optimiser.step()
    assert call(loss, inputs).item() < 0.8 * start


@every_loss
def test_state_round_trip(row: Row) -> None:
    inputs, loss = row.inputs(0), fresh(row)
    call(loss, inputs)  # whatever state a call leaves is part of what must travel
    restored = row.loss().double()
    restored.load_state_dict(loss.state_dict())
    expected = call(copy.deepcopy(loss), inputs)
    assert torch.equal(call(restored, inputs), expected)


@every_loss
def test_a_call_in_eval_mode_leaves_no_trace(row: Row) -> None:
    loss = fresh(row).eval()
    before = copy.deepcopy(loss.state_dict())
    call(loss, row.inputs(0))
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
    assert torch.equal(call(loss, row.inputs(1)), call(fresh(row).eval(), row.inputs(1)))


@every_loss
def test_parts_are_what_the_loss_sums(row: Row) -> None:
    loss = fresh(row)
    if not hasattr(loss, "parts"):
        assert not hasattr(loss, "weights")
        return
    inputs = row.inputs(0)
    parts = call(copy.deepcopy(loss).parts, inputs)
    assert set(parts) == set(loss.weights)
    assert all(part.shape == () for part in parts.values())
    expected = sum(loss.weights[name] * part for name, part in parts.items())
    torch.testing.assert_close(call(copy.deepcopy(loss), inputs), expected, rtol=1e-12, atol=0)
    for name in parts:
        alone = call(copy.deepcopy(loss).parts, inputs, names=[name])
        assert set(alone) == {name}
        torch.testing.assert_close(alone[name], parts[name], rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match=r"part must be one of .*, got 'nonsense'"):
        call(loss.parts, inputs, names=["nonsense"])


@pytest.mark.usefixtures("unchecked_types")
@every_loss
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's, at a graph break
@pytest.mark.usefixtures("traceable")
@pytest.mark.slow
def test_compiled_value_and_gradient_are_the_same(row: Row) -> None:
    torch._dynamo.reset()
    inputs = row.inputs(0)
    compiled = torch.compile(fresh(row), backend="aot_eager", fullgraph=row.fullgraph)
    expected, slopes = value_and_gradient(fresh(row), inputs)
    found, gradients = value_and_gradient(compiled, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert_close(gradients, slopes, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("unchecked_types")
@every_loss
@pytest.mark.usefixtures("unchecked_types")
def test_other_numbers_of_samples_are_refused(row: Row) -> None:
    inputs = row.inputs(0)
    fewer = inputs.samples(lambda tensor: tensor[:-1])
    with pytest.raises(ValueError, match="student"):
        call(fresh(row), Inputs(inputs.student, fewer.teacher, inputs.of_the_batch))
    for name in inputs.of_the_batch:
        more = {**inputs.of_the_batch, name: fewer.of_the_batch[name]}
        with pytest.raises(ValueError, match=name):
            call(fresh(row), Inputs(inputs.student, inputs.teacher, more))


@every_loss
def test_signature(row: Row) -> None:
    """`student` before `teacher`; settings by keyword, with defaults but for sizes; nothing passed through blindly."""
    loss = row.loss()
    for name in ("forward", "parts"):
        if hasattr(loss, name):
            student, teacher, *more = inspect.signature(getattr(loss, name)).parameters.values()
            assert (student.name, teacher.name) == ("student", "teacher")
            assert {p.name for p in more} - {"names", "progress"} == set(row.inputs(0).of_the_batch)
            assert {p.name for p in more} - {"names"} == set(getattr(loss, "needs", ()))
            assert all(p.kind is p.KEYWORD_ONLY for p in more)
    for parameter in inspect.signature(type(loss)).parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY, parameter
        # What a loss learns or remembers has a size that only its user knows.
        assert parameter.default is not parameter.empty or loss.state_dict(), parameter


def halves(rank: int, world_size: int) -> dict[str, dict[str, Any]]:
    results = {}
    for row in ROWS:
        mine = row.inputs(0).samples(lambda tensor: tensor.chunk(world_size)[rank])
        value, gradients = value_and_gradient(fresh(row), mine)
        results[row.id] = {"value": value, "gradients": gradients}
    return results


@pytest.fixture(scope="module")
def two_processes() -> list[dict[str, dict[str, Any]]]:
    return run_on_ranks(halves)


@every_loss
@pytest.mark.slow
def test_two_processes_are_one(row: Row, two_processes: list[dict[str, dict[str, Any]]]) -> None:
    """Each with half of the samples; the mean of the ranks' values and, as DDP takes it, of their gradients."""
    expected, slopes = value_and_gradient(fresh(row), row.inputs(0))
    ranks = [results[row.id] for results in two_processes]
    torch.testing.assert_close((ranks[0]["value"] + ranks[1]["value"]) / 2, expected, rtol=1e-9, atol=1e-12)
    gradients = [torch.cat(shares) / 2 for shares in zip(*(rank["gradients"] for rank in ranks), strict=True)]
    assert_close(gradients, slopes, rtol=1e-6, atol=1e-9)


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
    from reldistill.methods.table import METHODS

    assert file.stem in METHODS, f"add '{file.stem}' to METHODS in src/reldistill/methods/table.py"


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


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="has no GPU")


@on_a_gpu
@every_loss
def test_a_gpu_says_the_same(row: Row) -> None:
    if row.draws_on_its_device:
        pytest.skip("this loss draws on its device")
    inputs = row.inputs(0)
    expected, slopes = value_and_gradient(fresh(row), inputs)
    found, gradients = value_and_gradient(fresh(row).cuda(), inputs.on_the_gpu())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-12)
    assert_close([gradient.cpu() for gradient in gradients], slopes, rtol=1e-6, atol=1e-9)


@on_a_gpu
@every_loss
def test_autocast_changes_nothing_on_a_gpu(row: Row) -> None:
    inputs = row.inputs(0).to(torch.float32).on_the_gpu()
    expected, slopes = value_and_gradient(fresh(row, dtype=torch.float32).cuda(), inputs)
    student, loss = with_gradient(inputs.student), fresh(row, dtype=torch.float32).cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        value = call(loss, Inputs(student, inputs.teacher, inputs.of_the_batch))
    gradients = torch.autograd.grad(value, tensors(student))
    torch.testing.assert_close(value.detach(), expected, rtol=1e-6, atol=0)
    assert_close(gradients, slopes, rtol=1e-5, atol=1e-8)


@on_a_gpu
@every_loss
def test_a_gpu_repeats_itself_when_told_to(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact resume rests on it."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    inputs = row.inputs(0).to(torch.float32).on_the_gpu()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        (value, gradients), (again, slopes) = (
            value_and_gradient(fresh(row, dtype=torch.float32).cuda(), inputs) for _ in range(2)
        )
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(value, again)
    assert all(torch.equal(gradient, slope) for gradient, slope in zip(gradients, slopes, strict=True))


@pytest.mark.usefixtures("unchecked_types")
@on_a_gpu
@every_loss
@pytest.mark.usefixtures("traceable")
def test_compiled_for_a_gpu(row: Row) -> None:
    torch._dynamo.reset()
    inputs = row.inputs(0).to(torch.float32).on_the_gpu()
    compiled = torch.compile(fresh(row, dtype=torch.float32).cuda(), fullgraph=row.fullgraph)
    expected, slopes = value_and_gradient(fresh(row, dtype=torch.float32).cuda(), inputs)
    found, gradients = value_and_gradient(compiled, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert_close(gradients, slopes, rtol=1e-3, atol=1e-5)
