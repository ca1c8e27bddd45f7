from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reldistill.relations.precision import as_float, full_precision


@full_precision
def product(student: Tensor, teacher: Tensor, *, scale: float = 1.0) -> Tensor:
    return scale * (student @ teacher)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_lifted_by_position_and_by_name(dtype: torch.dtype) -> None:
    student, teacher = torch.rand(3, 4).to(dtype), torch.rand(4, 2).to(dtype)
    expected = 2.0 * (student.float() @ teacher.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for found in (product(student, teacher, scale=2.0), product(student=student, teacher=teacher, scale=2.0)):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_double_precision_stays() -> None:
    student = torch.rand(2, 2, dtype=torch.float64)
    assert product(student, student).dtype == torch.float64
    assert as_float(student) is student
