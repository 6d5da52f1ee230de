"""Clips as the encode stage sees them, to train and to judge the demo's video autoencoder: of the world, and of natural videos.

World clips are drawn at twice the training size or more, go through a video codec, and are scaled down by area; natural clips
are read from a folder and scaled in the same way. Sizes follow `packing.geometry.fit_frame`. Cost: 10 to 40 ms a world clip.

Legend: F Y X frames, rows, columns; clips are uint8 RGB [F, Y, X, 3].
"""

import hashlib
import io
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from demo.defects import DEFECTS
from demo.natural import is_test_pattern
from demo.scenes import Pictures, draw_scene, render
from packing.geometry import Fit, fit_frame

FPS = 8
MAX_PIXELS = 64 * 64
MULTIPLE = (16, 16)  # codec stride 8 × patch 2
ASPECTS = (16 / 9, 9 / 16, 4 / 3, 3 / 4, 1.0, 21 / 9)
NATURAL_LINES = 128  # natural videos are kept at this height or width, the smaller, so that they can be cropped in many ways
HELD_OUT = 0.25  # share of families of natural videos that are never trained on, chosen by hash
_SAME_FILM = ("bunny", "bbb", "chroma", "luma")  # one film in several folders
_ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "ultrafast", "crf": "18", "tune": "zerolatency"},
    "mpeg4": {"qscale": "3"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "24", "b": "0", "lag-in-frames": "0"},
}


@dataclass(frozen=True, kw_only=True)
class NaturalFile:
    """Frames of one natural video, 8 a second from its start on, at about `NATURAL_LINES` lines."""

    name: str
    frames: Pictures


def world_clip(random: np.random.Generator, frames: int, *, coded: bool = True) -> tuple[str, Pictures]:
    """Draw one clip of the world; return its background and its pictures.

    Args:
        random: gives every choice.
        frames: how many pictures, at 8 a second.
        coded: let it go through a video codec first, as a file does.
    """
    aspect = float(random.choice(ASPECTS))
    fit = _fit(aspect)
    enlarged = random.uniform(2.0, 3.0)
    height, width = (max(2, round(side * enlarged / 2) * 2) for side in fit.resized)
    seconds = float(random.uniform(frames / FPS, frames / FPS + 2))
    scene = draw_scene(random, seconds=seconds, aspect=width / height, any_combination=True)
    start_s = random.uniform(0, seconds - (frames - 1) / FPS)
    pictures = render(scene, [start_s + number / FPS for number in range(frames)], height, width)
    if random.random() < 0.06:
        pictures = DEFECTS[str(random.choice(["text_overlay", "watermark"], p=[0.4, 0.6]))](pictures, random)
    if coded:
        pictures = _through_codec(pictures, str(random.choice(list(_ENCODERS), p=[0.7, 0.2, 0.1])))
    return scene.background, _scaled(pictures, fit)


def natural_files(folder: Path) -> tuple[list[NaturalFile], list[NaturalFile]]:
    """Read the natural videos below a folder; return those to train on and those that are held out.

    Files of one family are held out together, by a hash. Broken files and test patterns are passed over.
    """
    train: list[NaturalFile] = []
    held: list[NaturalFile] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if is_test_pattern(name):
            continue
        frames = _read(path, most=40)
        if len(frames) >= 3:
            file = NaturalFile(name=name, frames=np.stack(frames))
            (held if is_held_out(name) else train).append(file)
    return train, held


def is_held_out(name: str) -> bool:
    """Tell whether a natural video, named by its path below the folder, is for judging only."""
    return hashlib.sha256(family(name).encode()).digest()[0] < 256 * HELD_OUT


def family(name: str) -> str:
    """Name what may show one scene: files of the same film, or files of a folder whose names begin with the same letters."""
    path = Path(name)
    if any(part in path.name for part in _SAME_FILM):
        return "big buck bunny"
    if path.parts[0] == "sample-videos" and path.suffix == ".mkv":
        return "sample-videos words"  # one speaker
    letters = re.match("[a-z]*", path.name.lower())
    return f"{path.parts[0]} {letters.group() if letters else ''}"


