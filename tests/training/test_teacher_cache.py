"""What a teacher said, kept on disk: the same values, the same views, and no other teacher's."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reldistill.core.checks import UserError
from reldistill.core.run_files import LAST_WEIGHTS
from reldistill.core.types import Batch, Wanted
from reldistill.networks.extract import Extractor
from reldistill.runs.distill import distill
from reldistill.runs.train import train
from reldistill.training.settings import DataSettings, ModelSettings, PairSettings, TrainSettings
from reldistill.training.teacher_cache import TeacherCache, fingerprint_of
from small_runs import write_world

pytestmark = pytest.mark.slow

ROWS = {"logits": (3,), "layer2": (4, 2, 2)}
GIVEN: dict[str, Any] = {"made_of": {"teacher": "abc", "augmentation": "crop"}, "rows": ROWS, "images": 10, "views": 2}


def says(images: Tensor) -> dict[str, Tensor]:
    """A teacher of large and small numbers."""
    flat = images.flatten(1)
    return {"logits": 1e5 * flat[:, :3], "layer2": (1e-6 * flat[:, 3:19]).view(-1, 4, 2, 2)}


def no_teacher(images: Tensor) -> dict[str, Tensor]:
    raise AssertionError("the teacher was asked")


def batch(*indices: int, seed: int = 0) -> Batch:
    images = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return Batch(images[list(indices)], indices=torch.tensor(indices))


def said_by(cache: TeacherCache, given: Batch, ask: Any) -> dict[str, Tensor]:
    found = cache.complete(given, ask).teachers["teacher"]
    assert found is not None
    return dict(found)


def test_values_come_back_to_half_precision_whatever_their_size(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path / "c", **GIVEN)
    given = batch(4, 1, 7)
    filling = said_by(cache, given, says)
    cache.flush()
    again = TeacherCache(tmp_path / "c", **GIVEN)
    stored = said_by(again, given, says)
    for name, live in says(given.images).items():
        assert torch.equal(filling[name], stored[name])
        largest = live.flatten(1).abs().amax(dim=1).view(-1, *[1] * (live.ndim - 1))
        assert ((stored[name] - live).abs() <= 2.0**-11 * largest).all()
        assert not torch.equal(stored[name], live)


def test_the_teacher_is_asked_for_what_is_not_there_and_only_then(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, **GIVEN)
    said_by(cache, batch(0, 1, 2, 3, 4), says)
    with pytest.raises(AssertionError, match="asked"):
        said_by(cache, batch(0, 1), no_teacher)  # not said to be there before it is on disk
    cache.flush()
    said_by(cache, batch(3, 0), no_teacher)
    with pytest.raises(AssertionError, match="asked"):
        said_by(cache, batch(3, 5), no_teacher)
    seen: list[Tensor] = []
    said_by(cache, batch(3, 5, 0), lambda images: (seen.append(images), says(images))[1])
    assert torch.equal(seen[0], batch(5).images), "for the images that are not there only"
    cache.view = 1
    with pytest.raises(AssertionError, match="asked"):
        said_by(cache, batch(3, 0), no_teacher)
    assert not cache.is_full
    for cache.view in (0, 1):
        said_by(cache, batch(*range(10)), says)
    cache.flush()
    assert cache.is_full


def test_fewer_values_may_be_used_than_there_are(tmp_path: Path) -> None:
    TeacherCache(tmp_path, **GIVEN)
    few = TeacherCache(tmp_path, **{**GIVEN, "rows": {"layer2": (4, 2, 2)}})
    assert list(said_by(few, batch(1, 2), says)) == ["layer2"]


def test_another_method_adds_what_it_needs(tmp_path: Path) -> None:
    given = batch(4, 1, 7)
    said_by(first := TeacherCache(tmp_path, **{**GIVEN, "rows": {"logits": (3,)}}), given, says)
    first.flush()
    both = TeacherCache(tmp_path, **GIVEN)
    assert not both.is_full

    def says_otherwise(images: Tensor) -> dict[str, Tensor]:
        said = says(images)
        return {**said, "logits": 1.01 * said["logits"]}

    found = said_by(both, given, says_otherwise)
    both.flush()
    assert torch.equal(found["logits"], said_by(first, given, no_teacher)["logits"]), "what is there stays"
    said_by(TeacherCache(tmp_path, **{**GIVEN, "rows": {"layer2": (4, 2, 2)}}), given, says)
    with pytest.raises(AssertionError, match="asked"):
        said_by(first, batch(5), no_teacher)
    said_by(first, batch(5), says)
    first.flush()
    with pytest.raises(AssertionError, match="asked"):  # its logits are there, its map is not
        said_by(both, batch(5), no_teacher)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"made_of": {"teacher": "xyz", "augmentation": "crop"}}, "is of teacher abc, not xyz: give another folder"),
        ({"made_of": {"teacher": "abc", "augmentation": "none"}}, "is of augmentation crop, not none"),
        ({"images": 11}, "is of images 10, not 11"),
        ({"views": 3}, "is of views 2, not 3"),
        ({"rows": {"logits": (5,)}}, r"holds logits of shape \(3,\), but this method needs \(5,\)"),
    ],
)
def test_a_stale_cache_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    TeacherCache(tmp_path, **GIVEN)
    with pytest.raises(UserError, match=message):
        TeacherCache(tmp_path, **{**GIVEN, **change})


def test_values_of_other_views_are_found_out(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, **GIVEN)
    said_by(cache, batch(0, 1), says)
    cache.flush()
    later = TeacherCache(tmp_path, **GIVEN)
    with pytest.raises(UserError, match="does not hold this teacher's outputs for these images"):
        later.complete(batch(0, 1, seed=1), says)


@pytest.mark.parametrize(("off", "found_out"), [(0.04, False), (-0.04, False), (0.06, True), (-0.06, True)])
def test_values_may_be_off_by_a_twentieth_of_the_largest(off: float, found_out: bool, tmp_path: Path) -> None:
    said_by(cache := TeacherCache(tmp_path, **GIVEN), batch(0, 1), says)
    cache.flush()

    def says_otherwise(images: Tensor) -> dict[str, Tensor]:
        said = says(images)
        smallest = said["layer2"][1].flatten().argmin()  # so that the largest stays what it is
        said["layer2"][1].view(-1)[smallest] += off * said["layer2"][1].amax()
        return said

    again = TeacherCache(tmp_path, **GIVEN)
    if found_out:
        with pytest.raises(UserError, match=r"this teacher's outputs for these images \(layer2 differs\)"):
            again.complete(batch(0, 1), says_otherwise)
    else:
        again.complete(batch(0, 1), says_otherwise)


@pytest.mark.parametrize("damage", ["cut", "gone", "no json", "no card"])
def test_damage_is_said_in_one_line(damage: str, tmp_path: Path) -> None:
    TeacherCache(tmp_path, **GIVEN)
    if damage == "cut":
        with (tmp_path / "0.f16").open("ab") as file:
            file.truncate(7)
    elif damage == "gone":
        (tmp_path / "0.present.u8").unlink()
    else:
        (tmp_path / "cache.json").write_text("{" if damage == "no json" else "[1]")
    with pytest.raises(UserError, match=r"is damaged|can't be read"):
        TeacherCache(tmp_path, **GIVEN)


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs [0-9.]+ TB for 2 views of 1,000,000,000,000 images.*lower --views"):
        TeacherCache(tmp_path, **{**GIVEN, "images": 10**12})
    assert not (tmp_path / "cache.json").exists()


def test_a_place_that_is_not_to_be_had_is_known_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is mapped into memory would end the process by a signal."""
    allocate = os.posix_fallocate

    def full(handle: int, start: int, size: int) -> None:
        if size > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(handle, start, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"--cache-teacher .* can't be written to \(No space left on device\)"):
        TeacherCache(tmp_path, **GIVEN)
    assert [path.name for path in tmp_path.iterdir()] in ([], [".lock"])


