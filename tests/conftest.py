"""Lets every test file import the helpers that lie beside this file: `ddp_helpers`, `slow_references`, `observers`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

from reldistill.relations.kernels.switch import fast_kernels

sys.path.insert(0, str(Path(__file__).parent))

if "PYTEST_XDIST_WORKER" in os.environ:  # the processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(params=["kernels", "equations"])
def each_form(request: pytest.FixtureRequest) -> Iterator[str]:
    """Relations by the fast kernels, and as their equations read."""
    with fast_kernels(request.param == "kernels"):
        yield request.param


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Types are not checked, as in a run: for what the guards say of wrong axes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def traceable(request: pytest.FixtureRequest, unchecked_types: None) -> None:
    """What torch.compile is given: types are not checked, and what is marked `no_type_check` is not wrapped either."""
    if sys.version_info < (3, 11) and request.config.getoption("--jaxtyping-packages"):
        pytest.skip("the jaxtyping of Python 3.10 wraps what torch.compile traces: give --jaxtyping-packages=")
