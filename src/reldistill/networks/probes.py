"""What a network's pooled vectors know of labels, the network as it is: neighbours, a linear layer, retrieval."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from reldistill.core.types import Batch, ClassLabels, FeatureSource, Wanted

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


@torch.no_grad()
def pooled_of(network: FeatureSource, batches: Iterable[Batch], *, device: torch.device | str = "cpu") -> Labelled:
    """The pooled vectors of labelled images, in their order.

    Args:
        network: in eval mode, on `device`.
        batches: with ClassLabels.
        device: where the network is; the vectors stay there.
    """
    vectors, labels = [], []
    for batch in batches:
        batch = batch.to(device)
        said = network.ask(batch.images, Wanted(logits=False, pooled=True)).pooled
        if said is None:
            raise ValueError(f"{network.name} gives no pooled vector: a probe measures that")
        vectors.append(said.float())
        labels.append(batch.targets_as(ClassLabels).labels)
    return Labelled(torch.cat(vectors), torch.cat(labels))


def neighbour_votes(
    queries: Float[Tensor, "m D"],
    bank: Labelled,
    *,
    classes: int,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Float[Tensor, "m {classes}"]:
    """What the nearest vectors of the bank say: (m, K), each row sums to 1.

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


def linear_accuracy(train: Labelled, test: Labelled, *, seed: int = 0) -> np.ndarray:
    """(m,) booleans: which test vectors a logistic regression gets right that was fitted to the training vectors.

    Vectors are standardised by the training ones; the strength of the L2 penalty is the best of seven powers of ten on
    a fifth of the training vectors, class by class, and then all of them are fitted.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = train.vectors.cpu().numpy(), train.labels.cpu().numpy()

    def fitted(vectors: np.ndarray, labels: np.ndarray, strength: float) -> object:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        return model.fit(vectors, labels)

    rest, held_out, rest_labels, held_out_labels = train_test_split(x, y, test_size=0.2, stratify=y, random_state=seed)
    scores = [fitted(rest, rest_labels, c).score(held_out, held_out_labels) for c in _STRENGTHS]  # type: ignore[attr-defined]
    best = fitted(x, y, _STRENGTHS[int(np.argmax(scores))])
    return best.predict(test.vectors.cpu().numpy()) == test.labels.cpu().numpy()  # type: ignore[attr-defined]


def average_precisions(queries: Labelled, gallery: Labelled) -> Float[Tensor, "m"]:
    """(m,) average precision of each query when the gallery is sorted by cosine similarity; relevant is its own class.

    A query whose class the gallery lacks has 0.

    >>> gallery = Labelled(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 1, 0]))
    >>> average_precisions(Labelled(torch.tensor([[1.0, 0.0]]), torch.tensor([0])), gallery)
    tensor([0.8333])
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
        found.append((precision * relevant).sum(dim=1) / relevant.sum(dim=1).clamp(min=1))
    return torch.cat(found)


def untrained_twin(network: nn.Module, *, seed: int = 0) -> nn.Module:
    """The same network as if it had learned nothing: a copy whose layers start anew, the same for the same seed.

    What no layer resets (class tokens, position embeddings, layer scales) is drawn with a standard deviation of 0.02.
    """
    twin = copy.deepcopy(network)
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
