"""What a GPU computes, at sizes that a training has: against the CPU, compiled, and in runs. Skipped without a GPU.

The losses' contract has its own part for a GPU, for every loss at tiny sizes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from reldistill.losses.rkd import RKD
from reldistill.losses.sekd import SEKD
from reldistill.losses.serkd import SeRKD
from reldistill.relations.kernels import replay
from reldistill.relations.kernels.tracked_subspaces import TrackedSubspaces
from reldistill.relations.pairwise import angle_loss, distance_and_angle
from reldistill.relations.spectrum import spectral_projector
from reldistill.relations.subspaces import embedding_distance
from reldistill.relations.tokens import average_pool

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="has no GPU")

GIB = 1 << 30


def maps(*shape: int, seed: int, dtype: torch.dtype = torch.float32, last: bool = True) -> Tensor:
    """Activations with some structure: a few patterns, mixed anew in each image, and noise; one channel is dead."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels, height, width = shape
    patterns = torch.randn(4, height, width, generator=generator)
    mixed = torch.einsum("bcp,phw->bchw", torch.randn(batch, channels, 4, generator=generator), patterns)
    found = (mixed + 0.5 * torch.randn(shape, generator=generator)).relu()
    found[:, 3] = 0.0
    return found.to(dtype).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def value_and_gradient(loss: Callable[..., Tensor], student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = student.detach().requires_grad_()
    value = loss(student, teacher)
    (slope,) = torch.autograd.grad(value, student)
    return value.detach().cpu(), slope.cpu()


def under_autocast(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Around the forward pass, where PyTorch says that it belongs."""
    return torch.autocast("cuda", dtype=torch.bfloat16)(loss)


def assert_agree(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], *, gradient: float) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-7)
    difference = (found[1].float() - expected[1].float()).norm() / expected[1].float().norm()
    assert difference < gradient


LOSSES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "sekd": (SEKD, (32, 64, 8, 8), (32, 64, 8, 8)),
    "sekd of wide maps": (partial(SEKD, rank=32), (16, 512, 7, 7), (16, 512, 7, 7)),
    "sekd by image": (partial(SEKD, scope="sample"), (16, 64, 8, 8), (16, 64, 8, 8)),
    "sekd by procrustes": (partial(SEKD, alignment="procrustes", groups=2), (16, 64, 8, 8), (16, 64, 8, 8)),
    "sekd by heat": (partial(SEKD, alignment="heat"), (16, 64, 8, 8), (16, 64, 8, 8)),
    "serkd": (SeRKD, (32, 64, 8, 8), (32, 128, 14, 14)),
    "serkd, local": (partial(SeRKD, neighbourhood="local"), (8, 64, 16, 16), (8, 128, 14, 14)),
    "serkd by the teacher's": (partial(SeRKD, assignment="teacher"), (8, 64, 16, 16), (8, 128, 14, 14)),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


@every_loss
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_value_and_gradient_are_the_cpus(name: str, dtype: torch.dtype, last: bool) -> None:
    make, ours, theirs = LOSSES[name]
    student, teacher = maps(*ours, seed=0, dtype=dtype, last=last), maps(*theirs, seed=1, dtype=dtype, last=last)
    expected = value_and_gradient(make(), student, teacher)
    found = value_and_gradient(under_autocast(make().cuda()), student.cuda(), teacher.cuda())
    assert found[1].dtype == dtype
    assert_agree(found, expected, gradient=2e-3 if dtype == torch.float32 else 1e-2)


@every_loss
@pytest.mark.usefixtures("traceable")
def test_compiled_for_a_gpu_without_a_graph_break(name: str) -> None:
    torch._dynamo.reset()
    make, ours, theirs = LOSSES[name]
    student, teacher = maps(*ours, seed=0).cuda(), maps(*theirs, seed=1).cuda()
    expected = value_and_gradient(make().cuda(), student, teacher)
    compiled = torch.compile(make().cuda(), fullgraph=True)
    assert_agree(value_and_gradient(compiled, student, teacher), expected, gradient=2e-3)


def test_angles_in_several_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(40, 196, dim, generator=generator) for dim in (32, 48))
    expected = value_and_gradient(angle_loss, student, teacher)
    assert_agree(value_and_gradient(angle_loss, student.cuda(), teacher.cuda()), expected, gradient=1e-5)


def test_tokens_far_from_the_origin_whatever_tf32_says() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(8, 49, dim, generator=generator) for dim in (192, 384))

    def loss(ours: Tensor, theirs: Tensor) -> Tensor:
        return torch.stack(list(distance_and_angle(ours, theirs).values())).sum()

    expected = value_and_gradient(loss, student, teacher)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = value_and_gradient(loss, (student + 100.0).cuda(), (teacher - 100.0).cuda())
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=0)


def test_angles_of_many_patch_tokens_fit_in_a_gibibyte() -> None:
    student, teacher = (torch.randn(128, 196, 384, device="cuda") for _ in range(2))
    student.requires_grad_()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    angle_loss(student, teacher).backward()
    assert torch.cuda.max_memory_allocated() - before < GIB


@pytest.mark.parametrize("channels", [512, 2048])
def test_subspaces_over_consecutive_steps(channels: int) -> None:
    tracked = TrackedSubspaces(rank=16, weights="positive").cuda()
    generator = torch.Generator().manual_seed(0)
    vertices = torch.randn(channels, 48, generator=generator).cuda()
    for _ in range(4):
        vertices = vertices + 0.05 * torch.randn(channels, 48, generator=generator).cuda()
        unit = nn.functional.normalize(vertices, dim=1)
        graph = (unit @ unit.mT).fill_diagonal_(1.0)[None].requires_grad_()
        other = graph.detach().flip(-1, -2)
        ours, theirs = tracked(graph, other)
        exact, target = (spectral_projector(x.double(), rank=16) for x in (graph, other))
        torch.testing.assert_close((ours @ ours.mT).double(), exact, rtol=0, atol=1e-3)
        (found,) = torch.autograd.grad(embedding_distance(ours, theirs, alignment="subspace").sum(), graph)
        (expected,) = torch.autograd.grad((exact - target.detach()).square().sum() / 32, graph)
        assert (found - expected).norm() < 3e-2 * expected.norm()


def test_state_on_a_gpu_continues_bit_identically() -> None:
    loss = SEKD(rank=32).cuda()
    student, teacher = (maps(8, 512, 4, 4, seed=seed).cuda() for seed in (0, 1))
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        loss(student, teacher)
        other = SEKD(rank=32).cuda()
        other.load_state_dict(copy.deepcopy(loss.state_dict()))
        assert torch.equal(loss(teacher, student), other(teacher, student))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("grid", [(4, 4), (5, 7), (7, 2)])
def test_pooling_is_the_cpus_and_repeats_itself(grid: tuple[int, int]) -> None:
    given = maps(8, 16, 14, 14, seed=0)
    pull = torch.randn(8, 16, *grid)

    def pooled(side: Tensor) -> tuple[Tensor, Tensor]:
        side = side.detach().requires_grad_()
        found = average_pool(side, grid)
        return found.detach().cpu(), torch.autograd.grad(found, side, pull.to(side.device))[0].cpu()

    once, again, expected = pooled(given.cuda()), pooled(given.cuda()), pooled(given)
    for one, two, other in zip(once, again, expected, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@every_loss
def test_replayed_it_says_what_it_says_at_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, ours, theirs = LOSSES[name]
    calls = [[maps(*shape, seed=step).cuda() for shape in (ours, theirs)] for step in range(6)]
    with monkeypatch.context() as patch:
        patch.setattr(replay, "_RECORD_AT", 1 << 30)
        expected = [value_and_gradient(make().cuda(), *pair) for pair in calls]
    for pair, one in zip(calls, expected, strict=True):
        found = value_and_gradient(make().cuda(), *pair)
        # Bit by bit: a run that continues begins with calls that are not replayed.
        assert torch.equal(found[0], one[0])
        assert torch.equal(found[1], one[1])


def test_calls_between_forward_and_backward_change_nothing() -> None:
    loss = RKD().cuda()
    student, teacher = (torch.randn(32, 16, device="cuda") for _ in range(2))
    expected = value_and_gradient(loss, student, teacher)
    for _ in range(4):
        loss(torch.randn_like(student).requires_grad_(), teacher).backward()
    leaf = student.clone().requires_grad_()
    value = loss(leaf, teacher)
    for _ in range(2):
        loss(torch.randn_like(student).requires_grad_(), teacher).backward()
    slopes = [torch.autograd.grad(value, leaf, retain_graph=True)[0].cpu() for _ in range(2)]
    assert torch.equal(slopes[0], slopes[1])
    assert_agree((value.detach().cpu(), slopes[0]), expected, gradient=1e-6)


def test_recordings_are_made_of_what_comes_again_and_again() -> None:
    calls = []

    def doubled(tensor: Tensor, factor: float) -> tuple[Tensor, ...]:
        calls.append(tensor.shape)
        return (tensor * factor,)

    replayed = replay.Replayed(doubled)
    for step in range(6):
        (found,) = replayed(torch.full((3,), float(step), device="cuda"), 2.0)
        assert found.tolist() == [2.0 * step] * 3
    assert len(calls) == replay._RECORD_AT
    (first,) = replayed(torch.ones(3, device="cuda"), 2.0)
    (second,) = replayed(torch.zeros(3, device="cuda"), 2.0)
    assert (first.tolist(), second.tolist()) == ([2.0] * 3, [0.0] * 3)
    assert replayed(torch.ones(3, device="cuda"), 3.0)[0].tolist() == [3.0] * 3
    assert replayed(torch.ones(3), 2.0)[0].tolist() == [2.0] * 3


def test_many_steps_of_small_graphs_take_one_visit_to_the_cpu_each() -> None:
    loss = SEKD().cuda()
    student, teacher = maps(8, 16, 8, 8, seed=0).cuda().requires_grad_(), maps(8, 16, 8, 8, seed=1).cuda()
    for _ in range(4):
        loss(student, teacher).backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as taken:
        loss(student, teacher).backward()
        torch.cuda.synchronize()
    copies = [e for e in taken.events() if "DtoH" in e.name]
    assert len(copies) == 1
