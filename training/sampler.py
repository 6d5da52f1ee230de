"""Prompt to video: from noise to tokens with a checkpoint's averaged weights, to pixels with the codec of its shards.

Everything but the prompt and the size is read from the checkpoint; the shards may be gone.

Shapes: n tokens of one clip, D token width, m text tokens, E text width; pixels are F frames by Y by X.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from packing.codec import VideoCodec, load_codec
from packing.errors import ModelError
from packing.manifest import Manifest, TextEncoderFacts
from packing.text import Backend, TextEncoder, load_text_encoder
from packing.tokens import unpatchify
from training.checkpoint import find_checkpoint, load_dit, read_progress
from training.flow import Velocity, channel_factors, clip_noise, euler_sample, guide
from training.model import DiT
from training.precision import products

Frames = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class SampleShape:
    """The size of a video that codec and patch can make, in pixels and as a token grid (t, h, w)."""

    frames: int
    height_px: int
    width_px: int
    grid: tuple[int, int, int]


def snap_shape(manifest: Manifest, *, height_px: int, width_px: int, seconds: float) -> SampleShape:
    """Find the nearest video size that the corpus has tokens for: at least one token along every axis.

    A causal codec of stride st makes 1 + k·st frames of 1 + k latent frames, and latents come in whole patches.
    """
    (st, sh, sw), (pt, ph, pw) = manifest.codec.stride, manifest.patch
    latent_frames = 1 + (seconds * manifest.fps - 1) / st
    t, h, w = (max(1, round(n)) for n in (latent_frames / pt, height_px / (sh * ph), width_px / (sw * pw)))
    return SampleShape(frames=1 + (t * pt - 1) * st, height_px=h * sh * ph, width_px=w * sw * pw, grid=(t, h, w))


class VideoSampler:
    """A checkpoint ready to sample from: the averaged weights with the codec and the text encoder of its shards.

    Args:
        checkpoint: a checkpoint folder, or a training output folder, whose newest is taken.

    Raises:
        ModelError: there is no checkpoint, or its codec or text encoder is no longer what made the shards.
    """

    def __init__(self, checkpoint: Path | str) -> None:
        folder = find_checkpoint(Path(checkpoint))
        progress = read_progress(folder)
        self.manifest = progress.manifest
        self._config = progress.job.train
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = load_dit(folder, progress).to(self._device)
        self._factors = channel_factors(progress.job.model.channel_scale, self.manifest.channels, self.manifest.token_dim)
        self._codec = matching_codec(self.manifest)

    @torch.inference_mode()
    def sample(
        self,
        prompt: str,
        *,
        height_px: int,
        width_px: int,
        seconds: float,
        steps: int = 50,
        guidance: float = 3.0,
        seed: int = 0,
    ) -> Frames:
        """Make a video of a prompt: uint8 [F, Y, X, 3] at the manifest's frame rate, its size snapped by `snap_shape`.

        Args:
            prompt: what to show; the empty text gives an unconditional sample.
            height_px: rows wanted.
            width_px: columns wanted.
            seconds: duration wanted.
            steps: Euler steps, each one or two passes of the model.
            guidance: 1.0 follows the caption as trained, above 1 exaggerates it, 0.0 ignores it.
            seed: chooses the noise.
        """
        text = encode_prompt(self.manifest, prompt).to(self._device)  # [m, E]
        shape = snap_shape(self.manifest, height_px=height_px, width_px=width_px, seconds=seconds)
        t, h, w = shape.grid
        noise = clip_noise(seed, 0, "sample", t * h * w, self.manifest.token_dim).to(self._device)  # [n, D]
        with products(self._config.precision, self._device):
            velocity = guided_velocity(self._model, text, shape.grid, guidance)
            tokens = euler_sample(velocity, noise, steps=steps, shift=self._config.timestep_shift)  # [n, D]
        latent = unpatchify(tokens.cpu() / self._factors, shape.grid, self.manifest.patch, self.manifest.channels)
        return self._codec.decode(latent)


def sample_video(checkpoint: Path | str, prompt: str, **options: Any) -> Frames:
    """Make one video of a prompt; `VideoSampler` tells the options, and is the better choice for many prompts."""
    return VideoSampler(checkpoint).sample(prompt, **options)


def guided_velocity(model: DiT, text: Tensor, grid: tuple[int, int, int], guidance: float) -> Velocity:
    """Return the guided velocity of one clip under caption features [m, E], for the sampler to follow.

    The clip with its caption and the clip without one go through the model as two segments of one packed sequence.
    """
    if guidance == 1.0:
        return lambda tokens, t: velocities(model, tokens, t, grid, [text])[0]

    def guided(tokens: Tensor, t: float) -> Tensor:
        conditional, unconditional = velocities(model, tokens, t, grid, [text, text[:0]])
        return guide(conditional, unconditional, guidance)

    return guided


def velocities(model: DiT, tokens: Tensor, t: float, grid: tuple[int, int, int], texts: Sequence[Tensor]) -> list[Tensor]:
    """Return the velocity [n, D] of one clip's tokens [n, D] at time t under each of several texts [m, E]."""
    count = len(texts)
    packed: Tensor = model(
        tokens.repeat(count, 1),
        torch.full((count,), t, device=tokens.device),
        torch.arange(count + 1) * tokens.shape[0],
        torch.tensor([grid] * count),
        torch.cat(list(texts)),
        torch.tensor([0, *accumulate(len(text) for text in texts)]),
    )
    return list(packed.chunk(count))


def encode_prompt(manifest: Manifest, prompt: str) -> Tensor:
    """Encode a prompt [m, E] as the captions of the shards were; the empty prompt is no text at all, [0, E]."""
    if not prompt:
        return torch.zeros(0, manifest.text_encoder.width)
    return matching_text_encoder(manifest.text_encoder).encode([prompt])[0].float()


@cache
def matching_text_encoder(facts: TextEncoderFacts) -> TextEncoder:
    """Load the text encoder that made the captions' features, once a process."""
    encoder = load_text_encoder(
        facts.model,
        backend=cast(Backend, facts.backend),
        subfolder=facts.subfolder,
        tokenizer=facts.tokenizer,
        max_tokens=facts.max_tokens,
    )
    _require_same_weights("text encoder", facts.model, facts.weights, encoder.facts.weights)
    return encoder


def matching_codec(manifest: Manifest) -> VideoCodec:
    """Load the codec that made the latents."""
    codec = load_codec(manifest.codec.model, subfolder=manifest.codec.subfolder)
    _require_same_weights("codec", manifest.codec.model, manifest.codec.weights, codec.facts.weights)
    return codec


def _require_same_weights(what: str, model: str, then: str, now: str) -> None:
    if then != now:
        raise ModelError(f"the {what} {model} has other weights ({now}) than the one that made the shards ({then})")


def write_mp4(frames: Frames, fps: float, path: Path | str) -> None:
    """Write uint8 [F, Y, X, 3] as H.264 in yuv420p, which every player opens; odd sides gain a copy of their edge."""
    rows, columns = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)), mode="edge")
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
        for picture in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
