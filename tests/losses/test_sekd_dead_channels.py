"""A dead channel is no vertex of the graph whose spectrum is compared: the parts are those of the other channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reldistill.losses.sekd import SEKD
from reldistill.relations.channel_graph import channel_adjacency
from reldistill.relations.kernels.switch import fast_kernels
from reldistill.relations.spectrum import spectral_embedding, spectral_projector

RANK = 8
SMALL, LARGE = 24, 320  # channels: of full decompositions, and of tracked subspaces
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-8}
SETTINGS = [
    (alignment, scope, weights)
    for alignment in ("subspace", "procrustes")
    for scope in ("batch", "sample")
    for weights in ("positive", "shifted")
]

pytestmark = pytest.mark.filterwarnings("ignore:a channel graph's low eigenvectors did not converge")


def maps(channels: int, *, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(3, C, 4, 4) of a few sources, so that there are gaps between the first eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    sources, mixing = draw(3, 12, 16), draw(channels, 12) * torch.linspace(2.0, 0.3, 12, dtype=torch.float64)
    return (mixing @ sources + 0.3 * draw(3, channels, 16)).relu().unflatten(2, (4, 4)).to(dtype)


def pair(channels: int, dead: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher with the same dead channels, and which are not."""
    alive = torch.randperm(channels, generator=torch.Generator().manual_seed(dead))[dead:].sort().values
    both = []
    for seed in (0, 1):
        whole = maps(channels, seed=seed, dtype=dtype)
        both.append(torch.zeros_like(whole).index_copy(1, alive, whole[:, alive]))
    return both[0], both[1], alive


def spectral(student: Tensor, teacher: Tensor, **settings: object) -> Tensor:
    return SEKD(rank=RANK, **settings).parts(student, teacher, names=("spectral",))["spectral"]


def of_setting(setting: tuple[str, str, str]) -> dict[str, object]:
    return dict(zip(("alignment", "scope", "graph_weights"), setting, strict=True))


def slow_embedding(adjacency: np.ndarray, weights: str) -> np.ndarray:
    """Of the living part of a graph alone, in rows of 0 for the rest and columns of 0 for what there is not."""
    others = adjacency - np.diag(np.diag(adjacency))
    alive = np.flatnonzero(np.abs(others).sum(axis=1))
    found = np.zeros((len(adjacency), RANK))
    if len(alive):
        part = adjacency[np.ix_(alive, alive)]
        edge = np.maximum(part, 0) if weights == "positive" else (1 + part) / 2
        degree = edge.sum(axis=1)
        vectors = np.linalg.eigh(np.eye(len(alive)) - edge / np.sqrt(np.outer(degree, degree)))[1]
        kept = vectors[:, 1 : RANK + 1]
        found[alive, : kept.shape[1]] = kept
    return found


def slow_distance(student: np.ndarray, teacher: np.ndarray, alignment: str) -> float:
    """min over R of ‖U_S R − U_T‖² / 2k, or ‖P_S − P_T‖² / 2k."""
    if alignment == "subspace":
        return float(((student @ student.T - teacher @ teacher.T) ** 2).sum() / (2 * RANK))
    left, _, right = np.linalg.svd(student.T @ teacher)
    return float(((student @ left @ right - teacher) ** 2).sum() / (2 * RANK))


