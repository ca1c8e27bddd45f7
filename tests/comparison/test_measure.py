from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reldistill.tasks.classification.look import calibration_error, logit_correlation


def slow_calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int) -> float:
    places: list[list[tuple[bool, float]]] = [[] for _ in range(bins)]
    for row, label in zip(logits, labels, strict=True):
        powers = [math.exp(value - max(row)) for value in row]
        confidence = max(powers) / sum(powers)
        place = next(i for i in range(bins) if confidence <= (i + 1) / bins or i == bins - 1)
        places[place].append((int(np.argmax(row)) == label, confidence))
    total = 0.0
    for content in places:
        if content:
            right, sure = (sum(column) / len(content) for column in zip(*content, strict=True))
            total += len(content) / len(labels) * abs(right - sure)
    return 100 * total


@given(st.integers(0, 500), st.integers(2, 12), st.integers(1, 20))
def test_calibration_error_is_the_loop(seed: int, classes: int, bins: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (50, classes)).astype(np.float32)
    labels = random.integers(classes, size=50)
    expected = slow_calibration_error(logits, labels, bins)
    assert calibration_error(logits, labels, bins=bins) == pytest.approx(expected, abs=1e-4)


def test_calibration_error_at_its_ends() -> None:
    sure = np.eye(3)[[0, 1, 2, 0]] * 100
    assert calibration_error(sure, np.array([0, 1, 2, 0])) == pytest.approx(0)
    assert calibration_error(sure, np.array([1, 2, 0, 1])) == pytest.approx(100)


def test_calibration_error_does_not_see_a_constant_added_to_the_logits() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (40, 5))
    labels = np.arange(40) % 5
    assert calibration_error(logits + 1e4, labels) == pytest.approx(calibration_error(logits, labels))


def test_logit_correlation_is_that_of_numpy_and_0_for_a_class_that_never_moves() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (30, 4))
    assert logit_correlation(logits) == pytest.approx(np.corrcoef(logits.T), abs=1e-6)
    logits[:, 2] = 7.0
    found = logit_correlation(logits)
    assert not found[2].any()
    assert found[0, 0] == pytest.approx(1)