def test_every_weight_and_buffer_counts() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
    before = fingerprint_of(network)
    assert fingerprint_of(network) == before
    network[1].running_mean[1] += 1e-6  # type: ignore[operator, index]
    assert fingerprint_of(network) != before


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("cache"))
    for name, seed in (("teacher", 0), ("another", 1)):
        train(
            DataSettings(data=str(folder / "pics"), val_fraction=0.3),
            ModelSettings(model=f"{folder}/nets.py:small"),
            TrainSettings(epochs=3, batch_size=12, lr=0.1, seed=seed),
            out=folder / name,
        )
    return folder


def run(world: Path, out: str, *, method: str = "serkd+sekd", epochs: int = 4, **more: Any) -> Any:
    training = {name: more.pop(name) for name in [*more] if name in ("seed", "precision")}
    more = {"cache_teacher": str(world / "cache"), **more}
    # Four channels wide, at this learning rate: the default weight of the features makes it diverge.
    weights = {"weights": {"feature": 1.0}} if "serkd" in method else {}
    return distill(
        DataSettings(data=str(world / "pics"), val_fraction=0.3, views=more.pop("views", 2)),
        PairSettings(
            teacher=str(more.pop("teacher", world / "teacher")),
            student=f"{world}/nets.py:small",
            method=method,
            student_arguments={"width": 4},
            **{**weights, **more},
        ),
        TrainSettings(epochs=epochs, batch_size=12, lr=0.1, **training),
        out=world / out,
    )


