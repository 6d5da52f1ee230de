"""Sampling follows its caption, fits the codec's grid, and ends in a file that opens."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import packing
from packing import Caption, Manifest, PackedClip
from packing.errors import ModelError
from training import DiT, DiTConfig, TrainJob, sample_video, train, write_mp4
from training.checkpoint import load_dit, read_progress
from training.flow import clip_noise, euler_sample, guide
from training.sampler import guided_velocity, snap_shape, velocities

GRID = (2, 2, 2)


@pytest.fixture
def model() -> DiT:
    torch.manual_seed(0)
    dit = DiT(DiTConfig(width=32, depth=2, heads=2), token_dim=6, text_width=10)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return dit.requires_grad_(False)


@pytest.fixture
def manifest(corpus) -> Manifest:
    """Codec stride (2, 8, 8), patch (1, 2, 2), 8 frames a second."""
    return packing.open_manifest(corpus(8))[0]


def test_guidance_one_is_the_conditional_velocity_itself(model: DiT) -> None:
    tokens, text = torch.randn(8, 6), torch.randn(3, 10)
    conditional, unconditional = velocities(model, tokens, 0.5, GRID, [text, text[:0]])
    guided = guided_velocity(model, text, GRID, 1.0)(tokens, 0.5)
    torch.testing.assert_close(guided, conditional, atol=1e-6, rtol=0)
    torch.testing.assert_close(guide(conditional, unconditional, 1.0), conditional)
    assert not torch.allclose(conditional, unconditional, atol=1e-3)


def test_guidance_without_text_changes_nothing(model: DiT) -> None:
    tokens, nothing = torch.randn(8, 6), torch.zeros(0, 10)
    strong, none = (guided_velocity(model, nothing, GRID, scale)(tokens, 0.5) for scale in (7.0, 1.0))
    torch.testing.assert_close(strong, none, atol=1e-5, rtol=0)


@pytest.mark.parametrize("predict", ["velocity", "clean"])
def test_an_overfitted_model_makes_the_clip_that_its_caption_names(corpus, job, predict) -> None:
    """The clips differ by the level of each channel: the sample's levels must be nearest to those of its own clip."""
    settings = job(steps=250, global_batch=8, lr=3e-3, caption_drop=0.0, ema_decay=0.9)
    folder = train(replace(settings, model=replace(settings.model, predict=predict)), corpus(8))
    dit = load_dit(folder, read_progress(folder))
    batch = next(iter(packing.ShardLoader(corpus(8), global_batch=8)))
    clips = list(batch.latents.float().split(batch.cu_seqlens.diff().tolist()))
    captions = batch.text.float().split(batch.cu_text.diff().tolist())
    levels = torch.stack([clip.mean(0) for clip in clips])  # [s, D]
    noise = clip_noise(0, 0, "sample", 8, levels.shape[1])
    named = []
    for caption in captions:
        sample = euler_sample(guided_velocity(dit, caption, GRID, 1.0), noise, steps=20)
        named.append(int((levels - sample.mean(0)).norm(dim=1).argmin()))
    assert named == list(range(len(clips)))


def test_a_model_narrower_than_its_tokens_makes_clips_without_noise_only_if_it_predicts_clean_tokens(corpus, job) -> None:
    """Tokens of 16 numbers, a width of 8: the clips, one level for each of 4 channels, fit through it, noise does not."""
    settings = job(steps=300, global_batch=8, lr=1e-2, cooldown=0.5, caption_drop=0.0, ema_decay=0.9)
    noise = {}
    for predict in ("clean", "velocity"):
        model = DiTConfig(width=8, depth=1, heads=1, predict=predict)
        narrow = replace(settings, model=model, train=replace(settings.train, out=f"{settings.train.out}-{predict}"))
        folder = train(narrow, corpus(8))
        dit = load_dit(folder, read_progress(folder))
        sample = euler_sample(guided_velocity(dit, torch.zeros(0, 12), GRID, 1.0), clip_noise(0, 0, "sample", 8, 16), steps=20)
        noise[predict] = float(sample.unflatten(1, (4, 4)).std(dim=(0, 2)).mean())  # of a channel, about its level
    assert noise["clean"] < 0.5 * noise["velocity"]


