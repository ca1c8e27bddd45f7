"""What a person sees during a run."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from reldistill.cli.main import main
from reldistill.training.progress import clock, losses
from small_runs import DISTILL, TRAIN, environment, with_options, write_world

PARTS = {"total": 3.0, "sekd.edge": 0.2, "kd": 0.5, "serkd.angle": 0.1, "serkd.distance": 0.7, "task": 1.5}


@pytest.mark.parametrize("room", [None, 200, 60, 40, 30, 20, 10])
def test_losses_fit_the_room_and_begin_with_total_and_task(room: int | None) -> None:
    text = losses(PARTS, room=room)
    assert text.startswith("loss 3")
    if room is None or room >= 20:
        assert len(text) <= (room or 200)
    if room is None or room >= 60:
        assert text == "loss 3: task 1.5, edge 0.2, kd 0.5, angle 0.1, distance 0.7"
    elif room >= 30:
        assert text.startswith("loss 3: task 1.5")
        assert text.endswith(", …")


def test_parts_that_share_their_last_name_keep_the_first() -> None:
    parts = {"total": 2.0, "rkd.angle": 0.5, "serkd.angle": 0.5, "task": 1.0}
    assert losses(parts) == "loss 2: task 1, rkd.angle 0.5, serkd.angle 0.5"


def test_clock_is_short_and_grows() -> None:
    assert [clock(s) for s in (0, 9.94, 9.96, 59.4, 59.6, 3599.4, 3600, 36610)] == [
        "0.0 s",
        "9.9 s",
        "10 s",
        "59 s",
        "1:00 min",
        "59:59 min",
        "1:00 h",
        "10:10 h",
    ]


@pytest.mark.slow
def test_a_terminal_of_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line an epoch stays, none is wrapped, and the cursor comes back."""
    write_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(with_options(TRAIN, epochs=4, out="teacher")) == 0
    command = with_options(DISTILL, method="serkd+sekd+rkd", epochs=12, out="run", ema=0.9)
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "reldistill", *command],
        env={**environment(), "TERM": "xterm"},
        stdin=end,
        stdout=end,
        stderr=end,
    )
    os.close(end)
    seen = b""
    while chunk := read(terminal):
        seen += chunk
    assert process.wait() == 0
    text = seen.decode()
    # What a terminal would keep: a line is overwritten from its beginning, colours take no room.
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    shown = [line.split("\r")[-1] for line in plain.replace("\r\n", "\n").split("\n")]
    assert max(map(len, shown)) <= 80
    epochs = [line for line in shown if re.search(r"\d+/12 +\d+\.\d\d %", line)]
    assert len(epochs) == 12
    assert "left" in epochs[0]
    assert "left" not in epochs[-1]
    assert re.search(r"━+ .*\d/3  loss [\d.]+  .* left", plain), "a bar was shown"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "Warning" not in plain


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # how Linux says that the other end is closed
        return b""
