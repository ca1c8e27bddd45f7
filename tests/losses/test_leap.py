from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ddp_helpers import run_on_ranks
from reldistill.losses.fitnets import FitNets, fitnets_loss
from reldistill.losses.leap import LEAP, linear_cka

SEEDS = st.integers(0, 2**31)


def maps(seed=0, *, samples=4):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(samples, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2)]


def first(**settings):
    return LEAP(start="first", **settings)


def vectors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(12, dim, generator=generator, dtype=torch.float64) for dim in (3, 5)]


def hsic(x, y):
    """Of the Gram matrices of the centred vectors, entry by entry."""
    centred = [[[v - m for v, m in zip(r, one.mean(0).tolist(), strict=True)] for r in one.tolist()] for one in (x, y)]
    count = len(centred[0])
    total = 0.0
    for i in range(count):
        for j in range(count):
            ours, theirs = (sum(a * b for a, b in zip(rows[i], rows[j], strict=True)) for rows in centred)
            total += ours * theirs
    return total


def test_cka_matches_the_loop():
    x, y = vectors()
    expected = hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5
    assert linear_cka(x, y).item() == pytest.approx(expected, rel=1e-9)


@given(seed=SEEDS, scale=st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_cka_under_rotation_scale_and_shift(seed, scale):
    x, y = vectors(seed)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    torch.testing.assert_close(linear_cka(x, scale * y @ turn + 3), linear_cka(x, y), rtol=1e-6, atol=1e-9)
    assert linear_cka(y, scale * y @ turn).item() == pytest.approx(1.0, rel=1e-9)


def test_cka_of_a_single_point_is_0():
    x, y = vectors()
    assert linear_cka(torch.ones_like(x), y).item() == 0.0
    assert linear_cka(x, torch.zeros_like(y)).item() == 0.0


def test_the_value_is_the_feature_losss():
    student, teacher = maps()
    plain, relative = (fitnets_loss(student, teacher, relative=by_size) for by_size in (False, True))
    torch.testing.assert_close(first(layers=3)(student, teacher), plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(first(layers=3, relative=True)(student, teacher), relative, rtol=1e-12, atol=0)
    own = first(layers=3, loss=FitNets(relative=True))(student, teacher)
    torch.testing.assert_close(own, relative, rtol=1e-12, atol=0)


def test_moves_on_when_understood_and_stays_at_the_last():
    student, teacher = maps()
    loss = first(layers=3)
    blocks = []
    for _ in range(5):
        loss(teacher, teacher, progress=0.0)
        blocks.append(loss.chosen())
    assert blocks == [1, 2, 2, 2, 2]
    stays = first(layers=3, longest_stay=1.0)
    for _ in range(5):
        stays(student, teacher, progress=0.0)
    assert stays.chosen() == 0
    assert 0 < stays.alignment.item() < 0.8


def test_smoothing_asks_for_several_batches():
    _, teacher = maps()
    loss = first(layers=3, smoothing=0.4)
    blocks = []
    for _ in range(8):  # 0.4, 0.64, 0.784, 0.8704, and again from 0
        loss(teacher, teacher)
        blocks.append(loss.chosen())
    assert blocks == [0, 0, 0, 1, 1, 1, 1, 2]


def test_moves_on_after_the_longest_stay():
    student, teacher = maps()
    loss = first(layers=4, threshold=1.0, longest_stay=0.25)
    blocks = []
    for progress in (0.0, 0.2, 0.25, 0.3, 0.45, 0.5, 0.7, 0.8, 0.99):
        loss(student, teacher, progress=progress)
        blocks.append(loss.chosen())
    assert blocks == [0, 0, 1, 1, 1, 2, 2, 3, 3]


def test_eval_mode_leaves_the_block_alone():
    _, teacher = maps()
    loss = first(layers=3).eval()
    loss(teacher, teacher, progress=1.0)
    assert loss.chosen() == 0


def test_state_is_in_the_state_dict_with_the_feature_losss():
    _, teacher = maps()
    loss = first(layers=3, smoothing=0.6, loss=Scaled())
    for _ in range(3):
        loss(teacher, teacher, progress=0.01)
    assert set(loss.state_dict()) == {"block", "alignment", "begun", "loss.scale"}
    restored = first(layers=3, smoothing=0.6, loss=Scaled())
    restored.load_state_dict(loss.state_dict())
    for one in (loss, restored):
        one(teacher, teacher, progress=0.02)
    assert restored.state_dict() == loss.state_dict()
    assert loss.chosen() == restored.chosen() == 2


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, student, teacher):
        return self.scale * (student - teacher).square().mean()


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_order_of_the_samples(seed):
    student, teacher = maps(seed)
    one, other = first(layers=3, longest_stay=1.0), first(layers=3, longest_stay=1.0)
    torch.testing.assert_close(one(student.flip(0), teacher.flip(0)), other(student, teacher), rtol=1e-10, atol=0)
    torch.testing.assert_close(one.alignment, other.alignment)


def aligned(rank, world_size):
    loss = first(layers=3, longest_stay=1.0)
    loss(*(one.chunk(world_size)[rank] for one in maps()))
    return loss.alignment


@pytest.mark.slow
def test_ranks_see_the_alignment_of_the_whole_batch():
    first, second = run_on_ranks(aligned)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, aligned(0, 1))


