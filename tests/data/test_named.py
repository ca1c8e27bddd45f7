from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
import torchvision
from PIL import Image

from reldistill.core.checks import UserError
from reldistill.data import named
from reldistill.data.decode import BadImage
from reldistill.data.named import ArrayReader, cache_folder, cifar, digits, from_timm


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RELDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_folder_can_be_moved(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("RELDISTILL_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "reldistill"


def test_digits_are_the_real_scans() -> None:
    from sklearn.datasets import load_digits

    splits = digits()
    assert splits.classes == tuple("0123456789")
    assert len(splits.train) + len(splits.val) == 1797
    assert not set(splits.train.keys) & set(splits.val.keys)
    assert 355 <= len(splits.val) <= 365
    counts = np.bincount(splits.val.labels)
    assert counts.min() >= 34
    source = load_digits()
    for samples in (splits.train, splits.val):
        for key, label in list(zip(samples.keys, samples.labels, strict=True))[:50]:
            assert label == source.target[key]
            pixels = np.asarray(samples.reader.image(key))
            assert np.array_equal(pixels[..., 0], np.round(source.images[key] * 255 / 16))
            assert np.array_equal(pixels[..., 0], pixels[..., 2])
    assert not splits.flips
    assert splits.val.keys[:5] == [10, 15, 17, 18, 19]  # written down: published numbers depend on it


def fake_cifar(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls = []

    def build(root: str, *, train: bool, download: bool) -> SimpleNamespace:
        calls.append({"root": root, "train": train, "download": download})
        print("Files already downloaded and verified")
        data = np.full((6 if train else 4, 32, 32, 3), 10 if train else 20, dtype=np.uint8)
        return SimpleNamespace(data=data, targets=[0, 1] * (len(data) // 2), classes=["apple", "bear"])

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", build)
    return calls


def test_cifar(monkeypatch: pytest.MonkeyPatch, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls = fake_cifar(monkeypatch)
    splits = cifar("cifar10", download=True)
    assert [c["train"] for c in calls] == [True, False]
    assert {(c["root"], c["download"]) for c in calls} == {(str(cache), True)}
    assert (len(splits.train), len(splits.val), splits.classes) == (6, 4, ("apple", "bear"))
    assert splits.train.reader.image(0).getpixel((0, 0)) == (10, 10, 10)
    assert splits.val.labels == [0, 1, 0, 1]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_that_is_not_there_asks_for_download(name: str, cache: Path) -> None:
    with pytest.raises(UserError, match=f"^{name}: not available .*; pass --download to fetch it into .*cache"):
        cifar(name, download=False)
    assert not cache.exists()


def test_a_download_that_fails_says_where_files_may_be_put(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", refuse)
    with pytest.raises(UserError, match=r"not available \(no route to host\); check the connection, or put .*cache"):
        cifar("cifar10", download=True)


def png(value: int, side: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.new("RGBA", (side, side), (value, value, value, 255)).save(stream, "PNG")
    return stream.getvalue()


class FakeReader:
    """As timm's reader of Hugging Face data sets."""

    class_to_idx = {"cat": 0, "dog": 1}  # noqa: RUF012

    def __init__(self, files: list[bytes], labels: list[int]) -> None:
        self.files, self.labels = files, labels

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        return io.BytesIO(self.files[index]), self.labels[index]

    def __len__(self) -> int:
        return len(self.files)


class FakeDataset:
    def __init__(self, reader: FakeReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)


def patch_timm(monkeypatch: pytest.MonkeyPatch, **found: Any) -> list[tuple[str, dict[str, Any]]]:
    calls = []
    monkeypatch.setattr(named.importlib.util, "find_spec", lambda package: package)  # as if all were installed

    def create_dataset(name: str, *, split: str, **settings: Any) -> Any:
        calls.append((f"{name}:{split}", settings))
        if split not in found:
            raise ValueError(f"Unknown split {split!r}")
        return found[split]

    monkeypatch.setattr(timm.data, "create_dataset", create_dataset)
    return calls


def test_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    train = FakeDataset(FakeReader([png(i) for i in range(6)], [0, 1] * 3))
    test = FakeDataset(FakeReader([png(9), b"damaged"], [1, 0]))
    calls = patch_timm(monkeypatch, train=train, test=test)
    splits = from_timm("hfds/owner/pets", download=False, val_fraction=0.1)
    assert splits.classes == ("cat", "dog")
    assert (len(splits.train), splits.val.labels) == (6, [1, 0])
    assert calls[0][0] == "hfds/owner/pets:train"
    assert "download" not in calls[0][1]
    assert splits.train.reader.image(3).getpixel((0, 0)) == (3, 3, 3)
    assert splits.train.reader.header_size(3) == splits.train.reader.check(3) == (8, 8)
    assert splits.val.reader.header_size(1) is None
    with pytest.raises(BadImage, match="hfds/owner/pets:test:00000001"):
        splits.val.reader.image(1)


def test_a_hub_data_set_of_one_split_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_timm(monkeypatch, train=FakeDataset(FakeReader([png(i) for i in range(20)], [0, 1] * 10)))
    splits = from_timm("hfds/owner/pets", download=False, val_fraction=0.2)
    assert (len(splits.train), sorted(splits.val.labels)) == (16, [0, 0, 1, 1])


def test_secret_labels_are_no_validation_set(monkeypatch: pytest.MonkeyPatch) -> None:
    train = FakeDataset(FakeReader([png(i) for i in range(20)], [0, 1] * 10))
    patch_timm(monkeypatch, train=train, test=FakeDataset(FakeReader([png(0)] * 2, [-1, -1])))
    assert len(from_timm("hfds/owner/pets", download=False, val_fraction=0.2).val) == 4


def test_a_torchvision_data_set_by_timms_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Squares(torch.utils.data.Dataset):
        targets = torch.tensor([0, 1, 0, 1])
        classes = ("small", "large")

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.new("L", (4, 4), index), int(self.targets[index])

    calls = patch_timm(monkeypatch, train=Squares(), validation=Squares())
    splits = from_timm("torch/squares", download=True, val_fraction=0.1)
    assert calls[0][1]["download"] is True
    assert splits.classes == ("small", "large")
    assert splits.train.labels == [0, 1, 0, 1]
    assert splits.train.reader.image(2).getpixel((0, 0)) == (2, 2, 2)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self) -> Any:
        return ((Image.new("RGB", (4, 4), (i, i, i)), i % 2) for i in range(10))


def test_a_stream_is_read_into_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = patch_timm(monkeypatch, train=Stream(), val=Stream())
    splits = from_timm(f"wds/{tmp_path}", download=False, val_fraction=0.1)
    assert calls[0][1]["root"] == str(tmp_path)
    assert splits.classes == ("0", "1")
    assert splits.val.reader.image(7).getpixel((0, 0)) == (7, 7, 7)
    monkeypatch.setattr(named, "STREAM_LIMIT", 100)
    with pytest.raises(UserError, match=r"can only be read in order, .* save it as a folder of class folders"):
        from_timm(f"wds/{tmp_path}", download=False, val_fraction=0.1)


@pytest.mark.parametrize(
    ("name", "package", "install"),
    [
        ("hfds/owner/pets", "datasets", "'reldistill[hub]'"),
        ("wds/shards", "webdataset", "'reldistill[hub]'"),
        ("tfds/pets", "tensorflow_datasets", "tensorflow-datasets"),
    ],
)
def test_a_missing_package_is_named(
    name: str, package: str, install: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as caught:
        from_timm(name, download=False, val_fraction=0.1)
    assert str(caught.value) == f"{name}: needs the package {package!r}; install it with: pip install {install}"
    assert capsys.readouterr().out == ""


def test_a_package_that_a_package_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_dataset(*_: Any, **__: Any) -> None:
        raise ImportError("No module named 'tensorflow'", name="tensorflow")

    patch_timm(monkeypatch)
    monkeypatch.setattr(timm.data, "create_dataset", create_dataset)
    with pytest.raises(UserError, match="needs the package 'tensorflow'; install it with: pip install tensorflow"):
        from_timm("tfds/pets", download=False, val_fraction=0.1)


def test_a_torchvision_data_set_that_is_not_there_asks_for_download() -> None:
    with pytest.raises(UserError, match=r"torch/fashion_mnist: cannot be opened .* or pass --download to fetch it"):
        from_timm("torch/fashion_mnist", download=False, val_fraction=0.1)


def test_an_unknown_torchvision_data_set() -> None:
    with pytest.raises(
        UserError, match=r"torch/nothing: cannot be opened .*nothing.*; check the name and the connection"
    ):
        from_timm("torch/nothing", download=True, val_fraction=0.1)


def test_array_signatures_follow_the_pixels() -> None:
    arrays = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    arrays[1, 0, 0, 0] = 1
    reader = ArrayReader("x", arrays)
    assert reader.signature(0) != reader.signature(1)
    assert reader.name(1) == "x/000001"
