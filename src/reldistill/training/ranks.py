"""The processes of a run on several devices end together: one that is killed ends the others, with one line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import lightning as L

_EVERY = 0.5  # seconds
_GRACE = 2.0  # after which a process that waits for one that is gone does not know it yet: it never will
_BY_SIGNAL = {128 + number for number in (signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM))}
_FAILED = 2


class Ranks:
    """The other processes of this run on this machine, as far as this one can see them.

    Args:
        trainer: whose processes they are; the first starts the others.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer
        self._parent = os.getppid() if trainer.local_rank else None

    @property
    def _started(self) -> list[subprocess.Popen[bytes]]:
        return getattr(self._trainer.strategy.launcher, "procs", None) or []

    def lost(self, *, wait: float = 0.0) -> str | None:
        """In words which process is gone that should not be, once that is known; None if none is.

        Args:
            wait: seconds at most; a connection breaks before a process is gone.
        """
        until = time.monotonic() + wait
        while (found := self._lost()) is None and time.monotonic() < until:
            time.sleep(0.05)
        return found

    def _lost(self) -> str | None:
        if self._parent is not None:
            return None if os.getppid() == self._parent else "the first of the run's processes is gone"
        started = self._started
        for number, process in enumerate(started, start=2):
            code = process.poll()
            if code is not None and code != 0 and code not in _BY_SIGNAL:
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return f"process {number} of {len(started) + 1} {how}"
        return None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """End this process too where it waits for one that is gone, as a GPU's collectives do forever."""
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(over,), daemon=True)
        watch.start()
        try:
            yield
        finally:
            over.set()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(_EVERY):
            lost = self._lost()
            if lost is not None and not over.wait(_GRACE):
                print(f"reldistill: {self.ended(lost)}", file=sys.stderr, flush=True)
                os._exit(_FAILED)

    def ended(self, lost: str) -> str:
        """End what is left of the processes that this one started; the message about it."""
        for process in self._started:
            process.kill()
        return f"{lost}, so the run ends; the same command with --resume continues from the last checkpoint"