@pytest.mark.parametrize(
    ("wanted", "frames", "size", "grid"),
    [
        ((32, 48, 2.1), 17, (32, 48), (9, 2, 3)),  # 16.8 frames wanted; 1 + k·2 are possible
        ((30, 50, 1.9), 15, (32, 48), (8, 2, 3)),
        ((1, 1, 0.01), 1, (16, 16), (1, 1, 1)),
    ],
)
def test_a_size_snaps_to_the_nearest_that_codec_and_patch_can_make(manifest, wanted, frames, size, grid) -> None:
    shape = snap_shape(manifest, height_px=wanted[0], width_px=wanted[1], seconds=wanted[2])
    assert (shape.frames, (shape.height_px, shape.width_px), shape.grid) == (frames, size, grid)


def test_a_patch_of_several_latent_frames_gives_whole_patches(manifest: Manifest) -> None:
    shape = snap_shape(replace(manifest, patch=(2, 2, 2)), height_px=32, width_px=32, seconds=1.0)
    assert (shape.frames, shape.grid) == (7, (2, 2, 2))


@pytest.mark.parametrize(("rows", "columns"), [(32, 48), (31, 47)])
def test_an_mp4_opens_with_every_frame_in_even_size_and_the_rate_it_was_given(tmp_path, rows, columns) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (9, rows, columns, 3), dtype=np.uint8)
    write_mp4(frames, 12.5, tmp_path / "video.mp4")
    with av.open(str(tmp_path / "video.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == Fraction(25, 2)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == 9
    assert all(picture.shape == (32, 48, 3) for picture in decoded)


def test_an_mp4_shows_the_colours_it_was_given(tmp_path: Path) -> None:
    frames = np.empty((5, 32, 32, 3), dtype=np.uint8)
    frames[:] = (200, 60, 30)
    write_mp4(frames, 8.0, tmp_path / "video.mp4")
    with av.open(str(tmp_path / "video.mp4")) as container:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.abs(decoded.astype(int) - frames).max() < 12


@pytest.fixture
def trained(tmp_path: Path, tiny_models: Path, job) -> Path:
    """The checkpoint of one training step over two clips that real models have encoded; its shards are gone."""
    codec = packing.load_codec(str(tiny_models / "codec"))
    text = packing.load_text_encoder(str(tiny_models / "text"), max_tokens=16)
    frames = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    features = text.encode(["a red circle", "a blue star"])
    clips = [
        PackedClip(
            clip_id=f"{number:032x}",
            latent=codec.encode(frames),
            captions=[Caption(prompt="short", text="", features=feature)],
            facts={},
        )
        for number, feature in enumerate(features)
    ]
    shards = tmp_path / "shards"
    packing.write_shards(
        packing.plan_rows([8, 8], capacity=16),
        clips,
        str(shards),
        codec=codec.facts,
        text_encoder=text.facts,
        patch=(1, 2, 2),
        sequence_length=16,
        fps=8.0,
    )
    settings: TrainJob = job(steps=1)
    folder = train(settings, str(shards))
    shards.rename(tmp_path / "elsewhere")
    return folder


def test_a_prompt_becomes_a_video_without_the_shards(trained: Path) -> None:
    made = {"height_px": 30, "width_px": 50, "seconds": 1.0, "steps": 2}
    video = sample_video(trained, "a red circle", **made)
    assert (video.shape, video.dtype) == ((9, 32, 48, 3), np.uint8)
    assert np.array_equal(video, sample_video(trained.parent, "a red circle", **made))
    assert not np.array_equal(video, sample_video(trained, "a red circle", seed=1, **made))


def test_a_codec_whose_weights_have_changed_is_refused(trained: Path) -> None:
    state = trained / "state.json"
    weights = read_progress(trained).manifest.codec.weights
    state.write_text(state.read_text().replace(weights, "0" * len(weights)))
    with pytest.raises(ModelError, match="other weights"):
        sample_video(trained, "", height_px=32, width_px=32, seconds=0.5, steps=1)
