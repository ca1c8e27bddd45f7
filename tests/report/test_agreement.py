"""The agreement of two networks' relations."""

from __future__ import annotations

import numpy as np
import pytest

from reldistill.report.agreement import agreement, similarities


def vectors(*, width: int = 5, count: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width))


def test_it_is_the_correlation_over_pairs() -> None:
    first, second = similarities(vectors()), similarities(vectors(width=8, seed=1) + 3.0)
    upper = np.triu_indices(9, k=1)
    expected = 100 * np.corrcoef(first[upper], second[upper])[0, 1]
    assert agreement(first, second)[0] == pytest.approx(expected, rel=1e-9)


def test_similarities_are_cosines_of_centred_vectors() -> None:
    given = vectors() + 10.0
    centred = given - given.mean(axis=0)
    for i in range(9):
        for j in range(9):
            cosine = centred[i] @ centred[j] / np.linalg.norm(centred[i]) / np.linalg.norm(centred[j])
            assert similarities(given)[i, j] == pytest.approx(cosine, rel=1e-9)


def test_rotation_scale_and_shift_of_a_network_s_space_change_nothing() -> None:
    given = vectors()
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))[0]
    other = similarities(vectors(width=7, seed=1))
    for changed in (given @ rotation, 4 * given, given + 2.5):
        assert agreement(similarities(changed), other)[0] == pytest.approx(
            agreement(similarities(given), other)[0], rel=1e-9
        )
    assert agreement(similarities(given), similarities(-3 * given))[0] == pytest.approx(100)


def test_draws_are_those_images_again_without_pairs_of_one() -> None:
    first, second = similarities(vectors()), similarities(vectors(seed=1))
    times = np.array([[2, 0, 1, 1, 1, 3, 0, 0, 1], [1] * 9])
    drawn = np.repeat(np.arange(9), times[0])
    pairs = [(i, j) for a, i in enumerate(drawn) for j in drawn[a + 1 :] if i != j]
    expected = 100 * np.corrcoef([first[p] for p in pairs], [second[p] for p in pairs])[0, 1]
    assert agreement(first, second, times).tolist() == pytest.approx([expected, agreement(first, second)[0]], rel=1e-9)


def test_a_network_that_says_the_same_of_everything_agrees_with_none() -> None:
    collapsed = similarities(np.ones((9, 4)))
    assert agreement(collapsed, similarities(vectors())).tolist() == [0.0]


def test_a_draw_of_one_image_alone_agrees_with_nothing_and_warns_of_nothing() -> None:
    first, second = similarities(vectors(count=3)), similarities(vectors(count=3, seed=1))
    with np.errstate(all="raise"):
        assert agreement(first, second, np.array([[3, 0, 0]])).tolist() == [0.0]
