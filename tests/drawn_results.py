"""Random detections of random objects, with crowds, ties and images where nothing is or nothing was found."""

from __future__ import annotations

import numpy as np

from reldistill.tasks.detection.metrics.detection_results import ImageResult


def random_results(count: int, *, classes: int = 3, seed: int = 0, ties: bool = False) -> list[ImageResult]:
    """Results of some images; every third detection or so is of the wrong class or off its place."""
    random = np.random.default_rng(seed)
    return [_random_result(random, index, classes, ties) for index in range(count)]


def _random_result(random: np.random.Generator, index: int, classes: int, ties: bool) -> ImageResult:
    objects = int(random.integers(0, 8))
    places = random.random((objects, 2)) * 200
    true = np.concatenate([places, places + np.exp(random.normal(3.8, 0.9, (objects, 2)))], axis=1)
    labels = random.integers(0, classes, objects)
    times = random.integers(0, 4, objects)
    sides = np.repeat(true[:, 2:] - true[:, :2], times, axis=0)
    found = np.repeat(true, times, axis=0) + random.normal(0, 0.12, (int(times.sum()), 4)) * np.tile(sides, 2)
    guesses = np.where(
        random.random(len(found)) < 0.8, np.repeat(labels, times), random.integers(0, classes, len(found))
    )
    stray = random.random((int(random.integers(0, 4)), 4)) * 100
    stray[:, 2:] += stray[:, :2] + 1
    found, guesses = np.concatenate([found, stray]), np.concatenate([guesses, random.integers(0, classes, len(stray))])
    scores = random.random(len(found))
    areas = (true[:, 2:] - true[:, :2]).prod(axis=1) * random.uniform(0.5, 1, objects)
    ignored = random.random(objects) < 0.15
    order = np.argsort(np.maximum(found[:, 2] - found[:, 0], 0))  # any order that is not that of the scores
    found, guesses, scores = found[order], guesses[order], scores[order]
    kept = (found[:, 2:] > found[:, :2]).all(axis=1)
    scores = scores.round(1) if ties else scores
    return ImageResult(index, found[kept], scores[kept], guesses[kept], true, labels, ignored, areas)
