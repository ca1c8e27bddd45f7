"""Lets every test file import the helpers that lie beside this file: `ddp_helpers`, `slow_references`, `observers`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Types are not checked, as in a run: what the guards say of wrong axes, and what torch.compile is given."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
