"""When something is recorded; that recordings say the same is for a GPU to show (`tests/gpu`)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reldistill.relations.kernels import replay


def doubled(tensor: Tensor, factor: float = 2.0) -> tuple[Tensor, ...]:
    return (tensor * factor,)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The arguments of each recording; nothing here needs a GPU."""
    found: list[tuple[object, ...]] = []
    monkeypatch.setattr(replay, "_Recording", lambda function, arguments: found.append(arguments) or function)
    monkeypatch.setattr(replay, "_modes", tuple)
    monkeypatch.setattr(replay, "_is_large", lambda arguments: arguments[0].numel() > 100)
    return found


def test_elsewhere_than_on_a_gpu_the_function_is_called_as_it_is(made: list[tuple[object, ...]]) -> None:
    replayed = replay.Replayed(doubled)
    for step in range(5):
        assert replayed(torch.full((2,), float(step)))[0].tolist() == [2.0 * step] * 2
    assert not made


def test_the_third_call_of_the_same_shapes_and_settings_is_recorded(made: list[tuple[object, ...]]) -> None:
    replayed = replay.Replayed(doubled)
    for _ in range(2):
        assert replayed._recording((torch.ones(3), 2.0)) is None
        assert replayed._recording((torch.ones(3), 3.0)) is None
        assert replayed._recording((torch.ones(3, dtype=torch.float64), 2.0)) is None
        assert replayed._recording((torch.ones(3, 1), 2.0)) is None
    assert replayed._recording((torch.zeros(3), 2.0)) is not None
    assert replayed._recording((torch.zeros(3), 2.0)) is not None
    assert len(made) == 1


def test_what_is_large_or_comes_in_ever_other_shapes_is_not_recorded(
    made: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "_MOST", 2)
    replayed = replay.Replayed(doubled)
    for size in (101, 1, 2, 3):
        for _ in range(4):
            replayed._recording((torch.ones(size),))
    assert [arguments[0].shape[0] for arguments in made] == [1, 2]


def test_where_a_recording_fails_the_function_still_runs(
    made: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(function: object, arguments: object) -> None:
        made.append(())
        raise torch.cuda.OutOfMemoryError("none left")

    monkeypatch.setattr(replay, "_Recording", fails)
    replayed = replay.Replayed(doubled)
    assert [replayed._recording((torch.ones(3),)) for _ in range(5)] == [None] * 5
    assert len(made) == 1


def test_the_share_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        total_memory = 50 * 32 * 1000

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    assert not replay._is_large((torch.ones(1000), 2.0))
    assert replay._is_large((torch.ones(1000), torch.ones(1)))
