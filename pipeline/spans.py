"""Read chosen frames of a source at training size.

Runs in the decoder's process. decord reads what it reads as PyAV does; the same frames come out either way, within rounding.

Legend: F Y X frames, rows, columns of pixels; pictures are uint8 RGB.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import cv2
import numpy as np

from pipeline.crop import Box, cropped, scaled_box
from pipeline.media import MediaError, Picture, Scaler, Send, decoded, display_matrix, load_image, opened, sniff, upright


@dataclass(frozen=True, kw_only=True)
class Span:
    """Frames wanted of a source, cut to what lies inside black bars, resized and then centre-cropped to (height, width).

    `crop` (top, left, height, width) counts pixels of an upright frame of `shown` (height, width) with square pixels.
    `numbers` counts frames in presentation order and `times_s` are the presentation times of the same frames, as the scan of
    `frames` frames found them; both ascend, and a frame may be wanted twice.
    """

    numbers: tuple[int, ...]
    times_s: tuple[float, ...]
    frames: int
    shown: tuple[int, int]
    crop: Box
    resized: tuple[int, int]
    size: tuple[int, int]
    reader: str
    threads: int


def read_span(file: BinaryIO, span: Span, send: Send) -> dict[str, Any]:
    """Read chosen frames of a source at training size, and return which `reader` read.

    decord reads when it is asked to and counts as many frames as the scan did; PyAV reads otherwise.

    Args:
        file: the source.
        span: which frames, and at what size.
        send: is given `frames` uint8 [F, Y, X, 3].
    """
    container = sniff(file.read(4096)) or ""
    file.seek(0)
    if container == "image":
        send("frames", _to_training_size(load_image(file, 1 << 40), span)[None])
        return {"reader": "pillow"}
    frames = _decord_span(file, span) if span.reader == "decord" else None
    send("frames", _pyav_span(file, container, span) if frames is None else frames)
    return {"reader": "pyav" if frames is None else "decord"}


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
        with opened(file, container, span.threads) as (media, stream):
            if seek:
                media.seek(int((span.times_s[0] - 1) / stream.time_base), stream=stream)
            found = _found_frames(decoded(media, stream), span, Scaler(span.threads))
        if len(found) == len(set(span.times_s)):
            return np.stack([found[time_s] for time_s in span.times_s])
    raise MediaError("frame_count", f"of {len(set(span.times_s))} frames from {span.times_s[0]:.3f} s on, {len(found)} decode")


def _found_frames(frames: Iterator[tuple[float, Any]], span: Span, scaler: Scaler) -> dict[float, Picture]:
    """Pick the wanted frames out of decoded ones by their exact times."""
    wanted, found = set(span.times_s), {}
    for time_s, frame in frames:
        if time_s in wanted:
            picture = upright(scaler.rgb(frame, frame.height, frame.width), display_matrix(frame))
            found[time_s] = _to_training_size(picture, span)
        if time_s >= span.times_s[-1]:
            break
    return found


def _to_training_size(picture: Picture, span: Span) -> Picture:
    """Cut bars off, resize by area and crop the centre; width and height of `resized` make pixels square."""
    inside = cropped(picture, scaled_box(span.crop, span.shown, (picture.shape[0], picture.shape[1])))
    resized = cv2.resize(inside, span.resized[::-1], interpolation=cv2.INTER_AREA)
    top, left = ((whole - part) // 2 for whole, part in zip(span.resized, span.size, strict=True))
    return cropped(resized, (top, left, *span.size))
