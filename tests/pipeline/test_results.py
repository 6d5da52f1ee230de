"""Parts of outcomes: what commits them, which one counts, and their tensors."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from packing.store import Store
from pipeline.records import Outcome, ScoreResult, failed
from pipeline.results import DTYPES, LatestOutcomes, StageResults, safetensors_blocks


@pytest.fixture
def results(tmp_path: Path) -> StageResults:
    return StageResults(Store(str(tmp_path)), "score", "f" * 16, ScoreResult)


def scored(key: str, score: float, *, attempt: int = 1, **tensors: torch.Tensor) -> Outcome[ScoreResult]:
    return Outcome(key=key, value=ScoreResult(scores={"x": score}), attempt=attempt, tensors=tensors)


def score_of(results: StageResults, key: str) -> float:
    outcome = LatestOutcomes(results).get(key)
    assert outcome is not None
    return float(outcome.result.scores["x"])


def test_values_and_failures_come_back_as_they_were(results: StageResults) -> None:
    outcomes = [scored("a", 0.25), failed("b", "timeout", "too long")]
    part = results.write("p", outcomes)
    assert list(results.read([part])) == [(part, outcome) for outcome in outcomes]


def test_a_part_counts_from_its_parquet_file_on(results: StageResults) -> None:
    part = results.write("p", [scored("a", 1.0, t=torch.ones(2))])
    (Path(results.store.url) / part).unlink()
    assert len(results.store.list("results")) == 1
    assert len(LatestOutcomes(results)) == 0


def test_tensors_without_their_part_do_not_hinder_the_next_writer(results: StageResults) -> None:
    outcomes = [scored("a", 1.0, t=torch.ones(2))]
    (Path(results.store.url) / results.write("p", outcomes)).unlink()
    results.write("p", outcomes)
    assert LatestOutcomes(results).tensor("a", "t").tolist() == [1.0, 1.0]


def test_a_temporary_file_of_a_killed_writer_is_no_part(results: StageResults) -> None:
    part = Path(results.store.url) / results.write("p", [scored("a", 1.0)])
    (part.parent / ".tmp-1-abc.parquet").write_bytes(b"half a fi")
    assert len(LatestOutcomes(results)) == 1


def test_the_latest_attempt_wins(results: StageResults) -> None:
    results.write("p", [failed("a", "timeout", "")])
    results.write("p", [scored("a", 2.0, attempt=2)])
    results.write("q", [scored("a", 1.0)])
    assert score_of(results, "a") == 2.0


def test_of_equal_attempts_the_part_that_sorts_first_wins_in_any_order_of_reading(results: StageResults) -> None:
    late = LatestOutcomes(results)
    results.write("q", [scored("a", 2.0)])
    late.refresh()
    results.write("p", [scored("a", 1.0)])
    late.refresh()
    assert score_of(results, "a") == 1.0
    assert late.part_of("a").rsplit("/", 1)[1].startswith("p-")


def test_the_same_chunk_written_twice_is_one_part_with_the_first_values(results: StageResults) -> None:
    first, second = results.write("p", [scored("a", 1.0)]), results.write("p", [scored("a", 2.0)])
    assert first == second
    assert results.parts() == [first]
    assert score_of(results, "a") == 1.0


def test_parts_of_one_partition_are_told_from_those_of_another(results: StageResults) -> None:
    mine, other = results.write("000-00001", [scored("a", 1.0)]), results.write("000-000010", [scored("b", 1.0)])
    assert results.parts("000-00001") == [mine]
    assert results.parts() == sorted([mine, other])


@pytest.mark.parametrize("dtype", list(DTYPES.values()), ids=list(DTYPES))
def test_tensors_come_back_bit_by_bit(results: StageResults, dtype: torch.dtype) -> None:
    tensor = torch.arange(24).reshape(2, 3, 4).to(dtype)
    results.write("p", [scored("a", 1.0, t=tensor, other=torch.zeros(3)), scored("b", 1.0, t=tensor[:1].clone())])
    back = LatestOutcomes(results)
    for key, wanted in (("a", tensor), ("b", tensor[:1])):
        assert back.tensor(key, "t").dtype == dtype
        assert torch.equal(back.tensor(key, "t"), wanted)


def test_an_empty_and_a_transposed_tensor_come_back(results: StageResults) -> None:
    turned = torch.arange(6.0).reshape(2, 3).T
    results.write("p", [scored("a", 1.0, none=torch.empty(0, 4), turned=turned)])
    back = LatestOutcomes(results)
    assert back.tensor("a", "none").shape == (0, 4)
    assert torch.equal(back.tensor("a", "turned"), turned)


def test_reading_on_reads_only_new_parts(results: StageResults) -> None:
    gone = results.write("p", [scored("a", 1.0)])
    outcomes = LatestOutcomes(results)
    (Path(results.store.url) / gone).write_bytes(b"not read again")
    results.write("q", [scored("b", 1.0)])
    outcomes.refresh()
    assert sorted(outcome.key for outcome in outcomes.values()) == ["a", "b"]


def test_an_outcome_is_a_value_or_a_failure(results: StageResults) -> None:
    with pytest.raises(ValueError, match="needs a value or a failure"):
        Outcome(key="a")


def test_a_failure_message_is_cut_to_a_readable_length() -> None:
    outcome: Outcome[ScoreResult] = failed("a", "x", "long " * 1000)
    assert outcome.failure is not None
    assert len(outcome.failure.message) == 500


def test_tensors_are_written_one_by_one_as_the_library_would_write_them_all() -> None:
    tensors = {
        "b": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "a": torch.arange(30, dtype=torch.uint8).reshape(2, 5, 3),
        "é/z": torch.arange(4, dtype=torch.float64),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "view": torch.arange(12, dtype=torch.float32)[::2],
    }
    whole = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    blocks = list(safetensors_blocks(tensors))
    assert b"".join(blocks) == whole
    assert len(blocks) == 1 + len(tensors)