def natural_clip(file: NaturalFile, frames: int) -> Pictures:
    """Return the start of a natural video as the encode stage would have it, at most `frames` pictures."""
    height, width = file.frames.shape[1:3]
    count = 1 + (min(frames, len(file.frames)) - 1) // 4 * 4  # the class takes four at a time
    return _scaled(file.frames[:count], fit_frame(height, width, max_pixels=MAX_PIXELS, multiple=MULTIPLE))


def natural_crop(file: NaturalFile, random: np.random.Generator, frames: int, size: tuple[int, int]) -> Pictures:
    """Return a random window of a natural video, scaled to a size, from one to as many pixels as there are for each."""
    count, height, width = file.frames.shape[:3]
    most = min(height / size[0], width / size[1])
    scale = np.exp(random.uniform(0, np.log(most))) if most > 1 else most
    rows, columns = (max(1, min(round(side * scale), whole)) for side, whole in zip(size, (height, width), strict=True))
    top, left = int(random.integers(height - rows + 1)), int(random.integers(width - columns + 1))
    step = -1 if random.random() < 0.5 else 1
    start = int(random.integers(max(1, count - frames + 1)))
    numbers = np.minimum(np.arange(start, start + frames), count - 1)[::step]
    window = file.frames[numbers, top : top + rows, left : left + columns]
    return _resized(window[:, :, ::-1] if random.random() < 0.5 else window, size)


def sizes() -> list[tuple[int, int]]:
    """Return the training sizes (height, width) of the world's aspect ratios."""
    return sorted({_fit(aspect).size for aspect in ASPECTS})


def _fit(aspect: float) -> Fit:
    """Return how a large frame of an aspect ratio comes to its training size."""
    height, width = (1080, round(1080 * aspect)) if aspect >= 1 else (round(1080 / aspect), 1080)
    return fit_frame(height, width, max_pixels=MAX_PIXELS, multiple=MULTIPLE)


def _scaled(pictures: Pictures, fit: Fit) -> Pictures:
    """Scale by area to what covers the size, and crop the middle."""
    top, left = fit.offset
    return np.ascontiguousarray(_resized(pictures, fit.resized)[:, top : top + fit.size[0], left : left + fit.size[1]])


def _resized(pictures: Pictures, size: tuple[int, int]) -> Pictures:
    if pictures.shape[1:3] == size:
        return pictures
    return np.stack([cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA) for picture in pictures])


def _through_codec(pictures: Pictures, codec: str) -> Pictures:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream: Any = out.add_stream(codec, rate=Fraction(FPS), options=_ENCODERS[codec])
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        out.mux(stream.encode())
    file.seek(0)
    with av.open(file) as back:
        back.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in back.decode(video=0)])


def _read(path: Path, most: int) -> Sequence[Pictures]:
    """Return up to `most` pictures, 8 a second, and as many as come before the first damage."""
    pictures: list[Pictures] = []
    try:
        pictures.extend(_decoded(path, most))
    except (av.error.FFmpegError, ValueError, IndexError, OSError) as error:
        logging.getLogger(__name__).debug("%s: %s", path, error)
    return pictures


def _decoded(path: Path, most: int) -> Iterator[Pictures]:
    wanted, given = 0.0, 0
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        for frame in file.decode(stream):
            if given == most:
                return
            if frame.time is None or frame.time < wanted:
                continue
            wanted, given = max(wanted, frame.time) + 1 / FPS - 1e-3, given + 1
            shrink = NATURAL_LINES / min(frame.height, frame.width)
            yield _shrunk(frame.to_ndarray(format="rgb24"), min(1.0, shrink))


def _shrunk(picture: Pictures, share: float) -> Pictures:
    size = max(16, round(picture.shape[1] * share)), max(16, round(picture.shape[0] * share))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
