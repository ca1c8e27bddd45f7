"""A run that cannot write ends in one line, with exit code 2, and leaves its last checkpoint as it was."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.summary.writer.record_writer import RecordWriter

from reldistill.cli.main import main
from reldistill.training.checkpoint import unpack
from reldistill.training.keeper import RunKeeper
from small_runs import TRAIN, with_options, write_world

pytestmark = pytest.mark.slow

COMMAND = with_options(TRAIN, epochs=3, precision="32-true", model_arguments='{"width": 64}')


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder, before = write_world(tmp_path_factory.mktemp("writes")), Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture
def largest_file() -> Iterator[Callable[[int], None]]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refused(capfd: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The last line of what is said, which is not followed or preceded by a traceback."""
    capfd.readouterr()
    assert main(words) == 2
    lines = capfd.readouterr().err.splitlines()
    assert "Traceback" not in "".join(lines)
    assert lines[-1].startswith("reldistill: ")
    return lines[-1]


def at_epoch(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Do something before the end of an epoch, counted from 0."""
    end = RunKeeper.on_train_epoch_end

    def acted(self: RunKeeper, *given: Any) -> None:
        if self.epoch == number:
            act()
        end(self, *given)

    monkeypatch.setattr(RunKeeper, "on_train_epoch_end", acted)


def test_a_full_disk_leaves_the_checkpoint_and_the_run_continues(
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    largest_file: Callable[[int], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = Path("full")
    with monkeypatch.context() as patch:
        at_epoch(patch, 1, lambda: largest_file(20_000))
        error = refused(capfd, with_options(COMMAND, out=out))
    largest_file(resource.RLIM_INFINITY)
    assert f"cannot write {out}/best.ckpt: File too large" in error or f"{out}/last.ckpt: File too large" in error
    assert error.endswith(f"; the last good checkpoint is {out}/last.ckpt")
    assert unpack(out / "last.ckpt")["position"]["epoch"] == 1
    assert not list(out.glob(".*"))
    assert main(with_options(COMMAND, out=out, resume=True)) == 0
    assert main(with_options(COMMAND, out="unhindered")) == 0
    weights = "student.safetensors"
    assert (out / weights).read_bytes() == (world / "unhindered" / weights).read_bytes()


def test_a_report_that_finds_no_space_keeps_the_run(
    world: Path, largest_file: Callable[[int], None], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(with_options(COMMAND, epochs=1, out="reported")) == 0
    page = Path("reported/report.html").read_bytes()
    largest_file(2000)
    for words, file in (
        (["report", "reported"], "reported/report.html"),
        (["report", "reported", "--out", "new/page.html"], "new/page.html"),
        (["export", "reported"], "reported/export.safetensors"),
    ):
        assert f"cannot write {file}: File too large" in refused(capfd, words)
    assert Path("reported/report.html").read_bytes() == page
    assert not list(Path("reported").glob("*export*"))


def test_a_folder_that_is_removed_ends_the_run(
    world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    at_epoch(monkeypatch, 1, lambda: shutil.rmtree("removed"))
    error = refused(capfd, with_options(COMMAND, out="removed"))
    assert "cannot write removed/" in error
    assert "No such file or directory" in error
    assert not Path("removed").exists()


def test_a_logger_s_own_thread_that_finds_no_space(
    world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = TensorBoardLogger.log_metrics

    def log_at_once(self: Any, *given: Any, **named: Any) -> None:
        log(self, *given, **named)
        self.experiment.flush()

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", log_at_once)
    at_epoch(monkeypatch, 1, lambda: monkeypatch.setattr(RecordWriter, "write", no_space))
    error = refused(capfd, with_options(COMMAND, out="logged"))
    assert "logged: No space left on device" in error
    assert error.endswith("; the last good checkpoint is logged/last.ckpt")
    assert unpack(Path("logged/last.ckpt"))["position"]["epoch"] == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fills_up_at_any_write(
    world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], code: int
) -> None:
    """From the first write that fails, all fail: nothing that stood before is harmed, nothing half written stays."""
    writes = os.fsync

    for first in (1, 4, 8):
        out, left = Path(f"failing-{code}-{first}"), first

        def fail(handle: int) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise OSError(code, os.strerror(code))
            writes(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            error = refused(capfd, with_options(COMMAND, epochs=2, out=out))
        assert f"cannot write {out}/" in error
        assert os.strerror(code) in error
        assert not list(out.glob(".*"))
        if (out / "last.ckpt").is_file():
            assert unpack(out / "last.ckpt")["position"]["epoch"] >= 1
        again = {"resume": True} if (out / "record.json").is_file() else {}
        assert main(with_options(COMMAND, epochs=2, out=out, **again)) == 0


@pytest.mark.parametrize("name", ["last.ckpt", "record.json", "log.txt"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_regular_file_is_refused_before_the_work(
    world: Path, capfd: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    out = Path(f"{kind}-{name}")
    out.mkdir()
    Path("victim").write_text("theirs")
    if kind == "link":
        (out / name).symlink_to(Path("victim").absolute())
    else:
        os.mkfifo(out / name)
    error = refused(capfd, with_options(COMMAND, out=out))
    assert f"cannot write {out / name}: it is a {'symbolic link' if kind == 'link' else 'pipe'}" in error
    assert [path.name for path in out.iterdir()] == [name]
    assert Path("victim").read_text() == "theirs"
