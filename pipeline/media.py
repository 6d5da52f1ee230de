"""Open and decode untrusted media files: what the scan and the reading of frames share.

Runs in the decoder's process and nowhere else; imports no torch and nothing that does. The container is sniffed from the first
bytes and its demuxer pinned, so a playlist or a demuxer's script is never followed. Times are presentation times of the file.
Pictures are turned upright with square pixels in one place.

Legend: Y X rows and columns of pixels; pictures are uint8 RGB.
"""

import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import av
import av.error
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageOps

Picture = NDArray[np.uint8]  # [Y, X, 3]
Matrix = tuple[int, int, int, int]  # signs (a, b, c, d) of a display matrix: x' = ax + cy, y' = bx + dy
UPRIGHT: Matrix = (1, 0, 0, 1)
IMAGES = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
ATTACHED_PICTURE = 0x0400


class MediaError(Exception):
    """A file is not usable; `error` is the short name of the reason."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


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


def load_image(file: BinaryIO, max_pixels: int) -> Picture:
    """Load a still picture, upright.

    Raises:
        MediaError: it has too many pixels, or is no readable picture.
    """
    try:
        with Image.open(file, formats=IMAGES) as image:
            check_size(image.height, image.width, max_pixels)
            shown = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError("corrupt", f"not a readable image: {error}") from error
    return np.asarray(shown)


@contextlib.contextmanager
def opened(file: BinaryIO, container: str, threads: int) -> Iterator[tuple[Any, Any]]:
    """Open a video with a pinned demuxer and give its container and its first moving video stream.

    Raises:
        MediaError: it does not open, or has no video, only a cover picture, or no decoder.
    """
    try:
        media = av.open(io.BufferedReader(_Nameless(file)), mode="r", format=container)
    except (av.error.FFmpegError, ValueError) as error:
        kind = "truncated" if container == "mov" and "moov" not in top_boxes(file)[0] else "corrupt"
        raise MediaError(kind, f"does not open as {container}: {error}") from error
    with media:
        stream = _moving_stream(media)
        stream.codec_context.thread_count = threads
        yield media, stream


def decoded(media: Any, stream: Any, note: Callable[[Any], None] | None = None) -> Iterator[tuple[float, Any]]:
    """Decode frame by frame with presentation times in seconds, strictly increasing; `note` sees every packet first.

    Raises:
        MediaError: decoding stops with an error, or times are missing or do not increase.
        MemoryError: the decoder needs more than it may use.
    """
    last = None
    try:
        for packet in media.demux(stream):
            if note:
                note(packet)
            for frame in packet.decode():
                if frame.pts is None or (last is not None and frame.pts <= last):
                    raise MediaError("time_base", f"frame times do not increase: {frame.pts} after {last}")
                last = frame.pts
                yield float(frame.pts * frame.time_base), frame
    except (av.error.FFmpegError, ValueError) as error:
        if getattr(error, "errno", None) in (errno.ENOMEM, errno.EAGAIN):
            raise MemoryError from error
        raise MediaError("corrupt", f"decoding stops with an error: {error}") from error


class Scaler:
    """Turns decoded frames into RGB pictures of a wanted size, with as many threads as it is told.

    One context a size: making one costs more than using it, and PyAV's own are made for every frame, with a thread a core.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._contexts: dict[tuple[int, int], VideoReformatter] = {}

    def rgb(self, frame: Any, height: int, width: int) -> Picture:
        """Return a picture [height, width, 3] of a frame, averaged over areas where it is scaled."""
        context = self._contexts.setdefault((height, width), VideoReformatter())
        method = None if (height, width) == (frame.height, frame.width) else "AREA"
        scaled = context.reformat(frame, width, height, "rgb24", interpolation=method, threads=self._threads)
        return np.asarray(scaled.to_ndarray(), dtype=np.uint8)


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Refuse a picture of more than `max_pixels` pixels."""
    if height * width > max_pixels:
        raise MediaError("too_large", f"{width}x{height} is over {max_pixels} pixels")


def display_matrix(frame: Any) -> Matrix:
    """Return the signs (a, b, c, d) of the matrix that shows a frame upright: x' = ax + cy, y' = bx + dy.

    Turns by quarters and mirrors are matrices with one entry in each row; anything between is taken as the nearest of these.
    """
    data = frame.side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return UPRIGHT
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), dtype="<i4").tolist()
    return (_sign(a), 0, 0, _sign(d)) if abs(a) >= abs(b) else (0, _sign(b), _sign(c), 0)


def upright(picture: Picture, matrix: Matrix) -> Picture:
    """Turn and mirror a picture [Y, X, 3] as its display matrix says."""
    a, b, c, d = matrix
    shown = picture if a else picture.transpose(1, 0, 2)
    shown = shown[:, ::-1] if (a or c) < 0 else shown
    return np.ascontiguousarray(shown[::-1] if (d or b) < 0 else shown)


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


def _moving_stream(media: Any) -> Any:
    streams = list(media.streams.video)
    moving = [stream for stream in streams if not int(stream.disposition) & ATTACHED_PICTURE]
    if not moving:
        kind = "attached_picture" if streams else "no_video"
        raise MediaError(kind, "the file has only a cover picture" if streams else "the file has no video stream")
    if moving[0].codec_context is None:
        raise MediaError("unsupported", "no decoder for this codec")
    return moving[0]


def _sign(value: int) -> int:
    return -1 if value < 0 else 1
