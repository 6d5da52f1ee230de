"""Pixels to latents and back through any diffusers video autoencoder, behind one small adapter.

Invariant: what `encode` returns is the normalised posterior mode, the same bits for the same clip whatever else is
encoded (one clip at a time, fp32, no tiling). The class's own facts (strides, normalisation) are probed or read from the
model, never typed again. A causal codec takes 1 + k·stride frames and silently drops others: here they raise.

Legend: F Y X frames, rows, columns of pixels; C T H W latent channels and grid.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packing.errors import ModelError
from packing.geometry import Stride, latent_shape
from packing.manifest import CodecFacts
from packing.models import first_line, model_folder, model_identity, pinned

# Classes that would give wrong latents without an error: tiled only, resizing inside, broken posterior, previews.
REFUSED = {"AutoencoderKLAllegro", "AutoencoderRAE", "AutoencoderKLKVAEVideo", "AutoencoderTiny"}
DType = Literal["float32", "bfloat16", "float16"]


class VideoCodec:
    """A frozen video autoencoder: uint8 frames [F, Y, X, 3] ⇄ normalised latent [C, T, H, W].

    It takes 1 + k·`frame_step` frames: a multiple of its stride in time, since some classes drop the rest of a chunk.
    """

    def __init__(self, vae: Any, facts: CodecFacts, device: torch.device, frame_step: int) -> None:
        self.facts = facts
        self.frame_step = frame_step
        self._vae = vae
        self._device = device
        self._mean, self._std = _normalisation(vae, device)

    @property
    def stride(self) -> Stride:
        """Frames, rows and columns of pixels to one latent cell."""
        return self.facts.stride

    @property
    def channels(self) -> int:
        """Latent channels C."""
        return self.facts.channels

    @torch.inference_mode()
    def encode(self, frames: NDArray[np.uint8]) -> Tensor:
        """Encode one clip uint8 [F, Y, X, 3] into its normalised posterior mode, float32 [C, T, H, W] on the CPU.

        Raises:
            ValueError: the frames are not uint8, or their count or size is not one that the codec takes.
        """
        shape = self._expected(frames)
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(self._device)
        video = pixels.permute(3, 0, 1, 2)[None].to(self._vae.dtype) / 127.5 - 1  # [1, 3, F, Y, X] in [-1, 1]
        latent = _mode(self._vae.encode(video)).float()[0]  # [C, T, H, W]
        if tuple(latent.shape[1:]) != shape:
            raise ValueError(f"{type(self._vae).__name__} gave {tuple(latent.shape[1:])} for {shape}")
        return ((latent - self._mean) / self._std).cpu()

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> NDArray[np.uint8]:
        """Decode a normalised latent [C, T, H, W] into frames uint8 [F, Y, X, 3]."""
        raw = latent.to(self._device).float() * self._std + self._mean
        video = self._vae.decode(raw[None].to(self._vae.dtype)).sample[0]  # [3, F, Y, X]
        pixels = ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        frames: NDArray[np.uint8] = pixels.permute(1, 2, 3, 0).cpu().numpy()
        return frames

    def _expected(self, frames: NDArray[np.uint8]) -> tuple[int, int, int]:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(f"frames are uint8 [F, Y, X, 3], not {frames.dtype} {frames.shape}")
        count, rows, columns, _ = frames.shape
        _, h, w = self.stride
        step = self.frame_step
        if (count - 1) % step or rows % h or columns % w or not frames.size:
            raise ValueError(f"{count} frames of {columns}x{rows}: the codec takes 1 + k·{step} frames in multiples of {w}x{h}")
        return latent_shape(count, rows, columns, self.stride)


def load_codec(
    model: str,
    *,
    subfolder: str = "",
    device: str = "cpu",
    dtype: DType = "float32",
) -> VideoCodec:
    """Load a diffusers video autoencoder from a folder or a hub id.

    Raises:
        ModelError: it is not a diffusers autoencoder, or one whose latents cannot be trusted.
    """
    folder = model_folder(model, subfolder)
    name = _class_name(folder / "config.json")
    import diffusers

    kind = getattr(diffusers, name, None)
    if name in REFUSED or not (isinstance(kind, type) and hasattr(kind, "encode") and hasattr(kind, "from_pretrained")):
        raise ModelError(f"{model}: {name} is not an autoencoder that gives usable latents for training")
    vae = _loaded(kind, folder, dtype, f"{model} does not load as {name}").to(device).eval().requires_grad_(False)
    for switch in ("use_framewise_encoding", "use_framewise_decoding", "use_tiling"):
        if hasattr(vae, switch):
            setattr(vae, switch, False)  # a tiled or framewise encode never equals the whole one
    try:
        channels, stride, frame_step = _probe(vae, device)
    except (ValueError, RuntimeError, TypeError, AttributeError, ZeroDivisionError) as error:  # an image autoencoder
        raise ModelError(f"{model}: {name} does not encode video: {first_line(error)}") from error
    facts = CodecFacts(
        model=pinned(model),
        subfolder=subfolder,
        weights=model_identity(model, subfolder),
        channels=channels,
        stride=stride,
    )
    return VideoCodec(vae, facts, torch.device(device), frame_step)


def _loaded(kind: Any, folder: Path, dtype: DType, refusal: str) -> Any:
    settings = {"torch_dtype": getattr(torch, dtype), "use_safetensors": True, "output_loading_info": True}
    try:
        vae, loading = kind.from_pretrained(folder, **settings)
    except Exception as error:  # diffusers raises many kinds for one thing: these files do not give this model
        raise ModelError(f"{refusal}: {first_line(error)}") from error
    if loading["missing_keys"]:  # diffusers only warns, and fills them with noise or nothing
        raise ModelError(f"{refusal}: its weights lack {min(loading['missing_keys'])}")
    return vae


def _class_name(config: Any) -> str:
    try:
        return str(json.loads(config.read_text())["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{config} does not name a diffusers class") from error


@torch.inference_mode()
def _probe(vae: Any, device: str) -> tuple[int, Stride, int]:
    """Measure channels, strides and the frame step on black clips; config keys for them differ by class and are wrong in some.

    Wan's class encodes in chunks of four frames whatever its stride, and drops what is left over.
    """

    def encoded(frames: int) -> Tensor:
        return _mode(vae.encode(torch.zeros(1, 3, frames, 64, 64, dtype=vae.dtype, device=device)))

    few, many = encoded(25), encoded(49)
    stride = 24 // (many.shape[2] - few.shape[2]), 64 // few.shape[3], 64 // few.shape[4]
    steps = (stride[0] * times for times in (1, 2, 4, 8))
    step = next((step for step in steps if encoded(1 + step).shape[2] == 1 + step // stride[0]), 0)
    if not step:
        raise ValueError(f"it gives no latent frame for each {stride[0]} frames")
    return few.shape[1], stride, step


def _mode(encoded: Any) -> Tensor:
    distribution = getattr(encoded, "latent_dist", None)
    if distribution is not None:
        mode: Tensor = distribution.mode()
        return mode
    latent: Tensor = encoded.latents if hasattr(encoded, "latents") else encoded.latent
    return latent


def _normalisation(vae: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and std, each [C, 1, 1, 1], such that normalised = (raw - mean) / std.

    Buffers (LTX) win over the config (Wan, Mochi); a lone scaling factor (Hunyuan, CogVideoX) is 1 / std.
    """
    factor = float(vae.config.get("scaling_factor") or 1.0)
    mean, std = (_statistic(vae, name) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        shift = float(vae.config.get("shift_factor") or 0.0)
        mean, std = torch.tensor([shift]), torch.tensor([1.0])
    return mean.view(-1, 1, 1, 1).to(device), (std / factor).view(-1, 1, 1, 1).to(device)


def _statistic(vae: Any, name: str) -> Tensor | None:
    value = dict(vae.named_buffers()).get(name, vae.config.get(name))
    return None if value is None else torch.as_tensor(value).float()
