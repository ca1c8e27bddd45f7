from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.testing import assert_close

from reldistill.relations.channel_graph import channel_adjacency
from reldistill.relations.kernels import complement_solve, subspace_iteration
from reldistill.relations.kernels.subspace_iteration import block_size
from reldistill.relations.kernels.switch import fast_kernels
from reldistill.relations.kernels.tracked_subspaces import TrackedSubspaces
from reldistill.relations.precision import broadening
from reldistill.relations.spectrum import spectral_embedding, spectral_projector
from reldistill.relations.subspaces import embedding_distance, procrustes_distance, subspace_distance

CHANNELS, RANK = 256, 4


def graphs(*, steps: int = 4, seed: int = 0, signed: bool = False, drift: float = 0.05) -> list[torch.Tensor]:
    """(1, C, C) mean graphs of maps that move a little from step to step, with a spectrum that decays."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    sources, mixing = draw(4, 12, 16), draw(CHANNELS, 12) * torch.linspace(2.0, 0.3, 12, dtype=torch.float64)
    found = []
    for _ in range(steps):
        maps = mixing @ sources + 0.3 * draw(4, CHANNELS, 16)
        found.append(channel_adjacency((maps if signed else maps.relu()).unflatten(2, (4, 4))).mean(dim=0)[None])
        mixing, sources = mixing + drift * draw(CHANNELS, 12), sources + drift * draw(4, 12, 16)
    return found


def projector(embedding: torch.Tensor) -> torch.Tensor:
    return embedding.double() @ embedding.double().mT


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
@pytest.mark.parametrize("weights", ["positive", "shifted"])
@pytest.mark.parametrize("signed", [False, True])
def test_projector_over_consecutive_steps(signed, weights, dtype, tolerance):
    tracked = TrackedSubspaces(rank=RANK, weights=weights)
    for graph, other in zip(graphs(signed=signed), graphs(signed=signed, seed=1), strict=True):
        for found, expected in zip(tracked(graph.to(dtype), other.to(dtype)), (graph, other), strict=True):
            error = projector(found) - spectral_projector(expected, rank=RANK, weights=weights)
            assert error.norm() < tolerance
    assert tracked.fallbacks == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-2), (torch.float64, 1e-7)])
@pytest.mark.parametrize("weights", ["positive", "shifted"])
@pytest.mark.parametrize("signed", [False, True])
def test_gradient_is_that_of_the_full_decomposition(signed, weights, dtype, tolerance, monkeypatch):
    """In float32 the broadening of 1 / gap is only the same near the smallest gaps, hence that tolerance."""
    steps = graphs(steps=2, signed=signed)
    teacher = spectral_embedding(graphs(steps=1, seed=1)[0], rank=RANK, weights=weights)[0]
    tracked = TrackedSubspaces(rank=RANK, weights=weights)
    tracked(steps[0].to(dtype), steps[0].to(dtype))
    graph, exact = (steps[1].to(d).requires_grad_() for d in (dtype, torch.float64))
    found, _ = tracked(graph, graph)
    (gradient,) = torch.autograd.grad(embedding_distance(found, teacher.to(dtype), alignment="subspace").sum(), graph)
    epsilon = broadening(dtype)
    monkeypatch.setattr("reldistill.relations.spectrum.broadening", lambda _: epsilon)
    with fast_kernels(False):
        reference = spectral_projector(exact, rank=RANK, weights=weights)
    loss = subspace_distance(reference, teacher @ teacher.mT, rank=RANK).sum()
    (expected,) = torch.autograd.grad(loss, exact)
    gradient, expected = ((g + g.mT).double() / 2 for g in (gradient, expected))
    assert (gradient - expected).norm() < tolerance * expected.norm()


def test_distances_by_embeddings_are_those_by_projectors():
    ours, theirs = (spectral_embedding(graphs(steps=1, seed=s)[0], rank=RANK)[0] for s in (0, 1))
    turned = ours @ torch.linalg.qr(torch.randn(RANK, RANK, dtype=torch.float64))[0]
    both = ours @ ours.mT, theirs @ theirs.mT
    assert_close(embedding_distance(turned, theirs, alignment="subspace"), subspace_distance(*both, rank=RANK))
    assert_close(embedding_distance(turned, theirs, alignment="procrustes"), procrustes_distance(both[0], theirs))
    assert embedding_distance(theirs, theirs, alignment="subspace") < 1e-20


@pytest.mark.filterwarnings("ignore:a channel graph's low eigenvectors did not converge")
def test_a_new_direction_is_noticed():
    """A subspace of the step before that is orthogonal to a wanted vector must not be taken for converged."""
    graph = graphs(steps=1)[0]
    vectors, values = spectral_embedding(graph, rank=CHANNELS - 1)
    size = block_size(CHANNELS, RANK)
    tracked = TrackedSubspaces(rank=RANK, weights="positive")
    tracked.basis = torch.stack([vectors[..., 1 : size + 1], vectors[..., 100 : size + 100]])
    tracked.levels = torch.stack([1 - values[..., [at, at + RANK - 1, at + size - 1, -1]] for at in (1, 100)])
    for found in tracked(graph, graph):
        assert (projector(found) - spectral_projector(graph, rank=RANK)).norm() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_spectrum_at_all_where_denormal_numbers_are_0(dtype):
    """As `torch.set_flush_denormal` and libraries built for speed have it."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        _, half, growth = subspace_iteration._interval(torch.zeros(1, 4, dtype=dtype), True)
    finally:
        torch.set_flush_denormal(False)
    assert (half > 0).all()
    assert growth.tolist() == [0.0, 0.0]


