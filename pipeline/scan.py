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

from pipeline import measures
from pipeline.crop import Box, Lines, cropped, find_box, lines_of, scaled_box
from pipeline.detectors import Detector, detector
from pipeline.media import (
    UPRIGHT,
    Matrix,
    MediaError,
    Picture,
    Reading,
    Scaler,
    check_length,
    check_size,
    display_matrix,
    load_image,
    opened,
    pixel_aspect,
    sniff,
    upright,
)
from pipeline.planes import Bgr, Luma, lines, sampled
from pipeline.transitions import Transition

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
    min_frames: int = 1
    max_frames: int = 1 << 22
    max_duration_s: float = 43_200.0
    partial: str = "reject"
    detector: str = "transitions"


def scan(file: io.BufferedReader, options: ScanOptions) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Find the clips of a source in one decode pass.

    Returns:
        Facts of the source with a list of clips; the sampled frames uint8 [F, Y, X, 3] of clip i under `str(i)`, and the
        presentation time float64 of every frame under `times_s`.

    Raises:
        MediaError: the file is not a usable video or image.
    """
    container = sniff(file.read(4096))
    if container is None:
        raise MediaError("unrecognised", "the first bytes are of no known video or image format")
    file.seek(0)
    source_id = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    file.seek(0)
    facts, frames = _scan_image(file, options) if container == "image" else _scan_video(file, container, options)
    return {"source_id": source_id, "container": container, **facts}, frames


def _scan_image(file: BinaryIO, options: ScanOptions) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    picture = load_image(file, options.max_pixels)
    height, width = picture.shape[:2]
    box = find_box([lines_of(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))], height, width)
    inside = cropped(picture, box)
    clip = {
        "start_s": 0.0,
        "end_s": 0.0,
        "start_frame": 0,
        "end_frame": 1,
        "shot_start_frame": 0,
        "frame_times_s": [0.0],
        "crop": box,
        "measures": measures.of_source([_image_measures(inside)], [0])[0],
    }
    facts = {"codec": "image", "pixel_format": "rgb24", "height_px": height, "width_px": width, "rotation": 0, "quirks": []}
    return {**facts, "fps": 0.0, "frames": 1, "duration_s": 0.0, "clips": [clip]}, {
        "0": _small_image(inside, options.frame_side_px)[None],
        "times_s": np.zeros(1),
    }


def _image_measures(picture: Picture) -> dict[str, float]:
    pictures, moment = _to_measure(picture)[None], np.zeros(1)
    still = measures.View(pictures=pictures, times_s=moment, light=moment, change=moment, before=np.zeros(0), seconds=0.0)
    return measures.of_clip(still)


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """What is held of a frame: a picture for the models and the measures, and lines at full size for the crop box."""

    picture: Picture
    lines: Lines
    size: tuple[int, int]  # of the frame, upright with square pixels


@dataclass
class _Scan:
    """What one pass gathers: time and measures of every frame, and the clips of the shots that have ended.

    Pictures are held of the present shot only, at a pace that slows down as it grows, so memory stays flat with its length.
    """

    options: ScanOptions
    times_s: list[float] = field(default_factory=list)
    meter: measures.Meter = field(default_factory=measures.Meter)
    clips: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[str, NDArray[Any]] = field(default_factory=dict)
    shot_start: int = 0
    held: dict[int, _Sample] = field(default_factory=dict)
    first_pace: int = 1
    pace: int = 1
    previous: Luma | None = None

    def __post_init__(self) -> None:
        options = self.options
        self.detector: Detector = detector(options.detector, options.threshold, options.min_shot_frames)
        self.watched = options.frames_per_clip

    def take(self, time_s: float, luma: Luma, bgr: Bgr, sample: Callable[[], _Sample]) -> None:
        """Take one frame: its time, its small pictures, and what gives its sample for models and measures if it is wanted."""
        number = len(self.times_s)
        self.meter.take(luma, bgr)
        self.times_s.append(time_s)
        self.previous = luma
        for transition in self.detector.take(time_s, bgr):
            self.end_shot(transition)
        # Shots are found seconds late. What may be the first frame of one is held, and some after it, so that a short shot is
        # held whole; not more often than that, because strobe lights stir all the time.
        stirred = self.detector.stirred
        if stirred and number >= self.watched + self.first_pace:
            self.watched = number + self.options.frames_per_clip
        if stirred or number % self.pace == 0 or number < self.watched:
            self.held[number] = sample()
            self._thin_out()

    def end_shot(self, transition: Transition) -> None:
        """Turn the shot that ends where a transition starts into clips, and start the next where it ends."""
        if transition.start > self.shot_start:
            self._add_shot(transition.start, self.times_s[transition.start])
        held = {number: picture for number, picture in self.held.items() if number >= transition.end}
        self.held = held or dict([max(self.held.items())])  # never none: the last shot may be short
        self.shot_start, self.pace = transition.end, self.first_pace

    def finish(self, end_s: float) -> None:
        """End the last shot when all frames were taken."""
        for transition in self.detector.finish():
            self.end_shot(transition)
        if self.shot_start < len(self.times_s) or not self.clips:
            self.shot_start = self.shot_start if self.shot_start < len(self.times_s) else 0
            self._add_shot(len(self.times_s), end_s)

    def _add_shot(self, end_frame: int, end_s: float) -> None:
        times = [*self.times_s[self.shot_start : end_frame], end_s]
        for first, last in divided(times, self.options.max_clip_s):
            self._add_clip(self.shot_start + first, self.shot_start + last, times[first], times[last])

    def _add_clip(self, first: int, last: int, start_s: float, end_s: float) -> None:
        # Slow paces can miss a short piece: its neighbour in the same shot stands for it.
        inside = [n for n in self.held if first <= n < last] or [min(self.held, key=lambda n: abs(n - first))]
        chosen = evenly(inside, self.options.frames_per_clip)
        seen = evenly(inside, measures.PICTURES)
        size = self.held[inside[0]].size
        box = find_box([self.held[number].lines for number in seen], *size)
        pictures = [_small_image(_inside(self.held[number], box), self.options.frame_side_px) for number in chosen]
        self.pictures[str(len(self.clips))] = np.stack(pictures)
        self.clips.append(
            {
                "start_s": start_s,
                "end_s": end_s,
                "start_frame": first,
                "end_frame": last,
                "shot_start_frame": self.shot_start,
                "frame_times_s": [min(max(self.times_s[number], start_s), self.times_s[last - 1]) for number in chosen],
                "crop": box,
                "measures": measures.of_clip(self._view(first, last, end_s - start_s, seen, box)),
            }
        )

    def _view(self, first: int, last: int, seconds: float, seen: list[int], box: Box) -> measures.View:
        height, width = self.held[seen[0]].size
        lit = height * width / (box[2] * box[3])  # bars have no light and do not change: what is inside has all of it
        return measures.View(
            pictures=np.stack([_to_measure(_inside(self.held[number], box)) for number in seen]),
            times_s=np.array([self.times_s[number] for number in seen]),
            light=np.array(self.meter.light[first:last]) * lit,
            change=np.array(self.meter.change[first:last]) * lit,
            before=np.array(self.meter.change[max(0, first - 8) : first]) * lit,
            seconds=seconds,
        )

    def complete_clips(self) -> list[dict[str, Any]]:
        """Return all clips, with the measures that need the whole source."""
        shots = [clip["shot_start_frame"] for clip in self.clips]
        measured = measures.of_source([clip["measures"] for clip in self.clips], shots)
        return [{**clip, "measures": of_clip} for clip, of_clip in zip(self.clips, measured, strict=True)]

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
    reading = Reading(file, container, keep_prefix=options.partial == "keep_prefix")
    with opened(file, container, options.threads, options.max_pixels) as (media, stream):
        check_size(stream.codec_context.height, stream.codec_context.width, options.max_pixels)
        pace = max(1, round((stream.average_rate or 0) / PICTURES_PER_S))
        gathered, quirks, scaler = _Scan(options, first_pace=pace, pace=pace), _Quirks(), Scaler(options.threads)
        shape, end_s, matrix = (0, 0), 0.0, UPRIGHT
        for time_s, frame in reading.frames(media, stream, quirks.note):
            matrix = display_matrix(frame)
            shape = _same_shape(_shown_shape(frame, stream, matrix), shape)
            check_size(*shape, options.max_pixels)
            luma, bgr = sampled(frame, DETECTOR_SIDE) or _scaled_down(
                _small_picture(scaler, frame, shape, matrix, DETECTOR_SIDE)
            )
            gathered.take(time_s, luma, bgr, partial(_sample, scaler, frame, shape, matrix, options.frame_side_px))
            end_s = time_s + _frame_duration(frame, stream)
            check_length(len(gathered.times_s), end_s - gathered.times_s[0], options.max_frames, options.max_duration_s)
        reading.check_whole(stream, len(gathered.times_s))
        odd = reading.quirks(media)
        facts = {"codec": stream.codec_context.name, "pixel_format": stream.codec_context.pix_fmt or ""}
    count, duration_s = len(gathered.times_s), end_s - gathered.times_s[0]
    if count < options.min_frames:
        raise MediaError("too_short", f"{count} frames, where {options.min_frames} is the least")
    gathered.finish(end_s)
    return {
        **facts,
        "quirks": [*quirks.names(matrix), *odd],
        "height_px": shape[0],
        "width_px": shape[1],
        "rotation": _rotation(matrix),
        "fps": count / duration_s,
        "frames": count,
        "duration_s": duration_s,
        "clips": gathered.complete_clips(),
    }, {**gathered.pictures, "times_s": np.array(gathered.times_s)}


def _shown_shape(frame: Any, stream: Any, matrix: Matrix) -> tuple[int, int]:
    """Return the upright size of a frame with square pixels. The aspect is the stream's: PyAV's frames do not tell theirs."""
    height, width = frame.height, max(1, round(frame.width * pixel_aspect(stream)))
    return (height, width) if matrix[0] else (width, height)


def _rotation(matrix: Matrix) -> int:
    """Return how many degrees clockwise a player turns the stored picture, once it is mirrored left to right if it is to be."""
    _, _, c, d = matrix
    return {(0, 1): 0, (-1, 0): 90, (0, -1): 180, (1, 0): 270}[c, d]


def _same_shape(shape: tuple[int, int], before: tuple[int, int]) -> tuple[int, int]:
    if before != (0, 0) and shape != before:
        raise MediaError("shape_change", f"the picture changes from {before[1]}x{before[0]} to {shape[1]}x{shape[0]}")
    return shape


def _frame_duration(frame: Any, stream: Any) -> float:
    if frame.duration:
        return float(frame.duration * frame.time_base)
    return float(1 / stream.average_rate) if stream.average_rate else 0.04


def _sample(scaler: Scaler, frame: Any, shape: tuple[int, int], matrix: Matrix, side: int) -> _Sample:
    """Take of a frame what is held. Measures want pictures of their own size, even where the models want smaller ones."""
    picture = _small_picture(scaler, frame, shape, matrix, max(side, measures.SIDE))
    return _Sample(picture=picture, lines=lines(frame).upright(matrix), size=shape)


def _inside(sample: _Sample, box: Box) -> Picture:
    return cropped(sample.picture, scaled_box(box, sample.size, (sample.picture.shape[0], sample.picture.shape[1])))


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
    if (height, width) == picture.shape[:2]:
        return np.ascontiguousarray(picture)
    resized: Picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return resized


def _to_measure(picture: Picture) -> Picture:
    """Bring a picture to the size that measures are taken at; a ribbon is stretched so far that each has pixels to look at."""
    small = _small_image(picture, measures.SIDE)
    height, width = (max(measures.LEAST_SIDE, side) for side in small.shape[:2])
    stretched: Picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
    return stretched


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
