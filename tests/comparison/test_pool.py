from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from reldistill.comparison.pool import Failure, Job, run_all
from reldistill.core.trust import as_named, forget, trust
from reldistill.report.comparison.cell_records import read_json


@pytest.mark.slow
def test_what_fails_or_dies_leaves_the_others_alone(tmp_path: Path) -> None:
    work = {
        "first": partial(Path.touch, tmp_path / "done-1"),
        "user": partial(read_json, tmp_path / "nowhere.json"),
        "defect": partial(int, "x"),
        "killed": partial(signal.raise_signal, signal.SIGKILL),
        "left": partial(os._exit, 3),
        "last": partial(Path.touch, tmp_path / "done-2"),
    }
    found: dict[str, Failure | None] = {}
    most = 0

    def look(running: list[Job]) -> None:
        nonlocal most
        most = max(most, len(running))

    run_all(
        [Job(name, tmp_path / name, what) for name, what in work.items()],
        at_once=2,
        ended=lambda job, failure: found.update({job.name: failure}),
        look=look,  # type: ignore[arg-type]
    )
    assert found == {
        "first": None,
        "user": Failure(f"{tmp_path / 'nowhere.json'} no such file: it was edited or cut short", by_user=True),
        "defect": Failure("ValueError: invalid literal for int() with base 10: 'x'", by_user=False),
        "killed": Failure("its process was ended by SIGKILL, most often for want of memory", by_user=False),
        "left": Failure("its process ended with code 3", by_user=False),
        "last": None,
    }
    assert most <= 2
    assert (tmp_path / "done-1").exists()
    assert (tmp_path / "done-2").exists()
    assert "Traceback" in (tmp_path / "defect/log.txt").read_text()
    assert "Traceback" not in (tmp_path / "user/log.txt").read_text()


@pytest.mark.slow
def test_what_the_user_named_is_named_in_every_process(tmp_path: Path) -> None:
    forget()
    trust(["nets.py:small"])
    file = tmp_path / "student.safetensors"
    work = {name: partial(as_named, name, card_of=file) for name in ("elsewhere/nets.py:small", "evil.py:make")}
    found: dict[str, Failure | None] = {}
    run_all(
        [Job(name, tmp_path / str(number), what) for number, (name, what) in enumerate(work.items())],
        at_once=2,
        ended=lambda job, failure: found.update({job.name: failure}),
        look=lambda running: None,
    )
    assert found["elsewhere/nets.py:small"] is None
    refused = found["evil.py:make"]
    assert refused is not None
    assert refused.by_user
    assert refused.reason.endswith("add --trust evil.py:make")


def test_an_interrupt_ends_what_is_running(tmp_path: Path) -> None:
    job = Job("long", tmp_path / "long", partial(signal.pause))

    def interrupt(running: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([job], at_once=1, ended=lambda *_: None, look=interrupt)
