"""What is released: the archives that the build makes, and one version everywhere."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import reldistill

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive and the wheel."""
    folder = str(tmp_path_factory.mktemp("dist"))
    source = next(SdistBuilder(str(ROOT)).build(directory=folder, versions=["standard"]))
    wheel = next(WheelBuilder(str(ROOT)).build(directory=folder, versions=["standard"]))
    return Path(source), Path(wheel)


def test_the_source_archive_is_small_and_enough_to_work_on(archives: tuple[Path, Path]) -> None:
    source, _ = archives
    assert source.stat().st_size < 2_000_000
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert not [name for name in names if name.startswith("benchmarks/results/")]
    needed = {"src/reldistill/losses/kd.py", "tests/conftest.py", "docs/index.md", "examples/own_loop.py", "LICENSE"}
    assert needed <= names


def test_the_wheel_has_every_file_of_the_package(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = ROOT / "src"
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert names == {path.relative_to(package).as_posix() for path in files if "egg-info" not in str(path)}
    assert {"reldistill/py.typed", "reldistill/report/page.css"} <= names


def test_one_version(archives: tuple[Path, Path]) -> None:
    version = reldistill.__version__
    named = f"reldistill-{version}"
    assert [path.name for path in archives] == [f"{named}.tar.gz", f"{named}-py3-none-any.whl"]
    released = re.search(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert released is not None
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert released.group(1) == version
    assert f"\nversion: {version}\ndate-released: {released.group(2)}\n" in citation
