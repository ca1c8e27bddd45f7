"""SeRKD and SEKD against their equations: superpixels of an image, and the graph of a level's channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from published import Array, Case, cases, check, huber, numbers, pooled, softmax
from reldistill.losses import SEKD, SeRKD


def superpixels(maps: Array, grid: tuple[int, int], iterations: int) -> list[Array]:
    """SeRKD §3.1 for each image: means of cells, then rounds of soft assignment with columns of sum 1."""
    starts = pooled(maps, *grid)
    found = []
    for one, start in zip(maps, starts, strict=True):
        tokens, merged = one.reshape(len(one), -1).T, start.reshape(len(start), -1).T
        for _ in range(iterations):
            q = softmax(tokens @ merged.T / np.sqrt(tokens.shape[1]), axis=1)
            merged = (q / q.sum(axis=0)).T @ tokens
        found.append(merged)
    return found


def serkd(student: Array, teacher: Array, *, grid: tuple[int, int], iterations: int, weights: tuple) -> float:
    """λ_D L_D + λ_A L_A over the pairs and triples of each image."""
    total = 0.0
    sides = (superpixels(side, grid, iterations) for side in (student, teacher))
    for pair in zip(*sides, strict=True):
        count = len(pair[0])
        pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
        triples = [(i, j, k) for i, j in pairs for k in range(count) if k not in (i, j)]
        relative, cosines = [], []
        for points in pair:
            apart = np.linalg.norm(points[:, None] - points[None], axis=2)
            relative.append(apart / np.mean([apart[one] for one in pairs]))
            cosines.append(
                [(points[i] - points[j]) @ (points[k] - points[j]) / (apart[i, j] * apart[k, j]) for i, j, k in triples]
            )
        distance = np.mean([huber(relative[0][one] - relative[1][one]) for one in pairs])
        angle = np.mean([huber(a - b) for a, b in zip(*cosines, strict=True)])
        total += float(weights[0] * distance + weights[1] * angle)
    return total / len(student)


TOKENS = numbers(2, 5, 4, 6, seed=1), 1.5 * numbers(2, 7, 4, 6, seed=2)
UNLIKE = numbers(2, 5, 4, 4, seed=3), 1.5 * numbers(2, 7, 6, 8, seed=4)  # grids 2×2 and 3×4 of cells


@cases(
    [
        *(
            Case(f"serkd, {rounds} rounds, λ {weights}",
                 lambda rounds=rounds, weights=weights: SeRKD(
                     iterations=rounds, distance_weight=weights[0], angle_weight=weights[1]
                 ),
                 *TOKENS,
                 lambda s, t, rounds=rounds, weights=weights: serkd(
                     s, t, grid=(2, 3), iterations=rounds, weights=weights
                 ))
            for rounds in (1, 3)
            for weights in ((1.0, 2.0), (1.0, 0.0), (0.0, 1.0))
        ),
        Case("serkd on the coarser grid", SeRKD, *UNLIKE,
             lambda s, t: serkd(s, t, grid=(2, 2), iterations=1, weights=(1.0, 2.0))),
        Case("serkd of cells of 3×3", lambda: SeRKD(cell=3), *TOKENS,
             lambda s, t: serkd(s, t, grid=(2, 2), iterations=1, weights=(1.0, 2.0))),
    ]
)  # fmt: skip
def test_serkd(case: Case) -> None:
    check(case)


def attention(one: Array, tau: float, scale: str) -> tuple[Array, Array]:
    """Of an image's channels as rows: weights of the positions and of the channels, of mean 1."""
    magnitude = abs(one) / (abs(one).mean() if scale == "relative" else 1)
    spatial = softmax(magnitude.mean(axis=0) / tau) * one.shape[1]
    return spatial, softmax(magnitude.mean(axis=1) / tau) * len(one)


def embedding(graph: Array, rank: int, weights: str) -> tuple[Array, Array]:
    """The Laplacian, and its eigenvectors of the smallest eigenvalues after the trivial one."""
    edges = np.maximum(graph, 0) if weights == "positive" else (1 + graph) / 2
    degrees = edges.sum(axis=1)
    laplacian = np.eye(len(edges)) - edges / np.sqrt(degrees[:, None] * degrees[None])
    values, vectors = np.linalg.eigh(laplacian)
    assert values[1] > 1e-3, "a connected graph has one trivial eigenvector"
    assert values[rank + 1] - values[rank] > 1e-4, "no gap, no subspace"
    return laplacian, vectors[:, 1 : rank + 1]


def spectra_apart(ours: Array, theirs: Array, *, rank: int, alignment: str, weights: str, time: float) -> float:
    """L_S of two adjacencies."""
    (ours, u), (theirs, v) = (embedding(graph, rank, weights) for graph in (ours, theirs))
    if alignment == "subspace":
        return 1 - float(np.trace(u @ u.T @ v @ v.T)) / rank
    if alignment == "procrustes":
        return 1 - float(np.linalg.svd(v.T @ u, compute_uv=False).sum()) / rank
    heats = []
    for laplacian in (ours, theirs):
        values, vectors = np.linalg.eigh(laplacian)
        heats.append(vectors * np.exp(-time * values) @ vectors.T)
    return float(((heats[0] - heats[1]) ** 2).sum()) / len(ours)


