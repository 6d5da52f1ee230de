"""A fit finds the coefficients that made the times, takes noise, and never says that work takes less than nothing."""

from dataclasses import astuple
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing import CostModel, ShardLoader, fit_cost
from packing.errors import ShardError

ROWS = [(4096 // pieces,) * pieces for pieces in (1, 2, 4, 8, 16)] + [(2048 // pieces,) * pieces for pieces in (1, 2, 4, 8)]


def seconds_of(model: CostModel, rows: list[tuple[int, ...]]) -> np.ndarray:
    return np.array([float(model.clip_costs(row).sum()) + model.row for row in rows])


def test_exact_times_give_their_coefficients_back() -> None:
    model = CostModel(tokens=2e-6, squares=3e-10, segments=4e-5, row=5e-3)
    assert astuple(fit_cost(ROWS, seconds_of(model, ROWS))) == pytest.approx(astuple(model), rel=1e-6)


@given(st.tuples(*[st.floats(0, 1)] * 4), st.integers(0, 1 << 30))
@settings(deadline=None)
def test_rows_left_out_are_predicted_through_noise(shares: tuple[float, float, float, float], seed: int) -> None:
    tokens, squares, segments, row = shares
    model = CostModel(tokens=1e-6 + tokens * 1e-5, squares=squares * 1e-9, segments=segments * 1e-4, row=row * 1e-2)
    noisy = seconds_of(model, ROWS) * np.random.default_rng(seed).uniform(1, 1.02, len(ROWS))
    left_out = [(3000, 500, 100), (1500, 1500)]
    predicted = seconds_of(fit_cost(ROWS, noisy), left_out)
    assert predicted == pytest.approx(seconds_of(model, left_out), rel=0.1)


@given(st.lists(st.floats(1e-4, 10), min_size=len(ROWS), max_size=len(ROWS)))
@settings(deadline=None)
def test_no_coefficient_is_negative(seconds: list[float]) -> None:
    assert min(astuple(fit_cost(ROWS, seconds))) >= 0


@pytest.mark.parametrize("seconds", [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 0.0]])
def test_too_little_to_fit_is_refused(seconds: list[float]) -> None:
    with pytest.raises(ValueError, match="at least 4 rows with positive times"):
        fit_cost(ROWS[: len(seconds)], seconds)


def test_a_loader_balances_by_the_cost_that_it_is_given_and_its_state_says_so(corpus: str) -> None:
    cost = CostModel(tokens=0.0, squares=0.0, segments=1.0)
    loader, plain = ShardLoader(corpus, global_batch=4, cost=cost), ShardLoader(corpus, global_batch=4)
    assert loader.state_dict()["cost"] == [0.0, 0.0, 1.0, 0.0]
    assert [batch.clip_ids for batch in islice(loader, 5)] != [batch.clip_ids for batch in islice(plain, 5)]
    for one, other in ((loader, plain), (plain, loader)):
        with pytest.raises(ShardError, match=r"cannot resume: .*cost"):
            one.load_state_dict(other.state_dict())
