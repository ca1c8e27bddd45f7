"""Lets every test file import the helpers that lie beside this file: `ddp_helpers`, `slow_references`, `observers`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
