"""Every clip is in one row, every row within its caps, every row in one step and on one rank."""

from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing.planner import deal_ranks, deal_rows, plan_rows, straggler_efficiency

CAPACITY = 100
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=300)
KEYED = st.dictionaries(st.text(max_size=4), st.integers(1, CAPACITY), min_size=1, max_size=200)
CAPPED = st.lists(st.tuples(st.integers(1, CAPACITY), st.integers(0, 20)), min_size=1, max_size=150)
COSTS = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=200).map(np.array)
SEEDS = st.integers(0, 1 << 62)

unhurried = settings(deadline=None)


@unhurried
@given(LENGTHS, SEEDS, st.integers(1, 50))
def test_every_clip_is_in_one_row(lengths: list[int], seed: int, pool: int) -> None:
    rows = plan_rows(lengths, capacity=CAPACITY, seed=seed, pool=pool)
    assert sorted(clip for row in rows for clip in row) == list(range(len(lengths)))


@unhurried
@given(LENGTHS, SEEDS, st.integers(1, 50))
def test_no_row_holds_more_tokens_than_its_capacity(lengths: list[int], seed: int, pool: int) -> None:
    rows = plan_rows(lengths, capacity=CAPACITY, seed=seed, pool=pool)
    assert all(0 < sum(lengths[clip] for clip in row) <= CAPACITY for row in rows)


@unhurried
@given(st.lists(st.integers(1, 10), max_size=200), SEEDS, st.integers(1, 8))
def test_no_row_holds_more_segments_than_allowed(lengths: list[int], seed: int, most: int) -> None:
    rows = plan_rows(lengths, capacity=CAPACITY, seed=seed, max_segments=most)
    assert all(1 <= len(row) <= most for row in rows)


@unhurried
@given(LENGTHS, SEEDS)
def test_a_plan_is_the_same_for_the_same_seed(lengths: list[int], seed: int) -> None:
    first, second = (plan_rows(lengths, capacity=CAPACITY, seed=seed) for _ in range(2))
    assert [row.tolist() for row in first] == [row.tolist() for row in second]


def test_another_seed_gives_another_plan(lengths: np.ndarray) -> None:
    first, second = (plan_rows(lengths, capacity=36_864, seed=seed) for seed in (0, 1))
    assert [row.tolist() for row in first] != [row.tolist() for row in second]


@unhurried
@given(KEYED, st.randoms(use_true_random=False), SEEDS, st.integers(1, 50))
def test_the_order_of_clips_with_keys_does_not_matter(clips: dict[str, int], random: Random, seed: int, pool: int) -> None:
    plans = []
    for _ in range(2):
        keys = list(clips)
        random.shuffle(keys)
        rows = plan_rows([clips[key] for key in keys], capacity=CAPACITY, seed=seed, pool=pool, keys=keys)
        plans.append([[keys[clip] for clip in row] for row in rows])
    assert plans[0] == plans[1]


def test_the_order_of_clips_with_one_key_does_not_matter() -> None:
    """Keys should be distinct; where they are not, lengths decide."""
    plans = []
    for lengths in ([30, 50, 70, 20], [20, 70, 50, 30]):
        rows = plan_rows(lengths, capacity=CAPACITY, keys=[1, 1, 1, 1])
        plans.append([[lengths[clip] for clip in row] for row in rows])
    assert plans[0] == plans[1]


@unhurried
@given(CAPPED, SEEDS, st.integers(1, 50))
def test_no_row_holds_more_text_than_allowed(clips: list[tuple[int, int]], seed: int, pool: int) -> None:
    lengths, text = np.array(clips).T
    rows = plan_rows(lengths, capacity=CAPACITY, seed=seed, pool=pool, text_lengths=text, max_text=25)
    assert sorted(clip for row in rows for clip in row) == list(range(len(clips)))
    assert all(lengths[row].sum() <= CAPACITY and text[row].sum() <= 25 for row in rows)


