"""What a network's pooled vectors know of labels, the network as it is: neighbours, a linear layer, retrieval."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from reldistill.core.checks import UserError, one_line
from reldistill.core.types import Batch, ClassLabels, FeatureSource, Wanted

Network = TypeVar("Network", bound=nn.Module)
NEIGHBOURS = 20
TEMPERATURE = 0.07
_BLOCK = 1024  # queries at a time, so that similarities to a large bank fit in memory
_STRENGTHS = tuple(10.0**power for power in range(-3, 4))


class Labelled(NamedTuple):
    """Pooled vectors with a label each.

    Args:
        vectors: (n, D), float32.
        labels: (n,).
    """

    vectors: Float[Tensor, "n D"]
    labels: Int64[Tensor, "n"]


class PooledVectors:
    """Keeps the pooled vectors and the labels of images; see `core.types.Evaluator`. In one process only."""

    score = "vectors"

    def __init__(self) -> None:
        self.start("cpu")

    def start(self, device: torch.device | str) -> None:
        """Forget everything."""
        self._rows: list[tuple[Tensor, Tensor]] = []
        self.found: dict[str, float] = {}

    @torch.no_grad()
    def update(self, network: FeatureSource, batch: Batch) -> None:
        """Add one batch."""
        pooled = network.ask(batch.images, Wanted(logits=False, pooled=True)).pooled
        if pooled is None:
            raise ValueError(f"{network.name} gives no pooled vector: there is nothing to measure")
        self._rows.append((pooled.float(), batch.targets_as(ClassLabels).labels))

    def values(self) -> dict[str, float]:
        """How many there are."""
        self.found = {"vectors": float(sum(len(labels) for _, labels in self._rows))}
        return self.found

    def write(self, folder: Path) -> None:
        """Nothing is kept."""

    @property
    def labelled(self) -> Labelled:
        """All of them, in order."""
        return Labelled(torch.cat([rows for rows, _ in self._rows]), torch.cat([labels for _, labels in self._rows]))


def neighbour_votes(
    queries: Float[Tensor, "m D"],
    bank: Labelled,
    *,
    classes: int,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Float[Tensor, "m {classes}"]:
    """The votes of the bank's nearest vectors: (m, K), each row sums to 1.

    A neighbour of cosine similarity s votes for its class with exp(s / temperature): Wu et al. 2018 (arXiv 1805.01978),
    as DINO (arXiv 2104.14294) measures its features.

    >>> bank = Labelled(torch.eye(3), torch.tensor([0, 1, 2]))
    >>> neighbour_votes(torch.tensor([[0.1, 2.0, 0.0]]), bank, classes=3, neighbours=2).argmax().item()
    1
    """
    unit = functional.normalize(bank.vectors, dim=1)
    votes = []
    for block in functional.normalize(queries.float(), dim=1).split(_BLOCK):
        similarity, nearest = (block @ unit.T).topk(min(neighbours, len(unit)), dim=1)
        weights = (similarity / temperature).softmax(dim=1)
        votes.append(weights.new_zeros(len(block), classes).scatter_add_(1, bank.labels[nearest], weights))
    return torch.cat(votes)


def knn_right(train: Labelled, test: Labelled, *, classes: int) -> Bool[np.ndarray, "m"]:
    """(m,) booleans: for which test vectors the nearest training vectors vote right, see `neighbour_votes`."""
    votes = neighbour_votes(test.vectors, train, classes=classes)
    return (votes.argmax(dim=1) == test.labels).cpu().numpy()


def linear_right(train: Labelled, test: Labelled, *, classes: int, seed: int = 0) -> Bool[np.ndarray, "m"]:
    """(m,) booleans: which test vectors a logistic regression gets right that was fitted to the training vectors.

    Vectors are standardised by the training ones; the strength of the L2 penalty is the best of seven powers of ten on
    a fifth of the training vectors, class by class, and then all of them are fitted. Where a class has too few for
    that, one of each class that has two is held out; where none has, the strength is 1.

    Raises:
        UserError: when all training vectors are of one class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(set(train.labels.tolist())) < 2:
        raise UserError("--probe linear: the training images are all of one class")
    x, y = train.vectors.cpu().numpy(), train.labels.cpu().numpy()

    def fitted(vectors: np.ndarray, labels: np.ndarray, strength: float) -> object:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        return model.fit(vectors, labels)

    strength, held_out = 1.0, _held_out(y, seed=seed)
    if held_out.any():
        rest = ~held_out
        scores = [fitted(x[rest], y[rest], c).score(x[held_out], y[held_out]) for c in _STRENGTHS]  # type: ignore[attr-defined]
        strength = _STRENGTHS[int(np.argmax(scores))]
    best = fitted(x, y, strength)
    return best.predict(test.vectors.cpu().numpy()) == test.labels.cpu().numpy()  # type: ignore[attr-defined]