SETTINGS: dict[str, Any] = {
    "attended": True, "tau": 1.0, "scale": "relative", "vertex": "unit", "groups": 1, "scope": "batch", "rank": 3,
    "alignment": "subspace", "graph_weights": "positive", "time": 1.0, "parts": (1.0, 1.0, 1.0),
}  # fmt: skip


def sekd(student: Array, teacher: Array, **chosen: Any) -> float:
    """α L_V + β L_E + γ L_S (§2.2 of SEKD as this project writes it)."""
    given = SETTINGS | chosen
    size = student.shape[1] // given["groups"]
    vertex, edge, graphs = [], [], []
    for ours, theirs in zip(student, teacher, strict=True):
        ours, theirs = (one.reshape(len(one), -1) for one in (ours, theirs))
        lengths = [np.linalg.norm(one, axis=1, keepdims=True) for one in (ours, theirs)]
        units = [ours / lengths[0], theirs / lengths[1]]
        spatial, channel = np.ones(ours.shape[1]), np.ones(len(ours))
        if given["attended"]:
            spatial, channel = attention(theirs, given["tau"], given["scale"])
        weight = channel[:, None] * spatial[None]
        if given["vertex"] == "unit":
            vertex.append((weight * (units[0] - units[1]) ** 2).sum(axis=1).mean())
        else:
            vertex.append((weight * (ours - theirs) ** 2).mean())
        for first in range(0, len(ours), size):
            a, b = (one[first : first + size] @ one[first : first + size].T for one in units)
            r = softmax(b / given["tau"], axis=1) * size if given["attended"] else 1.0
            edge.append((r * (b - a) ** 2).sum() / size**2)
            graphs.append((first, a, b))
    pairs = [(a, b) for _, a, b in graphs]
    if given["scope"] == "batch":
        pairs = [
            tuple(np.mean([one[side] for one in graphs if one[0] == first], axis=0) for side in (1, 2))
            for first in range(0, student.shape[1], size)
        ]
    names = ("rank", "alignment", "time")
    spectral = [
        spectra_apart(a, b, **{name: given[name] for name in names}, weights=given["graph_weights"]) for a, b in pairs
    ]
    parts = (np.mean(vertex), np.mean(edge), np.mean(spectral))
    return float(sum(weight * part for weight, part in zip(given["parts"], parts, strict=True)))


# Not around 0, so that all channels resemble each other and the graph is connected.
MAPS = numbers(2, 6, 3, 4, seed=11, shift=0.6), 2 * numbers(2, 6, 3, 4, seed=12, shift=0.8)
OURS = {"attended": "attention", "tau": "attention_temperature", "scale": "attention_scale", "time": "heat_time"}


def sekd_case(**chosen: Any) -> Case:
    settings = {OURS.get(name, name): value for name, value in ({"rank": 3} | chosen).items() if name != "parts"}
    weights = dict(
        zip(("vertex_weight", "edge_weight", "spectral_weight"), chosen.get("parts", (1, 1, 1)), strict=True)
    )
    return Case(", ".join(f"{name} {value}" for name, value in chosen.items()) or "defaults",
                lambda: SEKD(**settings, **weights), *MAPS, lambda s, t: sekd(s, t, **chosen))  # fmt: skip


@cases(
    [
        sekd_case(),
        *(sekd_case(parts=parts) for parts in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.3, 2.0, 0.7))),
        sekd_case(attended=False),
        sekd_case(tau=0.4),
        sekd_case(scale="raw", tau=1.5),
        sekd_case(vertex="raw"),
        sekd_case(scope="sample", rank=2),
        sekd_case(groups=2, attended=False, rank=1),
        sekd_case(alignment="procrustes"),
        sekd_case(alignment="heat", time=0.7),
        sekd_case(graph_weights="shifted", rank=2),
    ]
)
def test_sekd(case: Case) -> None:
    check(case)


def test_sekd_counts_a_channels_similarity_to_itself() -> None:
    """Every vertex has an edge of weight 1 to itself, as A_ii = 1 says; without it the spectrum is another."""
    a, b = (side[0].reshape(6, -1) for side in MAPS)
    graphs = [(one / np.linalg.norm(one, axis=1, keepdims=True)) for one in (a, b)]
    graphs = [one @ one.T for one in graphs]
    loops = {"rank": 3, "alignment": "subspace", "weights": "positive", "time": 1.0}
    with_loops = spectra_apart(*graphs, **loops)
    without = spectra_apart(*(one - np.eye(6) for one in graphs), **loops)
    assert abs(with_loops / without - 1) > 1e-3, "so the cases above tell which"
    assert with_loops == pytest.approx(sekd(*(side[:1] for side in MAPS), parts=(0, 0, 1)))
