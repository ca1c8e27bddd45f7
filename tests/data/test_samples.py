from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from reldistill.data import samples as module
from reldistill.data.decode import BadImage
from reldistill.data.named import ArrayReader
from reldistill.data.samples import Samples, Splits, check_all, decode_all, fingerprint, over_all, split_by_name


def some(count: int = 12, classes: int = 3) -> Samples:
    arrays = np.arange(count * 4 * 6 * 3, dtype=np.uint32).astype(np.uint8).reshape(count, 4, 6, 3)
    return Samples(ArrayReader("some", arrays), range(count), [i % classes for i in range(count)])


def test_subset_keeps_keys_and_labels_together() -> None:
    subset = some().subset([5, 1])
    assert (subset.keys, subset.labels, subset.names()) == ([5, 1], [2, 1], ["some/000005", "some/000001"])


def test_limited_is_even_over_the_classes() -> None:
    uneven = Samples(some().reader, range(9), [0, 0, 0, 0, 0, 0, 1, 1, 2])
    assert uneven.limited(3).keys == [0, 6, 8]
    assert uneven.limited(6).keys == [0, 1, 2, 6, 7, 8]
    assert uneven.limited(9) is uneven.limited(None) is uneven


@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.5, 0.99])
def test_a_split_leaves_both_parts_some_of_every_class(fraction: float) -> None:
    train, val = split_by_name(some(40, 4), fraction, classes="abcd", where="x")
    expected = min(max(round(10 * fraction), 1), 9)
    assert [val.labels.count(c) for c in range(4)] == [expected] * 4
    assert sorted([*train.keys, *val.keys]) == list(range(40))


def test_a_split_does_not_depend_on_the_order() -> None:
    forward = split_by_name(some(), 0.5, classes="abc", where="x")[1]
    backward = split_by_name(some().subset(reversed(range(12))), 0.5, classes="abc", where="x")[1]
    assert sorted(forward.keys) == sorted(backward.keys)


def test_the_fingerprint_changes_with_all_that_matters() -> None:
    splits = Splits(some(), some(3), ("a", "b", "c"), "here")
    changed = some()
    assert isinstance(changed.reader, ArrayReader)
    arrays = np.array(changed.reader.arrays)
    arrays[0, 0, 0, 0] += 1
    others = [
        fingerprint(splits, 33),
        fingerprint(replace(splits, classes=("a", "b", "d")), 32),
        fingerprint(replace(splits, train=splits.val, val=splits.train), 32),
        fingerprint(replace(splits, train=some().subset(range(11))), 32),
        fingerprint(replace(splits, train=replace(some(), labels=[0] * 12)), 32),
        fingerprint(replace(splits, train=replace(some(), reader=ArrayReader("some", arrays))), 32),
    ]
    own = fingerprint(splits, 32)
    assert own == fingerprint(replace(splits, where="there"), 32)
    assert len(own) == 16
    assert len({own, *others}) == 7


@pytest.mark.parametrize("worth", [0.0, 1e9])
def test_over_all_keeps_the_order_and_the_faults(worth: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH_THREADS", worth)
    monkeypatch.setattr(module, "cores", lambda: 4)

    def work(i: int) -> int:
        if i % 100 == 7:
            raise BadImage(str(i), "odd")
        return i * i

    found = over_all(work, 1000, verb="trying")
    for i, result in enumerate(found):
        assert (result.where == str(i)) if isinstance(result, BadImage) else (result == i * i)
    assert sum(isinstance(r, BadImage) for r in found) == 10
    assert over_all(work, 0, verb="trying") == []


def test_other_errors_are_not_swallowed() -> None:
    def work(i: int) -> int:
        raise KeyError(i)

    with pytest.raises(KeyError):
        over_all(work, 10, verb="trying")


@pytest.mark.parametrize(("quiet", "slow", "told"), [(False, True, True), (True, True, False), (False, False, False)])
def test_progress_goes_to_stderr_when_it_takes_long(
    quiet: bool, slow: bool, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock: Callable[[], float] = iter(range(0, 10_000, 3 if slow else 0) if slow else [0] * 100).__next__
    monkeypatch.setattr(module.time, "monotonic", clock)
    over_all(lambda i: i, 300, verb="reading", quiet=quiet)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("reading images: 300 of 300" in captured.err) == told


def test_decode_all_and_check_all_see_the_same_sizes() -> None:
    pixels, sizes = decode_all(some(), 4)
    assert pixels.shape == (12, 4, 4, 3)
    assert sizes == check_all(some()) == [(6, 4)] * 12
    reader = some().reader
    assert np.array_equal(pixels[3], np.asarray(module.fit(reader.image(3), 4)))
