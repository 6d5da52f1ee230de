"""The autoencoder's training form is the class itself, training lowers the loss, and the export loads as any codec does."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from demo.learning.codec_clips import MAX_PIXELS, family, is_held_out, natural_crop, natural_files, sizes, world_clip
from demo.learning.codec_form import as_video, decode, encode, new_codec
from demo.learning.train_codec import Batches, Stage, Trainer, export, train
from demo.scenes import Pictures
from packing.codec import load_codec
from tests.videos import write_video


@pytest.fixture(scope="module")
def clips() -> list[Pictures]:
    """Four clips of the world, 5 frames of 48 x 64."""
    random = np.random.Generator(np.random.Philox(3))
    drawn = (world_clip(random, 5, coded=False)[1] for _ in range(200))
    return list(itertools.islice((clip for clip in drawn if clip.shape[1:3] == (48, 64)), 4))


def test_the_training_form_gives_the_numbers_of_the_class() -> None:
    model = new_codec(seed=0).eval()
    video = torch.rand(2, 3, 9, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        mean, log_variance = encode(model, video)
        theirs = model.encode(video).latent_dist
        torch.testing.assert_close(mean, theirs.mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(log_variance, theirs.logvar, rtol=0, atol=1e-5)
        torch.testing.assert_close(decode(model, mean).clamp(-1, 1), model.decode(mean).sample, rtol=0, atol=1e-5)


def test_the_training_form_gives_the_gradients_of_the_class() -> None:
    model = new_codec(seed=0)
    video = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    encode(model, video)[0].square().mean().backward()
    ours = {name: p.grad for name, p in model.encoder.named_parameters()}
    model.zero_grad(set_to_none=True)
    model.encode(video).latent_dist.mean.square().mean().backward()
    for name, parameter in model.encoder.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_the_model_starts_in_one_way_for_a_seed_and_in_another_for_another() -> None:
    one, same, other = (new_codec(seed).encoder.conv_in.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_training_lowers_the_loss(clips: list[Pictures]) -> None:
    trainer = Trainer(seed=0)
    trainer.advance(0.1)
    torch.manual_seed(0)
    losses = [trainer.step(as_video(np.stack(clips[:2]))) for _ in range(8)]
    assert losses[-1] < losses[0] - 0.3


def test_a_resumed_training_takes_the_step_that_it_would_have_taken(clips: list[Pictures], tmp_path: Path) -> None:
    video = as_video(clips[0][None])
    trainer, resumed = Trainer(seed=0), Trainer(seed=1)
    trainer.advance(0.4)
    trainer.step(video)
    trainer.save(tmp_path / "checkpoint.safetensors")
    resumed.load(tmp_path / "checkpoint.safetensors")
    assert resumed.progress == trainer.progress
    for each in (trainer, resumed):
        torch.manual_seed(7)
        each.step(video)
    assert all(torch.equal(trainer.average[name], resumed.average[name]) for name in trainer.average)


def test_the_schedule_decides_when_training_ends() -> None:
    stages = (Stage(until=0.5, batches={5: 1}, crop=32), Stage(until=1.0, batches={5: 1}, crop=0))
    trainer, losses = Trainer(seed=0), list[float]()
    batches = Batches([], np.random.Generator(np.random.Philox(0)), first=6)
    train(trainer, batches, lambda steps: steps / 3, losses.append, stages)
    assert (trainer.progress.steps, trainer.progress.share, len(losses)) == (3, 1.0, 3)
    assert trainer.progress.cpu_s > 0


def test_an_export_loads_as_a_codec_of_strides_2_8_8_with_normalised_latents(clips: list[Pictures], tmp_path: Path) -> None:
    folder = tmp_path / "codec"
    folder.mkdir()
    (folder / "training.md").write_text("what else is there stays")
    export(Trainer(seed=0).averaged(), clips, folder)
    codec = load_codec(str(folder))
    assert (codec.stride, codec.channels) == ((2, 8, 8), 16)
    latents = torch.stack([codec.encode(clip) for clip in clips]).transpose(0, 1).flatten(1)  # [C, n]
    torch.testing.assert_close(latents.mean(1), torch.zeros(16), rtol=0, atol=0.02)
    torch.testing.assert_close(latents.std(1), torch.ones(16), rtol=0, atol=0.02)
    assert codec.decode(codec.encode(clips[0])).shape == clips[0].shape
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3.2e6
    assert (folder / "training.md").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["codec"]


def test_world_clips_have_the_sizes_that_the_encode_stage_would_choose() -> None:
    random = np.random.Generator(np.random.Philox(1))
    found = {world_clip(random, 3, coded=False)[1].shape[1:3] for _ in range(60)}
    assert found == set(sizes()) == {(64, 64), (48, 80), (80, 48), (64, 48), (48, 64), (32, 96)}
    assert max(rows * columns for rows, columns in found) <= MAX_PIXELS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("learning-area/rabbit.webm", "learning-area/rabbit320.mp4"),
        ("moviepy/big_buck_bunny_432_433.webm", "exoplayer/bbb_2500ms.ts"),
        ("sample-videos/again.mkv", "sample-videos/want.mkv"),
    ],
)
def test_files_that_may_show_one_scene_are_held_out_together(one: str, other: str) -> None:
    assert family(one) == family(other)
    assert is_held_out(one) == is_held_out(other)


def test_natural_files_are_read_at_eight_a_second_and_cropped_to_size(tmp_path: Path) -> None:
    random = np.random.Generator(np.random.Philox(2))
    pictures = iter(random.integers(0, 256, (24, 96, 160, 3), dtype=np.uint8))
    (tmp_path / "some").mkdir()
    write_video(tmp_path / "some" / "noise.mp4", pictures, codec="libx264", fps=24)
    (tmp_path / "some" / "broken.mp4").write_bytes(b"no video")
    train_files, held = natural_files(tmp_path)
    (file,) = [*train_files, *held]
    assert (file.name, file.frames.shape) == ("some/noise.mp4", (8, 96, 160, 3))
    assert natural_crop(file, random, 17, (80, 48)).shape == (17, 80, 48, 3)
