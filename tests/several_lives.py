"""Run the command several times in a row, each in a fresh process that may be killed (SIGKILL) at a chosen moment.

    python several_lives.py '[["distill …", "batch:7"], ["distill … --resume", "replace:2"]]'

A moment is `batch:N`, after N training batches of that life, or `replace:N`, when a file is about to be put in its
place for the Nth time, or `file:NAME`, when that file is. Each process is a fork of one that has only imported, so that
a life costs no imports. The exit statuses (minus the signal's number where one was killed) are printed as JSON. With
STILL_CLOCK in the environment no time passes, so that records can be compared whole.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


def _kill_at(moment: str) -> None:
    from reldistill.training.keeper import RunKeeper

    kind, _, what = moment.partition(":")
    left = 1 if kind == "file" else int(what)

    def count_down() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if kind == "batch":
        batch_end = RunKeeper.on_train_batch_end

        def batch_end_or_death(self: RunKeeper, *args: Any) -> None:
            batch_end(self, *args)
            count_down()

        RunKeeper.on_train_batch_end = batch_end_or_death  # type: ignore[method-assign]
    else:
        replace = os.replace

        def replace_or_death(source: Any, target: Any) -> None:
            if kind == "replace" or Path(target).name == what:
                count_down()
            replace(source, target)

        os.replace = replace_or_death  # type: ignore[assignment]


def _live(arguments: list[str], moment: str) -> int:
    from reldistill.cli.main import main

    child = os.fork()
    if child == 0:
        if moment:
            _kill_at(moment)
        print(f"— {moment or 'to the end'}: {' '.join(arguments)}", file=sys.stderr)
        os.dup2(2, 1)  # standard output is for the statuses
        os._exit(main(arguments))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    if os.environ.get("STILL_CLOCK"):
        time.perf_counter = lambda: 0.0
    import reldistill.runs.distill  # noqa: F401 - everything heavy, once

    print(json.dumps([_live(command.split(), moment) for command, moment in json.loads(sys.argv[1])]))
