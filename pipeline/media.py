"""Open and decode untrusted media files: what the scan and the reading of frames share.

Runs in the decoder's process and nowhere else; imports no torch and nothing that does. The container is sniffed from the first
bytes and its demuxer pinned, so a playlist or a demuxer's script is never followed; only decoders on a list are let near the
bytes. Times are presentation times of the file. Pictures are turned upright with square pixels in one place.

Legend: Y X rows and columns of pixels; pictures are uint8 RGB.
"""

import contextlib
import errno
import importlib
import io
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, BinaryIO

import av
import av.error
import cv2
import numpy as np
from av.sidedata.sidedata import Type
from av.stream import Discard
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageOps

Picture = NDArray[np.uint8]  # [Y, X, 3]
Send = Callable[[str, NDArray[Any]], None]  # takes an array under its name, to be kept outside of the decoder's process
Matrix = tuple[int, int, int, int]  # signs (a, b, c, d) of a display matrix: x' = ax + cy, y' = bx + dy
UPRIGHT: Matrix = (1, 0, 0, 1)
IMAGES = {"PNG": "Png", "JPEG": "Jpeg", "WEBP": "WebP", "BMP": "Bmp", "TIFF": "Tiff", "GIF": "Gif"}  # and their modules' names
# Dispositions of streams (libavformat/avformat.h).
DEFAULT, ATTACHED_PICTURE, TIMED_THUMBNAILS = 0x0001, 0x0400, 0x0800
# Decoders that untrusted bytes may reach: what cameras, phones, the web and archives hold, by their names in FFmpeg. Decoders
# of games, screen recorders and animations, where most holes are found, are not among them.
DECODERS = frozenset(
    (
        *("h264", "hevc", "vvc", "libdav1d", "av1", "libvpx", "vp8", "libvpx-vp9", "vp9", "theora"),
        *("mpeg1video", "mpeg2video", "mpegvideo", "mpeg4", "h263", "h263p", "flv", "mjpeg"),
        *("msmpeg4v1", "msmpeg4v2", "msmpeg4", "wmv1", "wmv2", "wmv3", "vc1"),
        *("prores", "dnxhd", "ffv1"),
    )
)
# No protocol and no second demuxer: a reference to another file or address opens nothing.
PINNED = {"codec_whitelist": ",".join(sorted(DECODERS)), "protocol_whitelist": "none", "enable_drefs": "0"}
# Nothing of the streams is read, and no decoder let near it, to find out what they are.
UNPROBED = {"probesize": "32", "codec_whitelist": "none"}
SORTED = frozenset(("hevc", "libdav1d", "av1", "libvpx-vp9", "vp9", "vp8"))  # codecs that tell in which order frames are shown

ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
MOST_AHEAD, PIXELS_AHEAD = 8, 1 << 21  # frames that a scan decodes ahead, and pixels of them
PQ, HLG = 16, 18  # transfer characteristics (ITU-T H.273)
WHITE_NITS = 203  # of diffuse white in high dynamic range (ITU-R BT.2408)


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
        with Image.open(file, formats=tuple(IMAGES)) as image:
            check_size(image.height, image.width, max_pixels)
            shown = ImageOps.exif_transpose(image).convert("RGB")
    except Image.DecompressionBombError as error:
        raise MediaError("too_large", str(error)) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError("corrupt", f"not a readable image: {error}") from error
    return np.asarray(shown)


def load_image_readers() -> None:
    """Import what `load_image` may need, and no other reader of images."""
    Image.preinit()
    for name in IMAGES.values():
        importlib.import_module(f"PIL.{name}ImagePlugin")


@contextlib.contextmanager
def opened(
    file: BinaryIO, container: str, threads: int, max_pixels: int = 1 << 31, *, rough: bool = False
) -> Iterator[tuple[Any, Any]]:
    """Open a video with a pinned demuxer and give its container and the stream to decode, with a pinned decoder.

    That stream is the first moving one that the file marks as default, or the first, when it marks none.

    Args:
        file: the file; it is read without a name.
        container: the demuxer, as `sniff` names it.
        threads: of the decoder.
        max_pixels: of one frame; a decoder makes no larger one.
        rough: whether frames that no other frame is made from may keep the edges of their blocks: decoders pass over the loop
            filter there, which is a tenth of the work. All other frames are to the bit what they are.

    Raises:
        MediaError: it does not open, or has no video, only a cover picture, or a codec that is not on the list.
    """
    # Decoders count in whole blocks: the exact limit is for whoever sees the frames.
    bounds = {"codec_whitelist": PINNED["codec_whitelist"], "max_pixels": str(min(2 * max_pixels, (1 << 31) - 1))}
    media = _opened_with({**PINNED, **bounds}, file, container)
    with media:
        stream = _moving_stream(media)
        for other in media.streams:
            if other is not stream:
                other.discard = Discard.all
        stream.codec_context.thread_count = threads
        stream.codec_context.options = {**bounds, "skip_loop_filter": "noref"} if rough else bounds
        yield media, stream