def slow_spectral(student: Tensor, teacher: Tensor, alignment: str, scope: str, weights: str) -> float:
    graphs = [channel_adjacency(x.double()) for x in (student, teacher)]
    if scope == "batch":
        graphs = [graph.mean(dim=0, keepdim=True) for graph in graphs]
    pairs = zip(*(graph.numpy() for graph in graphs), strict=True)
    values = [slow_distance(slow_embedding(s, weights), slow_embedding(t, weights), alignment) for s, t in pairs]
    return float(np.mean(values))


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("dead", [0, RANK, RANK + 1, SMALL // 2, SMALL - 3, SMALL])
def test_the_spectrum_is_that_of_the_others(dead: int, setting: tuple[str, str, str], dtype: torch.dtype) -> None:
    student, teacher, alive = pair(SMALL, dead, dtype)
    found = spectral(student, teacher, **of_setting(setting))
    assert found.item() == pytest.approx(slow_spectral(student, teacher, *setting), abs=TOLERANCE[dtype])
    order = torch.randperm(SMALL, generator=torch.Generator().manual_seed(5))
    shuffled = spectral(student[:, order], teacher[:, order], **of_setting(setting))
    assert_close(shuffled, found, rtol=0, atol=TOLERANCE[dtype])
    assert_close(spectral(teacher, teacher, **of_setting(setting)), 0 * found, rtol=0, atol=TOLERANCE[dtype])
    if SMALL - dead > RANK:  # then the dead ones could as well not be there
        assert_close(
            spectral(student[:, alive], teacher[:, alive], **of_setting(setting)), found, rtol=0, atol=TOLERANCE[dtype]
        )


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("ours", "theirs"), [(9, 0), (0, 9), (12, 5), (20, 2), (24, 0), (0, 24), (21, 22)])
def test_either_network_may_have_more(ours: int, theirs: int, setting: tuple[str, str, str]) -> None:
    student, teacher = pair(SMALL, ours)[0], pair(SMALL, theirs)[1]
    found = spectral(student, teacher, **of_setting(setting))
    assert found.item() == pytest.approx(slow_spectral(student, teacher, *setting), abs=1e-7)
    if 24 in (ours, theirs):
        assert found.item() == pytest.approx(0.5, abs=1e-7)


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("dead", [0, RANK, RANK + 1, SMALL // 2, SMALL - 3])
def test_the_gradient_is_that_of_the_others(dead: int, setting: tuple[str, str, str]) -> None:
    """Against differences, in float64; a dead channel itself has none."""
    student, teacher, alive = pair(SMALL, dead)
    leaf = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(spectral(leaf, teacher, **of_setting(setting)), leaf)
    gone = torch.ones(SMALL, dtype=torch.bool).index_fill(0, alive, False)
    assert torch.equal(gradient[:, gone], torch.zeros_like(gradient[:, gone]))
    step = 1e-6
    for seed in range(2):
        way = torch.zeros_like(student)
        way[:, alive] = torch.randn(way[:, alive].shape, generator=torch.Generator().manual_seed(seed)).double()
        way = way * (student > 0)  # what no ReLU has cut off
        values = [spectral(student + sign * step * way, teacher, **of_setting(setting)) for sign in (1, -1)]
        slope = (values[0] - values[1]) / (2 * step)
        assert_close((gradient * way).sum(), slope, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("setting", [s for s in SETTINGS if s[1] == "batch"])
@pytest.mark.parametrize("dead", [0, RANK, RANK + 1, LARGE // 2, LARGE - 12, LARGE - 3, LARGE])
def test_tracked_subspaces_leave_them_out(dead: int, setting: tuple[str, str, str], dtype: torch.dtype) -> None:
    student, teacher, _ = pair(LARGE, dead, dtype)
    loss = SEKD(rank=RANK, **of_setting(setting))
    for _ in range(2):  # from nothing, and from the step before
        leaf = student.clone().requires_grad_()
        value = loss.parts(leaf, teacher, names=("spectral",))["spectral"]
        assert value.item() == pytest.approx(
            slow_spectral(student, teacher, *setting), abs={torch.float32: 2e-3, torch.float64: 1e-7}[dtype]
        )
        (gradient,) = torch.autograd.grad(value, leaf)
        assert gradient.isfinite().all()
        if dtype == torch.float64 and dead < LARGE:
            leaf = student.clone().requires_grad_()
            with fast_kernels(False):
                (expected,) = torch.autograd.grad(spectral(leaf, teacher, **of_setting(setting)), leaf)
            assert (gradient - expected).norm() <= 1e-6 * expected.norm() + 1e-10
    if LARGE - dead > 100:
        assert loss.fallbacks == 0


@pytest.mark.usefixtures("each_form")
def test_what_is_isolated_has_rows_of_0() -> None:
    """Also a channel that is like no other: opposite to some, at a right angle to the rest."""
    _, teacher, _ = pair(SMALL, 0)
    graph = channel_adjacency(teacher).mean(dim=0)
    graph[3, :], graph[:, 3] = -0.1, -0.1
    graph[3, 3] = 1.0
    embedding, values = spectral_embedding(graph, rank=RANK)
    assert_close(embedding[3], torch.zeros_like(embedding[3]), rtol=0, atol=1e-14)
    others = torch.arange(SMALL) != 3
    assert_close(
        spectral_projector(graph, rank=RANK)[others][:, others],
        spectral_projector(graph[others][:, others], rank=RANK),
        rtol=0,
        atol=1e-10,
    )
    assert (values < 2).all()
    assert_close(embedding.mT @ embedding, torch.eye(RANK, dtype=torch.float64), rtol=0, atol=1e-12)
