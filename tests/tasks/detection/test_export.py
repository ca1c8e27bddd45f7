"""When the detections of two runtimes count as equal."""

from __future__ import annotations

import numpy as np
import pytest

from reldistill.tasks.detection.export import _difference

BOXES = np.array([[0.0, 0.0, 100.0, 50.0], [30.0, 20.0, 60.0, 90.0], [5.0, 5.0, 25.0, 45.0]])


def compared(
    corner: float = 0.0, score: float = 0.0, label: int = 2, *, size: tuple[int, int] = (100, 200)
) -> tuple[int, int, float, float]:
    """Three detections, in another order; the third's right edge, score and label as given."""
    scores, labels = np.array([0.9, 0.8, 0.7]), np.array([1, 1, 2])
    boxes, changed_scores, changed_labels = BOXES.copy(), scores.copy(), labels.copy()
    boxes[2, 2] += corner
    changed_scores[2] += score
    changed_labels[2] = label
    order = [2, 0, 1]
    found = boxes[order], changed_labels[order], changed_scores[order]
    return _difference(found, (BOXES, labels, scores), size=size)


def test_detections_of_a_graph_are_equal_up_to_a_ten_thousandth() -> None:
    """Of the image's longer side, 200 pixels: 0.02 pixels; and of score."""
    assert compared() == (3, 0, 0.0, 0.0)
    assert compared(corner=0.019)[:3] == (3, 0, pytest.approx(0.019))
    assert compared(corner=-0.021)[:3] == (2, 1, 0.0)
    assert compared(corner=0.019, size=(100, 150))[:2] == (2, 1)
    assert compared(score=0.9e-4) == (3, 0, 0.0, pytest.approx(0.9e-4))
    assert compared(score=-1.1e-4) == (2, 1, 0.0, 0.0)
    assert compared(label=1)[:2] == (2, 1)


def test_a_detection_more_on_either_side_has_no_equal() -> None:
    both = BOXES, np.array([1, 1, 2]), np.array([0.9, 0.8, 0.7])
    fewer = tuple(column[:2] for column in both)
    for found, expected in ((fewer, both), (both, fewer)):
        assert _difference(found, expected, size=(100, 200))[:2] == (2, 1)
