from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reldistill.losses.vid import VID

SEEDS = st.integers(0, 2**31)


def maps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 2, 4, generator=generator, dtype=torch.float64) for _ in range(2)]


def made(seed=0):
    loss = VID(channels=3).double()
    loss.alpha.data = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return loss


def test_matches_the_loop():
    student, teacher = maps()
    loss = made()
    terms = []
    for image in range(2):
        for channel, alpha in enumerate(loss.alpha.tolist()):
            variance = math.log(1 + math.exp(alpha)) + 1e-5
            for mean, value in zip(
                student[image, channel].flatten().tolist(), teacher[image, channel].flatten().tolist(), strict=True
            ):
                terms.append((value - mean) ** 2 / variance / 2 + math.log(variance) / 2)
    assert loss(student, teacher).item() == pytest.approx(math.fsum(terms) / len(terms), rel=1e-9)


def test_is_the_log_density_of_a_normal_distribution_but_for_a_constant():
    student, teacher = maps()
    loss = made()
    variance = torch.nn.functional.softplus(loss.alpha.detach()) + 1e-5
    normal = torch.distributions.Normal(student, variance.sqrt()[:, None, None])
    expected = -normal.log_prob(teacher).mean() - math.log(2 * math.pi) / 2
    torch.testing.assert_close(loss(student, teacher).detach(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variance", [1e-3, 1.0, 5.0])
def test_the_first_variance(variance):
    teacher = maps()[1]
    value = VID(channels=3, first_variance=variance).double()(teacher, teacher).item()
    assert value == pytest.approx(math.log(variance) / 2, rel=1e-6, abs=1e-7)


def test_the_variance_that_is_learned_is_the_mean_square():
    student, teacher = maps()
    loss = VID(channels=3).double()
    optimiser = torch.optim.LBFGS(loss.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def step():
        optimiser.zero_grad()
        value = loss(student, teacher)
        value.backward()
        return value

    optimiser.step(step)
    found = torch.nn.functional.softplus(loss.alpha.detach())
    torch.testing.assert_close(found, (teacher - student).square().mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)


@given(seed=SEEDS, shift=st.floats(-10, 10))
@settings(max_examples=20, deadline=None)
def test_order_positions_and_a_common_shift(seed, shift):
    student, teacher = maps(seed)
    loss = made(seed)
    generator = torch.Generator().manual_seed(seed)
    samples, columns = torch.randperm(2, generator=generator), torch.randperm(4, generator=generator)
    moved = [one[samples][..., columns] + shift for one in (student, teacher)]
    torch.testing.assert_close(loss(*moved), loss(student, teacher), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels must be at least 1"),
        ({"channels": 3, "first_variance": 0.0}, "first_variance must be above 1e-05, got 0.0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        VID(**settings)


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_axes_are_named():
    with pytest.raises(ValueError, match="student: expected C = 3"):
        VID(channels=3)(torch.zeros(2, 4, 2, 2), torch.zeros(2, 3, 2, 2))
    with pytest.raises(ValueError, match="teacher: expected H = 2"):
        VID(channels=3)(torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 4, 2))
