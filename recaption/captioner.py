"""What a captioner is: its input, its output, its errors, and the two plans that every backend shares.

A backend is one file with one class that satisfies `Captioner`. It refuses clips with `frame_problem`, groups
them with `plan_batches`, survives bad ones with `isolate`, and finishes each text with the functions of
`recaption.checks`.

Errors:
    CaptionerError        the captioner cannot work at all: what, where, how to mend it
    CaptionFailure        (a value) one clip has no caption; the others of the call are not touched
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")
Result = TypeVar("Result")


class CaptionerError(Exception):
    """The captioner cannot be loaded, or cannot take video or this prompt; no clip would fare better."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipFrames:
    """The sampled frames of one clip, with their times.

    Attributes:
        clip_id: name of the clip in the results.
        frames: RGB, uint8 `[T, H, W, 3]`. The captioner sees exactly these frames: nothing is sampled again.
        times_s: `[T]` presentation time of each frame after the start of the clip, in seconds, never falling.
        duration_s: length of the clip in seconds, not before the last frame.
    """

    clip_id: str
    frames: npt.NDArray[np.uint8]
    times_s: tuple[float, ...]
    duration_s: float


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question about a clip, and how long the answer may be.

    Attributes:
        id: versioned name such as `short.v1`; captions are stored under it, so a changed text needs a new id.
        text: the user turn, without chat markup.
        max_new_tokens: the answer is cut here and flagged `truncated`.
        repetition_penalty: 1.0 leaves the model alone; about 1.05 breaks greedy loops.

    Raises:
        ValueError: an empty id or text, or a number out of range.
    """

    id: str
    text: str
    max_new_tokens: int
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not self.id.strip() or not self.text.strip():
            raise ValueError(f"prompt {self.id!r}: id and text must not be empty")
        if self.max_new_tokens < 1:
            raise ValueError(f"prompt {self.id!r}: max_new_tokens is below 1: {self.max_new_tokens}")
        if not self.repetition_penalty > 0:
            raise ValueError(f"prompt {self.id!r}: repetition_penalty must be above 0")


@dataclass(frozen=True, kw_only=True)
class Caption:
    """One caption of one clip.

    Attributes:
        clip_id: the clip that was asked about.
        prompt_id: the prompt that was asked.
        text: what to train on, from `clean_caption`.
        raw_text: what the model wrote, leaked control tokens included, without the end token.
        finish: `stop` when the model ended by itself, `length` when it was cut.
        mean_logprob: mean natural log-probability of the answer's tokens, the end token included. Doubt is
            low, but a loop is near zero: use it two-sided.
        tokens: number of answer tokens, the end token included.
        flags: what is wrong with the text, from `caption_flags`; empty when nothing is.
    """

    clip_id: str
    prompt_id: str
    text: str
    raw_text: str
    finish: Literal["stop", "length"]
    mean_logprob: float
    tokens: int
    flags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CaptionFailure:
    """One clip without a caption: `error` is a short kind to count by, `message` one line for a reader."""

    clip_id: str
    prompt_id: str
    error: str
    message: str


class Captioner(Protocol):
    """Anything that describes clips in words."""

    @property
    def model_id(self) -> str:
        """The model and revision as they were asked for; part of the identity of a result."""

    def caption(self, clips: Sequence[ClipFrames], prompt: Prompt) -> list[Caption | CaptionFailure]:
        """Caption every clip: same length, same order, and no exception for one bad clip.

        Same clips in the same order give the same texts. Another order or another selection may change which
        clips share a batch, and below float32 that can change a text.

        Raises:
            CaptionerError: the model cannot take this prompt at all.
        """


def frame_problem(clip: ClipFrames) -> str | None:
    """Say why a clip cannot be shown to a model, or None when it can.

    Float frames are refused because processors divide by 255 whatever the range: frames in [0, 1] turn black
    unseen.
    """
    frames, times_s = clip.frames, clip.times_s
    if frames.dtype != np.uint8:
        return f"frames are {frames.dtype}, must be uint8 in 0..255"
    if frames.ndim != 4 or frames.shape[-1] != 3:
        return f"frames have shape {list(frames.shape)}, must be [T, H, W, 3]"
    if frames.size == 0:
        return f"no pixels: frames have shape {list(frames.shape)}"
    if len(times_s) != len(frames):
        return f"{len(frames)} frames but {len(times_s)} times"
    moments = (0.0, *times_s, clip.duration_s)
    if not all(map(math.isfinite, moments)) or list(moments) != sorted(moments):
        return f"times must be finite and rise from 0 to duration_s: {times_s} in {clip.duration_s}"
    return None


def plan_batches(frame_counts: Mapping[int, int], batch: int) -> list[list[int]]:
    """Group the indices of clips so that a group has one frame count and at most `batch` members.

    Most video models stack the frames of a batch into one tensor, which unequal counts cannot be. The plan
    depends on nothing but its arguments: buckets stand in the order of their first clip, clips in the order
    given.
    """
    buckets: dict[int, list[int]] = {}
    for index, count in frame_counts.items():
        buckets.setdefault(count, []).append(index)
    return [bucket[at : at + batch] for bucket in buckets.values() for at in range(0, len(bucket), batch)]


def isolate(
    run: Callable[[Sequence[Item]], Sequence[Result]],
    items: Sequence[Item],
    *,
    fatal: tuple[type[Exception], ...],
) -> list[Result | Exception]:
    """Run a batch; when it raises, halve it until each bad item is alone; return its exception in its place.

    One bad item among n costs about 2 log2(n) extra runs. Running out of memory is halved away in the same
    manner. Exceptions of the `fatal` types are not about an item and propagate.
    """
    if not items:
        return []
    try:
        return list(run(items))
    except fatal:
        raise
    except Exception as error:
        if len(items) == 1:
            return [error.with_traceback(None)]
    # Outside the handler: there the exception's frames would still hold the failed batch's tensors.
    half = len(items) // 2
    return [*isolate(run, items[:half], fatal=fatal), *isolate(run, items[half:], fatal=fatal)]