def _opened_with(options: dict[str, str], file: BinaryIO, container: str) -> Any:
    """Open a container, by its header alone where that tells all that decoding needs.

    Otherwise FFmpeg decodes the first frames of every stream, and then again for whoever wants them: a twentieth of the work on
    a short source.
    """
    if container in ("mov", "matroska"):
        media = _demuxed({**options, **UNPROBED}, file, container)
        if all(_is_told(stream) for stream in moving_streams(media)):
            return media
        media.close()
    return _demuxed(options, file, container)


def _is_told(stream: Any) -> bool:
    """Tell whether the header of a file tells all of a stream that decoding needs.

    With H.264 that is an index of all frames: by it FFmpeg tells how many frames a decoder holds back to sort them by time.
    """
    codec = stream.codec_context
    named = codec and codec.width and codec.height and stream.average_rate
    indexed = len(stream.index_entries) >= stream.frames > 0
    return bool(named) and (codec.name in SORTED or (codec.name == "h264" and indexed))


def _demuxed(options: dict[str, str], file: BinaryIO, container: str) -> Any:
    file.seek(0)
    try:
        source = io.BufferedReader(_Nameless(file))
        return av.open(source, mode="r", format=container, options={**options, "format_whitelist": container})
    except (av.error.FFmpegError, ValueError) as error:
        _raise_if_short_of_memory(error, 0)
        kind = "truncated" if is_cut_off(file, container) or _lacks_index(file, container) else "corrupt"
        raise MediaError(kind, f"does not open as {container}: {error}") from error


def decoded(media: Any, stream: Any, note: Callable[[Any], None] | None = None, ahead: int = 1) -> Iterator[tuple[float, Any]]:
    """Decode frame by frame with presentation times in seconds, strictly increasing; `note` sees every packet first.

    So many frames are decoded `ahead` of what is done with them: a decoder leaves the processor's caches cold for whatever
    comes after it, which then is less dear for a few frames in a row. All that decode before an error are given.

    Raises:
        MediaError: decoding stops with an error, or times are missing or do not increase.
        MemoryError: the decoder needs more than it may use.
    """
    clock, pending, broken = _Clock(), list[Any](), None
    try:
        for packet in media.demux(stream):
            if note:
                note(packet)
            pending += packet.decode()
            if len(pending) >= ahead:
                for frame in pending:
                    yield clock.time_s(frame), frame
                pending.clear()
    except (av.error.FFmpegError, ValueError) as error:
        broken = error
    for frame in pending:
        yield clock.time_s(frame), frame
    if broken:
        _raise_if_short_of_memory(broken, 8 * stream.codec_context.height * stream.codec_context.width)
        if getattr(broken, "errno", None) == errno.EINVAL and not stream.codec_context.width:
            raise MediaError("too_large", "the decoder refuses to make a picture of this size") from broken
        raise MediaError("corrupt", f"decoding stops with an error: {broken}") from broken


