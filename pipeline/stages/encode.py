"""encode: read the frames of a clip at training size and turn them into a latent."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from packing.codec import VideoCodec, load_codec
from packing.geometry import Fit, Patch, fit_frame, legal_frames
from packing.models import model_identity
from pipeline.config import EncodeConfig, RunConfig
from pipeline.decoder import Decoder
from pipeline.protocol import Limits
from pipeline.records import Clip, EncodeResult, Outcome, Source, SplitResult, failed
from pipeline.sources import SourceError
from pipeline.spans import Span
from pipeline.stage import PartitionView, Stage, torch_device
from pipeline.stages.split import decode_limits

# Where decord gives the frames that PyAV gives: elsewhere it misses frames, finds others, or loses depth.
DECORD_CONTAINERS = ("mov", "matroska")
DECORD_CODECS = ("h264", "hevc", "vp9")


@dataclass(frozen=True, kw_only=True)
class ClipToEncode:
    """A clip, the source to read it from, and the presentation time float64 [frames] of every frame of that source."""

    clip: Clip
    source: Source
    split: SplitResult
    times_s: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ReadClip:
    """Frames uint8 [F, Y, X, 3] of a clip at training size, their rate, how they were fitted, and which decoder read them."""

    frames: NDArray[np.uint8]
    fps: float
    fit: Fit
    reader: str


@dataclass(frozen=True, kw_only=True)
class Encode(Stage[ClipToEncode, EncodeResult]):
    """One clip to one normalised latent, alone, so that its bits do not depend on its neighbours."""

    name: ClassVar[str] = "encode"
    version: ClassVar[int] = 2
    reads: ClassVar[tuple[str, ...]] = ("split",)
    value: ClassVar[type[Any]] = EncodeResult
    config: EncodeConfig
    patch: Patch
    limits: Limits
    decode_threads: int

    @classmethod
    def from_config(cls, config: RunConfig) -> "Encode":
        """Make the stage that a run's config describes."""
        return cls(
            chunk=config.encode.chunk,
            config=config.encode,
            patch=config.pack.patch,
            limits=decode_limits(config.split),
            decode_threads=config.split.decode_threads,
        )

    def identity(self) -> Mapping[str, object]:
        """Return the model's weights and what decides size, frames and rounding."""
        c = self.config
        return {
            "weights": model_identity(c.model, c.subfolder),
            "max_pixels": c.max_pixels,
            "fps": c.fps,
            "max_frames": c.max_frames,
            "dtype": c.dtype,
            "patch": list(self.patch),
        }

    def keys(self, view: PartitionView) -> tuple[Sequence[str], set[str]]:
        """Return all clips; those that every rule keeps are encoded."""
        return list(view.clips), set(view.selected(scored=True))

    def inputs(self, view: PartitionView, keys: Sequence[str]) -> Sequence[ClipToEncode]:
        """Return these clips with their sources, the clips of a source together: it is opened once."""
        clips = view.clips
        ordered = sorted((clips[key] for key in keys), key=lambda clip: (clip.source_key, clip.start_s))
        return [self._input(view, clip) for clip in ordered]

    def _input(self, view: PartitionView, clip: Clip) -> ClipToEncode:
        source, split = view.source_of(clip)
        times_s = view.outcomes["split"].tensor(source.key, "times_s").numpy()
        return ClipToEncode(clip=clip, source=source, split=split, times_s=times_s)

    def setup(self) -> None:
        """Load the codec."""
        _ = self._codec

    def process(self, batch: Sequence[ClipToEncode]) -> Iterable[Outcome[EncodeResult]]:
        """Encode clips one at a time."""
        return [self._encode(item) for item in batch]

    def close(self) -> None:
        """End the decoder."""
        self._decoder.close()

    def _encode(self, item: ClipToEncode) -> Outcome[EncodeResult]:
        key = item.clip.clip_id
        try:
            read = self.read(item)
        except ValueError as error:
            return failed(key, "too_small", str(error))
        except SourceError as error:
            return failed(key, error.error, str(error))
        latent = self._codec.encode(read.frames).to(torch.float16)
        if not latent.isfinite().all():
            return failed(key, "not_finite", "the latent has values that fp16 cannot hold")
        channels, t, h, w = latent.shape
        result = EncodeResult(
            fps=read.fps,
            frames=len(read.frames),
            resized=read.fit.resized,
            size=read.fit.size,
            latent_shape=(channels, t, h, w),
            stride=self._codec.stride,
            reader=read.reader,
        )
        return Outcome(key=key, value=result, tensors={"latent": latent})

    def _geometry(self, item: ClipToEncode) -> tuple[Fit, float, list[int]]:
        """Return the training size, the frame rate, and the numbers of the frames to read."""
        stride, clip = self._codec.stride, item.clip
        multiple = stride[1] * self.patch[1], stride[2] * self.patch[2]
        _, _, height, width = clip.crop
        fit = fit_frame(height, width, max_pixels=self.config.max_pixels, multiple=multiple)
        fps = output_fps(clip.fps, self.config.fps)
        wanted = wanted_times(clip, fps)
        count = legal_frames(
            len(wanted),
            stride=stride[0],
            patch=self.patch[0],
            most=self.config.max_frames,
            step=self._codec.frame_step,
        )
        return fit, fps, nearest_frames(item.times_s, clip, wanted[:count])

    def read(self, item: ClipToEncode) -> ReadClip:
        """Read the frames of a clip at training size.

        Raises:
            ValueError: it is too small or too short for one token.
            SourceError: its frames cannot be read.
        """
        fit, fps, numbers = self._geometry(item)
        span = Span(
            numbers=tuple(numbers),
            times_s=tuple(float(item.times_s[number]) for number in numbers),
            frames=item.split.frames,
            shown=(item.clip.height_px, item.clip.width_px),
            crop=item.clip.crop,
            resized=fit.resized,
            size=fit.size,
            reader="decord" if suits_decord(item.split) else "pyav",
            threads=self.decode_threads,
        )
        facts, arrays = self._decoder.run("read_span", item.source, span)
        return ReadClip(frames=arrays["frames"], fps=fps, fit=fit, reader=facts["reader"])

    @cached_property
    def _codec(self) -> VideoCodec:
        c = self.config
        return load_codec(c.model, subfolder=c.subfolder, device=torch_device(c.device), dtype=c.dtype)

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self.limits)


