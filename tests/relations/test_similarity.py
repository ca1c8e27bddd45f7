from __future__ import annotations

import pytest
import torch
from hypothesis import given

from drawn import SEEDS, few, normal, same, scales
from reldistill.relations.similarity import cosines, unit_deviations, unit_vectors


@given(seed=SEEDS)
@few
def test_length_one_along_the_vector(seed):
    (vectors,) = normal((3, 4, 5), seed=seed)
    unit = unit_vectors(scales(12, seed).reshape(3, 4, 1) * vectors)
    same(unit.norm(dim=-1), torch.ones(3, 4, dtype=torch.float64))
    same(unit * vectors.norm(dim=-1, keepdim=True), vectors)


@given(seed=SEEDS)
@few
def test_inner_products_of_deviations_are_pearsons_correlation(seed):
    (vectors,) = normal((4, 5), seed=seed)
    unit = unit_deviations(vectors)
    same(unit @ unit.mT, torch.corrcoef(vectors))
    same(5**0.5 * unit, (vectors - vectors.mean(1, keepdim=True)) / vectors.std(1, correction=0, keepdim=True))


def test_cosines():
    (vectors,) = normal((3, 4, 5))
    expected = torch.nn.functional.cosine_similarity(vectors.unsqueeze(2), vectors.unsqueeze(1), dim=-1)
    same(cosines(vectors), expected)


@pytest.mark.parametrize("function", [unit_vectors, unit_deviations, cosines])
def test_gradient(function):
    (vectors,) = normal((3, 4))
    assert torch.autograd.gradcheck(function, vectors.requires_grad_())


@pytest.mark.parametrize("function", [unit_vectors, cosines])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_zero_stays_zero_with_gradient_zero(function, dtype):
    vectors = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0]], dtype=dtype, requires_grad=True)
    found = function(vectors)
    assert not found[0].any()
    found.sum().backward()
    assert not vectors.grad[0].any()
    assert vectors.grad.isfinite().all()


@pytest.mark.parametrize("level", [0.1, 1e6, 0.0, -3e-7])
@pytest.mark.parametrize("count", [3, 1000])
def test_constant_vectors_have_no_deviation_whatever_their_mean_rounds_to(level, count):
    vectors = torch.full((2, count), level, requires_grad=True)
    found = unit_deviations(vectors)
    assert not found.any()
    found.sum().backward()
    assert not vectors.grad.any()


@pytest.mark.parametrize("scale", [1e-15, 6e4, 1e18])
def test_squares_neither_over_nor_underflow(scale):
    vectors = scale * torch.tensor([[3.0, 4.0]])
    torch.testing.assert_close(unit_vectors(vectors), torch.tensor([[0.6, 0.8]]))


def test_half_precision_is_computed_in_float32():
    (vectors,) = normal((3, 8))
    assert unit_vectors(vectors.half()).dtype == torch.float32