def test_a_full_cache_serves_other_runs_without_the_teacher(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(world, "first", epochs=6)
    assert "teacher cache: 2 views of 42 images take" in capsys.readouterr().err
    present = np.fromfile(world / "cache" / "0.present.u8", np.uint8)
    assert present.reshape(2, 42).sum() >= 2 * 36, "all but the images of the last, incomplete batch"
    again = run(world, "again", epochs=6)
    assert (world / "first" / LAST_WEIGHTS).read_bytes() == (world / "again" / LAST_WEIGHTS).read_bytes()
    assert [e.train for e in first.history] == [e.train for e in again.history]

    asked: list[int] = []
    ask = Extractor.ask

    def counted(self: Extractor, images: Tensor, wanted: Wanted, **targets: Any) -> Any:
        if not self.network.training and not any(p.requires_grad for p in self.network.parameters()):
            asked.append(len(images))
        return ask(self, images, wanted, **targets)

    monkeypatch.setattr(Extractor, "ask", counted)
    other = run(world, "other", method="kd", seed=5, epochs=8)
    assert other.history[-1].train["kd"] > 0
    # to measure it (2 batches of 9), to know the shapes, to compare once, and to draw it
    assert asked == [9, 9, 1, 12, 9]


def test_losses_from_the_cache_are_the_live_ones_to_half_precision(world: Path, tmp_path: Path) -> None:
    settings = {"method": "serkd+sekd", "epochs": 1, "precision": "32-true"}
    cached = run(world, str(tmp_path / "cached"), cache_teacher=str(tmp_path / "cache"), **settings)
    live = run(world, str(tmp_path / "live"), cache_teacher=None, **settings)
    assert cached.history[0].train == pytest.approx(live.history[0].train, rel=2e-3)
    assert cached.history[0].train != live.history[0].train


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": 3}, "is of views 2, not 3"),
        ({"precision": "bf16-mixed"}, "is of precision"),
        ({"teacher": "another"}, "is of teacher "),
    ],
)
def test_runs_that_a_cache_does_not_fit(change: dict[str, Any], message: str, world: Path, tmp_path: Path) -> None:
    cache = world / "cache-kd"
    if not cache.exists():
        run(world, str(tmp_path / "kd"), method="kd", epochs=1, precision="32-true", cache_teacher=str(cache))
    same = {"method": "kd", "precision": "32-true", "cache_teacher": str(cache)}
    change = {k: str(world / v) if k == "teacher" else v for k, v in change.items()}
    with pytest.raises(UserError, match=message):
        run(world, str(tmp_path / "new"), **{**same, **change})


def test_the_card_says_what_it_is_of(world: Path) -> None:
    card = json.loads((world / "cache" / "cache.json").read_text())
    assert card["made_of"]["images"] == 42
    assert set(card["rows"]) >= {"logits", "layer2"}


def test_a_batch_keeps_the_rest(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, **GIVEN)
    given = batch(2, 3)
    completed = cache.complete(given, says)
    assert replace(completed, teachers={}) == given
    moved = completed.to("cpu")
    assert torch.equal(moved.teachers["teacher"]["logits"], completed.teachers["teacher"]["logits"])
