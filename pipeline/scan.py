"""Scan a source: one decode pass finds its cuts, takes its measures and keeps sampled frames for the models.

Runs in the decoder's process. Header counts are not believed, frames are counted. Memory stays flat however long the source is.
"""

import hashlib
import io
from dataclasses import dataclass
from typing import Any, BinaryIO

import cv2
import numpy as np

from pipeline import measures
from pipeline.crop import cropped, find_box, lines_of
from pipeline.detectors import detector
from pipeline.media import (
    UPRIGHT,
    Matrix,
    MediaError,
    Picture,
    Reading,
    Scaler,
    Send,
    check_length,
    check_size,
    display_matrix,
    load_image,
    opened,
    pixel_aspect,
    sniff,
)
from pipeline.planes import fitted, planes_of, shrunk
from pipeline.shots import Shots

PICTURES_PER_S = 8  # frames that are held for the models at the beginning of a shot; later half of them, and less


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
    weights: str = ""  # of the detector, if it is a network: a file, and the sha256 of its bytes
    weights_sha256: str = ""


def scan(file: io.BufferedReader, options: ScanOptions, send: Send) -> dict[str, Any]:
    """Find the clips of a source in one decode pass, and return facts of the source with a list of them.

    Args:
        file: the source.
        options: how to cut, and what to keep.
        send: is given the sampled frames uint8 [F, Y, X, 3] of clip i under `str(i)`, in order, as the clips end, and last the
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
    facts = _scan_image(file, options, send) if container == "image" else _scan_video(file, container, options, send)
    return {"source_id": source_id, "container": container, **facts}


def _scan_image(file: BinaryIO, options: ScanOptions, send: Send) -> dict[str, Any]:
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
        "measures": measures.of_source([measures.of_clip(_still_view(inside))], [0])[0],
    }
    send("0", shrunk(inside, *fitted(inside.shape[:2], options.frame_side_px))[None])
    send("times_s", np.zeros(1))
    facts = {"codec": "image", "pixel_format": "rgb24", "height_px": height, "width_px": width, "rotation": 0, "quirks": []}
    return {**facts, "fps": 0.0, "frames": 1, "duration_s": 0.0, "clips": [clip]}


def _still_view(picture: Picture) -> measures.View:
    height, width = (max(measures.LEAST_SIDE, side) for side in fitted(picture.shape[:2], measures.SIDE))
    pictures, moment = shrunk(picture, height, width)[None], np.zeros(1)
    return measures.View(
        pictures=pictures, cells=pictures, times_s=moment, light=moment, change=moment, before=np.zeros(0), seconds=0.0
    )


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


def _scan_video(file: BinaryIO, container: str, options: ScanOptions, send: Send) -> dict[str, Any]:
    reading = Reading(file, container, keep_prefix=options.partial == "keep_prefix")
    with opened(file, container, options.threads, options.max_pixels, rough=True) as (media, stream):
        check_size(stream.codec_context.height, stream.codec_context.width, options.max_pixels)
        shots, quirks, scaler = _shots(stream, options, send), _Quirks(), Scaler(options.threads)
        form, shape, matrix, end_s, usual_s = None, (0, 0), UPRIGHT, 0.0, _usual_duration(stream)
        seconds, ticks = stream.time_base.as_integer_ratio()
        for time_s, frame in reading.frames(media, stream, quirks.note):
            # What tells the shape costs more to read than to sample a frame; these three change where it does.
            if (frame.height, frame.width, frame.rotation) != form:
                form, matrix = (frame.height, frame.width, frame.rotation), display_matrix(frame)
                shape = _same_shape(_shown_shape(frame, stream, matrix), shape)
                check_size(*shape, options.max_pixels)
            shots.take(time_s, planes_of(frame, scaler), shape, matrix)
            end_s = time_s + (frame.duration * seconds / ticks if frame.duration else usual_s)
            check_length(len(shots.times_s), end_s - shots.times_s[0], options.max_frames, options.max_duration_s)
        reading.check_whole(stream, len(shots.times_s))
        odd = reading.quirks(media)
        facts = {"codec": stream.codec_context.name, "pixel_format": stream.codec_context.pix_fmt or ""}
    count, duration_s = len(shots.times_s), end_s - shots.times_s[0]
    if count < options.min_frames:
        raise MediaError("too_short", f"{count} frames, where {options.min_frames} is the least")
    shots.finish(end_s)
    send("times_s", np.array(shots.times_s))
    return {
        **facts,
        "quirks": [*quirks.names(matrix), *odd],
        "height_px": shape[0],
        "width_px": shape[1],
        "rotation": _rotation(matrix),
        "fps": count / duration_s,
        "frames": count,
        "duration_s": duration_s,
        "clips": shots.complete_clips(),
    }


def _shots(stream: Any, options: ScanOptions, send: Send) -> Shots:
    weights = options.weights, options.weights_sha256
    return Shots(
        detector=detector(options.detector, options.threshold, options.min_shot_frames, *weights),
        send=send,
        pictures_per_clip=options.frames_per_clip,
        side_px=options.frame_side_px,
        max_clip_s=options.max_clip_s,
        first_pace=max(1, round(float(stream.average_rate or 0) / PICTURES_PER_S)),
    )


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


def _usual_duration(stream: Any) -> float:
    """Return how long a frame is shown that does not say it."""
    return 1 / float(stream.average_rate) if stream.average_rate else 0.04