def frames_ahead(stream: Any) -> int:
    """Return how many frames of a stream to decode ahead: few and small enough for a cache, one where they are large."""
    pixels: int = stream.codec_context.height * stream.codec_context.width
    return max(1, min(MOST_AHEAD, PIXELS_AHEAD // max(1, pixels)))


class _Clock:
    """Tells the times of frames, one after the other, and how far decoding has come."""

    def __init__(self) -> None:
        self._first = self._last = None
        self._ticks, self._seconds = 1, 1  # so many ticks in so many seconds; dividing integers gives what the fraction would

    def time_s(self, frame: Any) -> float:
        """Return the presentation time of the next frame; MediaError if it has none or an earlier one than the last."""
        pts = frame.pts
        if pts is None or (self._last is not None and pts <= self._last):
            raise MediaError("time_base", f"frame times do not increase: {pts} after {self._last}")
        if self._first is None:
            self._first, (self._seconds, self._ticks) = pts, frame.time_base.as_integer_ratio()
        self._last = pts
        _progress((pts - self._first) * self._seconds / self._ticks)
        time_s: float = pts * self._seconds / self._ticks
        return time_s


@dataclass
class Reading:
    """One reading of a file from end to end: what it came across, and whether the file is whole.

    With `keep_prefix`, a file that is broken or cut off counts as whole up to there, and `broken` keeps the reason.
    """

    file: BinaryIO
    container: str
    keep_prefix: bool
    discarded: int = 0  # packets that the file's edit list leaves out
    interlaced: bool = False
    transfer: int = 0
    broken: MediaError | None = None

    def frames(self, media: Any, stream: Any, note: Callable[[Any], None]) -> Iterator[tuple[float, Any]]:
        """Go through the frames as `decoded` does, to the end of what is good.

        Raises:
            MediaError: the file is broken, or cut off, before or, unless prefixes are kept, after its first frame.
        """
        seen = False
        try:
            for time_s, frame in decoded(media, stream, partial(self._note, note), frames_ahead(stream)):
                seen = True
                self.interlaced |= bool(frame.interlaced_frame)
                self.transfer = int(frame.color_trc)
                yield time_s, frame
        except MediaError as error:
            if error.error == "corrupt" and is_cut_off(self.file, self.container):
                error = MediaError("truncated", f"the file ends early: {error}")
            self._break(error, seen)

    def check_whole(self, stream: Any, count: int) -> None:
        """Compare the frames that came with those that the file promises (0: it does not say).

        Raises:
            MediaError: there are none, or so few that a part of the file is missing, and no prefix is to be kept.
        """
        promised = stream.frames
        # What an edit list leaves out is not in the index. A clock of whole seconds is a broken one, which leaves out anything.
        if self.container == "mov" and promised and stream.time_base < 1:
            promised = min(promised, len(stream.index_entries))
        expected = promised - self.discarded
        if not self.broken and is_cut_off(self.file, self.container) and (not promised or count < expected):
            self._break(MediaError("truncated", f"the file ends early: {count} of {max(promised, count)} frames decode"), count)
        if not count:
            raise MediaError("frame_count", "the file opens as a video and holds no frame that decodes")
        # Only here is the promise a table with an entry for every frame; elsewhere it is a number that muxers get wrong.
        if not self.broken and self.container == "mov" and count < 0.9 * expected:
            self._break(MediaError("frame_count", f"{count} of {promised} frames decode"), count)

    def quirks(self, media: Any) -> list[str]:
        """Name what is odd about the file, so that whoever reads it knows."""
        found = {
            "prefix": self.broken is not None,
            "several_streams": len(moving_streams(media)) > 1,
            "interlaced": self.interlaced,
            "hdr_pq": self.transfer == PQ,
            "hdr_hlg": self.transfer == HLG,
        }
        return [name for name, holds in found.items() if holds]

    def _note(self, further: Callable[[Any], None], packet: Any) -> None:
        self.discarded += bool(packet.is_discard)
        further(packet)

    def _break(self, error: MediaError, seen: object) -> None:
        if not (self.keep_prefix and seen):
            raise error
        self.broken = error


def tell_progress_to(listener: Callable[[float], None]) -> None:
    """Have `decoded` tell, with every frame, how many seconds of video lie behind it."""
    global _progress
    _progress = listener


def _unheard(decoded_s: float) -> None:
    """Nobody listens."""


_progress: Callable[[float], None] = _unheard


class Scaler:
    """Turns decoded frames into RGB pictures of a wanted size, with as many threads as it is told.

    High dynamic range in PQ is brought into the standard range, channel by channel: diffuse white comes out at nine tenths and
    what is brighter is rolled off. Its wide colours stay what they are, and so does HLG, which is made to be seen as it is.

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
        picture = np.asarray(scaled.to_ndarray(), dtype=np.uint8)
        return cv2.LUT(picture, standard_range()) if int(frame.color_trc) == PQ else picture

    def yuv(self, frame: Any) -> Any:
        """Return a frame of the same size in planar YUV with 8 bits, whatever this one is stored as."""
        context = self._contexts.setdefault((0, 0), VideoReformatter())
        return context.reformat(frame, format="yuv444p", threads=self._threads)


@cache
def standard_range() -> NDArray[np.uint8]:
    """Return the table that brings 8-bit PQ samples (SMPTE ST 2084) into the standard range."""
    root = (np.arange(256) / 255) ** (32 / 2523)
    light = (np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)) ** (8192 / 1305) * 10_000 / WHITE_NITS
    knee = 0.75
    rolled = np.where(light <= knee, light, 1 - (1 - knee) * np.exp((knee - light) / (1 - knee)))
    return (255 * rolled ** (1 / 2.2)).round().astype(np.uint8)


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Refuse a picture of more than `max_pixels` pixels."""
    if height * width > max_pixels:
        raise MediaError("too_large", f"{width}x{height} is over {max_pixels} pixels")


def check_length(count: int, seconds: float, max_frames: int, max_duration_s: float) -> None:
    """Refuse a video that is longer than a job is ready to read."""
    if count > max_frames:
        raise MediaError("too_long", f"more than {max_frames} frames")
    if not seconds <= max_duration_s:
        raise MediaError("too_long", f"{seconds:.6g} s are over {max_duration_s:g} s")


def pixel_aspect(stream: Any) -> float:
    """Return how much wider than high a stream's pixels are, when its first frame is decoded.

    The file comes before the frames, as everywhere in FFmpeg; 1 where they claim what no camera or disc has (over 4:1).
    """
    aspect = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
    return aspect if 0.25 <= aspect <= 4 else 1.0


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
    """Turn and mirror a picture [Y, X, 3], or a plane [Y, X], as its display matrix says."""
    a, b, c, d = matrix
    shown = picture if a else picture.swapaxes(0, 1)
    shown = shown[:, ::-1] if (a or c) < 0 else shown
    return np.ascontiguousarray(shown[::-1] if (d or b) < 0 else shown)


def is_cut_off(file: BinaryIO, container: str) -> bool:
    """Tell whether a file ends before its own structure does; False too for containers that do not tell their size."""
    size = file.seek(0, os.SEEK_END)
    if container == "mov":
        return top_boxes(file)[1] > size
    file.seek(0)
    head = file.read(4096)
    if container == "matroska":
        return _segment_end(head) > size
    if container == "avi":
        return 8 + int.from_bytes(head[4:8], "little") > size
    if container == "asf":
        at = head.find(ASF_FILE_PROPERTIES)
        return at >= 0 and int.from_bytes(head[at + 40 : at + 48], "little") > size
    return container == "mpegts" and size % 188 != 0


def top_boxes(file: BinaryIO) -> tuple[list[str], int]:
    """List the top-level boxes of an mp4 or mov file, and tell at which byte the last one ends, or says that it does."""
    size, at, names = file.seek(0, os.SEEK_END), 0, list[str]()
    while at + 8 <= size and len(names) < 100_000:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:16], "big") if length == 1 else length or size - at  # 1: 64 bits; 0: to the end
        names.append(head[4:8].decode("latin-1"))
        at += max(8, length)
    return names, at


