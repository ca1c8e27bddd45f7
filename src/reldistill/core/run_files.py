"""What the files in a run's folder are called, by which a folder is known to be a run's."""

from __future__ import annotations

RECORD_FILE = "record.json"
LAST_WEIGHTS = "student.safetensors"
BEST_WEIGHTS = "student-best.safetensors"
