"""Probes against slow loops and scikit-learn."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from reldistill.core.checks import UserError
from reldistill.networks.probes import (
    Labelled,
    average_precisions,
    knn_right,
    linear_right,
    neighbour_votes,
    untrained_twin,
)


def clusters(count: int, *, classes: int = 3, width: int = 6, spread: float = 0.6, seed: int = 0) -> Labelled:
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % classes
    return Labelled(centres[labels] + spread * torch.randn(count, width, generator=random), labels)


def test_votes_are_those_of_a_slow_loop() -> None:
    bank, queries = clusters(40), clusters(7, seed=1).vectors
    votes = neighbour_votes(queries, bank, classes=3, neighbours=5, temperature=0.2)
    for query, found in zip(queries, votes, strict=True):
        near = sorted(
            (
                (float(query @ known / query.norm() / known.norm()), int(label))
                for known, label in zip(bank.vectors, bank.labels, strict=True)
            ),
            reverse=True,
        )[:5]
        expected = [sum(math.exp(s / 0.2) for s, label in near if label == k) for k in range(3)]
        assert found.tolist() == pytest.approx([e / sum(expected) for e in expected], rel=1e-4, abs=1e-6)


def test_votes_do_not_depend_on_length_and_need_no_more_neighbours_than_there_are() -> None:
    bank, queries = clusters(6), clusters(4, seed=1).vectors
    few = neighbour_votes(queries, bank, classes=3, neighbours=20)
    longer = neighbour_votes(5 * queries, Labelled(0.1 * bank.vectors, bank.labels), classes=3, neighbours=20)
    torch.testing.assert_close(few, longer)
    torch.testing.assert_close(few.sum(dim=1), torch.ones(4))


def test_average_precision_is_scikit_learn_s() -> None:
    gallery, queries = clusters(30, spread=2.0), clusters(9, spread=2.0, seed=1)
    unit = [torch.nn.functional.normalize(one.vectors, dim=1) for one in (queries, gallery)]
    expected = [
        average_precision_score((gallery.labels == label).numpy(), (row @ unit[1].T).numpy())
        for row, label in zip(unit[0], queries.labels, strict=True)
    ]
    np.testing.assert_allclose(average_precisions(gallery, queries, classes=3), expected, rtol=1e-6)
    strangers = Labelled(queries.vectors, queries.labels + 7)
    assert average_precisions(gallery, strangers, classes=10).tolist() == [0.0] * 9


def test_a_linear_layer_reads_what_is_there_and_nothing_else() -> None:
    train, test = clusters(90), clusters(60, seed=1)
    assert linear_right(train, test, classes=3).mean() > 0.8
    shuffled = Labelled(train.vectors, train.labels[torch.randperm(90, generator=torch.Generator().manual_seed(0))])
    assert linear_right(shuffled, test, classes=3).mean() < 0.6
    assert knn_right(train, test, classes=3).dtype == bool
    with pytest.raises(UserError, match="all of one class"):
        linear_right(Labelled(train.vectors, torch.zeros(90, dtype=torch.int64)), test, classes=1)


@pytest.mark.parametrize("counts", [(30, 30, 1), (30, 2, 2), (2, 2, 2), (1, 1, 1)])
def test_a_linear_layer_is_fitted_to_classes_of_one_or_two_images(counts: tuple[int, ...]) -> None:
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    train = Labelled(torch.eye(3)[labels] + 0.01 * torch.randn(len(labels), 3), labels)
    assert linear_right(train, Labelled(torch.eye(3), torch.arange(3)), classes=3)[counts[0] == 30 :].any()


def test_a_network_that_cannot_be_copied_has_no_twin() -> None:
    network = torch.nn.Linear(2, 2)
    network.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"can't be copied \(.*cannot pickle"):
        untrained_twin(network)
