from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ddp_helpers import run_on_ranks
from reldistill.losses.sekd import PARTS, SEKD, SEKDSettings, sekd_loss
from reldistill.relations import spectrum
from reldistill.relations.kernels import full_decompositions
from reldistill.relations.subspaces import subspace_distance

ALIGNMENTS = ["subspace", "procrustes", "heat"]
SCOPES = ["batch", "sample"]


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Activations after a ReLU-like layer: mostly positive, no dead channel."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).abs() ** 1.5 - 0.1


def pair(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return maps(*shape, seed=2 * seed, dtype=dtype), maps(*shape, seed=2 * seed + 1, dtype=dtype)


# The equations, by loops


def slow_adjacency(image: np.ndarray) -> np.ndarray:
    rows = image.reshape(len(image), -1)
    return np.array([[v @ w / math.sqrt((v @ v) * (w @ w)) for w in rows] for v in rows])


def slow_softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.array([math.exp(v) for v in values])
    return len(values) * exponentials / exponentials.sum()


def slow_attention(image: np.ndarray, temperature: float, scale: str) -> tuple[np.ndarray, np.ndarray]:
    magnitude = np.abs(image.reshape(len(image), -1))
    unit = magnitude.mean() if scale == "relative" else 1.0
    by_position, by_channel = magnitude.mean(axis=0), magnitude.mean(axis=1)
    return slow_softmax(by_position / unit / temperature), slow_softmax(by_channel / unit / temperature)


def slow_vertex(
    student: np.ndarray, teacher: np.ndarray, *, attention: bool, temperature: float, **words: str
) -> float:
    total = 0.0
    batch, channels = student.shape[:2]
    for s, t in zip(student, teacher, strict=True):
        spatial, channel = slow_attention(t, temperature, words["scale"])
        for c in range(channels):
            v, w = s[c].flatten(), t[c].flatten()
            if words["vertex"] == "unit":
                v, w = v / math.sqrt(v @ v), w / math.sqrt(w @ w)
            for x in range(len(v)):
                weight = spatial[x] * channel[c] if attention else 1.0
                total += weight * (v[x] - w[x]) ** 2 / (1 if words["vertex"] == "unit" else len(v))
    return total / (batch * channels)


def slow_edge(student: np.ndarray, teacher: np.ndarray, *, attention: bool, temperature: float) -> float:
    values = []
    for s, t in zip(student, teacher, strict=True):
        ours, theirs = slow_adjacency(s), slow_adjacency(t)
        channels, total = len(ours), 0.0
        for i in range(channels):
            row = slow_softmax(theirs[i] / temperature) if attention else np.ones(channels)
            total += sum(row[j] * (theirs[i, j] - ours[i, j]) ** 2 for j in range(channels))
        values.append(total / channels**2)
    return float(np.mean(values))


def slow_laplacian(adjacency: np.ndarray, weights: str) -> tuple[np.ndarray, np.ndarray]:
    w = np.maximum(adjacency, 0) if weights == "positive" else (1 + adjacency) / 2
    degree = w.sum(axis=1)
    return np.eye(len(w)) - w / np.sqrt(np.outer(degree, degree)), np.sqrt(degree / degree.sum())


def slow_embedding(adjacency: np.ndarray, weights: str, rank: int) -> np.ndarray:
    lap, trivial = slow_laplacian(adjacency, weights)
    vectors = np.linalg.eigh(lap)[1]
    assert abs(vectors[:, 0] @ trivial) == pytest.approx(1.0)  # the graph is connected
    return vectors[:, 1 : rank + 1]


def slow_spectral(student: np.ndarray, teacher: np.ndarray, *, scope: str, alignment: str, **setting) -> float:
    graphs = [[slow_adjacency(image) for image in images] for images in (student, teacher)]
    if scope == "batch":
        graphs = [[np.mean(graph, axis=0)] for graph in graphs]
    values = []
    for ours, theirs in zip(*graphs, strict=True):
        channels, weights = len(ours), setting["weights"]
        rank = min(setting["rank"], channels - 1)
        if alignment == "heat":
            kernels = []
            for adjacency in (ours, theirs):
                eigenvalues, vectors = np.linalg.eigh(slow_laplacian(adjacency, weights)[0])
                kernels.append(vectors @ np.diag(np.exp(-setting["time"] * eigenvalues)) @ vectors.T)
            values.append(((kernels[0] - kernels[1]) ** 2).sum() / channels)
            continue
        u, v = slow_embedding(ours, weights, rank), slow_embedding(theirs, weights, rank)
        if alignment == "subspace":
            ours, theirs = sum(np.outer(c, c) for c in u.T), sum(np.outer(c, c) for c in v.T)
            values.append(1 - np.trace(theirs @ ours) / rank)
        else:
            left, _, right = np.linalg.svd(u.T @ v)
            values.append(((u @ left @ right - v) ** 2).sum() / (2 * rank))
    return float(np.mean(values))


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("scale", ["relative", "raw"])
@pytest.mark.parametrize("vertex", ["unit", "raw"])
def test_vertex_part_follows_its_equation(vertex, scale, attention):
    student, teacher = pair(2, 4, 3, 2)
    loss = SEKD(vertex=vertex, attention=attention, attention_scale=scale, attention_temperature=0.6)
    expected = slow_vertex(
        student.numpy(), teacher.numpy(), attention=attention, temperature=0.6, scale=scale, vertex=vertex
    )
    assert_close(loss.parts(student, teacher)["vertex"].item(), expected, rtol=1e-10, atol=0)


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("attention", [True, False])
def test_edge_part_follows_its_equation_image_by_image(attention, scope):
    student, teacher = pair(3, 4, 3, 2)
    loss = SEKD(attention=attention, attention_temperature=0.6, scope=scope)
    expected = slow_edge(student.numpy(), teacher.numpy(), attention=attention, temperature=0.6)
    assert_close(loss.parts(student, teacher)["edge"].item(), expected, rtol=1e-10, atol=0)


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("rank", [2, 99])
@pytest.mark.parametrize("weights", ["positive", "shifted"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_spectral_part_follows_its_equation(alignment, scope, weights, rank):
    student, teacher = pair(3, 6, 4, 3)
    loss = SEKD(alignment=alignment, scope=scope, graph_weights=weights, rank=rank, heat_time=2.0)
    expected = slow_spectral(
        student.numpy(), teacher.numpy(), scope=scope, alignment=alignment, weights=weights, rank=rank, time=2.0
    )
    assert expected > 1e-5
    assert_close(loss.parts(student, teacher)["spectral"].item(), expected, rtol=1e-7, atol=0)


@pytest.mark.usefixtures("each_form")
def test_unit_vertices_without_attention_are_two_minus_two_cosines():
    student, teacher = pair(2, 3, 4, 4)
    cosine = torch.cosine_similarity(student.flatten(2), teacher.flatten(2), dim=-1)
    assert_close(SEKD(attention=False).parts(student, teacher)["vertex"], (2 - 2 * cosine).mean())


@pytest.mark.usefixtures("each_form")
def test_raw_vertices_without_attention_are_the_mean_squared_error():
    student, teacher = pair(2, 3, 4, 4)
    part = SEKD(attention=False, vertex="raw").parts(student, teacher)["vertex"]
    assert_close(part, torch.nn.functional.mse_loss(student, teacher))


def test_hot_attention_is_no_attention():
    student, teacher = pair(2, 4, 3, 3)
    hot = SEKD(attention_temperature=1e7).parts(student, teacher)
    none = SEKD(attention=False).parts(student, teacher)
    for name in PARTS:
        assert_close(hot[name], none[name], rtol=1e-5, atol=0)


def test_attention_comes_from_the_teacher():
    student, teacher = pair(2, 4, 3, 3)
    flat = SEKD(attention=False, vertex="raw").parts
    attended = SEKD(vertex="raw").parts
    # symmetric without attention, not with it
    assert_close(flat(student, teacher)["vertex"], flat(teacher, student)["vertex"])
    assert attended(student, teacher)["vertex"] != pytest.approx(attended(teacher, student)["vertex"].item(), rel=1e-3)
    # an error weighs more where the teacher is strong
    teacher = torch.full((1, 2, 2, 2), 0.5, dtype=torch.float64)
    teacher[..., 0, 0] = 5.0
    strong, weak = teacher.clone(), teacher.clone()
    strong[..., 0, 0] += 0.1
    weak[..., 1, 1] += 0.1
    assert attended(strong, teacher)["vertex"] > 2 * attended(weak, teacher)["vertex"]


# The sum and its parts


def test_value_is_the_weighted_sum_of_the_parts():
    student, teacher = pair(2, 6, 3, 3)
    loss = SEKD(vertex_weight=0.5, edge_weight=3.0, spectral_weight=7.0)
    parts = loss.parts(student, teacher)
    expected = 0.5 * parts["vertex"] + 3.0 * parts["edge"] + 7.0 * parts["spectral"]
    assert_close(loss(student, teacher), expected)
    assert loss(student, teacher).shape == ()


def test_function_and_module_agree_in_every_setting():
    student, teacher = pair(2, 6, 3, 3)
    changed = {
        "attention": False,
        "attention_temperature": 0.5,
        "attention_scale": "raw",
        "vertex": "raw",
        "groups": 2,
        "scope": "sample",
        "rank": 1,
        "alignment": "heat",
        "graph_weights": "shifted",
        "vertex_weight": 2.0,
        "edge_weight": 3.0,
        "spectral_weight": 4.0,
    }
    default = sekd_loss(student, teacher)
    assert torch.equal(default, SEKD()(student, teacher))
    for setting, value in changed.items():
        other = sekd_loss(student, teacher, **{setting: value})
        assert torch.equal(other, SEKD(**{setting: value})(student, teacher))
        assert abs(other - default) > 1e-6, setting
    for time in (1.0, 2.0):
        value = sekd_loss(student, teacher, alignment="heat", heat_time=time)
        assert torch.equal(value, SEKD(alignment="heat", heat_time=time)(student, teacher))


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("names", [c for n in range(4) for c in itertools.combinations(PARTS, n)])
def test_parts_asked_for_are_the_same_alone_and_together(names):
    student, teacher = pair(2, 6, 3, 3)
    loss = SEKD()
    together, asked = loss.parts(student, teacher), loss.parts(student, teacher, names=names)
    assert set(asked) == set(names)
    for name in names:
        # vertices alone take their lengths from the maps, with edges from the graphs' diagonals
        assert_close(asked[name], together[name], rtol=1e-14, atol=0)


def test_parts_do_not_depend_on_the_weights():
    student, teacher = pair(2, 6, 3, 3)
    parts, unweighted = (SEKD(vertex_weight=w, edge_weight=w).parts(student, teacher) for w in (0.0, 1.0))
    assert parts == unweighted


@pytest.mark.usefixtures("each_form")
def test_part_of_weight_zero_is_not_computed(monkeypatch):
    student, teacher = pair(2, 6, 3, 3)

    def fail(matrix: torch.Tensor) -> None:
        raise AssertionError("no eigenproblem was asked for")

    for module in (spectrum, full_decompositions):
        monkeypatch.setattr(module, "guarded_eigh", fail)
    parts = SEKD().parts(student, teacher, names=("vertex", "edge"))
    assert_close(SEKD(spectral_weight=0.0)(student, teacher), parts["vertex"] + parts["edge"])
    with pytest.raises(AssertionError, match="no eigenproblem"):
        SEKD()(student, teacher)


def test_all_weights_zero_is_a_differentiable_zero():
    student, teacher = pair(2, 6, 3, 3)
    student.requires_grad_()
    value = SEKD(vertex_weight=0, edge_weight=0, spectral_weight=0)(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.item() == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))


# Gradients


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_gradcheck(alignment, scope):
    student, teacher = pair(2, 5, 3, 3, seed=2)
    loss = SEKD(alignment=alignment, scope=scope, rank=2)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: tuple(loss.parts(s, teacher).values()), student)


@pytest.mark.usefixtures("each_form")
def test_gradcheck_with_raw_vertices_groups_and_shifted_weights():
    student, teacher = pair(2, 6, 3, 3, seed=3)
    loss = SEKD(vertex="raw", groups=2, graph_weights="shifted", rank=1)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: tuple(loss.parts(s, teacher).values()), student)


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_no_gradient_reaches_the_teacher(alignment):
    student, teacher = pair(2, 6, 3, 3)
    student.requires_grad_()
    teacher.requires_grad_()
    SEKD(alignment=alignment)(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_every_part_falls_by_gradient_descent(alignment, part):
    student, teacher = pair(4, 6, 4, 4)
    loss, student = SEKD(alignment=alignment, rank=3), student.requires_grad_()
    first = value = loss.parts(student, teacher)[part]
    step = 0.5
    for _ in range(20):
        (gradient,) = torch.autograd.grad(value, student)
        trial = (student - step * gradient / gradient.norm()).detach().requires_grad_()
        new = loss.parts(trial, teacher)[part]
        if new < value:
            student = trial
        else:
            step /= 2
        value = loss.parts(student, teacher)[part]
    assert value < 0.7 * first


@pytest.mark.parametrize("names", [("vertex",), ("edge",), ("spectral",)])
def test_second_derivatives_are_refused(names):
    student, teacher = pair(2, 6, 3, 3)
    student.requires_grad_()
    (part,) = SEKD().parts(student, teacher, names=names).values()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(part, student, create_graph=True)


# Limits


def extremes() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    student, teacher = pair(2, 6, 4, 4, dtype=torch.float32)
    zero, constant = torch.zeros(2, 6, 4, 4), torch.full((2, 6, 4, 4), 3.0)
    dead = student.clone()
    dead[0, 1] = dead[1, 2:5] = 0
    orthogonal = torch.zeros(2, 6, 4, 4)
    for c in range(6):
        orthogonal[:, c, c // 4, c % 4] = 1.0
    huge = [(6e4 * x.sign()).half() for x in (student - 0.5, teacher - 0.5)]
    return {
        "zero student": (zero, teacher),
        "zero teacher": (student, zero),
        "both zero": (zero, zero),
        "constant student": (constant, teacher),
        "constant teacher": (student, constant),
        "both constant": (constant, 2 * constant),
        "dead channels": (dead, teacher),
        "dead in both": (dead, dead.flip(0)),
        "duplicate channels": (student[:, :3].repeat(1, 2, 1, 1), teacher),
        "all channels the same": (student[:, :1].repeat(1, 6, 1, 1), teacher),
        "opposite channels": (torch.cat([student[:, :3], -student[:, :3]], dim=1), teacher),
        "unconnected channels": (orthogonal, teacher),
        "unconnected teacher": (student, orthogonal),
        "equal": (teacher.clone(), teacher),
        "fp16 extremes": (huge[0], huge[1]),
        "fp16 extreme student": (huge[0], teacher.half()),
        "bfloat16": (student.bfloat16(), teacher.bfloat16()),
        "tiny": (1e-20 * student, 1e-20 * teacher),
        "one pixel": (student[..., :1, :1], teacher[..., :1, :1]),
        "one channel": (student[:, :1], teacher[:, :1]),
        "one channel and pixel": (student[:, :1, :1, :1], teacher[:, :1, :1, :1]),
        "one image": (student[:1], teacher[:1]),
    }


@pytest.mark.usefixtures("each_form")
@pytest.mark.parametrize("vertex", ["unit", "raw"])
@pytest.mark.parametrize(("alignment", "scope"), list(itertools.product(ALIGNMENTS, SCOPES)))
@pytest.mark.parametrize("name", list(extremes()))
def test_values_and_gradients_are_finite(name, alignment, scope, vertex):
    student, teacher = extremes()[name]
    student = student.clone().requires_grad_()
    lifted = student.float()
    loss = SEKD(alignment=alignment, scope=scope, vertex=vertex, rank=3)
    parts = loss.parts(lifted, teacher)
    for part, value in parts.items():
        assert value.dtype == torch.float32
        assert value.isfinite(), part
        (gradient,) = torch.autograd.grad(value, lifted, retain_graph=True)
        assert gradient.isfinite().all(), part
    assert -1e-6 <= parts["spectral"] <= 1 + 1e-6
    assert torch.equal(loss(student, teacher), sum(parts.values()))


@pytest.mark.usefixtures("each_form")
def test_one_channel_has_neither_edges_nor_spectrum_and_still_a_gradient():
    student, teacher = pair(2, 1, 3, 3)
    student.requires_grad_()
    for alignment in ALIGNMENTS:
        parts = SEKD(alignment=alignment).parts(student, teacher)
        assert parts["edge"].item() == 0.0
        assert parts["spectral"].item() == 0.0
        (gradient,) = torch.autograd.grad(parts["edge"] + parts["spectral"], student)
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.usefixtures("each_form")
def test_a_dead_channel_costs_what_the_teacher_shows_there():
    teacher = maps(1, 3, 3, 3)
    student = teacher.clone()
    student[:, 1] = 0
    assert_close(SEKD(attention=False).parts(student, teacher)["vertex"].item(), 1 / 3)


@pytest.mark.usefixtures("each_form")
def test_a_broken_activation_is_not_hidden():
    student, teacher = pair(2, 6, 3, 3)
    student[1, 2, 0, 0] = torch.nan
    for alignment in ALIGNMENTS:
        parts = SEKD(alignment=alignment).parts(student, teacher)
        assert all(value.isnan() for value in parts.values())


@pytest.mark.usefixtures("each_form")
def test_half_precision_inputs_and_autocast_are_lifted():
    student, teacher = pair(2, 6, 4, 4, dtype=torch.float32)
    expected = SEKD()(student.half().float(), teacher.half().float())
    assert torch.equal(SEKD()(student.half(), teacher.half()), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = SEKD()(student, teacher)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, SEKD()(student, teacher))


def test_half_precision_gradients_have_the_students_dtype():
    student, teacher = pair(2, 6, 4, 4, dtype=torch.float32)
    half = student.half().requires_grad_()
    SEKD()(half, teacher.half()).backward()
    assert half.grad.dtype == torch.float16
    assert half.grad.isfinite().all()


def test_memory_format_changes_nothing():
    student, teacher = pair(2, 6, 4, 4)
    other = [x.clone().to(memory_format=torch.channels_last) for x in (student, teacher)]
    assert_close(SEKD()(*other), SEKD()(student, teacher), rtol=1e-12, atol=0)


# Invariances, as the docstring lists them


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_zero_at_equal_inputs_and_within_0_1(alignment, seed):
    student, teacher = pair(2, 6, 3, 3, seed=seed)
    loss = SEKD(alignment=alignment, rank=3)
    for value in loss.parts(teacher.clone(), teacher).values():
        assert value.item() == pytest.approx(0.0, abs=1e-12)
    parts = loss.parts(student, teacher)
    assert parts["vertex"] > 0
    assert parts["edge"] > 0
    assert 0 <= parts["spectral"] <= 1


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("scaled", ["student", "teacher"])
@given(seed=st.integers(0, 10_000), exponents=st.lists(st.floats(-6, 6), min_size=5, max_size=5))
@settings(max_examples=25, deadline=None)
def test_positive_scaling_of_any_channel_of_either_network(scaled, alignment, seed, exponents):
    student, teacher = pair(2, 5, 3, 3, seed=seed)
    scale = torch.tensor(exponents, dtype=torch.float64).exp()[:, None, None]
    loss = SEKD(alignment=alignment, rank=2, scope="sample")
    other = loss.parts(student * scale, teacher) if scaled == "student" else loss.parts(student, teacher * scale)
    for name in ("edge", "spectral"):
        assert_close(other[name], loss.parts(student, teacher)[name], rtol=0, atol=1e-6)


@given(seed=st.integers(0, 10_000), exponents=st.lists(st.floats(-6, 6), min_size=10, max_size=10))
@settings(max_examples=25, deadline=None)
def test_positive_scaling_leaves_vertices_alone_without_attention(seed, exponents):
    student, teacher = pair(2, 5, 3, 3, seed=seed)
    scale = torch.tensor(exponents, dtype=torch.float64).exp().view(2, 5, 1, 1)
    vertex = SEKD(attention=False).parts
    expected = vertex(student, teacher)["vertex"]
    assert_close(vertex(student * scale[0], teacher * scale[1])["vertex"], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(9)))
@settings(max_examples=25, deadline=None)
def test_permutation_of_the_positions_of_either_network(alignment, seed, order):
    student, teacher = pair(2, 5, 3, 3, seed=seed)
    shuffled = student.flatten(2)[..., list(order)].view_as(student)
    loss = SEKD(alignment=alignment, rank=2)
    expected = loss.parts(student, teacher, names=("edge", "spectral"))
    for name, value in loss.parts(shuffled, teacher, names=("edge", "spectral")).items():
        assert_close(value, expected[name], rtol=0, atol=1e-6)
    swapped = loss.parts(teacher, student, names=("edge", "spectral"))
    for name, value in loss.parts(teacher, shuffled, names=("edge", "spectral")).items():
        assert_close(value, swapped[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("alignment", ALIGNMENTS)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(5)))
@settings(max_examples=25, deadline=None)
def test_common_permutation_of_the_channels(alignment, scope, seed, order):
    student, teacher = pair(2, 5, 3, 3, seed=seed)
    loss, order = SEKD(alignment=alignment, scope=scope, rank=2), list(order)
    expected = loss.parts(student, teacher)
    for name, value in loss.parts(student[:, order], teacher[:, order]).items():
        assert_close(value, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(4)))
