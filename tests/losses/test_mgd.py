from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_helpers import run_on_ranks
from reldistill.losses.mgd import MGD


def maps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2)]


def made(**more):
    torch.manual_seed(0)
    return MGD(channels=2, **more).double()


def convolved(image, layer):
    """A 3x3 convolution with padding, as loops."""
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    channels, height, width = len(image), len(image[0]), len(image[0][0])
    result = [[[bias[o]] * width for _ in range(height)] for o in range(len(weight))]
    for o in range(len(weight)):
        for y in range(height):
            for x in range(width):
                for c in range(channels):
                    for dy in range(3):
                        for dx in range(3):
                            row, column = y + dy - 1, x + dx - 1
                            if 0 <= row < height and 0 <= column < width:
                                result[o][y][x] += weight[o][c][dy][dx] * image[c][row][column]
    return result


def test_matches_the_loop(monkeypatch):
    student, teacher = maps()
    loss = made()
    mask = torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(3)).round().double()
    monkeypatch.setattr(loss, "_mask", lambda _: mask)
    total = 0.0
    for image in range(4):
        masked = [
            [[student[image, c, y, x].item() * mask[image, 0, y, x].item() for x in range(3)] for y in range(3)]
            for c in range(2)
        ]
        inner = [[[max(v, 0.0) for v in row] for row in channel] for channel in convolved(masked, loss.generation[0])]
        made_up = convolved(inner, loss.generation[2])
        for c in range(2):
            for y in range(3):
                for x in range(3):
                    total += (teacher[image, c, y, x].item() - made_up[c][y][x]) ** 2
    assert loss(student, teacher).item() == pytest.approx(total / 4, rel=1e-9)


@given(ratio=st.floats(0, 0.95))
@settings(max_examples=15, deadline=None)
def test_the_share_of_masked_positions(ratio):
    mask = made(ratio=ratio)._mask(torch.zeros(64, 2, 16, 16))
    assert mask.shape == (64, 1, 16, 16)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert 1 - mask.mean().item() == pytest.approx(ratio, abs=0.02)


def test_no_mask_is_no_chance():
    student, teacher = maps()
    loss = made(ratio=0.0)
    expected = (teacher - loss.generation(student)).square().sum() / 4
    torch.testing.assert_close(loss(student, teacher), expected, rtol=1e-12, atol=0)


def test_masks_differ_between_images_and_calls_and_follow_the_seed():
    student = maps()[0]
    loss = made()
    torch.manual_seed(7)
    first, second = loss._mask(student), loss._mask(student)
    assert not torch.equal(first, second)
    assert len({tuple(one.flatten().tolist()) for one in first}) > 1
    torch.manual_seed(7)
    assert torch.equal(loss._mask(student), first)


def test_masked_positions_get_no_gradient_of_their_own(monkeypatch):
    student, teacher = maps()
    loss = made()
    mask = torch.zeros(4, 1, 3, 3, dtype=torch.float64)
    mask[..., 1, 1] = 1
    monkeypatch.setattr(loss, "_mask", lambda _: mask)
    loss(student.requires_grad_(), teacher).backward()
    assert student.grad[..., 1, 1].any()
    assert not (student.grad * (1 - mask)).any()


def test_order_of_the_samples_but_for_their_masks(monkeypatch):
    student, teacher = maps()
    loss = made()
    monkeypatch.setattr(loss, "_mask", lambda _: torch.tensor([1.0, 0.0, 1.0]).double())
    torch.testing.assert_close(loss(student.flip(0), teacher.flip(0)), loss(student, teacher), rtol=1e-12, atol=0)


def masks(rank, world_size):
    torch.manual_seed(rank)
    return made()._mask(maps()[0].chunk(world_size)[rank])


@pytest.mark.slow
def test_ranks_have_the_masks_of_one_process():
    assert torch.equal(torch.cat(run_on_ranks(masks)), masks(0, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"channels": 0}, "channels must be at least 1"), ({"channels": 2, "ratio": 1.0}, r"ratio must be in \[0, 1\)")],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        MGD(**settings)


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_axes_are_named():
    with pytest.raises(ValueError, match="student: expected C = 2"):
        made()(torch.zeros(2, 3, 2, 2), torch.zeros(2, 2, 2, 2))