def _held_out(labels: Int64[np.ndarray, "n"], *, seed: int) -> Bool[np.ndarray, "n"]:
    """(n,) booleans: a fifth, class by class; where that leaves a class without any, one of each that has two."""
    from sklearn.model_selection import train_test_split

    positions, chosen = np.arange(len(labels)), np.zeros(len(labels), dtype=bool)
    _, first, counts = np.unique(labels, return_index=True, return_counts=True)
    if counts.min() < 2 or math.ceil(0.2 * len(labels)) < len(counts):
        chosen[first[counts > 1]] = True
    else:
        chosen[train_test_split(positions, test_size=0.2, stratify=labels, random_state=seed)[1]] = True
    return chosen


def average_precisions(gallery: Labelled, queries: Labelled, *, classes: int) -> Float[np.ndarray, "m"]:
    """(m,) average precision of each query when the gallery is sorted by cosine similarity; relevant is its own class.

    A query whose class the gallery lacks has 0.

    >>> gallery = Labelled(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 1, 0]))
    >>> query = Labelled(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    >>> average_precisions(gallery, query, classes=2).round(4).tolist()
    [0.8333]
    """
    unit = functional.normalize(gallery.vectors, dim=1)
    found = []
    ranks = torch.arange(1, len(unit) + 1, device=unit.device)
    for block, labels in zip(
        functional.normalize(queries.vectors, dim=1).split(_BLOCK), queries.labels.split(_BLOCK), strict=True
    ):
        order = (block @ unit.T).argsort(dim=1, descending=True, stable=True)
        relevant = gallery.labels[order] == labels[:, None]
        precision = relevant.cumsum(dim=1) / ranks
        found.append((precision.double() * relevant).sum(dim=1) / relevant.sum(dim=1).clamp(min=1))
    return torch.cat(found).cpu().numpy()


def untrained_twin(network: Network, *, seed: int = 0) -> Network:
    """The same network as if it had learned nothing: a copy with its layers reset, the same for the same seed.

    What no layer resets (class tokens, position embeddings, layer scales) is drawn with a standard deviation of 0.02.

    Raises:
        UserError: when the network can't be copied.
    """
    try:
        twin = copy.deepcopy(network)
    except Exception as error:  # a user's own may hold anything
        raise UserError(
            f"a network that can't be copied ({one_line(error)}) can't be compared with one of fresh weights: let "
            f"{type(network).__name__} hold nothing but modules, tensors and plain values (copy.deepcopy)"
        ) from error
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in twin.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
                continue
            for parameter in module.parameters(recurse=False):
                parameter.copy_(torch.randn(parameter.shape) * 0.02)
    return twin


PROBES: dict[str, tuple[str, Callable[..., np.ndarray]]] = {
    "knn": (f"{NEIGHBOURS} nearest neighbours", knn_right),
    "linear": ("logistic regression", linear_right),
    "retrieval": ("mean average precision of retrieval", average_precisions),
}
"""Probe → (what it is, (training vectors, validation vectors) → a score in [0, 1] for each validation image)."""
