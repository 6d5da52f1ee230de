"""Decode untrusted files: what runs inside the decoder's process and nowhere else. Imports no torch and nothing that does.

One pass over a video finds its cuts, takes its measures and keeps sampled frames for the models. The container is sniffed from
the first bytes and its demuxer pinned, so a playlist or a demuxer's script is never followed. Header counts are not believed,
frames are counted. Times are presentation times of the file. Pictures are turned upright with square pixels.

Legend: F Y X frames, rows, columns of pixels; pictures are uint8 RGB.
"""

import hashlib
import io
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any, BinaryIO

import av
import av.error
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scenedetect import AdaptiveDetector, FrameTimecode

from pipeline import measures

Picture = NDArray[np.uint8]  # [Y, X, 3]
DETECTOR_SIDE = 144  # the short side that cuts and measures are taken at
IMAGES = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
ATTACHED_PICTURE = 0x0400


class MediaError(Exception):
    """A file is not usable; `error` is the short name of the reason."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


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


@dataclass(frozen=True, kw_only=True)
class Span:
    """Frames wanted of a source, resized and then centre-cropped to (height, width).

    `numbers` counts frames in presentation order and `times_s` are the presentation times of the same frames, as the scan of
    `frames` frames found them; both ascend, and a frame may be wanted twice.
    """

    numbers: tuple[int, ...]
    times_s: tuple[float, ...]
    frames: int
    resized: tuple[int, int]
    size: tuple[int, int]
    reader: str
    threads: int


# ---- what kind of file it is -------------------------------------------------------------------------------------------


def sniff(head: bytes) -> str | None:
    """Name the demuxer for a file that begins with `head`, or "image", or None for anything not on the list."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"):
        return "mov"
    for start, name in [(b"\x1aE\xdf\xa3", "matroska"), (b"FLV\x01", "flv"), (b"OggS", "ogg"), (b"\x00\x00\x01\xba", "mpeg")]:
        if head.startswith(start):
            return name
    if head[:4] == b"RIFF":
        return {b"AVI ": "avi", b"WEBP": "image"}.get(head[8:12])
    if head[:16] == bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"):
        return "asf"
    if head[:1] == b"G" and head[188:189] == b"G" and head[376:377] == b"G":
        return "mpegts"
    images = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
    return "image" if head.startswith(images) else None


# ---- the scan: one pass over a source ----------------------------------------------------------------------------------


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
    picture = _load_image(file, options.max_pixels)
    small = _fit(picture, options.frame_side_px)
    luma = cv2.cvtColor(_fit(picture, DETECTOR_SIDE), cv2.COLOR_RGB2GRAY)
    clip = {
        "start_s": 0.0,
        "end_s": 0.0,
        "start_frame": 0,
        "end_frame": 1,
        "frame_times_s": [0.0],
        "measures": measures.of_clip([measures.of_frame(luma, luma)]),
    }
    height, width = picture.shape[:2]
    facts = {"codec": "image", "pixel_format": "rgb24", "height_px": height, "width_px": width}
    return {**facts, "fps": 0.0, "frames": 1, "duration_s": 0.0, "clips": [clip]}, {"0": small[None], "times_s": np.zeros(1)}


def _load_image(file: BinaryIO, max_pixels: int) -> Picture:
    try:
        with Image.open(file, formats=IMAGES) as image:
            if image.width * image.height > max_pixels:
                raise MediaError("too_large", f"{image.width}x{image.height} is over {max_pixels} pixels")
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError("corrupt", f"not a readable image: {error}") from error
    return np.asarray(upright)


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
    pace: int = 1
    previous: measures.Luma | None = None

    def __post_init__(self) -> None:
        self.detector = AdaptiveDetector(adaptive_threshold=self.options.threshold, min_scene_len=self.options.min_shot_frames)

    def take(self, time_s: float, picture: Callable[[int], Picture]) -> None:
        """Take one frame; `picture(side)` gives it upright with a short side of at most `side` pixels."""
        number = len(self.times_s)
        small = picture(DETECTOR_SIDE)
        luma = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        self.values.append(measures.of_frame(luma if self.previous is None else self.previous, luma))
        self.times_s.append(time_s)
        self.previous = luma
        for cut in self._cut_frames(number, small):
            self.end_shot(cut, self.times_s[cut])
        if number % self.pace == 0:
            self.held[number] = picture(self.options.frame_side_px)
            self._thin_out()

    def end_shot(self, end_frame: int, end_s: float) -> None:
        """Turn the shot that ends before `end_frame` into clips, and start the next."""
        times = [*self.times_s[self.shot_start : end_frame], end_s]
        for first, last in divided(times, self.options.max_clip_s):
            self._add_clip(self.shot_start + first, self.shot_start + last, times[first], times[last])
        self.held = {number: picture for number, picture in self.held.items() if number >= end_frame}
        self.shot_start, self.pace = end_frame, 1

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
                "frame_times_s": [self.times_s[number] for number in chosen],
                "measures": measures.of_clip(self.values[first:last]),
            }
        )

    def _cut_frames(self, number: int, small: Picture) -> list[int]:
        # The detector counts frames; the rate given here only labels them. Times come from the file.
        bgr = np.ascontiguousarray(small[..., ::-1])
        return [cut.frame_num for cut in self.detector.process_frame(FrameTimecode(number, 25.0), bgr)]

    def _thin_out(self) -> None:
        if len(self.held) > 64 * self.options.frames_per_clip:
            self.pace *= 2
            self.held = {number: picture for number, picture in self.held.items() if number % self.pace == 0}