def output_fps(source_fps: float, target_fps: float) -> float:
    """Return the target rate, or its half, quarter … for a source too slow to give it without repeating frames."""
    if source_fps == 0 or source_fps >= 0.9 * target_fps:
        return target_fps
    return target_fps / 2.0 ** math.ceil(math.log2(0.9 * target_fps / source_fps))


def wanted_times(clip: Clip, fps: float) -> list[float]:
    """Return the times at which frames are wanted: every 1/fps seconds from the clip's start on, while inside it."""
    count = max(1, math.ceil(clip.duration_s * fps - 1e-6))
    return [clip.start_s + i / fps for i in range(count)]


def nearest_frames(times_s: NDArray[np.float64], clip: Clip, wanted: Sequence[float]) -> list[int]:
    """Return the number of the clip's frame nearest in presentation time to each wanted time; a tie goes to the earlier."""
    inside = times_s[clip.start_frame : clip.end_frame]
    right = np.searchsorted(inside, np.asarray(wanted)).clip(1, max(1, len(inside) - 1))
    if len(inside) == 1:
        return [clip.start_frame] * len(wanted)
    left = right - 1
    nearer_right = inside[right] - wanted < wanted - inside[left] - 1e-9
    return [clip.start_frame + int(number) for number in np.where(nearer_right, right, left)]


def suits_decord(split: SplitResult) -> bool:
    """Tell whether decord reads this kind of file as PyAV does."""
    eight_bit = not any(depth in split.pixel_format for depth in ("10", "12", "16"))
    return not split.quirks and split.container in DECORD_CONTAINERS and split.codec in DECORD_CODECS and eight_bit
