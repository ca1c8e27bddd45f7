"""What the report knows of classification."""

from __future__ import annotations

from reldistill.report.task_report import Score, TaskReport

_CAPTION = """
Accuracy is the share of validation images whose class comes out first. The 95 % interval tells how far it may move with
another draw of such images (Wilson). Gains are over the student alone at the last epoch, ± half their 95 % interval,
which is drawn beside them. Green marks a gain that the draw of images does not explain: the interval keeps clear of 0
and, where it is on record which images each network got right, the exact paired test (McNemar) gives p < 0.05. The best
epoch was picked on these same images and flatters every run a little.
"""

REPORT = TaskReport(Score("accuracy", counted=True), _CAPTION)
