"""The signals by which machines end a training early."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def usr1_ends_training() -> Iterator[list[int]]:
    """SIGUSR1, by which Slurm announces the end of a job, ends training as SIGTERM does: after a checkpoint.

    Yields:
        The signals received so far; a SIGTERM that nothing announced is not among them.
    """
    received: list[int] = []

    def end(number: int, frame: Any) -> None:
        received.append(number)
        signal.raise_signal(signal.SIGTERM)  # which the Trainer waits for

    if not hasattr(signal, "SIGUSR1") or threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.signal(signal.SIGUSR1, end)
    try:
        yield received
    finally:
        signal.signal(signal.SIGUSR1, before)