@settings(max_examples=25, deadline=None)
def test_order_of_the_images(scope, seed, order):
    student, teacher = pair(4, 5, 3, 3, seed=seed)
    loss, order = SEKD(scope=scope, rank=2), list(order)
    expected = loss.parts(student, teacher)
    for name, value in loss.parts(student[order], teacher[order]).items():
        assert_close(value, expected[name], rtol=0, atol=1e-8)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@given(
    seed=st.integers(0, 10_000),
    signs=st.lists(st.sampled_from([-1.0, 1.0]), min_size=5, max_size=5),
    angle=st.floats(0, 2 * math.pi),
)
@settings(max_examples=25, deadline=None)
def test_signs_of_eigenvectors_and_basis_of_a_repeated_eigenvalue(alignment, seed, signs, angle):
    student, teacher = pair(2, 5, 3, 3, seed=seed)
    loss = SEKD(alignment=alignment, rank=2)
    original = spectrum.guarded_eigh

    def relabelled(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Another valid answer: other signs, and the two kept vectors in another basis of their plane."""
        values, vectors = original(matrix)
        turn = torch.eye(5, dtype=matrix.dtype)
        turn[0, 0] = turn[1, 1] = math.cos(angle)
        turn[1, 0], turn[0, 1] = math.sin(angle), -math.sin(angle)
        return values, vectors @ turn * torch.tensor(signs, dtype=matrix.dtype)

    expected = loss.parts(student, teacher)["spectral"]
    with pytest.MonkeyPatch.context() as patch:
        for module in (spectrum, full_decompositions):
            patch.setattr(module, "guarded_eigh", relabelled)
        assert_close(loss.parts(student, teacher)["spectral"], expected, rtol=0, atol=1e-6)


# Groups and scope


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("groups", [2, 3, 6])
def test_groups_are_the_mean_of_separate_losses(groups, alignment, scope):
    student, teacher = pair(2, 6, 4, 4)
    setting = {"alignment": alignment, "scope": scope, "rank": 2}
    parts = SEKD(groups=groups, **setting).parts(student, teacher)
    slices = zip(student.chunk(groups, dim=1), teacher.chunk(groups, dim=1), strict=True)
    separate = [SEKD(**setting).parts(s, t) for s, t in slices]
    for name in ("edge", "spectral"):
        mean = sum(part[name] for part in separate) / groups
        assert_close(parts[name], mean, rtol=0, atol=1e-9)
    assert_close(parts["vertex"], SEKD(**setting).parts(student, teacher)["vertex"], rtol=1e-14, atol=0)


def test_one_group_is_no_groups():
    student, teacher = pair(2, 6, 4, 4)
    units = [x.flatten(2) / x.flatten(2).norm(dim=-1, keepdim=True) for x in (student, teacher)]
    ours, theirs = (u @ u.mT for u in units)
    parts = SEKD(groups=1, attention=False, rank=2).parts(student, teacher)
    assert_close(parts["edge"], (ours - theirs).square().mean())
    assert_close(parts["vertex"], (units[0] - units[1]).square().sum(dim=-1).mean())
    projectors = [spectrum.spectral_projector(a.mean(dim=0), rank=2) for a in (ours, theirs)]
    assert_close(parts["spectral"], subspace_distance(*projectors, rank=2))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_scopes_agree_on_a_batch_of_one(alignment, groups):
    student, teacher = pair(1, 6, 4, 4)
    batch, sample = (SEKD(alignment=alignment, scope=s, groups=groups, rank=2).parts(student, teacher) for s in SCOPES)
    for name in PARTS:
        assert_close(batch[name], sample[name], rtol=0, atol=1e-12)


def test_scopes_differ_on_more_images_in_the_spectrum_only():
    student, teacher = pair(3, 6, 4, 4)
    batch, sample = (SEKD(scope=scope, rank=2).parts(student, teacher) for scope in SCOPES)
    assert torch.equal(batch["edge"], sample["edge"])
    assert abs(batch["spectral"] - sample["spectral"]) > 1e-3


# Misuse


@pytest.mark.usefixtures("unchecked_types")
def test_shapes_that_differ_ask_for_an_adapter():
    teacher = maps(2, 6, 4, 4)
    for shape in [(2, 3, 4, 4), (2, 6, 2, 4), (2, 6, 4, 2)]:
        with pytest.raises(ValueError, match=r"differ in \(C, H, W\): .* in the teacher; an adapter has to match them"):
            SEKD()(maps(*shape), teacher)
    with pytest.raises(ValueError, match="same samples: B is 3 in the student and 2 in the teacher"):
        SEKD()(maps(3, 6, 4, 4), teacher)
    with pytest.raises(ValueError, match=r"student: expected \(B, C, H, W\)"):
        SEKD()(maps(2, 6, 4), teacher)
    with pytest.raises(ValueError, match=r"teacher: expected \(B, C, H, W\)"):
        SEKD()(teacher, maps(2, 6, 4))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"vertex": "cosine"}, "vertex must be one of unit, raw, got 'cosine'"),
        ({"scope": "epoch"}, "scope must be one of batch, sample, got 'epoch'"),
        ({"alignment": "sign"}, "alignment must be one of subspace, procrustes, heat, got 'sign'"),
        ({"graph_weights": "abs"}, "graph_weights must be one of positive, shifted, got 'abs'"),
        ({"attention_scale": "log"}, "attention_scale must be one of relative, raw, got 'log'"),
        ({"attention_temperature": 0.0}, "attention_temperature must be above 0, got 0.0"),
        ({"heat_time": -1.0}, "heat_time must be above 0, got -1.0"),
        ({"groups": 0}, "groups must be at least 1, got 0"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"edge_weight": -0.1}, "edge_weight must be at least 0, got -0.1"),
        ({"spectral_weight": float("nan")}, "spectral_weight must be at least 0, got nan"),
        ({"rank": 2.5}, "rank must be a whole number, got 2.5"),
        ({"rank": "8"}, "rank must be a whole number, got '8'"),
        ({"groups": True}, "groups must be a whole number, got True"),
        ({"heat_time": "1"}, "heat_time must be a number, got '1'"),
        ({"vertex_weight": False}, "vertex_weight must be a number, got False"),
        ({"attention": 1}, "attention must be true or false, got 1"),
        ({"scope": None}, "scope must be one of batch, sample, got None"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_bad_settings_are_refused_when_the_loss_is_made(setting, message):
    for made in (SEKD, SEKDSettings, lambda **given: sekd_loss(*pair(1, 2, 2, 2), **given)):
        with pytest.raises(ValueError, match=message):
            made(**setting)


def test_a_setting_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'ranks'"):
        SEKD(ranks=2)


def test_function_class_and_docstring_have_the_settings_of_the_dataclass():
    fields = {field.name: field.default for field in dataclasses.fields(SEKDSettings)}
    for made in (SEKD, sekd_loss):
        keywords = [p for p in inspect.signature(made).parameters.values() if p.kind is p.KEYWORD_ONLY]
        assert {p.name: p.default for p in keywords} == fields
    assert re.findall(r"^    (\w+): ", inspect.getdoc(SEKDSettings), re.M)[: len(fields)] == list(fields)
    changed = SEKD(rank=3, heat_time=2).settings
    assert changed == SEKDSettings(rank=3, heat_time=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.rank = 4


@pytest.mark.usefixtures("unchecked_types")
def test_groups_that_do_not_divide_and_unknown_parts():
    student, teacher = pair(2, 6, 3, 3)
    with pytest.raises(ValueError, match="groups = 4 does not divide the C = 6 channels"):
        SEKD(groups=4)(student, teacher)
    with pytest.raises(ValueError, match="part must be one of vertex, edge, spectral, got 'faces'"):
        SEKD().parts(student, teacher, names=("faces",))


# Compilation and several processes


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.usefixtures("traceable")
@pytest.mark.slow
def test_compiled_value_and_gradient_are_the_same_without_a_graph_break(alignment):
    student, teacher = pair(2, 6, 3, 3, dtype=torch.float32)
    student.requires_grad_()
    loss = SEKD(alignment=alignment, rank=2)
    torch.compiler.reset()
    value, compiled = loss(student, teacher), torch.compile(loss, backend="aot_eager", fullgraph=True)(student, teacher)
    assert_close(compiled, value)
    assert_close(torch.autograd.grad(compiled, student), torch.autograd.grad(value, student))


DISTRIBUTED = ["subspace", "procrustes"]


def parts_and_gradients(images: slice) -> dict[str, torch.Tensor]:
    """Every part of four fixed images' share, and its gradient to what all ranks hold in common: channel mixing."""
    inputs, teacher = pair(4, 6, 4, 4)
    mixing = (torch.eye(6, dtype=torch.float64) + 0.3 * maps(6, 6, seed=9)).requires_grad_()
    student = torch.einsum("dc,bchw->bdhw", mixing, inputs[images])
    result = {}
    for alignment in DISTRIBUTED:
        loss = SEKD(scope="batch", alignment=alignment, rank=2, groups=2)
        for name, value in loss.parts(student, teacher[images]).items():
            result[f"{alignment} {name}"] = value.detach()
            (result[f"{alignment} {name} gradient"],) = torch.autograd.grad(value, mixing, retain_graph=True)
    return result


def half_of_the_images(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    return parts_and_gradients(slice(2 * rank, 2 * rank + 2))


@pytest.mark.slow
def test_two_processes_give_the_values_and_gradients_of_one():
    ranks, whole = run_on_ranks(half_of_the_images), parts_and_gradients(slice(None))
    for name, expected in whole.items():
        shares = [result[name] for result in ranks]
        assert_close(sum(shares) / 2, expected, rtol=1e-7, atol=1e-10)  # as DistributedDataParallel averages them
        if name.endswith("spectral"):  # one graph for all ranks: each sees the whole batch's value
            assert_close(shares, [expected] * 2, rtol=1e-9, atol=1e-12)
