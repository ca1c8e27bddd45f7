from __future__ import annotations

import functools

import pytest
import torch

from reldistill.relations.channel_graph import channel_adjacency
from reldistill.relations.kernels import full_decompositions


@pytest.mark.parametrize("alignment", ["subspace", "procrustes"])
def test_a_visit_to_the_cpu_changes_nothing(alignment):
    """What graphs on a GPU take; it can be taken from anywhere."""
    student, teacher = (channel_adjacency(torch.randn(3, 8, 4, 4, dtype=torch.float64)) for _ in range(2))
    distance = functools.partial(full_decompositions._distance, alignment=alignment, rank=3, weights="positive")
    pull = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    found = []
    for function in (lambda s, t: full_decompositions._ByTheCPU.apply(s, t, distance), distance):
        leaf = student.clone().requires_grad_()
        value = function(leaf, teacher)
        found.append((value.detach(), torch.autograd.grad(value, leaf, pull)[0]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)
    assert not full_decompositions._ByTheCPU.apply(student, teacher, distance).requires_grad
