"""Checkpoints are whole or absent, and hold everything."""

import json
from pathlib import Path

import pytest
import torch

import packing
from packing.errors import ModelError
from training import DiT
from training.checkpoint import (
    Progress,
    find_checkpoint,
    load_dit,
    load_ema,
    load_optimizers,
    load_weights,
    newest_checkpoint,
    read_progress,
    save_checkpoint,
)


@pytest.fixture
def progress(corpus, job) -> Progress:
    manifest, _ = packing.open_manifest(corpus(8))
    return Progress(step=20, loader={"epoch": 1, "step": 2}, job=job(), manifest=manifest)


def model_and_optimizer(progress: Progress) -> tuple[DiT, torch.optim.AdamW]:
    model = DiT(progress.job.model, token_dim=progress.manifest.token_dim, text_width=12)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def trained(progress: Progress) -> tuple[DiT, torch.optim.AdamW]:
    model, optimizer = model_and_optimizer(progress)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


@pytest.fixture
def saved(tmp_path: Path, progress: Progress) -> tuple[Path, DiT, torch.optim.AdamW]:
    model, optimizer = trained(progress)
    ema = {name: weight + 1 for name, weight in model.state_dict().items()}
    return save_checkpoint(tmp_path, progress, model, ema, [optimizer]), model, optimizer


def test_weights_moments_and_average_come_back_bit_for_bit(saved, progress: Progress) -> None:
    folder, model, optimizer = saved
    other, other_optimizer = model_and_optimizer(progress)
    load_weights(folder, other)
    load_optimizers(folder, other, [other_optimizer])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(optimizer.state[a], other_optimizer.state[b], atol=0, rtol=0)
    assert all(torch.equal(load_ema(folder)[name], weight + 1) for name, weight in model.state_dict().items())


def test_step_loader_job_and_manifest_come_back_equal(saved, progress: Progress) -> None:
    read = read_progress(saved[0])
    assert read == progress
    assert read.manifest.digest == progress.manifest.digest


def test_a_checkpoint_that_does_not_say_what_its_model_predicts_predicts_velocities(saved) -> None:
    state = saved[0] / "state.json"
    facts = json.loads(state.read_text())
    assert facts["config"]["model"].pop("predict")
    state.write_text(json.dumps(facts))
    assert read_progress(saved[0]).job.model.predict == "velocity"


def test_sampling_gets_the_average_without_the_shards(saved, progress: Progress) -> None:
    folder, model, _ = saved
    average = load_dit(folder, read_progress(folder))
    assert torch.equal(average.head.out.bias, model.head.out.bias + 1)


def test_a_checkpoint_is_only_safetensors_and_json(saved) -> None:
    names = sorted(path.name for path in saved[0].iterdir())
    assert names == ["ema.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]


def test_the_newest_whole_checkpoint_counts_and_half_written_ones_do_not(saved, tmp_path: Path) -> None:
    (tmp_path / ".step-000030.partial").mkdir()
    (tmp_path / "step-000040").mkdir()
    assert newest_checkpoint(tmp_path) == saved[0]
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_steps_are_compared_as_numbers(tmp_path: Path) -> None:
    for name in ("step-999999", "step-1000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    assert newest_checkpoint(tmp_path) == tmp_path / "step-1000000"


def test_a_crash_while_saving_leaves_no_checkpoint_and_does_not_hinder_the_next_attempt(
    tmp_path: Path, progress: Progress
) -> None:
    model, optimizer = trained(progress)
    not_a_tensor = {"weight": object()}
    with pytest.raises(AttributeError):
        save_checkpoint(tmp_path, progress, model, not_a_tensor, [optimizer])  # type: ignore[arg-type]
    assert newest_checkpoint(tmp_path) is None
    folder = save_checkpoint(tmp_path, progress, model, model.state_dict(), [optimizer])
    assert newest_checkpoint(tmp_path) == folder


def test_a_finished_checkpoint_is_never_written_again(saved, tmp_path: Path, progress: Progress) -> None:
    folder, model, optimizer = saved
    before = (folder / "ema.safetensors").read_bytes()
    assert save_checkpoint(tmp_path, progress, model, model.state_dict(), [optimizer]) == folder
    assert (folder / "ema.safetensors").read_bytes() == before


def test_an_output_folder_stands_for_its_newest_checkpoint(saved, tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) == find_checkpoint(saved[0]) == saved[0]
    with pytest.raises(ModelError, match="no checkpoint"):
        find_checkpoint(tmp_path / "nowhere")


def test_a_damaged_checkpoint_is_named(saved, progress: Progress) -> None:
    folder, model, _ = saved
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_weights(folder, model)
    (folder / "state.json").write_text('{"step": 1}')
    with pytest.raises(ModelError, match=r"state\.json"):
        read_progress(folder)