@unhurried
@given(CAPPED, SEEDS, st.integers(1, 5))
def test_no_row_costs_more_than_allowed(clips: list[tuple[int, int]], seed: int, most: int) -> None:
    lengths, thirds = np.array(clips).T
    costs = thirds / 3
    rows = plan_rows(lengths, capacity=CAPACITY, seed=seed, max_segments=most, costs=costs, max_cost=7.0)
    assert sorted(clip for row in rows for clip in row) == list(range(len(clips)))
    assert all(lengths[row].sum() <= CAPACITY and len(row) <= most for row in rows)
    assert all(costs[row].sum() <= 7.0 + 1e-9 for row in rows)


@pytest.mark.parametrize("cap", [{"text_lengths": [1]}, {"max_text": 1}, {"costs": [1.0]}, {"max_cost": 1.0}])
def test_half_a_cap_is_refused(cap: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="both"):
        plan_rows([5], capacity=CAPACITY, **cap)


def test_more_text_than_a_row_may_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="26 text tokens does not fit a row of 25"):
        plan_rows([5, 5], capacity=CAPACITY, text_lengths=[1, 26], max_text=25)


def test_rows_are_completed_by_clips_that_fill_them() -> None:
    """Best-fit decreasing puts 45 beside 50, where only 5 more would fit, and needs three rows."""
    lengths = np.array([50, 45, 45, 30, 20, 10])
    rows = plan_rows(lengths, capacity=CAPACITY)
    assert sorted(sorted(lengths[row].tolist()) for row in rows) == [[10, 45, 45], [20, 30, 50]]


@pytest.mark.parametrize("length", [0, -1, CAPACITY + 1])
def test_a_clip_that_does_not_fit_a_row_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} tokens"):
        plan_rows([5, length, 7], capacity=CAPACITY)


def test_no_clips_make_no_rows() -> None:
    assert plan_rows([], capacity=CAPACITY) == []


@pytest.mark.parametrize("pool", [512, 4096])
def test_a_mixed_corpus_fills_its_rows(lengths: np.ndarray, pool: int) -> None:
    rows = plan_rows(lengths, capacity=36_864, pool=pool)
    assert lengths.sum() / (len(rows) * 36_864) >= 0.996


def all_distinct(seed: int) -> np.ndarray:
    """3,000 clips of as many lengths, in an order of their own."""
    return np.random.default_rng(seed).permutation(9_000)[:3_000] + 1


def all_short(seed: int) -> np.ndarray:
    """3,000 clips of which 90 share a row, one as long as a row among them."""
    return np.append(np.random.default_rng(seed).geometric(1 / 100, 2_999), 9_000)


@pytest.mark.parametrize("draw", [all_distinct, all_short])
@given(seed=st.integers(0, 1 << 30), most=st.sampled_from([2, 40, 512]), pool=st.sampled_from([700, 4_096]))
@settings(max_examples=8, deadline=None)
def test_many_lengths_and_many_clips_break_no_cap(draw: Any, seed: int, most: int, pool: int) -> None:
    lengths = draw(seed)
    text = np.random.default_rng(seed).integers(0, 50, lengths.size)
    rows = plan_rows(
        lengths,
        capacity=9_000,
        seed=seed,
        max_segments=most,
        pool=pool,
        text_lengths=text,
        max_text=300,
        costs=text,
        max_cost=250.0,
    )
    assert sorted(np.concatenate(rows).tolist()) == list(range(lengths.size))
    assert max(lengths[row].sum() for row in rows) <= 9_000
    assert max(row.size for row in rows) <= most
    assert max(text[row].sum() for row in rows) <= 250


@pytest.mark.parametrize("draw", [all_distinct, all_short])
def test_the_order_of_many_clips_does_not_matter(draw: Any) -> None:
    lengths = draw(0)
    text = lengths % 37
    plans = []
    for order in (np.arange(lengths.size), np.random.default_rng(1).permutation(lengths.size)):
        rows = plan_rows(lengths[order], capacity=9_000, seed=4, keys=order, text_lengths=text[order], max_text=200)
        plans.append([order[row].tolist() for row in rows])
    assert plans[0] == plans[1]


