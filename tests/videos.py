"""Generated videos for tests that want little: moving shapes on coloured grounds, in several codecs, sizes and shapes.

Deterministic for a seed. Some are as the internet has them: one is a still, one is dark, one is cut off, one is no video.
"""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from demo.writing import usual_priority

Picture = NDArray[np.uint8]  # [Y, X, 3]

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 40),
    "white": (240, 240, 240),
}
GROUNDS = {"black": (12, 12, 12), "grey": (120, 120, 120), "sky": (130, 190, 240), "sand": (215, 190, 140)}
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SHAPES = {"circle": 0, "triangle": 3, "square": 4, "hexagon": 6}
FORMATS = [("mp4", "libx264"), ("mp4", "libx265"), ("webm", "libvpx-vp9"), ("mkv", "libsvtav1"), ("avi", "mpeg4")]
SIZES = [(192, 108), (108, 192), (160, 120), (128, 128), (210, 90)]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One shot: a shape of one colour moves over one ground."""

    shape: str
    colour: str
    ground: str
    motion: str
    seconds: float

    @property
    def caption(self) -> str:
        """What a title would say of the scene."""
        return f"A {self.colour} {self.shape} moves {self.motion} on a {self.ground} background"


def make_videos(folder: Path, count: int = 12, seed: int = 0) -> Path:
    """Write `count` good videos and a few bad files into `folder`, and then `titles.csv` beside it; return the table's path.

    Does nothing when the table is there already.
    """
    table = folder.parent / "titles.csv"
    if table.exists():
        return table
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.Generator(np.random.Philox(seed))
    titles = {}
    for number in range(count):
        scenes = _scenes(random, int(random.integers(1, 4)))
        (suffix, codec), size = FORMATS[number % len(FORMATS)], SIZES[number % len(SIZES)]
        name = f"video_{number:03d}.{suffix}"
        write_video(folder / name, _frames(scenes, size, fps=16), codec=codec, fps=16)
        titles[name] = ". ".join(scene.caption for scene in scenes)
    _write_odd_files(folder)
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows([("file", "title"), *titles.items()])
    return table


def write_video(path: Path, frames: Iterator[Picture], *, codec: str, fps: int) -> None:
    """Encode RGB frames, all of one even size."""
    os.environ.setdefault("SVT_LOG", "0")  # the AV1 encoder talks otherwise
    with usual_priority(), av.open(str(path), "w") as out:
        stream: Any = None
        for frame in frames:
            if stream is None:
                stream = out.add_stream(codec, rate=Fraction(fps), options=_options(codec))
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.codec_context.thread_count = 1
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())


def _scenes(random: np.random.Generator, count: int) -> list[Scene]:
    """Draw the scenes of one video; no two share a ground, so that every cut is one."""
    return [
        Scene(
            shape=str(random.choice(list(SHAPES))),
            colour=str(random.choice(list(COLOURS))),
            ground=str(ground),
            motion=str(random.choice(list(MOTIONS))),
            seconds=float(random.uniform(1.0, 3.0)),
        )
        for ground in random.permutation(list(GROUNDS))[:count]
    ]


def _frames(scenes: list[Scene], size: tuple[int, int], fps: int) -> Iterator[Picture]:
    for scene in scenes:
        count = round(scene.seconds * fps)
        yield from (_drawn(scene, size, number / count) for number in range(count))


def _drawn(scene: Scene, size: tuple[int, int], progress: float) -> Picture:
    """Draw a scene at a share 0 to 1 of its motion."""
    width, height = size
    picture = np.full((height, width, 3), GROUNDS[scene.ground], dtype=np.uint8)
    dx, dy = MOTIONS[scene.motion]
    centre = np.array([width * (0.5 + 0.3 * dx * (2 * progress - 1)), height * (0.5 + 0.3 * dy * (2 * progress - 1))])
    radius = 0.22 * min(size)
    corners = SHAPES[scene.shape] or 48
    angles = np.arange(corners) / corners * 2 * np.pi - np.pi / 2
    outline = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cv2.fillPoly(picture, [(outline * 16).round().astype(np.int32)], COLOURS[scene.colour], cv2.LINE_AA, shift=4)
    return picture


def _options(codec: str) -> dict[str, str]:
    return {
        "libx264": {"preset": "veryfast", "crf": "18"},
        "libx265": {"preset": "ultrafast", "crf": "20", "x265-params": "log-level=none:pools=none:frame-threads=1"},
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "24", "b": "0"},
        "libsvtav1": {"preset": "12", "crf": "30", "svtav1-params": "lp=1"},
        "mpeg4": {"qscale": "3"},
    }[codec]


def _write_odd_files(folder: Path) -> None:
    scene = Scene(shape="circle", colour="red", ground="grey", motion="right", seconds=2.0)
    dark = ((picture // 40).astype(np.uint8) for picture in _frames([scene], (128, 96), fps=16))
    write_video(folder / "dark.mp4", dark, codec="libx264", fps=16)
    write_video(folder / "short.mp4", _frames([scene], (128, 96), fps=2), codec="libx264", fps=16)
    whole = (folder / "video_000.mp4").read_bytes()
    (folder / "cut_off.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "page.mp4").write_text("<html>404 not found</html>")
    cv2.imwrite(str(folder / "still.png"), _drawn(scene, (192, 128), 0.5)[..., ::-1])