def test_the_first_batch_finds_the_block_that_is_most_alike():
    student, noise = maps()
    blocks = tuple(student + share * noise for share in (3.0, 0.9, 0.4, 0.8, 5.0))
    flat = [one.flatten(2).transpose(1, 2).flatten(0, 1) for one in (student, *blocks)]
    assert max(range(5), key=lambda i: linear_cka(flat[0], flat[1 + i]).item()) == 2
    loss = LEAP(layers=5, threshold=1.0)
    assert loss.chosen() is None
    value = loss(student, blocks, progress=0.3)
    torch.testing.assert_close(value, fitnets_loss(student, blocks[2]), rtol=1e-12, atol=0)
    assert (loss.chosen(), loss.begun.item()) == (2, pytest.approx(0.3))
    torch.testing.assert_close(loss(student, blocks[2], progress=0.3), value)
    restored = LEAP(layers=5)
    restored.load_state_dict(loss.state_dict())
    assert restored.chosen() == 2
    at_once = LEAP(layers=5, threshold=0.5)
    at_once(student, blocks, progress=0.0)
    assert at_once.chosen() == 3


def test_the_first_call_in_eval_mode_finds_it_without_a_trace():
    student, noise = maps()
    loss = LEAP(layers=2).eval()
    value = loss(student, (student + 2 * noise, student + noise))
    torch.testing.assert_close(value, fitnets_loss(student, student + noise), rtol=1e-12, atol=0)
    assert loss.chosen() is None
    with pytest.raises(ValueError, match="expected the first call to have all 2 blocks, got 1"):
        loss(student, (student,))


def test_the_class_token_is_a_part_of_its_own():
    (student, teacher), (ours, theirs) = maps(), vectors()
    pair = (student, ours), (teacher, theirs[:, :3, None, None])
    loss = first(layers=3, class_token=True, class_weight=0.5)
    parts = loss.parts(*pair)
    torch.testing.assert_close(parts["patches"], fitnets_loss(student, teacher), rtol=1e-12, atol=0)
    torch.testing.assert_close(parts["class"], fitnets_loss(ours, theirs[:, :3]), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss(*pair), parts["patches"] + 0.5 * parts["class"], rtol=1e-12, atol=0)
    assert list(loss.parts(*pair, names=["class"])) == ["class"]
    best = LEAP(layers=2, class_token=True, threshold=1.0)
    best(pair[0], ((teacher, theirs[:, :3]), (student, ours)))
    assert best.chosen() == 1
    with pytest.raises(ValueError, match="student: expected patches and class, got 1 tensors"):
        loss(student, pair[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"layers": 2, "threshold": 0.0}, r"threshold must be in \(0, 1\], got 0.0"),
        ({"layers": 2, "smoothing": 1.5}, r"smoothing must be in \(0, 1\], got 1.5"),
        ({"layers": 2, "longest_stay": 0.0}, r"longest_stay must be in \(0, 1\]"),
        ({"layers": 2, "start": "last"}, "start must be one of best, first, got 'last'"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        LEAP(**settings)
