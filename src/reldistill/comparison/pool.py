"""Several pieces of work at once, each in a process of its own: one that fails or dies leaves the others alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from reldistill.comparison.worker import in_process
from reldistill.core.trust import named
from reldistill.data.samples import cores

_LOOK_EVERY = 0.5


@dataclass(frozen=True)
class Failure:
    """Why a piece of work failed, in one line; `by_user` where what was asked for was wrong."""

    reason: str
    by_user: bool


@dataclass
class Job:
    """A piece of work: what it is called, its folder, and what it does (picklable)."""

    name: str
    folder: Path
    work: Callable[[], None]
    began: float = field(default=0.0, compare=False)


class _Running:
    def __init__(self, job: Job, context: Any, *, device: int | None, threads: int | None) -> None:
        self.job, self.device = job, device
        self.answer, theirs = context.Pipe(duplex=False)
        self.process = context.Process(
            target=in_process,
            args=(job.work, job.folder, theirs),
            kwargs={"device": device, "threads": threads, "trusted": named()},
        )
        self.process.start()
        theirs.close()
        job.began = time.monotonic()

    def outcome(self) -> Failure | None:
        """The process's answer at its end, or how it died."""
        self.process.join()
        try:
            answer = self.answer.recv() if self.answer.poll() else "nothing"
        except EOFError:
            answer = "nothing"
        if answer is None:
            return None
        if isinstance(answer, tuple):
            return Failure(*answer)
        return Failure(_death(self.process.exitcode), by_user=False)


def run_all(
    jobs: Sequence[Job],
    *,
    at_once: int,
    ended: Callable[[Job, Failure | None], None],
    look: Callable[[Sequence[Job]], None],
) -> None:
    """Do all the work in order, several pieces at once.

    Args:
        jobs: the work.
        at_once: how many processes.
        ended: told of each piece when it is over.
        look: told now and then what is running.
    """
    waiting, running = list(jobs), list[_Running]()
    context, threads = _context(), _threads(at_once)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_Running(waiting.pop(0), context, device=_free_device(running), threads=threads))
            connection.wait([one.process.sentinel for one in running], timeout=_LOOK_EVERY)
            for one in [one for one in running if not one.process.is_alive()]:
                running.remove(one)
                ended(one.job, one.outcome())
            look([one.job for one in running])
    finally:
        for one in running:
            one.process.kill()
        for one in running:
            one.process.join()


def _context() -> Any:
    """Processes forked from one that has imported everything and done nothing: quick, and safe with threads."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["reldistill.comparison.worker"])
    return context


def _threads(at_once: int) -> int | None:
    """Each process's share of the cores, unless the user has set the number of threads of a process."""
    if given := os.environ.get("OMP_NUM_THREADS", ""):
        return int(given) if given.isdecimal() else None
    return max(1, cores() // at_once) if at_once > 1 else None


def _free_device(running: Sequence[_Running]) -> int | None:
    """The GPU with the fewest cells, where there are several."""
    count = torch.cuda.device_count()
    if count < 2 or "CUDA_VISIBLE_DEVICES" in os.environ:
        return None
    return min(range(count), key=lambda device: sum(one.device == device for one in running))


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", most often for want of memory" if -code == signal.SIGKILL else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {code}"
