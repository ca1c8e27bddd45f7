"""Lets every test file import the helpers that lie beside this file: `ddp_helpers`, `slow_references`, `observers`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import jaxtyping
import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def unchecked_types(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Types are not checked, as in a run: what the guards say of wrong axes, and what torch.compile is given."""
    for module in [module for name, module in sys.modules.items() if name.startswith("reldistill.")]:
        for kind in vars(module).values():
            if inspect.isclass(kind) and is_dataclass(kind) and hasattr(kind.__init__, "__wrapped__"):
                # torch.compile can't build one whose __init__ checks, even when the check is off
                monkeypatch.setattr(kind, "__init__", kind.__init__.__wrapped__)
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
