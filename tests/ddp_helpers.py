"""Run a function of a test file on several processes joined by gloo.

    from ddp_helpers import run_on_ranks

    def shares(rank, world_size):          # at the top level of the test file; returns what torch.save takes
        ...

    def test_shares():
        first, second = run_on_ranks(shares)

Each process loads the test file by its path, so that nothing has to be importable by name.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run_on_ranks(function: Callable[[int, int], Any], *, world_size: int = 2, timeout: float = 300.0) -> list[Any]:
    """What `function(rank, world_size)` returned on each rank, in rank order; a rank that fails shows its output."""
    import torch

    source = inspect.getsourcefile(function)
    assert source is not None
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, source, function.__name__, str(rank), str(world_size), folder],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(world_size)
        ]
        try:
            outputs = [process.communicate(timeout=timeout)[0] for process in ranks]
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        failed = [f"rank {rank}:\n{outputs[rank]}" for rank, process in enumerate(ranks) if process.returncode]
        assert not failed, "\n".join(failed)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _main(path: str, name: str, rank: int, world_size: int, folder: str) -> None:
    import torch
    import torch.distributed as dist

    spec = importlib.util.spec_from_file_location("ranked_test_file", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    store = dist.FileStore(os.path.join(folder, "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    try:
        torch.save(getattr(module, name)(rank, world_size), os.path.join(folder, f"{rank}.pt"))
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
