"""Scan a source: one decode pass finds its cuts, takes its measures and keeps sampled frames for the models.

Runs in the decoder's process. Header counts are not believed, frames are counted. Memory holds the pictures of one shot.

Legend: F Y X frames, rows, columns of pixels; pictures are uint8 RGB.
"""

import hashlib
import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from scenedetect import AdaptiveDetector, FrameTimecode

from pipeline import measures
from pipeline.media import (
    UPRIGHT,
    Matrix,
    MediaError,
    Picture,
    Scaler,
    check_size,
    decoded,
    display_matrix,
    load_image,
    opened,
    sniff,
    top_boxes,
    upright,
)
from pipeline.planes import Bgr, Luma, sampled

DETECTOR_SIDE = 72  # the short side, about, that cuts and measures are taken at
PICTURES_PER_S = 4  # held for the models: scaling a picture costs more than decoding it


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """How a source is cut and what is kept of it."""

    threshold: float
    min_shot_frames: int
    max_clip_s: float
    frames_per_clip: int
    frame_side_px: int
    max_pixels: int
    threads: int


def scan(file: io.BufferedReader, options: ScanOptions) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Find the clips of a source in one decode pass.

    Returns:
        Facts of the source with a list of clips; the sampled frames uint8 [F, Y, X, 3] of clip i under `str(i)`, and the
        presentation time float64 of every frame under `times_s`.

    Raises:
        MediaError: the file is not a usable video or image.
    """
    source_id = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    file.seek(0)
    container = sniff(file.read(4096))
    file.seek(0)
    if container is None:
        raise MediaError("unrecognised", "the first bytes are of no known video or image format")
    facts, frames = _scan_image(file, options) if container == "image" else _scan_video(file, container, options)
    return {"source_id": source_id, "container": container, **facts}, frames


def _scan_image(file: BinaryIO, options: ScanOptions) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    picture = load_image(file, options.max_pixels)
    small = _small_image(picture, options.frame_side_px)
    luma, _ = _scaled_down(_small_image(picture, DETECTOR_SIDE))
    clip = {
        "start_s": 0.0,
        "end_s": 0.0,
        "start_frame": 0,
        "end_frame": 1,
        "frame_times_s": [0.0],
        "measures": measures.of_clip([measures.of_frame(luma, luma)]),
    }
    height, width = picture.shape[:2]
    facts = {"codec": "image", "pixel_format": "rgb24", "height_px": height, "width_px": width, "quirks": []}
    return {**facts, "fps": 0.0, "frames": 1, "duration_s": 0.0, "clips": [clip]}, {"0": small[None], "times_s": np.zeros(1)}


@dataclass
class _Scan:
    """What one pass gathers: time and measures of every frame, and the clips of the shots that have ended.

    Pictures are held of the present shot only, at a pace that slows down as it grows, so memory stays flat with its length.
    """

    options: ScanOptions
    times_s: list[float] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    clips: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, NDArray[Any]] = field(default_factory=dict)
    shot_start: int = 0
    held: dict[int, Picture] = field(default_factory=dict)
    first_pace: int = 1
    pace: int = 1
    previous: Luma | None = None

    def __post_init__(self) -> None:
        self.detector = AdaptiveDetector(adaptive_threshold=self.options.threshold, min_scene_len=self.options.min_shot_frames)

    def take(self, time_s: float, luma: Luma, bgr: Bgr, picture: Callable[[], Picture]) -> None:
        """Take one frame: its time, its small pictures, and what gives its picture for the models if it is wanted."""
        number = len(self.times_s)
        self.values.append(measures.of_frame(luma if self.previous is None else self.previous, luma))
        self.times_s.append(time_s)
        self.previous = luma
        # The detector counts frames; the rate given here only labels them. Times come from the file.
        cuts = self.detector.process_frame(FrameTimecode(number, 25.0), bgr)
        for cut in cuts:
            self.end_shot(cut.frame_num, self.times_s[cut.frame_num])
        # A short shot is held whole. A cut is seen two frames late: the first picture held is one of the shot's first three.
        if cuts or number % self.pace == 0 or number - self.shot_start < self.options.frames_per_clip:
            self.held[number] = picture()
            self._thin_out()

    def end_shot(self, end_frame: int, end_s: float) -> None:
        """Turn the shot that ends before `end_frame` into clips, and start the next."""
        times = [*self.times_s[self.shot_start : end_frame], end_s]
        for first, last in divided(times, self.options.max_clip_s):
            self._add_clip(self.shot_start + first, self.shot_start + last, times[first], times[last])
        self.held = {number: picture for number, picture in self.held.items() if number >= end_frame}
        self.shot_start, self.pace = end_frame, self.first_pace

    def _add_clip(self, first: int, last: int, start_s: float, end_s: float) -> None:
        # Slow paces can miss a short piece: its neighbour in the same shot stands for it.
        inside = [n for n in self.held if first <= n < last] or [min(self.held, key=lambda n: abs(n - first))]
        chosen = evenly(inside, self.options.frames_per_clip)
        self.pictures[str(len(self.clips))] = np.stack([self.held[number] for number in chosen])
        self.clips.append(
            {
                "start_s": start_s,
                "end_s": end_s,
                "start_frame": first,
                "end_frame": last,
                "frame_times_s": [min(max(self.times_s[number], start_s), self.times_s[last - 1]) for number in chosen],
                "measures": measures.of_clip(self.values[first:last]),
            }
        )

    def _thin_out(self) -> None:
        if len(self.held) > 64 * self.options.frames_per_clip:
            self.pace *= 2
            first, *others = self.held
            self.held = {number: self.held[number] for number in (first, *(n for n in others if n % self.pace == 0))}


@dataclass
class _Quirks:
    """Notes, packet by packet, what keeps other readers from finding a frame again.

    In an open group of pictures a packet after a key frame is shown before it: a decoder that starts there drops it.
    """

    open_groups: bool = False
    key_pts: int | None = None

    def note(self, packet: Any) -> None:
        """Look at one packet, in the order of the file."""
        if packet.pts is None:
            return
        if packet.is_keyframe:
            self.key_pts = packet.pts
        elif self.key_pts is not None and packet.pts < self.key_pts:
            self.open_groups = True

    def names(self, matrix: Matrix) -> list[str]:
        """Name the quirks of a source whose frames are shown by `matrix`."""
        a, b, c, d = matrix
        mirrored = a * d - b * c < 0
        return [name for name, holds in [("open_groups", self.open_groups), ("mirrored", mirrored)] if holds]


def _scan_video(file: BinaryIO, container: str, options: ScanOptions) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    with opened(file, container, options.threads) as (media, stream):
        check_size(stream.codec_context.height, stream.codec_context.width, options.max_pixels)
        pace = max(1, round((stream.average_rate or 0) / PICTURES_PER_S))
        gathered, quirks, scaler = _Scan(options, first_pace=pace, pace=pace), _Quirks(), Scaler(options.threads)
        shape, end_s, matrix = (0, 0), 0.0, UPRIGHT
        for time_s, frame in decoded(media, stream, quirks.note):
            matrix = display_matrix(frame)
            shape = _same_shape(_shown_shape(frame, stream, matrix), shape)
            check_size(*shape, options.max_pixels)
            picture = partial(_small_picture, scaler, frame, shape, matrix)
            luma, bgr = sampled(frame, DETECTOR_SIDE) or _scaled_down(picture(DETECTOR_SIDE))
            gathered.take(time_s, luma, bgr, partial(picture, options.frame_side_px))
            end_s = time_s + _frame_duration(frame, stream)
        _check_whole(file, container, stream.frames, len(gathered.times_s))
        facts = {"codec": stream.codec_context.name, "pixel_format": stream.codec_context.pix_fmt or ""}
    count, duration_s = len(gathered.times_s), end_s - gathered.times_s[0]
    gathered.end_shot(count, end_s)
    return {
        **facts,
        "quirks": quirks.names(matrix),
        "height_px": shape[0],
        "width_px": shape[1],
        "fps": count / duration_s,
        "frames": count,
        "duration_s": duration_s,
        "clips": gathered.clips,
    }, {**gathered.pictures, "times_s": np.array(gathered.times_s)}


def _check_whole(file: BinaryIO, container: str, promised: int, count: int) -> None:
    """Refuse a file without frames, and one that was cut off: boxes beyond its end, and fewer frames than it promises."""
    if not count:
        raise MediaError("frame_count", "the file opens as a video and holds no frame that decodes")
    if container == "mov" and count < promised and top_boxes(file)[1]:
        raise MediaError("truncated", f"the file ends early: {count} of {promised} frames decode")


def _shown_shape(frame: Any, stream: Any, matrix: Matrix) -> tuple[int, int]:
    """Return the upright size of a frame with square pixels. The aspect is the stream's: PyAV's frames do not tell theirs."""
    height, width = frame.height, max(1, round(frame.width * float(stream.sample_aspect_ratio or 1)))
    return (height, width) if matrix[0] else (width, height)


def _same_shape(shape: tuple[int, int], before: tuple[int, int]) -> tuple[int, int]:
    if before != (0, 0) and shape != before:
        raise MediaError("shape_change", f"the picture changes from {before[1]}x{before[0]} to {shape[1]}x{shape[0]}")
    return shape


def _frame_duration(frame: Any, stream: Any) -> float:
    if frame.duration:
        return float(frame.duration * frame.time_base)
    return float(1 / stream.average_rate) if stream.average_rate else 0.04


def _small_picture(scaler: Scaler, frame: Any, shape: tuple[int, int], matrix: Matrix, side: int) -> Picture:
    """Scale a frame down, upright with square pixels, to a short side of at most `side` pixels."""
    height, width = _fitted(shape, side)
    columns, rows = (width, height) if matrix[0] else (height, width)
    return upright(scaler.rgb(frame, rows, columns), matrix)


def _scaled_down(picture: Picture) -> tuple[Luma, Bgr]:
    """Return luma and BGR of a small RGB picture; for formats whose planes cannot be sampled."""
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)


def _small_image(picture: Picture, side: int) -> Picture:
    height, width = _fitted((picture.shape[0], picture.shape[1]), side)
    resized: Picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return resized


def _fitted(shape: tuple[int, int], side: int) -> tuple[int, int]:
    scale = min(1.0, side / min(shape))
    # Ribbons keep at least a pixel of height; sizes are even because some scalers want it.
    return max(2, round(shape[0] * scale / 2) * 2), max(2, round(shape[1] * scale / 2) * 2)


def divided(times: list[float], max_clip_s: float) -> Iterator[tuple[int, int]]:
    """Divide a shot evenly so that no piece is longer than the maximum.

    Args:
        times: the time of each frame of the shot, and the time at which it ends.
        max_clip_s: the longest piece in seconds.

    Yields:
        First frame and end frame of each piece, counted from the shot's first.
    """
    pieces = max(1, int(np.ceil((times[-1] - times[0]) / max_clip_s - 1e-9)))
    targets = np.linspace(times[0], times[-1], pieces + 1)[1:-1]
    borders = {0, *(int(np.searchsorted(times[:-1], target)) for target in targets), len(times) - 1}
    yield from itertools.pairwise(sorted(borders))


def evenly(numbers: list[int], most: int) -> list[int]:
    """Choose at most `most` of ascending frame numbers, spread as evenly as they allow, the first and the last among them."""
    targets = np.linspace(numbers[0], numbers[-1], min(len(numbers), most))
    nearest = np.abs(np.asarray(numbers)[:, None] - targets).argmin(axis=0)
    return sorted({numbers[i] for i in nearest})