def planted(*strengths: float, first: int = 0) -> torch.Tensor:
    """Orthogonal groups of 16 equal channels, linked within by the strengths, from group number `first` on; the other
    channels stand alone but for a weak link to all. Its leading vectors are those of the groups."""
    graph = torch.full((CHANNELS, CHANNELS), 1e-3, dtype=torch.float64)
    for group, strength in enumerate(strengths, start=first):
        graph[16 * group : 16 * group + 16, 16 * group : 16 * group + 16] = strength
    return graph.fill_diagonal_(1.0)[None]


def surprises() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A graph, and one that its eigenvectors are no good start for."""
    graph, other = graphs(steps=1)[0], graphs(steps=1, seed=5)[0]
    order = torch.randperm(CHANNELS, generator=torch.Generator().manual_seed(0))
    first = planted(0.9, 0.8, 0.7, 0.6, 0.5)
    rising = planted(0.9, 0.8, 0.7, 0.6, 0.5, 0.0, 0.0, 0.75)
    dead = graph.clone()
    dead[:, :2], dead[:, :, :2] = 0.0, 0.0
    dead.diagonal(dim1=1, dim2=2).fill_(1.0)
    apart = torch.block_diag(graph[0, :100, :100], other[0, 100:, 100:])[None]
    return {
        "another graph": (graph, other),
        "permuted": (graph, graph[:, order][:, :, order]),
        "other groups": (first, planted(0.9, 0.8, 0.7, 0.6, 0.5, first=6)),
        "a group that rises": (first, rising),
        "a group that falls": (rising, first),
        "two channels die": (graph, dead),
        "two components": (graph, apart),
        "grown together": (apart, graph),
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", list(surprises()))
def test_never_silently_wrong(name, dtype, tolerance):
    before, after = (graph.to(dtype) for graph in surprises()[name])
    tracked = TrackedSubspaces(rank=RANK, weights="positive")
    for graph in (before, before, before, after, after, before):
        (found, _) = tracked(graph, graph)
        assert (projector(found) - spectral_projector(graph.double(), rank=RANK)).norm() < tolerance
    assert tracked.fallbacks == 0


def test_gradient_needs_few_products():
    """The block is eliminated from the system, so that what is left of it is well conditioned."""
    steps = graphs(steps=2)
    tracked = TrackedSubspaces(rank=RANK, weights="positive")
    tracked(steps[0], steps[0])
    leaf = steps[1].float().requires_grad_()
    found, _ = tracked(leaf, leaf)
    calls = []
    original = complement_solve._solver_steps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(complement_solve, "_solver_steps", lambda *given: calls.append(given) or original(*given))
        found[..., 0].square().square().sum().backward()
    assert 0 < len(calls) <= 12


def ties() -> torch.Tensor:
    """Eight groups of equal channels: an eigenvalue 0 that is sevenfold beside the trivial one, so no gap at 4."""
    return torch.block_diag(*[torch.ones(32, 32)] * 8)[None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_gap_it_is_finite_and_still_spans_eigenvectors(dtype):
    graph = ties().to(dtype).requires_grad_()
    tracked = TrackedSubspaces(rank=RANK, weights="positive")
    teacher = spectral_embedding(graphs(steps=1)[0].to(dtype), rank=RANK)[0]
    for _ in range(2):
        found, _ = tracked(graph, graph)
        (gradient,) = torch.autograd.grad(embedding_distance(found, teacher, alignment="subspace").sum(), graph)
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 10 / broadening(dtype)
        assert_close(graph @ found / 32, found, rtol=0, atol=1e-5)


def test_what_does_not_converge_is_left_to_eigh_and_counted(monkeypatch):
    first, second = graphs(steps=2, drift=0.5)
    tracked = TrackedSubspaces(rank=RANK, weights="positive")
    tracked(first, first)
    assert tracked.fallbacks == 0
    monkeypatch.setitem(subspace_iteration._MOST_DEGREES, torch.float64, 0)
    tracked.degrees = torch.ones_like(tracked.degrees)
    with pytest.warns(UserWarning, match="did not converge"):
        found, _ = tracked(second, second)
    assert tracked.fallbacks == 2
    assert (projector(found) - spectral_projector(second, rank=RANK)).norm() < 1e-9


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_graph_shows_and_is_forgotten(broken):
    first, second, third = graphs(steps=3)
    tracked = TrackedSubspaces(rank=RANK, weights="positive")
    tracked(first, first)
    second[0, 1, 2] = broken
    assert tracked(second, first)[0].isnan().all()
    found, _ = tracked(third, third)
    assert (projector(found) - spectral_projector(third, rank=RANK)).norm() < 1e-9


def test_small_graphs_are_left_to_eigh():
    assert block_size(64, 8) == 0
    assert block_size(256, 8) == 32
    assert block_size(256, 32) == 0
    assert block_size(2048, 32) == 96


def test_going_on_from_saved_state_is_bit_identical():
    steps, others = graphs(), graphs(seed=1)
    whole, interrupted = (TrackedSubspaces(rank=RANK, weights="positive") for _ in range(2))
    for step in zip(steps[:2], others[:2], strict=True):
        whole(*step)
        interrupted(*step)
    restored = TrackedSubspaces(rank=RANK, weights="positive")
    restored.load_state_dict(interrupted.state_dict())
    copied = copy.deepcopy(interrupted)
    for step in zip(steps[2:], others[2:], strict=True):
        expected = whole(*step)
        for other in (restored, copied):
            for found, wanted in zip(other(*step), expected, strict=True):
                assert torch.equal(found, wanted)


def test_state_moves_in_training_only_and_may_be_missing_from_a_checkpoint():
    first, second = graphs(steps=2)
    tracked = TrackedSubspaces(rank=RANK, weights="positive")
    tracked.load_state_dict({})
    tracked(first, first)
    before = tracked.basis.clone()
    tracked.eval()(second, second)
    assert torch.equal(tracked.basis, before)
    tracked.train()(second, second)
    assert not torch.equal(tracked.basis, before)


def test_second_derivatives_are_refused():
    graph = graphs(steps=1)[0].requires_grad_()
    found, _ = TrackedSubspaces(rank=RANK, weights="positive")(graph, graph)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(found[..., 0].square().sum(), graph, create_graph=True)


@pytest.mark.usefixtures("traceable")
def test_compiled_without_a_graph_break():
    torch.compiler.reset()
    plain, module = (TrackedSubspaces(rank=RANK, weights="positive") for _ in range(2))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    target = spectral_embedding(graphs(steps=1, seed=1)[0], rank=RANK)[0]
    for graph in graphs(steps=2):
        slopes = []
        for loss in (plain, compiled):
            leaf = graph.clone().requires_grad_()
            value = embedding_distance(loss(leaf, graph)[0], target, alignment="subspace").sum()
            slopes.append((value.detach(), *torch.autograd.grad(value, leaf)))
        # compiled, the sums around the operators are taken in another order
        assert_close(slopes[1], slopes[0], rtol=1e-9, atol=1e-15)
    assert_close(module.basis, plain.basis, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_accepted_before_a_missed_direction_could_grow(dtype, monkeypatch):
    """Fiftyfold, also from a start that is right already, and where a single filter grows it by less."""
    size = block_size(CHANNELS, RANK)
    values = torch.cat([torch.tensor([1.0, 0.9, 0.8, 0.63]), torch.linspace(0.625, 0.62, size - RANK)])
    values = torch.cat([values, torch.linspace(0.6, 0.0, CHANNELS - size)]).to(dtype)
    levels = values[[0, RANK - 1, size - 3, size - 1]][None]
    start = subspace_iteration.Start(torch.eye(CHANNELS, dtype=dtype)[None, :, :size], levels, 1)
    filters, plain = [], subspace_iteration._filtered
    monkeypatch.setattr(
        subspace_iteration, "_filtered", lambda *given: filters.append((given[-1], given[-2].slowest)) or plain(*given)
    )
    found = subspace_iteration.leading(values.diag()[None], start, rank=RANK, semidefinite=True)
    assert not found.fell_back.any()
    assert sum(degree * growth for degree, growth in filters) >= math.log(50)
    assert_close(found.values[0, :RANK], values[:RANK])
