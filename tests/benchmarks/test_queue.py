"""The queue of long runs: its commands are ones that the command line takes, and what is finished is not done again."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import queue
from reldistill.cli import table as cli
from reldistill.cli.forms import Command


@pytest.mark.parametrize("name", queue.STEPS)
def test_its_commands_parse(name: str) -> None:
    for command in queue.STEPS[name].commands:
        words = shlex.split(command.format(data="data"))
        if words[0] == "reldistill":
            found = cli.COMMANDS[words[1]]
            assert isinstance(found, Command)
            found.options(" ".join(words[:2])).parse(words[2:])
        else:
            assert words[:3] == ["python", "-m", "benchmarks.subset"]


def test_a_step_ends_at_its_first_failure_and_probes_only_new_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def answer(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        return subprocess.CompletedProcess(words, 3 if "bad" in words else 0, stdout="{}", stderr="")

    monkeypatch.setattr(queue.subprocess, "run", answer)
    assert queue.run(queue.Step(("reldistill bad", "reldistill list")), data=tmp_path, out=tmp_path) == 3
    assert len(asked) == 1
    for cell in ("rkd/seed-0", "rkd/seed-1"):
        (tmp_path / "found" / cell).mkdir(parents=True)
    (tmp_path / "found/rkd/seed-1/probes.json").write_text("{}")
    assert queue.run(queue.Step((), probed="found"), data=tmp_path, out=tmp_path) == 0
    assert [words[4] for words in asked[1:]] == [str(tmp_path / "found/rkd/seed-0")]
    assert (tmp_path / "found/rkd/seed-0/probes.json").read_text() == "{}"
