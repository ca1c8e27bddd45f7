"""The equations of docs/methods as plain loops over numbers in float64: slow, and meant to be read beside them."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

from torch import Tensor

Vector = list[float]


def huber(x: float) -> float:
    return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5


def norm(a: Vector, b: Vector) -> float:
    return math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def cosine(i: Vector, j: Vector, k: Vector) -> float:
    """cos∠ at j."""
    from_j = [[x - y for x, y in zip(end, j, strict=True)] for end in (i, k)]
    return dot(*from_j) / (norm(i, j) * norm(k, j))


def distance_loss(student: Tensor, teacher: Tensor) -> float:
    """Of (B, M, D) sets: per image, per pair."""
    terms = []
    for ours, theirs in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        pairs = list(itertools.permutations(range(len(ours)), 2))
        scales = []
        for tokens in (ours, theirs):
            scales.append(math.fsum(norm(tokens[i], tokens[j]) for i, j in pairs) / len(pairs) or 1.0)
        terms += [huber(norm(ours[i], ours[j]) / scales[0] - norm(theirs[i], theirs[j]) / scales[1]) for i, j in pairs]
    return math.fsum(terms) / len(terms)


def angle_loss(student: Tensor, teacher: Tensor) -> float:
    """Of (B, M, D) sets: per image, per ordered triple; a triple with a coincident pair counts and adds nothing."""
    terms = []
    for ours, theirs in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        for i, j, k in itertools.permutations(range(len(ours)), 3):
            sides = [(tokens[i], tokens[j], tokens[k]) for tokens in (ours, theirs)]
            if any(norm(a, b) == 0 for side in sides for a, b in itertools.combinations(side, 2)):
                terms.append(0.0)
            else:
                terms.append(huber(cosine(*sides[0]) - cosine(*sides[1])))
    return math.fsum(terms) / len(terms)


def cell_means(tokens: dict[tuple[int, int], Vector], grid: tuple[int, int], cells: tuple[int, int]) -> list[Vector]:
    """S⁰: cell (a, b) covers the rows ⌊a·H/h⌋ to ⌈(a+1)·H/h⌉, and the like for columns."""
    means = []
    for a, b in itertools.product(range(cells[0]), range(cells[1])):
        spans = []
        for index, size, count in ((a, grid[0], cells[0]), (b, grid[1], cells[1])):
            spans.append(range(index * size // count, -(-(index + 1) * size // count)))
        inside = [tokens[y, x] for y, x in itertools.product(*spans)]
        means.append([math.fsum(column) / len(inside) for column in zip(*inside, strict=True)])
    return means


def home_cell(position: int, size: int, count: int) -> int:
    """The cell of `count` in which the centre of token `position` of `size` lies."""
    return math.floor((position + Fraction(1, 2)) * count / size)


def log_softmax(values: Vector) -> Vector:
    top = max(values)
    return [v - top - math.log(math.fsum(math.exp(w - top) for w in values)) for v in values]


def superpixels(
    feature_map: Tensor, cells: tuple[int, int], *, iterations: int = 1, local: bool = False
) -> tuple[list[Vector], list[list[float]]]:
    """Of one image (D, H, W): the tokens S (M of D numbers) and Q (N of M numbers) of the last iteration."""
    dim, height, width = feature_map.shape
    values = feature_map.double().permute(1, 2, 0).tolist()
    places = list(itertools.product(range(height), range(width)))
    tokens = {(y, x): values[y][x] for y, x in places}
    merged = cell_means(tokens, (height, width), cells)
    log_q: list[list[float]] = []
    for _ in range(iterations):
        log_q = []
        for y, x in places:
            home = home_cell(y, height, cells[0]), home_cell(x, width, cells[1])
            seen = [
                m
                for m, (a, b) in enumerate(itertools.product(range(cells[0]), range(cells[1])))
                if not local or (abs(a - home[0]) <= 1 and abs(b - home[1]) <= 1)
            ]
            row = [-math.inf] * len(merged)
            for m, value in zip(
                seen, log_softmax([dot(tokens[y, x], merged[m]) / math.sqrt(dim) for m in seen]), strict=True
            ):
                row[m] = value
            log_q.append(row)
        merged = merge([tokens[p] for p in places], log_q)
    return merged, [[math.exp(v) for v in row] for row in log_q]


def merge(tokens: list[Vector], log_q: list[list[float]]) -> list[Vector]:
    """Q̂ᵀ T, columns scaled in the logarithm, so that no column of tiny numbers is lost."""
    merged = []
    for column in zip(*log_q, strict=True):
        weights = [math.exp(v) for v in log_softmax(list(column))]
        merged.append([dot(weights, list(numbers)) for numbers in zip(*tokens, strict=True)])
    return merged