@pytest.mark.parametrize("draw", [all_distinct, all_short])
def test_many_lengths_and_many_clips_fill_their_rows(draw: Any) -> None:
    lengths = draw(0)
    rows = plan_rows(lengths, capacity=36_000)
    assert len(rows) <= 1.003 * lengths.sum() / 36_000 + 1


def test_short_clips_fill_rows_to_their_most_segments() -> None:
    """Long clips first would leave rows of 64 short ones at the end, half empty."""
    lengths = np.append(np.full(1_600, 10), np.full(1_600, 90))
    rows = plan_rows(lengths, capacity=3_300, max_segments=64)
    assert len(rows) == 50
    assert {row.size for row in rows} == {64}


@unhurried
@given(COSTS, SEEDS, st.integers(1, 9))
def test_every_row_is_in_one_step(costs: np.ndarray, seed: int, global_batch: int) -> None:
    steps = deal_rows(costs, seed=seed, global_batch=global_batch)
    assert sorted(row for step in steps for row in step) == list(range(len(costs)))


@unhurried
@given(COSTS, SEEDS, st.integers(1, 9))
def test_all_steps_but_one_are_full(costs: np.ndarray, seed: int, global_batch: int) -> None:
    sizes = sorted(len(step) for step in deal_rows(costs, seed=seed, global_batch=global_batch))
    assert set(sizes[1:]) <= {global_batch}
    assert 0 < sizes[0] <= global_batch


def test_rows_of_a_step_cost_alike() -> None:
    costs = np.random.default_rng(0).lognormal(size=320)
    spread = [np.ptp(costs[step]) for step in deal_rows(costs, seed=0, global_batch=10)]
    assert np.mean(spread) < 0.1 * np.ptp(costs)


def test_a_longer_window_balances_better() -> None:
    costs = np.random.default_rng(0).lognormal(size=4096)
    efficiencies = [straggler_efficiency(costs, world_size=8, window_steps=steps) for steps in (1, 8, 64)]
    assert efficiencies == sorted(efficiencies)


def test_another_seed_deals_rows_in_another_order() -> None:
    costs = np.ones(50)
    first, second = (np.concatenate(deal_rows(costs, seed=seed, global_batch=4)).tolist() for seed in (0, 1))
    assert first != second


@unhurried
@given(COSTS, st.integers(1, 40))
def test_the_ranks_of_any_world_share_out_a_step(costs: np.ndarray, world_size: int) -> None:
    shares = deal_ranks(np.arange(len(costs)), costs, world_size)
    assert len(shares) == world_size
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(costs)))


@unhurried
@given(COSTS, st.integers(1, 40))
def test_no_rank_has_two_rows_more_than_another(costs: np.ndarray, world_size: int) -> None:
    sizes = [len(share) for share in deal_ranks(np.arange(len(costs)), costs, world_size)]
    assert max(sizes) - min(sizes) <= 1


@unhurried
@given(COSTS, st.integers(1, 40), SEEDS)
def test_straggler_efficiency_is_a_share(costs: np.ndarray, world_size: int, seed: int) -> None:
    assert 0 <= straggler_efficiency(costs, world_size=world_size, seed=seed) <= 1 + 1e-12


@pytest.mark.parametrize("world_size", [1, 3, 64])
def test_ranks_of_equal_cost_wait_for_none(world_size: int) -> None:
    assert straggler_efficiency(np.full(200, 7.0), world_size=world_size) == pytest.approx(1.0)


def test_fewer_rows_than_ranks_have_no_efficiency() -> None:
    assert straggler_efficiency(np.ones(3), world_size=4) == 0.0


def test_sorting_by_cost_balances_ranks_better_than_chance() -> None:
    costs = np.random.default_rng(0).lognormal(size=2048)
    by_chance = costs.reshape(-1, 64)
    assert straggler_efficiency(costs, world_size=64) > 2 * by_chance.mean(axis=1).sum() / by_chance.max(axis=1).sum()
