from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from reldistill.relations.channel_graph import channel_adjacency
from reldistill.relations.normalised_graph import graph_weights
from reldistill.relations.precision import broadening
from reldistill.relations.spectrum import (
    effective_rank,
    heat_distance,
    heat_kernel,
    laplacian,
    laplacian_eigenvalues,
    spectral_embedding,
    spectral_projector,
)
from reldistill.relations.subspaces import procrustes_distance, subspace_distance

WEIGHTS = ["positive", "shifted"]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def graph(channels: int = 6, *, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Cosines of positive vectors: graphs whose eigenvalues lie well apart for the default arguments."""
    return channel_adjacency(noise(batch, channels, 3, 3, seed=seed).abs() ** 2 + 0.1)


def cycle(channels: int) -> torch.Tensor:
    """A ring: its eigenvalues come in exact pairs."""
    eye = torch.eye(channels, dtype=torch.float64)
    return eye + 0.5 * (eye.roll(1, 0) + eye.roll(-1, 0))


def two_cliques(size: int) -> torch.Tensor:
    """Two components: two eigenvalues 0."""
    return torch.block_diag(*[torch.ones(size, size, dtype=torch.float64)] * 2)


def kept_by_numpy(adjacency: torch.Tensor, rank: int, weights: str) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of 𝓛 on the complement of the trivial vector, by loops and numpy."""
    a = adjacency.numpy()
    channels = len(a)
    w = np.array([[max(x, 0) if weights == "positive" else (1 + x) / 2 for x in row] for row in a])
    degree = [sum(row) for row in w]
    lap = np.empty_like(w)
    for i in range(channels):
        for j in range(channels):
            lap[i, j] = (i == j) - w[i, j] / math.sqrt(degree[i] * degree[j])
    trivial = np.sqrt(degree) / math.sqrt(sum(degree))
    # the other columns of a full QR of [trivial] span its complement
    complement = np.linalg.qr(np.column_stack([trivial, np.eye(channels)[:, : channels - 1]]))[0][:, 1:]
    values, vectors = np.linalg.eigh(complement.T @ lap @ complement)
    return values[:rank], complement @ vectors[:, :rank]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_laplacian_entry_by_entry(weights):
    adjacency = channel_adjacency(noise(1, 5, 3, 3))[0]
    w = [[max(a, 0.0) if weights == "positive" else (1 + a) / 2 for a in row] for row in adjacency.tolist()]
    degree = [sum(row) for row in w]
    expected = [[(i == j) - w[i][j] / math.sqrt(degree[i] * degree[j]) for j in range(5)] for i in range(5)]
    assert_close(laplacian(adjacency, weights=weights), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("weights", WEIGHTS)
@given(seed=st.integers(0, 10_000))
@settings(deadline=None)
def test_eigenvalues_lie_in_0_2_and_start_with_the_trivial_one(weights, seed):
    adjacency = channel_adjacency(noise(2, 6, 2, 2, seed=seed))
    values = laplacian_eigenvalues(adjacency, weights=weights)
    assert values.shape == (2, 6)
    assert_close(values[:, 0], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    assert values.min() > -1e-12
    assert values.max() < 2 + 1e-12
    degree = graph_weights(adjacency, weights=weights).sum(dim=-1, keepdim=True)
    moved = laplacian(adjacency, weights=weights) @ degree.sqrt()
    assert_close(moved, torch.zeros_like(moved), rtol=0, atol=1e-12)


def test_positive_weights_let_a_missing_edge_grow():
    adjacency = torch.tensor([[1.0, 0.0, -0.5]], requires_grad=True)
    weights = graph_weights(adjacency, weights="positive")
    assert weights.tolist() == [[1.0, 0.0, 0.0]]
    assert torch.autograd.grad(weights.sum(), adjacency)[0].tolist() == [[1.0, 1.0, 0.0]]


def test_known_spectra():
    ones = torch.ones(4, 4, dtype=torch.float64)
    assert_close(laplacian_eigenvalues(ones), torch.tensor([0.0, 1, 1, 1], dtype=torch.float64), rtol=0, atol=1e-12)
    # a ring with self-loops of weight 1 and edges 1/2: 1 − (1 + cos(2πm/n)) / 2
    expected = sorted((1 - math.cos(2 * math.pi * m / 6)) / 2 for m in range(6))
    assert_close(laplacian_eigenvalues(cycle(6)).tolist(), expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("each_form")
def test_isolated_vertices_without_self_loop_are_finite():
    adjacency = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(spectral_projector(adjacency, rank=1).square().sum(), adjacency)
    assert torch.equal(laplacian(adjacency), torch.eye(3, dtype=torch.float64))
    assert gradient.isfinite().all()


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_projector_is_the_outer_product_of_the_kept_eigenvectors(weights, rank):
    adjacency = graph()
    projector = spectral_projector(adjacency, rank=rank, weights=weights)
    for b in range(2):
        _, kept = kept_by_numpy(adjacency[b], rank, weights)
        expected = sum(np.outer(kept[:, i], kept[:, i]) for i in range(rank))
        assert_close(projector[b], torch.from_numpy(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_embedding_spans_the_same_and_carries_eigenvalues(weights):
    adjacency = graph()
    embedding, values = spectral_embedding(adjacency, rank=3, weights=weights)
    assert embedding.shape == (2, 6, 3)
    expected = spectral_projector(adjacency, rank=3, weights=weights)
    assert_close(embedding @ embedding.mT, expected, rtol=0, atol=1e-12)
    for b in range(2):
        assert_close(values[b].numpy(), kept_by_numpy(adjacency[b], 3, weights)[0], rtol=0, atol=1e-10)


@pytest.mark.usefixtures("each_form")
def test_two_components_are_told_apart():
    """The second eigenvalue 0 belongs to the vector that is + on one clique and − on the other."""
    projector = spectral_projector(two_cliques(3), rank=1)
    sign = torch.tensor([1.0, 1, 1, -1, -1, -1], dtype=torch.float64)
    assert_close(projector, torch.outer(sign, sign) / 6, rtol=0, atol=1e-12)


@given(seed=st.integers(0, 10_000), rank=st.integers(1, 5))
@settings(deadline=None)
def test_projector_is_a_projector_orthogonal_to_the_trivial_vector(seed, rank):
    adjacency = graph(seed=seed)
    projector = spectral_projector(adjacency, rank=rank)
    assert_close(projector @ projector, projector, rtol=0, atol=1e-12)
    trace = projector.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    assert_close(trace, torch.full_like(trace, rank))
    trivial = adjacency.clamp_min(0).sum(dim=-1, keepdim=True).sqrt()
    assert_close(projector @ trivial, torch.zeros_like(trivial), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("each_form")
def test_rank_is_clamped_and_checked():
    adjacency = graph()
    assert effective_rank(adjacency, rank=99) == 5
    assert torch.equal(spectral_projector(adjacency, rank=99), spectral_projector(adjacency, rank=5))
    assert spectral_embedding(adjacency, rank=99)[0].shape == (2, 6, 5)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        spectral_projector(adjacency, rank=0)


def symmetric(raw: torch.Tensor) -> torch.Tensor:
    return (raw + raw.mT) / 2


def test_the_graph_of_the_gradchecks_has_no_near_tie():
    values = laplacian_eigenvalues(graph())
    assert values.diff(dim=-1).min() > 0.01


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("rank", [1, 3])
def test_projector_gradcheck(weights, rank):
    raw = graph().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: spectral_projector(symmetric(r), rank=rank, weights=weights), raw)


def test_gradient_of_a_function_of_the_projector_numerically():
    adjacency, target, step = graph(), symmetric(noise(2, 6, 6, seed=5)), 1e-6

    def function(a: torch.Tensor) -> torch.Tensor:
        projector = spectral_projector(a, rank=2)
        return (projector @ target @ projector).square().sum()

    leaf = adjacency.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf)
    for seed in range(5):
        direction = symmetric(noise(2, 6, 6, seed=10 + seed))
        slope = (function(adjacency + step * direction) - function(adjacency - step * direction)) / (2 * step)
        assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("each_form")
def test_projector_gradient_is_that_of_eigh_where_eigh_has_one():
    adjacency, weight = graph(), noise(2, 6, 6, seed=3)

    def by_eigh(a: torch.Tensor) -> torch.Tensor:
        degree = a.clamp_min(0).sum(dim=-1)
        root = degree.rsqrt()
        lap = torch.eye(6, dtype=a.dtype) - root[..., None] * a.clamp_min(0) * root[:, None]
        kept = torch.linalg.eigh(lap)[1][..., 1:4]
        return kept @ kept.mT

    ours, theirs = adjacency.clone().requires_grad_(), adjacency.clone().requires_grad_()
    (expected,) = torch.autograd.grad((by_eigh(theirs) * weight).sum(), theirs)
    (gradient,) = torch.autograd.grad((spectral_projector(ours, rank=3) * weight).sum(), ours)
    assert_close(symmetric(gradient), symmetric(expected), rtol=1e-8, atol=1e-10)


@pytest.mark.usefixtures("each_form")
def test_gradient_is_exact_when_kept_eigenvalues_coincide():
    """A ring's eigenvalues 1, 2 and 3, 4 are exact pairs: k = 2 keeps the first pair whole."""
    raw = cycle(6).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: spectral_projector(symmetric(r), rank=2, weights="shifted"), raw)


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0, 10.0, 1e4])
def test_nearly_meeting_eigenvalues_give_the_broadened_gap(ratio):
    """Two pairs of channels without an edge between: the vectors (1, −1)/√2 of the pairs have eigenvalues that nearly
    meet, the better linked pair's is dropped."""
    epsilon = broadening(torch.float64)
    assert broadening(torch.float32) == pytest.approx(3.45e-4, rel=1e-2)
    gap, link = ratio * epsilon, 0.5
    low = 2 * link / (1 + link)  # a pair linked by s has the eigenvalue 1 − (1 − s) / (1 + s)
    other = (low + gap) / (2 - low - gap)  # the s whose eigenvalue is low + gap
    adjacency = torch.eye(4, dtype=torch.float64)
    adjacency[0, 1] = adjacency[1, 0] = link
    adjacency[2, 3] = adjacency[3, 2] = other
    assert_close(laplacian_eigenvalues(adjacency)[2:].tolist(), [low, low + gap], rtol=0, atol=1e-12)
    adjacency.requires_grad_()
    difference = torch.tensor([[1.0, -1, 0, 0], [0, 0, 1.0, -1]], dtype=torch.float64) / math.sqrt(2)
    mixing = difference[0] @ spectral_projector(adjacency, rank=2) @ difference[1]  # 0, and moves as 1 / gap
    (gradient,) = torch.autograd.grad(mixing, adjacency)
    bridge = torch.zeros(4, 4, dtype=torch.float64)
    bridge[0, 2] = bridge[2, 0] = 1.0
    # joining vertices 0 and 2 by t changes u_1ᵀ 𝓛 u_2 by −t / (2 √(d_0 d_2)); the degrees do not mix the two vectors
    slope = -1 / (2 * math.sqrt((1 + link) * (1 + other)))
    expected = slope * -gap / (gap**2 + epsilon**2)
    assert_close((gradient * bridge).sum().item(), expected, rtol=1e-3, atol=abs(slope) / epsilon * 1e-6)


TIES = {
    "identity": torch.eye(6, dtype=torch.float64),
    "ones": torch.ones(6, 6, dtype=torch.float64),
    "cycle": cycle(6),
    "two cliques": two_cliques(3),
    "duplicates": channel_adjacency(noise(1, 3, 2, 2).abs().repeat(1, 2, 1, 1))[0],
    "opposite": torch.block_diag(*[torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)] * 3),
}


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("rank", [1, 2, 3, 5])
@pytest.mark.parametrize("name", list(TIES))
def test_finite_at_ties(name, rank, weights, dtype):
    adjacency = TIES[name].to(dtype).requires_grad_()
    teacher = graph(batch=1)[0].to(dtype)
    ours = spectral_projector(adjacency, rank=rank, weights=weights)
    bound = 10 / broadening(dtype)
    theirs = spectral_projector(teacher, rank=rank, weights=weights)
    embedding, _ = spectral_embedding(teacher, rank=rank, weights=weights)
    kernels = [heat_kernel(laplacian(a, weights=weights), time=1.0) for a in (adjacency, teacher)]
    for distance in (
        subspace_distance(ours, theirs, rank=rank),
        procrustes_distance(ours, embedding),
        heat_distance(*kernels),
    ):
        (gradient,) = torch.autograd.grad(distance, adjacency, retain_graph=True)
        assert -1e-6 <= distance <= 1 + 1e-6
        assert gradient.isfinite().all()
        assert gradient.abs().max() < bound


@pytest.mark.usefixtures("each_form")
def test_projector_second_derivatives_are_refused():
    adjacency = graph().requires_grad_()
    squares = spectral_projector(adjacency, rank=2)[..., 0].square().sum()
    (gradient,) = torch.autograd.grad(squares, adjacency, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_embedding_and_eigenvalues_carry_no_gradient():
    adjacency = graph().requires_grad_()
    assert not any(t.requires_grad for t in spectral_embedding(adjacency, rank=2))
    assert not laplacian_eigenvalues(adjacency).requires_grad


@pytest.mark.usefixtures("each_form")
def test_not_finite_graphs_answer_nan_and_leave_the_others_alone():
    adjacency = graph()
    broken = adjacency.clone()
    broken[0, 1, 2] = torch.nan
    projector = spectral_projector(broken, rank=2)
    assert projector[0].isnan().all()
    assert torch.equal(projector[1], spectral_projector(adjacency, rank=2)[1])
    embedding, values = spectral_embedding(broken, rank=2)
    assert embedding[0].isnan().all()
    assert values[0].isnan().all()
    distance = procrustes_distance(projector, spectral_embedding(adjacency, rank=2)[0])
    assert distance[0].isnan()
    assert_close(distance[1], torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-12)


# subspace


@given(seed=st.integers(0, 10_000), rank=st.integers(1, 5))
@settings(deadline=None)
def test_subspace_distance_is_one_minus_the_mean_overlap(seed, rank):
    ours, theirs = (spectral_projector(graph(seed=s), rank=rank) for s in (seed, seed + 1))
    distance = subspace_distance(ours, theirs, rank=rank)
    overlap = (theirs @ ours).diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    assert_close(distance, 1 - overlap / rank, rtol=0, atol=1e-12)
    assert distance.min() >= 0
    assert distance.max() <= 1


def test_subspace_distance_of_equal_and_of_orthogonal_subspaces():
    basis = torch.linalg.qr(noise(6, 6))[0]
    first, second = basis[:, :2] @ basis[:, :2].mT, basis[:, 2:4] @ basis[:, 2:4].mT
    assert subspace_distance(first, first, rank=2).item() == 0.0
    assert subspace_distance(first, second, rank=2).item() == pytest.approx(1.0)


# procrustes


@given(seed=st.integers(0, 10_000), rank=st.integers(1, 5))
@settings(deadline=None)
def test_procrustes_distance_is_the_mean_square_after_the_best_rotation(seed, rank):
    student, teacher = graph(seed=seed, batch=1)[0], graph(seed=seed + 1, batch=1)[0]
    ours, theirs = spectral_embedding(student, rank=rank)[0], spectral_embedding(teacher, rank=rank)[0]
    left, _, right = torch.linalg.svd(ours.mT @ theirs)
    expected = (ours @ (left @ right) - theirs).square().sum() / (2 * rank)
    distance = procrustes_distance(spectral_projector(student, rank=rank), theirs)
    assert_close(distance, expected, rtol=0, atol=1e-7)  # √ of an eigenvalue near 0 knows half the digits
    assert 0 <= distance <= 1


def test_no_rotation_beats_procrustes():
    student, teacher = graph(seed=1, batch=1)[0], graph(seed=2, batch=1)[0]
    ours, theirs = spectral_embedding(student, rank=2)[0], spectral_embedding(teacher, rank=2)[0]
    distance = procrustes_distance(spectral_projector(student, rank=2), theirs)
    best = math.inf
    for angle in np.linspace(0, 2 * math.pi, 721):
        for flip in (1.0, -1.0):
            c, s = math.cos(angle), math.sin(angle)
            turn = torch.tensor([[c, -flip * s], [s, flip * c]], dtype=torch.float64)
            best = min(best, ((ours @ turn - theirs).square().sum() / 4).item())
    assert distance <= best
    assert distance == pytest.approx(best, abs=1e-4)


@given(seed=st.integers(0, 10_000), signs=st.lists(st.sampled_from([-1.0, 1.0]), min_size=3, max_size=3))
@settings(deadline=None)
def test_procrustes_ignores_signs_and_basis_of_eigenvectors(seed, signs):
    ours = spectral_projector(graph(seed=seed), rank=3)
    theirs, _ = spectral_embedding(graph(seed=seed + 1), rank=3)
    rotation = torch.linalg.qr(noise(3, 3, seed=seed))[0]
    distance = procrustes_distance(ours, theirs)
    assert_close(procrustes_distance(ours, theirs * torch.tensor(signs)), distance, rtol=0, atol=1e-7)
    assert_close(procrustes_distance(ours, theirs @ rotation), distance, rtol=0, atol=1e-7)


def test_procrustes_gradcheck():
    theirs, _ = spectral_embedding(graph(seed=2), rank=2)
    raw = graph(seed=0).requires_grad_()
    cosine_squared = torch.linalg.eigvalsh(theirs.mT @ spectral_projector(raw.detach(), rank=2) @ theirs)
    assert cosine_squared.min() > 0.1
    function = lambda r: procrustes_distance(spectral_projector(symmetric(r), rank=2), theirs)  # noqa: E731
    assert torch.autograd.gradcheck(function, raw)


@pytest.mark.parametrize("basis", [torch.eye(6, dtype=torch.float64), torch.linalg.qr(noise(6, 6))[0]])
def test_procrustes_of_orthogonal_subspaces_has_value_one_and_gradient_zero(basis):
    student = (basis[:, :2] @ basis[:, :2].mT).requires_grad_()
    distance = procrustes_distance(student, basis[:, 2:4])
    assert distance.item() == pytest.approx(1.0, abs=1e-7)
    (gradient,) = torch.autograd.grad(distance, student)
    assert torch.equal(gradient, torch.zeros_like(gradient))


# heat


@pytest.mark.parametrize("time", [0.1, 1.0, 10.0])
def test_heat_kernel_is_the_exponential_by_eigenvectors(time):
    lap = laplacian(graph())
    values, vectors = np.linalg.eigh(lap.numpy())
    expected = np.einsum("bij,bj,bkj->bik", vectors, np.exp(-time * values), vectors)
    assert_close(heat_kernel(lap, time=time), torch.from_numpy(expected), rtol=0, atol=1e-12)


def test_heat_distance():
    first, second = (heat_kernel(laplacian(graph(seed=s)), time=1.0) for s in (0, 1))
    expected = [sum(x * x for row in m for x in row) / 6 for m in (first - second).tolist()]
    assert_close(heat_distance(first, second).tolist(), expected)
    assert heat_distance(first, first).tolist() == [0.0, 0.0]


def test_heat_gradcheck():
    theirs = heat_kernel(laplacian(graph(seed=1)), time=2.0)
    raw = graph().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: heat_distance(heat_kernel(laplacian(r), time=2.0), theirs), raw)


@pytest.mark.usefixtures("each_form")
def test_one_channel_is_at_distance_zero_and_differentiable():
    adjacency = torch.ones(2, 1, 1, dtype=torch.float64, requires_grad=True)
    projector = spectral_projector(adjacency, rank=8)
    embedding, values = spectral_embedding(adjacency, rank=8)
    assert torch.equal(projector, torch.zeros(2, 1, 1, dtype=torch.float64))
    assert embedding.shape == (2, 1, 0)
    assert values.shape == (2, 0)
    kernel = heat_kernel(laplacian(adjacency), time=1.0)
    for distance in (
        subspace_distance(projector, projector.detach(), rank=effective_rank(adjacency, rank=8)),
        procrustes_distance(projector, embedding),
        heat_distance(kernel, kernel.detach()),
    ):
        (gradient,) = torch.autograd.grad(distance.sum(), adjacency, retain_graph=True)
        assert torch.equal(distance, torch.zeros(2, dtype=torch.float64))
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.usefixtures("unchecked_types")
def test_unknown_words_and_times():
    with pytest.raises(ValueError, match="weights must be 'positive' or 'shifted', got 'abs'"):
        laplacian(graph(), weights="abs")
    with pytest.raises(ValueError, match="time must be above 0, got 0"):
        heat_kernel(laplacian(graph()), time=0)
