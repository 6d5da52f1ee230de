"""The figures of a plan are right on plans small enough to count by hand."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packing import CostModel, PackedClip, PlanReport, corpus_report, dit_cost, plan_report, plan_rows
from packing.report import bucket_lengths

LENGTHS = [60, 40, 100, 30]
ROWS = [np.array([0, 1]), np.array([2]), np.array([3])]

unhurried = settings(deadline=None)


@pytest.fixture
def report() -> PlanReport:
    """Rows of 100, 100 and 30 tokens, for one, two and four ranks."""
    return plan_report(ROWS, LENGTHS, world_sizes=(1, 2, 4), capacity=100)


def test_what_is_counted(report: PlanReport) -> None:
    assert (report.rows, report.clips, report.tokens, report.capacity) == (3, 4, 230, 100)


def test_fill_is_tokens_over_what_rows_could_hold(report: PlanReport) -> None:
    assert report.fill == pytest.approx(230 / 300)


def test_padding_to_the_longest_clip_computes_it_for_each(report: PlanReport) -> None:
    assert report.pad_to_max_tokens == 4 * 100
    assert report.saved_against_max == pytest.approx(1 - 300 / 400)


def test_buckets_compute_their_longest_clip_for_each(report: PlanReport) -> None:
    assert report.bucket_tokens == 60 + 40 + 100 + 30
    assert report.saved_against_buckets == pytest.approx(1 - 300 / 230)


def test_steps_give_each_rank_a_row_while_there_are_rows(report: PlanReport) -> None:
    assert report.steps == {1: 3, 2: 2, 4: 1}


def test_one_rank_waits_for_none_and_too_few_rows_have_no_efficiency(report: PlanReport) -> None:
    assert report.straggler_efficiency[1] == pytest.approx(1.0)
    assert report.straggler_efficiency[4] == 0.0


def test_two_ranks_wait_for_the_dearer_row() -> None:
    cost = CostModel(tokens=1.0, squares=0.0)
    found = plan_report([np.array([0]), np.array([1])], [100, 50], world_sizes=(2,), cost=cost)
    assert found.straggler_efficiency[2] == pytest.approx(0.75)


def test_without_a_capacity_the_fullest_row_gives_it() -> None:
    assert plan_report([np.array([0, 3]), np.array([1])], LENGTHS).capacity == 90


def test_a_row_over_its_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="a row holds 100 tokens, more than its capacity of 99"):
        plan_report(ROWS, LENGTHS, capacity=99)


def test_clips_of_no_row_do_not_count() -> None:
    assert plan_report(ROWS[:1], LENGTHS).clips == 2


def test_tokens_are_counted_by_grid() -> None:
    grids = [(1, 2, 2), (2, 2, 2), (1, 2, 2)]
    found = plan_report([np.array([0, 1]), np.array([2])], [4, 8, 4], grids=grids)
    assert found.tokens_by_grid == {"1x2x2": 8, "2x2x2": 8}


def test_a_plan_of_nothing_has_a_report() -> None:
    found = plan_report([], [])
    assert (found.rows, found.tokens, found.fill, found.saved_against_max) == (0, 0, 1.0, 0.0)
    assert found.to_text()


def test_the_text_fits_a_terminal_and_says_what_matters(lengths: np.ndarray) -> None:
    grids = [(1, 1, int(length)) for length in lengths]
    rows = plan_rows(lengths, capacity=36_864)
    text = plan_report(rows, lengths, world_sizes=(8, 1024), capacity=36_864, grids=grids).to_text()
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 80
    for word in ("5,000 clips", "pad-to-max", "bucket batching", "straggler efficiency", "fewer rows than ranks", "1x1x36864"):
        assert word in text


@unhurried
@given(st.lists(st.integers(1, 1 << 20), max_size=200))
def test_a_bucket_pads_to_its_longest_clip_and_by_less_than_half_an_octave(lengths: list[int]) -> None:
    padded = bucket_lengths(lengths)
    assert set(padded.tolist()) <= set(lengths)
    assert all(length <= pad < 2**0.5 * length + 1e-6 for length, pad in zip(lengths, padded, strict=True))


def test_the_cost_of_a_row_is_the_sum_of_its_terms() -> None:
    model = CostModel(tokens=2.0, squares=0.5, segments=3.0, row=7.0)
    assert model.clip_costs([4]).tolist() == [2 * 4 + 0.5 * 16 + 3]
    assert model.row_costs([np.array([0, 1]), np.array([2])], [4, 2, 1]).tolist() == [12 + 10 + 6 + 7, 2 + 0.5 + 3 + 7]


def test_no_rows_cost_nothing() -> None:
    assert dit_cost().row_costs([], []).size == 0


def test_the_cost_of_a_dit_follows_from_its_flops() -> None:
    width, length = 64, 1000
    linear, attention, modulation = 28 * width**2 * length, 4 * width * length**2, 12 * width**2
    model = dit_cost(width=width, mlp_ratio=4.0, attention=1.0)
    assert model.clip_costs([length])[0] == pytest.approx((linear + attention + modulation) / (28 * width**2))


def test_a_step_reads_a_row_on_each_rank() -> None:
    report = plan_report(ROWS, LENGTHS, world_sizes=(2,), clip_bytes=[10, 20, 30, 60])
    assert report.row_bytes == 40
    assert report.step_bytes == {2: 80}
    assert "0.0 MB" in report.to_text()


def test_a_report_is_plain_json(report: PlanReport) -> None:
    found = json.loads(json.dumps(report.to_dict()))
    assert found["fill"] == report.fill
    assert found["steps"] == {"1": 3, "2": 2, "4": 1}


def test_the_report_of_shards_is_that_of_their_plan(corpus: str, clips: list[PackedClip]) -> None:
    lengths = [clip.latent[0].numel() // 4 for clip in clips]
    planned = plan_report(plan_rows(lengths, capacity=40), lengths, capacity=40)
    report, rows = corpus_report(corpus)
    assert (report.rows, report.clips, report.tokens, report.fill) == (planned.rows, 60, planned.tokens, planned.fill)
    assert sorted(tokens for row in rows for tokens in row) == sorted(lengths)
    assert report.row_bytes > 2 * 16 * report.tokens / report.rows
