"""Training learns, stops and goes on exactly, and does not depend on how a step is shared out."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import packing
from packing.errors import ConfigError, ModelError, ShardError
from packing.mixture import open_loader
from training import DiTConfig, StepReport, TrainJob, train
from training.flow import noise_batch

REPOSITORY = Path(__file__).parents[2]


def losses(job: TrainJob, shards: str) -> list[float]:
    """Trains, and returns the loss of every step."""
    reports: list[StepReport] = []
    train(job, shards, reports.append)
    return [report.loss for report in reports]


def with_settings(job: TrainJob, **settings: object) -> TrainJob:
    return replace(job, train=replace(job.train, **settings))  # type: ignore[arg-type]


def clean(job: TrainJob) -> TrainJob:
    return replace(job, model=replace(job.model, predict="clean"))


def command(shards: str, job: TrainJob) -> list[str]:
    """The arguments of the command line that stand for a job."""
    train = [f"train.{name}={value}" for name, value in vars(job.train).items()]
    model = [f"model.{name}={value}" for name, value in vars(job.model).items()]
    return ["-m", "training", shards, *train, *model]


def torchrun(ranks: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]


def logged_losses(out: str) -> list[float]:
    return [json.loads(line)["loss"] for line in Path(out, "metrics.jsonl").read_text().splitlines()]


def test_overfitting_eight_clips_learns_the_clips_themselves(corpus, job) -> None:
    """Who knows only the variance of the latents, 0.8, has a loss of at least 0.8 at any time t."""
    curve = losses(job(steps=150, global_batch=8, lr=3e-3, caption_drop=0.0), corpus(8))
    assert sum(curve[:3]) / 3 > 1.5
    assert sum(curve[-30:]) / 30 < 0.4


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_repeats_the_losses_and_weights_of_an_undisturbed_one_bit_for_bit(
    corpus, job, tmp_path, optimizer
) -> None:
    whole = job(steps=7, optimizer=optimizer, out=str(tmp_path / "whole"))
    broken = with_settings(whole, out=str(tmp_path / "broken"))
    undisturbed = losses(whole, corpus(20))
    first = losses(with_settings(broken, steps=3), corpus(20))
    assert first + losses(broken, corpus(20)) == undisturbed
    for name in ("model", "ema", "optimizer"):
        a, b = (load_file(tmp_path / run / "step-000007" / f"{name}.safetensors") for run in ("whole", "broken"))
        assert all(torch.equal(a[key], b[key]) for key in a.keys() | b.keys())


def test_a_resumed_run_of_clean_tokens_repeats_the_losses_of_an_undisturbed_one(corpus, job, tmp_path) -> None:
    whole = clean(job(steps=5, out=str(tmp_path / "whole")))
    broken = with_settings(whole, out=str(tmp_path / "broken"))
    undisturbed = losses(whole, corpus(20))
    assert losses(with_settings(broken, steps=2), corpus(20)) + losses(broken, corpus(20)) == undisturbed


def test_a_checkpoint_of_a_model_that_predicts_something_else_is_refused(corpus, job) -> None:
    train(job(steps=1), corpus(8))
    with pytest.raises(ConfigError, match="another model"):
        train(clean(job(steps=2)), corpus(8))


def test_two_runs_of_one_job_give_the_same_bits(corpus, job, tmp_path) -> None:
    first = losses(job(steps=3, out=str(tmp_path / "a")), corpus(20))
    assert losses(job(steps=3, out=str(tmp_path / "b")), corpus(20)) == first


def test_a_finished_run_does_nothing_and_names_its_checkpoint(corpus, job) -> None:
    last = train(job(steps=2), corpus(8))
    assert last.name == "step-000002"
    assert losses(job(steps=2), corpus(8)) == []


def test_passes_of_any_size_give_the_loss_of_the_whole_step(corpus, job, tmp_path) -> None:
    whole = losses(job(out=str(tmp_path / "whole")), corpus(20))
    parts = losses(job(out=str(tmp_path / "parts"), max_pass_tokens=8), corpus(20))
    assert parts == pytest.approx(whole, rel=1e-4)


def test_a_power_of_time_weighs_each_clip_by_its_own_time(corpus, job) -> None:
    """The model begins as zero, so the first loss is what the velocities themselves are."""
    settings, shards = job(steps=1, global_batch=4, time_power=2.0), corpus(20)
    batch = next(iter(open_loader(shards, global_batch=4, rank=0, world_size=1, seed=settings.train.seed)))
    lengths = batch.grid.prod(dim=1)
    noised = noise_batch(batch.latents.float(), batch.clip_ids, lengths.tolist(), seed=settings.train.seed, epoch=0)
    weighed = noised.target.square().mean(dim=1) * noised.t.repeat_interleave(lengths) ** 2
    assert losses(settings, shards) == pytest.approx([float(weighed.mean())], rel=1e-4)


def test_a_corpus_with_dropped_tokens_is_learned_and_every_kept_token_counted(corpus, job) -> None:
    settings, shards = job(steps=60, global_batch=4, lr=3e-3, caption_drop=0.0), corpus(8, 0.5)
    curve = losses(settings, shards)
    assert sum(curve[-10:]) < 0.7 * sum(curve[:10])
    lines = [json.loads(line) for line in Path(settings.train.out, "metrics.jsonl").read_text().splitlines()]
    kept = packing.open_manifest(shards)[0].tokens
    assert {line["tokens"] for line in lines} == {kept}
    assert kept == sum(packing.kept_count(tokens, 0.5) for tokens in (8, 18, 6, 18, 8, 4, 18, 16))


def test_passes_of_dropped_tokens_give_the_loss_of_the_whole_step(corpus, job, tmp_path) -> None:
    whole = losses(job(out=str(tmp_path / "whole")), corpus(20, 0.5))
    parts = losses(job(out=str(tmp_path / "parts"), max_pass_tokens=4), corpus(20, 0.5))
    assert parts == pytest.approx(whole, rel=1e-4)


def test_half_precision_stays_near_full_precision(corpus, job, tmp_path) -> None:
    full = losses(job(out=str(tmp_path / "full")), corpus(20))
    assert losses(job(out=str(tmp_path / "half"), precision="bf16"), corpus(20)) == pytest.approx(full, rel=0.05)


def test_reports_are_appended_to_metrics_and_cover_every_token(corpus, job) -> None:
    settings = job(steps=4, log_every=3)
    train(settings, corpus(20))
    lines = [json.loads(line) for line in Path(settings.train.out, "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4]
    assert sum(line["tokens"] for line in lines) == packing.open_manifest(corpus(20))[0].tokens
    assert all(0 <= line["data_wait"] <= 1 for line in lines)


def test_checkpoints_are_written_on_the_way(corpus, job) -> None:
    settings = job(steps=5, checkpoint_every=2)
    train(settings, corpus(8))
    assert sorted(path.name for path in Path(settings.train.out).glob("step-*")) == [
        "step-000002",
        "step-000004",
        "step-000005",
    ]


def test_a_checkpoint_of_another_model_is_refused(corpus, job) -> None:
    train(job(steps=1), corpus(8))
    with pytest.raises(ConfigError, match="another model"):
        train(replace(job(steps=2), model=DiTConfig(width=48, depth=2, heads=2)), corpus(8))


def test_a_checkpoint_of_another_optimizer_is_refused(corpus, job) -> None:
    train(job(steps=1), corpus(8))
    with pytest.raises(ModelError, match=r"another train\.optimizer"):
        train(job(steps=2, optimizer="muon"), corpus(8))


def test_muon_learns_faster_than_adamw(corpus, job, tmp_path) -> None:
    settings = job(steps=40, global_batch=8, lr=3e-3, caption_drop=0.0, out=str(tmp_path / "adamw"))
    adamw = losses(settings, corpus(8))
    muon = losses(with_settings(settings, optimizer="muon", out=str(tmp_path / "muon")), corpus(8))
    assert sum(muon[-10:]) < 0.9 * sum(adamw[-10:])


def test_the_learning_rate_rises_stays_and_falls(corpus, job) -> None:
    reports: list[StepReport] = []
    train(job(steps=10, warmup_steps=2, cooldown=0.5, lr=1e-3), corpus(8), reports.append)
    rates = [round(report.lr * 1e3, 6) for report in reports]
    assert rates == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]


def test_a_checkpoint_of_other_shards_is_refused(corpus, job) -> None:
    train(job(steps=1), corpus(8))
    with pytest.raises(ShardError, match="manifest"):
        train(job(steps=2), corpus(20))


@pytest.mark.integration
def test_three_ranks_share_a_step_without_changing_its_loss(corpus, job, tmp_path) -> None:
    """Three rows a step, one in the last of each epoch: a rank gets one row, cut into passes, or none."""
    assert packing.open_manifest(corpus(20))[0].rows % 3 == 1
    alone = job(steps=6, out=str(tmp_path / "alone"))
    shared = with_settings(alone, out=str(tmp_path / "shared"), max_pass_tokens=24)
    expected = losses(alone, corpus(20))
    subprocess.run([*torchrun(3), *command(corpus(20), shared)], cwd=REPOSITORY, check=True, timeout=120)
    assert logged_losses(shared.train.out) == pytest.approx(expected, rel=1e-4)


@pytest.mark.integration
def test_two_ranks_begin_what_one_ends_with_the_losses_of_one(corpus, job, tmp_path) -> None:
    """Two ranks share three rows: unlike numbers of passes, and no row for one of them at the end of the epoch."""
    alone = job(steps=6, out=str(tmp_path / "alone"))
    elastic = with_settings(alone, out=str(tmp_path / "elastic"), steps=4, max_pass_tokens=24)
    expected = losses(alone, corpus(20))
    subprocess.run([*torchrun(2), *command(corpus(20), elastic)], cwd=REPOSITORY, check=True, timeout=120)
    train(with_settings(elastic, steps=6), corpus(20))
    assert logged_losses(elastic.train.out) == pytest.approx(expected, rel=1e-4)


@pytest.mark.integration
def test_sigterm_ends_a_run_with_a_checkpoint_of_the_step_it_reached(corpus, job) -> None:
    settings = job(steps=1_000_000)
    process = subprocess.Popen([sys.executable, *command(corpus(8), settings)], cwd=REPOSITORY, env=os.environ)
    metrics = Path(settings.train.out, "metrics.jsonl")
    deadline = time.monotonic() + 60
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert [path.name for path in Path(settings.train.out).glob("step-*")] == [f"step-{steps[-1]:06d}"]
