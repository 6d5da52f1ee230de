"""Calibration times real passes; the fit itself is tested over made-up times, since real ones depend on the machine."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from packing import CostModel
from packing.config import load_config
from training import TrainJob
from training.calibrate import held_against, timed_lengths
from training.cli import calibrate, train

TINY = ["model.width=32", "model.heads=2", "model.depth=1", "train.threads=1", "train.device=cpu"]


def test_timed_rows_hold_what_they_say_and_differ() -> None:
    rows = timed_lengths(4096)
    assert max(sum(row) for row in rows) == 4096
    assert all(min(row) > 0 for row in rows)
    assert len(set(rows)) == len(rows)


def test_rows_left_out_of_the_fit_are_predicted() -> None:
    rows = timed_lengths(36_864)
    model = CostModel(tokens=3e-6, squares=2e-10, segments=1e-5, row=1e-3)
    noise = np.random.default_rng(0).uniform(1, 1.03, len(rows))
    seconds = [(float(model.clip_costs(row).sum()) + model.row) * factor for row, factor in zip(rows, noise, strict=True)]
    found = held_against(rows, seconds, "made up")
    assert sum(row.held_out for row in found.rows) == len(rows) // 4
    assert found.held_out_error < 0.03


def test_calibrate_prints_a_setting_that_train_takes(corpus, tmp_path: Path) -> None:
    arguments = [corpus(8), *TINY, "--length", "256", "--repeats", "1"]
    printed = CliRunner().invoke(calibrate, arguments, catch_exceptions=False).stdout
    setting = printed.splitlines()[-1]
    assert len(load_config(TrainJob, None, [setting]).train.cost) == 4
    more = ["train.steps=1", f"train.out={tmp_path}", setting]
    assert CliRunner().invoke(train, [corpus(8), *TINY, *more], catch_exceptions=False).exit_code == 0


def test_calibrate_prints_json_for_scripts(corpus) -> None:
    arguments = [corpus(8), *TINY, "--length", "256", "--repeats", "1", "--json"]
    found = json.loads(CliRunner().invoke(calibrate, arguments, catch_exceptions=False).stdout)
    assert set(found) == {"cost", "rows", "device", "held_out_error"}
    assert all(row["seconds"] > 0 for row in found["rows"])


@pytest.mark.parametrize("cost", ["[1]", "[1,2,3,-1]"])
def test_a_cost_is_four_numbers(cost: str) -> None:
    with pytest.raises(Exception, match=r"train\.cost must be four numbers"):
        load_config(TrainJob, None, [f"train.cost={cost}"])


def test_training_from_a_mixture_goes_on_where_it_was(corpus, tmp_path: Path) -> None:
    mix = tmp_path / "mix.yaml"
    sources = "".join(f"  - {{shards: {corpus(count)}, weight: {weight}}}\n" for count, weight in ((8, 1), (6, 2)))
    mix.write_text(f"sources:\n{sources}curriculum:\n  - {{steps: 1, weights: [1, 0]}}\n")
    for steps in (2, 4):
        done = CliRunner().invoke(
            train, [str(mix), *TINY, f"train.steps={steps}", "train.global_batch=3"], catch_exceptions=False
        )
        assert done.stdout.endswith(f"step-{steps:06}\n")
        assert done.stdout.startswith(f"{tmp_path}/training/")