def _scan_video(file: BinaryIO, container: str, options: ScanOptions) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    with _open(file, container) as media:
        stream = _video_stream(media, options)
        gathered = _Scan(options)
        shape: tuple[int, int] | None = None
        end_s = 0.0
        for time_s, frame in _frames(media, stream):
            shape = _checked_shape(frame, shape, options.max_pixels)
            gathered.take(time_s, partial(_picture, frame, shape))
            end_s = time_s + _frame_duration(frame, stream)
        if shape is None:
            raise MediaError("frame_count", "the file opens as a video and holds no frame that decodes")
        _check_whole(file, container, stream.frames, len(gathered.times_s))
        facts = {
            "codec": stream.codec_context.name,
            "pixel_format": stream.codec_context.pix_fmt or "",
            "height_px": shape[0],
            "width_px": shape[1],
        }
    count, duration_s = len(gathered.times_s), end_s - gathered.times_s[0]
    gathered.end_shot(count, end_s)
    facts |= {"fps": count / duration_s, "frames": count, "duration_s": duration_s, "clips": gathered.clips}
    return facts, {**gathered.pictures, "times_s": np.array(gathered.times_s)}


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
    """Choose at most `most` of `numbers`, evenly spaced, the first and the last among them."""
    picks = np.linspace(0, len(numbers) - 1, min(len(numbers), most)).round().astype(int)
    return [numbers[i] for i in picks]


# ---- a span: the frames of one clip at training size -------------------------------------------------------------------


def read_span(file: BinaryIO, span: Span) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read chosen frames of a source at training size.

    decord reads when it is asked to and counts as many frames as the scan did; PyAV reads otherwise.

    Returns:
        Which `reader` read, and `frames` uint8 [F, Y, X, 3].
    """
    container = sniff(file.read(4096)) or ""
    file.seek(0)
    if container == "image":
        picture = _load_image(file, 1 << 40)
        return {"reader": "pillow"}, {"frames": _to_training_size(picture, span)[None]}
    if span.reader == "decord" and (frames := _decord_span(file, span)) is not None:
        return {"reader": "decord"}, {"frames": frames}
    return {"reader": "pyav"}, {"frames": _pyav_span(file, container, span)}


def _decord_span(file: BinaryIO, span: Span) -> Picture | None:
    """Read with decord, or tell with None that this file is one for PyAV."""
    try:
        import decord

        reader = decord.VideoReader(f"/proc/self/fd/{file.fileno()}", num_threads=span.threads)
        if len(reader) != span.frames:
            return None
        return np.stack([_to_training_size(reader[number].asnumpy(), span) for number in span.numbers])
    except Exception:  # decord raises many kinds for one thing: it cannot read this file
        return None


def _pyav_span(file: BinaryIO, container: str, span: Span) -> Picture:
    for seek in (True, False) if span.times_s[0] > 2 else (False,):  # near the start, a seek costs more than it saves
        file.seek(0)
        with _open(file, container) as media:
            stream = _video_stream(media, None)
            stream.codec_context.thread_count = span.threads
            if seek:
                media.seek(int((span.times_s[0] - 1) / stream.time_base), stream=stream)
            found = _found_frames(_frames(media, stream), span)
        if len(found) == len(set(span.times_s)):
            return np.stack([found[time_s] for time_s in span.times_s])
    raise MediaError("frame_count", f"of {len(set(span.times_s))} frames from {span.times_s[0]:.3f} s on, {len(found)} decode")


def _found_frames(frames: Iterator[tuple[float, Any]], span: Span) -> dict[float, Picture]:
    """Pick the wanted frames out of decoded ones by their exact times."""
    wanted, found = set(span.times_s), {}
    for time_s, frame in frames:
        if time_s in wanted:
            found[time_s] = _to_training_size(frame.to_ndarray(format="rgb24"), span, frame.rotation)
        if time_s >= span.times_s[-1]:
            break
    return found


def _to_training_size(picture: Picture, span: Span, rotation: int = 0) -> Picture:
    """Turn upright, resize by area and crop the centre; width and height of `resized` already make pixels square."""
    upright = np.rot90(picture, rotation // 90 % 4) if rotation else picture
    resized: Picture = cv2.resize(np.ascontiguousarray(upright), span.resized[::-1], interpolation=cv2.INTER_AREA)
    top, left = ((whole - part) // 2 for whole, part in zip(span.resized, span.size, strict=True))
    return resized[top : top + span.size[0], left : left + span.size[1]]


# ---- decoding ----------------------------------------------------------------------------------------------------------


def _open(file: BinaryIO, container: str) -> Any:
    try:
        return av.open(io.BufferedReader(_Nameless(file)), mode="r", format=container)
    except (av.error.FFmpegError, ValueError) as error:
        kind = "truncated" if container == "mov" and "moov" not in top_boxes(file)[0] else "corrupt"
        raise MediaError(kind, f"does not open as {container}: {error}") from error


class _Nameless(io.RawIOBase):
    """A file without a name, so that no demuxer can look for neighbours of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = os.fdopen(os.dup(file.fileno()), "rb", buffering=0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int | None:
        return self._file.readinto(buffer)


def top_boxes(file: BinaryIO) -> tuple[list[str], bool]:
    """List the top-level boxes of an mp4 or mov file, and tell whether the last one runs past the end of the file."""
    size, at, names = file.seek(0, os.SEEK_END), 0, list[str]()
    while at + 8 <= size and len(names) < 10_000:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:16], "big") if length == 1 else length or size - at  # 1: 64 bits; 0: to the end
        names.append(head[4:8].decode("latin-1"))
        at += max(8, length)
    return names, at > size


