"""A codec gives the normalised posterior mode, the same bits each time, and refuses what it would silently get wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from packing import VideoCodec, latent_shape, load_codec
from packing.errors import ModelError

Frames = NDArray[np.uint8]
MEAN = [0.1 * number - 0.8 for number in range(16)]
STD = [0.5 + 0.1 * number for number in range(16)]


def noise(frames: int, rows: int = 16, columns: int = 24, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (frames, rows, columns, 3), dtype=np.uint8)


def refusal(model: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_codec(str(model))
    message = str(caught.value)
    assert str(model) in message
    assert "\n" not in message
    return message


@pytest.fixture(scope="session")
def codec(tiny_models: Path) -> VideoCodec:
    return load_codec(str(tiny_models / "codec"))


@pytest.fixture
def variant(tiny_models: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the codec's folder with other values in its config."""

    def copy(**changes: object) -> Path:
        folder = tmp_path / "variant"
        shutil.copytree(tiny_models / "codec", folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        return folder

    return copy


def test_strides_and_channels_are_measured(codec: VideoCodec, tiny_models: Path) -> None:
    assert (codec.stride, codec.channels) == ((4, 8, 8), 16)
    assert codec.facts.model == str(tiny_models / "codec")


def test_a_copy_in_another_folder_has_the_same_weights(codec: VideoCodec, tmp_path: Path) -> None:
    copy = shutil.copytree(codec.facts.model, tmp_path / "copy")
    assert load_codec(str(copy)).facts.weights == codec.facts.weights


def test_a_codec_of_other_statistics_has_other_weights(codec: VideoCodec, variant: Callable[..., Path]) -> None:
    assert load_codec(str(variant(latents_mean=MEAN))).facts.weights != codec.facts.weights


@pytest.mark.parametrize("frames", [1, 5, 9])
@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (16, 40)])
def test_a_clip_gives_one_latent_frame_and_one_more_for_each_stride(
    codec: VideoCodec, frames: int, rows: int, columns: int
) -> None:
    latent = codec.encode(noise(frames, rows, columns))
    assert latent.shape == (16, *latent_shape(frames, rows, columns, (4, 8, 8)))
    assert (latent.dtype, latent.device.type) == (torch.float32, "cpu")


@pytest.mark.parametrize("frames", [0, 2, 4, 8])
def test_a_frame_count_that_the_codec_would_cut_is_refused(codec: VideoCodec, frames: int) -> None:
    with pytest.raises(ValueError, match=rf"{frames} frames of 24x16: the codec takes 1 \+ k·4 frames"):
        codec.encode(noise(frames))


@pytest.mark.parametrize(("rows", "columns"), [(12, 16), (16, 12), (0, 0)])
def test_a_size_off_the_grid_is_refused(codec: VideoCodec, rows: int, columns: int) -> None:
    with pytest.raises(ValueError, match="in multiples of 8x8"):
        codec.encode(noise(1, rows, columns))


@pytest.mark.parametrize(
    "frames",
    [np.zeros((1, 8, 8, 3), np.float32), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 4), np.uint8)],
    ids=["float", "one image", "four channels"],
)
def test_frames_of_another_type_or_shape_are_refused(codec: VideoCodec, frames: Frames) -> None:
    with pytest.raises(ValueError, match=r"frames are uint8 \[F, Y, X, 3\]"):
        codec.encode(frames)


def test_a_clip_encodes_to_the_same_bits_whatever_comes_between(codec: VideoCodec) -> None:
    alone = codec.encode(noise(9, seed=1))
    codec.encode(noise(5, 32, 16, seed=2))
    assert torch.equal(codec.encode(noise(9, seed=1)), alone)


def test_frames_that_are_a_view_encode_as_their_copy(codec: VideoCodec) -> None:
    frames = noise(5)[:, :, ::-1]
    assert torch.equal(codec.encode(frames), codec.encode(frames.copy()))


def test_another_clip_has_another_latent(codec: VideoCodec) -> None:
    assert not torch.equal(codec.encode(noise(5, seed=1)), codec.encode(noise(5, seed=2)))