def _lacks_index(file: BinaryIO, container: str) -> bool:
    return container == "mov" and "moov" not in top_boxes(file)[0]


def _segment_end(head: bytes) -> int:
    """Return the byte at which the segment of a Matroska file ends, as its first bytes say; 0 when they do not."""
    at = head.find(bytes.fromhex("18538067"))
    if at < 0 or at + 5 > len(head) or not head[at + 4]:
        return 0
    length = 9 - head[at + 4].bit_length()  # of the number that follows: as many bytes as its leading zeros, and one
    number = int.from_bytes(head[at + 4 : at + 4 + length], "big") & ((1 << 7 * length) - 1)
    return 0 if number == (1 << 7 * length) - 1 else at + 4 + length + number  # all ones: unknown, as in a live stream


@contextlib.contextmanager
def plain_video() -> Iterator[BinaryIO]:
    """Give a video of some grey frames, in memory and as an open file, to try a decoder on."""
    with os.fdopen(os.memfd_create("plain"), "w+b") as file:
        with av.open(file, "w", format="avi") as media:
            stream = media.add_stream("mpeg4", rate=8)
            stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
            for level in range(0, 96, 8):
                media.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), format="rgb24")))
            media.mux(stream.encode())
        file.seek(0)
        yield file


class _Nameless(io.RawIOBase):
    """A file without a name, so that no demuxer can look for neighbours of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = os.fdopen(os.dup(file.fileno()), "rb", buffering=0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError as error:  # a number in the file led to before its start; a disk that fails says so when it reads
            raise ValueError(f"there is no byte {offset}") from error

    def readinto(self, buffer: Any) -> int | None:
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


def moving_streams(media: Any) -> list[Any]:
    """List the video streams that are no pictures for a menu."""
    return [stream for stream in media.streams.video if not int(stream.disposition) & (ATTACHED_PICTURE | TIMED_THUMBNAILS)]


def _moving_stream(media: Any) -> Any:
    moving = moving_streams(media)
    if not moving:
        cover = bool(media.streams.video)
        kind = "attached_picture" if cover else "no_video"
        raise MediaError(kind, "the file has only a cover picture" if cover else "the file has no video stream")
    usable = [stream for stream in moving if stream.codec_context and stream.codec_context.codec.name in DECODERS]
    if not usable:
        names = ", ".join(sorted({stream.codec_context.codec.name if stream.codec_context else "unknown" for stream in moving}))
        raise MediaError("unrecognised", f"the video is in a codec that is not on the list: {names}")
    return next((stream for stream in usable if int(stream.disposition) & DEFAULT), usable[0])


def _raise_if_short_of_memory(error: Exception, wanted_bytes: int) -> None:
    if getattr(error, "errno", None) in (errno.ENOMEM, errno.EAGAIN):
        raise MemoryError from error
    try:  # many decoders call it invalid data when they get no memory: see whether there is any; heaps grow by huge pages
        mmap.mmap(-1, wanted_bytes + (4 << 20)).close()
    except OSError:
        raise MemoryError from error


def _sign(value: int) -> int:
    return -1 if value < 0 else 1
