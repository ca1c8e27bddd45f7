from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reldistill.step.curriculum import WarmUp

fractions = st.floats(0.0, 1.0)
spans = st.floats(1e-6, 1.0)


@given(spans, fractions, fractions)
def test_the_factor_never_falls_and_stays_in_its_range(over: float, one: float, other: float) -> None:
    warm_up = WarmUp(over=over)
    early, late = warm_up(min(one, other)), warm_up(max(one, other))
    assert 0.0 <= early <= late <= 1.0


@given(spans)
def test_it_starts_at_0_and_reaches_1_when_the_span_ends(over: float) -> None:
    warm_up = WarmUp(over=over)
    assert warm_up(0.0) == 0.0
    assert warm_up(over / 2) == pytest.approx(0.5)
    assert warm_up(over) == 1.0
    assert warm_up(1.0) == 1.0


@pytest.mark.parametrize("over", [0.0, -0.1, 1.5, float("nan")])
def test_a_span_that_is_no_fraction_is_refused(over: float) -> None:
    with pytest.raises(ValueError, match=r"over: expected a fraction of training in \(0, 1\]"):
        WarmUp(over=over)
