"""Write the world's files: videos with exact frame times in any codec, still images, and files that are broken on purpose.

Equal arguments give equal bytes: encoders run in one thread, and containers hold no random ids and no dates.
"""

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from demo.scenes import Picture

ENCODERS = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9", "av1": "libsvtav1", "mpeg4": "mpeg4"}
MILLISECONDS = Fraction(1, 1000)
# The signs (a, b, c, d) of the matrix that turns a picture clockwise: a pixel (x, y) is shown at (ax + cy, bx + dy), y down.
_MATRICES = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


@dataclass(frozen=True, kw_only=True)
class Format:
    """How a video is stored.

    Attributes:
        codec: a key of `ENCODERS`.
        suffix: names the container.
        fps: nominal frame rate.
        variable: frames lie off the grid of the rate.
        rotation: degrees that a player turns the stored pictures clockwise; mp4 and mov only.
        b_frames: frames are stored in another order than shown, where the codec can.
        rough: more is lost than in the good quality of the others.
        streamable: the index is at the start of the file; mp4 and mov only.
    """

    codec: str
    suffix: str
    fps: Fraction
    variable: bool = False
    rotation: int = 0
    b_frames: bool = False
    rough: bool = False
    streamable: bool = False

    @property
    def time_base(self) -> Fraction:
        """The unit of frame times: the container's own, or the frame where it counts frames."""
        return MILLISECONDS if self.variable or self.suffix in ("mkv", "webm") else 1 / self.fps


def write_video(path: Path, pictures: Iterable[Picture], ticks: Iterable[int], form: Format) -> None:
    """Encode upright RGB pictures of one even size [Y, X, 3] with these presentation times, in units of the time base."""
    os.environ.setdefault("SVT_LOG", "0")  # the AV1 encoder talks otherwise
    convert = VideoReformatter()
    options = {"fflags": "+bitexact"} | ({"movflags": "faststart"} if form.streamable else {})
    with usual_priority(), av.open(str(path), "w", options=options) as out:
        stream: Any = None
        for picture, tick in zip(pictures, ticks, strict=True):
            stored = np.rot90(picture, form.rotation // 90)
            if stream is None:
                stream = _stream(out, form, *stored.shape[:2])
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(stored), format="rgb24")
            # A converter of the encoder's own is made anew for every frame, with a thread a core.
            frame = convert.reformat(frame, format="yuv420p", interpolation="AREA", threads=1)
            frame.pts, frame.time_base = tick, form.time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    if form.rotation:
        _set_matrix(path, _MATRICES[form.rotation])


@contextlib.contextmanager
def usual_priority() -> Iterator[None]:
    """Keep how this thread is scheduled.

    Started by root, SVT-AV1 makes the thread that calls it a real-time one, and so all threads and processes that it starts
    afterwards: two of them that wait for each other in a loop then stop a machine of two cores.
    """
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def write_image(path: Path, picture: Picture) -> None:
    """Write an RGB picture [Y, X, 3] as the suffix says."""
    _, data = cv2.imencode(path.suffix, picture[..., ::-1])
    path.write_bytes(data.tobytes())


def write_sound(path: Path, seconds: float = 1.0) -> None:
    """Write a file with a tone and no picture."""
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as out:
        stream: Any = out.add_stream("aac", rate=16000, layout="mono")
        wave = (0.3 * np.sin(np.arange(int(16000 * seconds)) / 20)).astype(np.float32)[None]
        for start in range(0, wave.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(wave[:, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def _stream(out: Any, form: Format, height: int, width: int) -> Any:
    stream = out.add_stream(ENCODERS[form.codec], rate=form.fps, options=_options(form))
    stream.height, stream.width = height, width
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = 1
    stream.codec_context.time_base = form.time_base
    return stream


def _options(form: Format) -> dict[str, str]:
    between = "2" if form.b_frames else "0"
    quality = {"h264": (18, 28), "hevc": (20, 30), "vp9": (24, 40), "av1": (22, 40), "mpeg4": (2, 6)}[form.codec][form.rough]
    return {
        "h264": {"preset": "veryfast", "crf": str(quality), "bf": between},
        "hevc": {
            "preset": "ultrafast",
            "crf": str(quality),
            "x265-params": f"log-level=none:pools=none:frame-threads=1:bframes={between}",
        },
        "vp9": {"deadline": "realtime", "cpu-used": "8", "crf": str(quality), "b": "0"},
        # At preset 10 blocks of the old picture may stay for some frames after a cut, so that a video does not show its truth.
        "av1": {"preset": "9", "crf": str(quality), "svtav1-params": "lp=1"},
        "mpeg4": {"qmin": str(quality), "qmax": str(quality), "bf": between},  # the one way that it heeds
    }[form.codec]


def _set_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write the signs (a, b, c, d) of a display matrix into the track header of an mp4 or mov file."""
    a, b, c, d = (sign << 16 for sign in matrix)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # after version, times, track, duration, layer and volume of a version 0 box
    struct.pack_into(">9i", data, start, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