@pytest.mark.parametrize("frames", [1, 9])
def test_a_latent_decodes_to_frames_of_the_size_that_it_came_from(codec: VideoCodec, frames: int) -> None:
    decoded = codec.decode(codec.encode(noise(frames)))
    assert (decoded.shape, decoded.dtype) == ((frames, 16, 24, 3), np.uint8)


def test_a_half_precision_latent_decodes(codec: VideoCodec) -> None:
    assert codec.decode(codec.encode(noise(1)).half()).shape == (1, 16, 24, 3)


def raw_mode(folder: Path, frames: Frames) -> torch.Tensor:
    """The posterior mode as diffusers itself gives it, not normalised."""
    vae = diffusers.AutoencoderKLWan.from_pretrained(folder, dtype=torch.float32).eval()
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.inference_mode():
        mode: torch.Tensor = vae.encode(video).latent_dist.mode()[0]
    return mode


def test_a_latent_is_the_mode_normalised_by_the_models_own_statistics(variant: Callable[..., Path]) -> None:
    folder = variant(latents_mean=MEAN, latents_std=STD)
    latent = load_codec(str(folder)).encode(noise(5))
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(latent * std + mean, raw_mode(folder, noise(5)), rtol=1e-5, atol=1e-6)


def test_decoding_undoes_the_normalisation(codec: VideoCodec, variant: Callable[..., Path]) -> None:
    shifted = load_codec(str(variant(latents_mean=MEAN, latents_std=STD)))
    plain, normalised = codec.decode(codec.encode(noise(5))), shifted.decode(shifted.encode(noise(5)))
    assert np.abs(plain.astype(int) - normalised.astype(int)).max() <= 1  # rounding of one float against the other


def test_a_lone_scaling_factor_is_one_over_the_standard_deviation(tmp_path: Path) -> None:
    shape = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4}
    vae = diffusers.AutoencoderKLCogVideoX(**shape, scaling_factor=0.5).eval()
    vae.save_pretrained(tmp_path)
    codec = load_codec(str(tmp_path))
    video = torch.from_numpy(noise(1)).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.inference_mode():
        mode = vae.encode(video).latent_dist.mode()[0]
    assert (codec.stride, codec.channels) == ((4, 8, 8), 4)
    torch.testing.assert_close(codec.encode(noise(1)), mode * 0.5)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "neither a model folder nor a hub id" in refusal(tmp_path / "nothing" / "here")


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    assert "not a model folder" in refusal(tmp_path)


@pytest.mark.parametrize("config", ["{", "{}", "[]", "null"])
def test_a_config_that_names_no_class_is_refused(variant: Callable[..., Path], config: str) -> None:
    folder = variant()
    (folder / "config.json").write_text(config)
    assert "does not name a diffusers class" in refusal(folder)


def test_a_text_encoder_is_no_codec(tiny_models: Path) -> None:
    assert "does not name a diffusers class" in refusal(tiny_models / "text")


@pytest.mark.parametrize("name", ["AutoencoderTiny", "T5EncoderModel", "NoSuchModel", "UNet2DModel", "DDPMScheduler", "utils"])
def test_a_class_without_usable_latents_is_refused(variant: Callable[..., Path], name: str) -> None:
    assert name in refusal(variant(_class_name=name))


def test_an_image_autoencoder_is_refused(tmp_path: Path) -> None:
    diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path)
    assert "AutoencoderKL" in refusal(tmp_path)


def test_missing_weights_are_refused(variant: Callable[..., Path]) -> None:
    folder = variant()
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    assert "does not load as AutoencoderKLWan" in refusal(folder)


def test_truncated_weights_are_refused(variant: Callable[..., Path]) -> None:
    weights = (folder := variant()) / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "does not load as AutoencoderKLWan" in refusal(folder)


def test_weights_that_lack_a_tensor_are_refused(variant: Callable[..., Path]) -> None:
    weights = (folder := variant()) / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["encoder.conv_in.bias"]
    save_file(tensors, weights, metadata={"format": "pt"})
    assert "does not load as AutoencoderKLWan" in refusal(folder)


def test_weights_of_other_dimensions_are_refused(variant: Callable[..., Path]) -> None:
    assert "does not load as AutoencoderKLWan" in refusal(variant(base_dim=8))
