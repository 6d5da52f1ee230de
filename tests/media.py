"""Media for tests, generated with PyAV: short textured shots with hard cuts, in any codec, with any frame times.

Equal arguments give equal bytes on one machine; nothing here is read from disk.
"""

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from demo.writing import usual_priority

Picture = NDArray[np.uint8]  # [Y, X, 3]
HEIGHT, WIDTH = 64, 96
OPTIONS = {
    "libx264": {"preset": "ultrafast", "crf": "16"},
    "libx265": {"preset": "ultrafast", "crf": "16", "x265-params": "log-level=none:pools=none:frame-threads=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"},
    "libsvtav1": {"preset": "12", "crf": "24", "svtav1-params": "lp=1"},
    "mpeg4": {"qscale": "2"},
}


def picture(scene: int, number: int = 0, *, height: int = HEIGHT, width: int = WIDTH) -> Picture:
    """Frame `number` of a scene: a texture of its own, in a colour of its own, that moves a pixel a frame."""
    random = np.random.Generator(np.random.Philox(scene))
    coarse = random.integers(0, 110, (6, 8, 3)).astype(np.uint8)
    texture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    # Neighbouring scene numbers lie far apart in brightness and in hue: a cut between them is no matter of taste.
    colour = np.array([145 if scene >> bit & 1 else 0 for bit in (0, 1, 2)], dtype=np.uint8)
    return np.roll(np.minimum(texture, 110) + colour, number, axis=1)


def shots(lengths: Sequence[int], *, first_scene: int = 1, height: int = HEIGHT, width: int = WIDTH) -> Iterator[Picture]:
    """The frames of shots of these many frames, one scene each."""
    for scene, length in enumerate(lengths, first_scene):
        yield from (picture(scene, number, height=height, width=width) for number in range(length))


def write_video(
    path: Path,
    pictures: Iterable[Picture],
    *,
    codec: str = "libx264",
    fps: int = 16,
    times_ms: Sequence[int] | None = None,
    aspect: Fraction | None = None,
    pixel_format: str = "yuv420p",
    encoder: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode pictures of one size; the suffix names the container.

    Args:
        path: where to write.
        pictures: RGB frames.
        codec: encoder by its FFmpeg name.
        fps: frame rate, when there are no `times_ms`.
        times_ms: presentation time of every frame, for a variable rate or a late start.
        aspect: sample aspect ratio.
        pixel_format: of the encoder.
        encoder: options of the encoder in place of the fast ones.
        options: of the muxer.
    """
    os.environ.setdefault("SVT_LOG", "0")  # the AV1 encoder talks otherwise
    path.parent.mkdir(parents=True, exist_ok=True)
    with usual_priority(), av.open(str(path), "w", options=options or {}) as out:
        stream: Any = None
        for number, pixels in enumerate(pictures):
            if stream is None:
                stream = _stream(out, codec, fps if times_ms is None else 1000, pixels, pixel_format, encoder)
                if aspect:
                    stream.codec_context.sample_aspect_ratio = aspect
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = number if times_ms is None else times_ms[number]
            frame.time_base = Fraction(1, fps if times_ms is None else 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Patch the display matrix of an mp4: a player shows the pixel (x, y) at (a·x + c·y, b·x + d·y); y points down."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # after version, times, track, duration, layer and volume of a version 0 box
    one = 1 << 16
    struct.pack_into(">9i", data, start, a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def leave_out_order(path: Path) -> Path:
    """Patch an mp4 of x264 so that the stream does not tell how many frames are held back to sort them (ITU-T H.264, E.1.1)."""
    data = bytearray(path.read_bytes())
    start = data.index(b"avcC") + 12  # of the sequence parameters, after their length
    length = int.from_bytes(data[start - 2 : start], "big")
    bits = "".join(f"{byte:08b}" for byte in data[start : start + length])
    at = 32  # after kind, profile, constraints and level

    def number() -> int:
        nonlocal at
        zeros = bits.index("1", at) - at
        at += 2 * zeros + 1
        return int(bits[at - zeros - 1 : at], 2) - 1

    number()
    if data[start + 1] == 100:  # the high profile: form of pixels and their depth, two flags
        number(), number(), number()
        at += 2
    number()
    if number() == 0:
        number()
    number()
    at += 1
    number(), number()
    at += 2 if bits[at] == "1" else 3  # whether all frames are whole ones
    at += 1
    if bits[at - 1] == "1":
        number(), number(), number(), number()
    assert bits[at] == "1", "nothing follows"
    shorter = (bits[:at] + "01").ljust(len(bits), "0")
    data[start : start + length] = int(shorter, 2).to_bytes(length, "big")
    path.write_bytes(data)
    return path


def write_audio(path: Path, seconds: float = 1.0) -> Path:
    """Write a file with a tone and no picture."""
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("aac", rate=16000, layout="mono")
        wave = np.sin(np.arange(int(16000 * seconds)) / 20).astype(np.float32)[None]
        for start in range(0, wave.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(wave[:, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def write_image(path: Path, scene: int = 1, *, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """Write a still as PNG bytes, under whatever name."""
    _, data = cv2.imencode(".png", picture(scene, height=height, width=width)[..., ::-1])
    path.write_bytes(data.tobytes())
    return path


def decoded(path: Path) -> tuple[list[float], list[Picture]]:
    """Decode a file naively: the time in seconds and the RGB pixels of every frame, as it is stored."""
    with av.open(str(path)) as media:
        frames = list(media.decode(video=0))
    return [float(frame.pts * frame.time_base) for frame in frames], [frame.to_ndarray(format="rgb24") for frame in frames]


def _stream(out: Any, codec: str, rate: int, pixels: Picture, pixel_format: str, encoder: dict[str, str] | None) -> Any:
    stream = out.add_stream(codec, rate=rate, options=OPTIONS.get(codec, {}) if encoder is None else encoder)
    stream.height, stream.width = pixels.shape[:2]
    stream.pix_fmt = pixel_format
    stream.codec_context.thread_count = 1
    stream.codec_context.time_base = Fraction(1, rate)
    return stream
