"""The records that travel through a run, one small frozen dataclass a phase, and how an outcome is told.

Times are seconds of presentation time; intervals are half-open; sizes are upright, with square pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input file as the plan lists it: where it is, and what tells whether it has changed.

    `key` (32 hex) names the listing and not the bytes, which nobody has read yet.
    """

    key: str
    uri: str
    size_bytes: int
    etag: str
    text: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A fixed group of sources: the unit of scheduling, of commit and of resume."""

    id: str
    sources: tuple[Source, ...]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One continuous shot of one source, `[start_s, end_s)`, with its measures and the times of its sampled frames.

    `start_frame` and `end_frame` count the source's frames in presentation order; pieces of one long shot share its
    `shot_start_frame`; `fps` is 0 for a still image. `crop` (top, left, height, width) is the part of the upright frame of
    `height_px` by `width_px` that black bars leave; without bars, all of it.
    """

    clip_id: str
    source_key: str
    source_id: str
    start_s: float
    end_s: float
    start_frame: int
    end_frame: int
    shot_start_frame: int
    height_px: int
    width_px: int
    crop: tuple[int, int, int, int]
    fps: float
    frame_times_s: tuple[float, ...]
    measures: dict[str, float]

    @property
    def duration_s(self) -> float:
        """Length in seconds; 0 for a still image."""
        return self.end_s - self.start_s


@dataclass(frozen=True, kw_only=True)
class SplitResult:
    """What one decode pass found out about a source; the time of every frame is a tensor `times_s` [frames] beside.

    The sampled frames of each clip, uint8 [F, Y, X, 3], are a tensor named by its clip id. `quirks` name what keeps decord from
    reading the file as PyAV does. `rotation` (0, 90, 180, 270) is how many degrees clockwise a player turns the stored picture;
    sizes and sampled frames are those of the turned one.
    """

    source_id: str
    container: str
    codec: str
    pixel_format: str
    height_px: int
    width_px: int
    rotation: int
    fps: float
    frames: int
    duration_s: float
    quirks: tuple[str, ...]
    clips: tuple[Clip, ...]


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    """The numbers that CLIP gives a clip; two tensors lie beside.

    They are its `embedding` [D], and the `signature` uint8 [T, K, K, 3] that copies of it are known by.
    """

    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class CaptionText:
    """One caption as the captioner gave it (`raw_text`) and as it is used (`text`)."""

    prompt: str
    text: str
    raw_text: str
    finish: str
    mean_logprob: float
    tokens: int
    flags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RecaptionResult:
    """The captions of a clip, one a prompt."""

    model: str
    captions: tuple[CaptionText, ...]


@dataclass(frozen=True, kw_only=True)
class EncodeResult:
    """How a clip became a latent; the latent fp16 [C, T, H, W] is a tensor `latent` beside.

    `resized` and `size` are (height, width) before and after the centre crop; `stride` is the codec's; `reader` is the decoder
    that read the frames.
    """

    fps: float
    frames: int
    resized: tuple[int, int]
    size: tuple[int, int]
    latent_shape: tuple[int, int, int, int]
    stride: tuple[int, int, int]
    reader: str


@dataclass(frozen=True, kw_only=True)
class EmbeddedCaption:
    """One caption with as many features as `tokens`; `agreement` is its CLIP similarity to the clip, -1 to 1."""

    prompt: str
    text: str
    model: str
    tokens: int
    agreement: float


@dataclass(frozen=True, kw_only=True)
class EmbedResult:
    """The captions of a clip with features; the features bf16 [m, E] of all, end to end, are a tensor `text` beside."""

    width: int
    captions: tuple[EmbeddedCaption, ...]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a source or clip has no result: a short name of the kind of error, and a message."""

    error: str
    message: str


Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[Value]):
    """What a stage made of one source or clip: a value with its tensors, or a failure. Never both, never neither."""

    key: str
    value: Value | None = None
    failure: Failure | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    attempt: int = 1

    def __post_init__(self) -> None:
        """Refuse an outcome that is neither or both."""
        if (self.value is None) == (self.failure is None):
            raise ValueError(f"outcome {self.key} needs a value or a failure, not both and not neither")

    @property
    def result(self) -> Value:
        """The value of a good outcome; asking it of a failed one is a bug."""
        assert self.value is not None, f"{self.key} has failed: {self.failure}"
        return self.value


def failed(key: str, error: str, message: str) -> Outcome[Value]:
    """Return the outcome of a source or clip that a stage could not process; the message is cut to a readable length."""
    return Outcome(key=key, failure=Failure(error=error, message=message[:500]))