def _check_whole(file: BinaryIO, container: str, promised: int, decoded: int) -> None:
    """Refuse a file that has been cut off: boxes beyond its end, and fewer frames than it promises."""
    if container == "mov" and decoded < promised and top_boxes(file)[1]:
        raise MediaError("truncated", f"the file ends early: {decoded} of {promised} frames decode")


def _video_stream(media: Any, options: ScanOptions | None) -> Any:
    streams = list(media.streams.video)
    moving = [s for s in streams if not int(s.disposition) & ATTACHED_PICTURE]
    if not moving:
        kind = "attached_picture" if streams else "no_video"
        raise MediaError(kind, "the file has only a cover picture" if streams else "the file has no video stream")
    stream = moving[0]
    if stream.codec_context is None:
        raise MediaError("unsupported", "no decoder for this codec")
    if options:
        stream.codec_context.thread_count = options.threads
        _check_size(stream.codec_context.height, stream.codec_context.width, options.max_pixels)
    return stream


def _frames(media: Any, stream: Any) -> Iterator[tuple[float, Any]]:
    """Decode frame by frame with presentation times in seconds, strictly increasing."""
    last = None
    try:
        for frame in media.decode(stream):
            if frame.pts is None or (last is not None and frame.pts <= last):
                raise MediaError("time_base", f"frame times do not increase: {frame.pts} after {last}")
            last = frame.pts
            yield float(frame.pts * frame.time_base), frame
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError("corrupt", f"decoding stops with an error: {error}") from error


def _checked_shape(frame: Any, known: tuple[int, int] | None, max_pixels: int) -> tuple[int, int]:
    """Return the upright size of a frame with square pixels; it must be that of the frames before."""
    aspect = frame.sample_aspect_ratio if hasattr(frame, "sample_aspect_ratio") else None
    height, width = frame.height, round(frame.width * float(aspect or Fraction(1)))
    _check_size(height, width, max_pixels)
    shape = (width, height) if frame.rotation % 180 else (height, width)
    if known and shape != known:
        raise MediaError("shape_change", f"the picture changes from {known[1]}x{known[0]} to {shape[1]}x{shape[0]}")
    return shape


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise MediaError("too_large", f"{width}x{height} is over {max_pixels} pixels")


def _picture(frame: Any, shape: tuple[int, int], side: int) -> Picture:
    """Scale a frame down, upright with square pixels, to a short side of at most `side` pixels."""
    height, width = _fitted(shape, side)
    turned = frame.rotation % 180 != 0
    columns, rows = (height, width) if turned else (width, height)
    small = frame.to_ndarray(width=columns, height=rows, format="rgb24", interpolation="AREA")
    return np.ascontiguousarray(np.rot90(small, frame.rotation // 90 % 4)) if frame.rotation else small


def _fit(picture: Picture, side: int) -> Picture:
    height, width = _fitted((picture.shape[0], picture.shape[1]), side)
    resized: Picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return resized


def _fitted(shape: tuple[int, int], side: int) -> tuple[int, int]:
    scale = min(1.0, side / min(shape))
    # Ribbons keep at least a pixel of height; sizes are even because some scalers want it.
    return max(2, round(shape[0] * scale / 2) * 2), max(2, round(shape[1] * scale / 2) * 2)


def _frame_duration(frame: Any, stream: Any) -> float:
    if frame.duration:
        return float(frame.duration * frame.time_base)
    return float(1 / stream.average_rate) if stream.average_rate else 0.04
