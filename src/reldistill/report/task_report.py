"""What a task tells the report: its score, how draws of images are made of it, and sections of the page of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reldistill.core.tasks import known_task

if TYPE_CHECKING:
    import numpy as np

    from reldistill.report.record import RunRecord


@dataclass(frozen=True)
class Score:
    """What the networks of a task are compared by: percent, more is better.

    Args:
        name: in an epoch's `val`, and in sentences.
        counted: whether it is the share of images that are right, so that intervals follow from counts.
        alone: whether a student that learned from no teacher can have it.
    """

    name: str
    counted: bool
    alone: bool = True


@dataclass(frozen=True)
class Section:
    """A part of a run's page that is made of a file in the run's folder.

    Args:
        read: folder → content; None where the file is not there, UserError where it cannot be used.
        render: run's name → content, to HTML; empty where there is nothing to show.
    """

    read: Callable[[Path], Any]
    render: Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class TaskReport:
    """One task, as far as reports know it.

    Args:
        score: what is compared.
        caption: what the page says under the table of runs.
        draws: record → scores of draws of the validation images, percent, the same draws for all runs; None where
            nothing is on record. For scores that are not counted.
        sections: what the page of runs shows besides what every task has, in order.
        score_of: settings of a run → what is compared, where that depends on them.
    """

    score: Score
    caption: str
    draws: Callable[[RunRecord], np.ndarray | None] | None = None
    sections: tuple[Section, ...] = ()
    score_of: Callable[[Mapping[str, Any]], Score] | None = None

    def score_by(self, settings: Mapping[str, Any]) -> Score:
        """What runs with these settings are compared by."""
        return self.score if self.score_of is None else self.score_of(settings)


def report_of(task: str) -> TaskReport:
    """What a task tells the report.

    Raises:
        UserError: when no task of that name is known.
    """
    return known_task(task).report
