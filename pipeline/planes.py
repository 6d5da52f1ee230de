"""Small pictures straight from the planes of decoded frames: tiny ones of every frame, and larger ones of frames that are held.

Runs in the decoder's process. Scaling a frame to RGB costs more than decoding it. Here every frame is only sampled, some
hundredths of a millisecond whatever its size, and its numbers are made for many frames at once; a held frame is only halved,
and turned into a picture when a clip is known to want one.

Legend: n frames, h w rows and columns of a plane, Y X of a picture; a plane is uint8 (uint16 where samples have more bits).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import native
from pipeline.crop import BLOCKS, DARKEST, SAMPLES, Box, Lines, cropped, is_open, lines_of, open_lines, scaled_box
from pipeline.media import PQ, UPRIGHT, Matrix, Picture, Scaler, standard_range, upright

Plane = NDArray[Any]  # [h, w]
Series = NDArray[np.float64]  # [n]

LUMA, CHROMA = (72, 128), (36, 64)  # rows and columns that are sampled of every frame
CELLS = (12, 16)  # rows and columns of means of these, for cuts
FRAMES = 128  # that a strip takes
_BYTE, _WORD = np.dtype(np.uint8), np.dtype("<u2")
# Weights of red and blue in luma by matrix coefficients (ITU-T H.273); what does not say is as of old, BT.601.
_WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}


class Planes(NamedTuple):
    """The three planes of a frame: views, which are good as long as the frame is.

    Attributes:
        luma: [h, w].
        blue: difference of blue, [h, w] or smaller.
        red: difference of red, the same.
        depth: bits of a sample.
        full: whether levels go from 0 to 255, not from 16 to 235.
        space: matrix coefficients (ITU-T H.273).
        transfer: transfer characteristics (ITU-T H.273).
    """

    luma: Plane
    blue: Plane
    red: Plane
    depth: int
    full: bool
    space: int
    transfer: int


def planes_of(frame: Any, scaler: Scaler) -> Planes:
    """Return the planes of a decoded frame; of one that is not stored as planar YUV, those it has when it is turned into it."""
    depth, full = _stored(frame.format.name)
    if depth is None:
        frame, depth = scaler.yuv(frame), 8
    sample = _BYTE if depth == 8 else _WORD
    step = sample.itemsize
    luma, blue, red = [np.ndarray((p.height, p.width), sample, p, 0, (p.line_size, step)) for p in frame.planes[:3]]
    full = full or frame.color_range == 2
    return Planes(luma, blue, red, depth, full, int(frame.colorspace), int(frame.color_trc))


@cache
def _stored(name: str) -> tuple[int | None, bool]:
    """Return the bits of one sample of a planar YUV format, with or without alpha, and whether its name says full range.

    None for the bits of another format.
    """
    if not name.startswith(("yuv4", "yuvj4", "yuva4")) or name.endswith("be"):
        return None, False
    return next((bits for bits in (9, 10, 12, 14, 16) if name.endswith(f"p{bits}le")), 8), name.startswith("yuvj")


# ---- every frame -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Developed:
    """What a strip shows of each of its frames.

    Attributes:
        pictures: BGR uint8 [n, rows, columns, 3] of the size that was asked for, as stored, not upright.
        light: mean luma, 0 to 1, [n].
        change: mean absolute change of colour from the frame before, 0 to 1, [n]; 0 for the first frame of all.
    """

    pictures: NDArray[np.uint8]
    light: Series
    change: Series


def strip(size: tuple[int, int]) -> "Strip | CompiledStrip":
    """Make a strip that is developed in pictures of so many rows and columns, the quickest there is."""
    return CompiledStrip() if native.compiled and size == CELLS else Strip()


class CompiledStrip:
    """A strip that is developed in pictures of `CELLS` only. Every frame is finished while its samples are at hand."""

    def __init__(self) -> None:
        self._state = np.zeros(math.prod(LUMA) + 3 * math.prod(CHROMA), np.uint8)
        self._cells = np.empty((FRAMES, *CELLS, 3), np.uint8)
        self._light, self._change = list[float](), list[float]()
        self._begun = False
        self.count = 0  # frames that are on the strip

    def add(self, planes: Planes) -> float:
        """Sample one more frame; see `Strip.add`."""
        luma, blue, red = planes[:3]
        places = _places(luma.shape, blue.shape, red.shape)
        cells = self._cells[self.count]
        levels = planes.depth - 8, planes.full
        told: Sequence[float] = native.compiled.add(luma, blue, red, places, *levels, self._state, cells)
        changed, light, change = told
        self._light.append(light)
        self._change.append(change if self._begun else 0.0)
        self._begun = True
        self.count += 1
        return changed

    def develop(self, rows: int, columns: int) -> Developed:
        """Show the frames; see `Strip.develop`."""
        assert (rows, columns) == CELLS
        tall = self._cells[: self.count].reshape(-1, columns, 3)
        pictures: NDArray[np.uint8] = cv2.cvtColor(tall, cv2.COLOR_YUV2BGR).reshape(-1, rows, columns, 3)
        light, change = np.array(self._light), np.array(self._change)
        self._light.clear()
        self._change.clear()
        self.count = 0
        return Developed(pictures=pictures, light=light, change=change)


@lru_cache(maxsize=8)
def _places(*shapes: tuple[int, int]) -> NDArray[np.int32]:
    """Return which rows and columns of planes of these shapes are sampled, all after one another; those that OpenCV takes."""
    numbers = list[int]()
    for shape, size in zip(shapes, (LUMA, CHROMA, CHROMA), strict=True):
        for length, count in zip(shape, size, strict=True):
            numbers += np.floor(np.arange(count) * (1 / (count / length))).clip(max=length - 1).astype(int).tolist()
    return np.array(numbers, np.int32)


class Strip:
    """Samples of the last few frames, at the same places of each; `develop` makes of them what cuts and measures ask for."""

    def __init__(self) -> None:
        # The first is the last frame of the strip before. Not zeros: what a short source never uses is never written to.
        self._luma = np.empty((FRAMES + 1, *LUMA), np.uint8)
        self._blue, self._red = (np.empty((FRAMES + 1, *CHROMA), np.uint8) for _ in range(2))
        for part in (self._luma, self._blue, self._red):
            part[0] = 0
        self._full, self._begun = True, False
        self.count = 0

    def add(self, planes: Planes) -> float:
        """Sample one more frame, of at most `FRAMES`; return by how many levels its luma differs from the one before."""
        before, self.count = self._luma[self.count], self.count + 1
        self._full = planes.full
        sampled = self._luma[self.count], self._blue[self.count], self._red[self.count]
        for plane, samples in zip((planes.luma, planes.blue, planes.red), sampled, strict=True):
            size = samples.shape[::-1]
            if planes.depth == 8:
                cv2.resize(plane, size, samples, interpolation=cv2.INTER_NEAREST)
            else:
                deep = cv2.resize(plane, size, interpolation=cv2.INTER_NEAREST)
                np.right_shift(deep, planes.depth - 8, out=samples, casting="unsafe")
        return float(cv2.norm(sampled[0], before, cv2.NORM_L1) / before.size)

    def develop(self, rows: int, columns: int) -> Developed:
        """Show the frames, in pictures of rows × columns, and begin a new strip."""
        n, samples = self.count, (self._luma, self._blue, self._red)
        thin = [part[: n + 1, :: part.shape[1] // CHROMA[0], :: part.shape[2] // CHROMA[1]] for part in samples]
        luma, *others = (_averaged(part[1 : n + 1], rows, columns) for part in samples)
        pixels = self._bgr(*thin)  # [n + 1, *CHROMA, 3]
        change = _means(cv2.absdiff(pixels[1:], pixels[:-1]), n)
        if not self._begun:
            change[0] = 0.0
        for part in samples:
            part[0] = part[n]
        self._begun, self.count = True, 0
        return Developed(pictures=self._bgr(luma, *others), light=_means(self._levels(luma, 219), n), change=change)

    def _bgr(self, luma: NDArray[np.uint8], blue: NDArray[np.uint8], red: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn planes [n, h, w] of one size into BGR [n, h, w, 3]; all as one tall picture."""
        merged = cv2.merge([self._levels(luma, 219), self._levels(blue, 224), self._levels(red, 224)])
        pixels: NDArray[np.uint8] = cv2.cvtColor(merged, cv2.COLOR_YUV2BGR)
        return pixels.reshape(*luma.shape, 3)

    def _levels(self, samples: NDArray[np.uint8], span: int) -> NDArray[np.uint8]:
        """Return samples [n, h, w] over the full range, as one tall picture [n * h, w]."""
        tall = np.ascontiguousarray(samples).reshape(-1, samples.shape[2])
        levels: NDArray[np.uint8] = tall if self._full else cv2.LUT(tall, expanded(span))
        return levels


def _means(levels: NDArray[np.uint8], n: int) -> Series:
    """Return the mean, 0 to 1, of each of n frames."""
    rows = levels.reshape(n, -1)
    means: Series = rows.sum(axis=1, dtype=np.uint32) / (255 * rows.shape[1])
    return means


def _averaged(samples: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """Average samples [n, h, w] to [n, rows, columns]; all frames at once, as one tall picture.

    Frames do not run into each other, also where rows do not divide h: the first row of each begins where the frame does.
    """
    n, _, width = samples.shape
    tall = samples.reshape(-1, width)
    method = cv2.INTER_AREA if columns <= width else cv2.INTER_NEAREST
    small: NDArray[np.uint8] = cv2.resize(tall, (columns, n * rows), interpolation=method)
    return small.reshape(n, rows, columns)


# ---- held frames -------------------------------------------------------------------------------------------------------


class Held(NamedTuple):
    """A frame of which pictures can still be made: its planes upright and halved, its lines at full size for the crop box.

    Attributes:
        planes: luma, difference of blue, difference of red, uint8.
        lines: rows and columns of luma over the full range.
        size: (height, width) of the frame, upright with square pixels.
        matrix: from planes to red, green and blue, [3, 4].
        standard: whether levels are in the standard range already, not in PQ.
    """

    planes: tuple[NDArray[np.uint8], ...]
    lines: Lines
    size: tuple[int, int]
    matrix: NDArray[np.float32]
    standard: bool

    def picture(self, box: Box, side: int, least: int = 2) -> Picture:
        """Make an RGB picture [Y, X, 3] of what is inside a box, with square pixels and a short side of at most `side`.

        No side is shorter than `least`: of a ribbon, pixels are stretched.
        """
        picture: Picture = pictures_of([self], box, side, least)[0]
        return picture

    def inside(self, box: Box) -> Sequence[NDArray[np.uint8]]:
        """Return what the planes show inside a box."""
        if box == (0, 0, *self.size):
            return self.planes
        return [cropped(plane, scaled_box(box, self.size, (plane.shape[0], plane.shape[1]))) for plane in self.planes]

    def draw(self, box: Box, picture: Picture) -> None:
        """Fill a picture with what is inside a box, where nothing is compiled; in the standard range or not."""
        pixels = cv2.merge([shrunk(plane, *picture.shape[:2]) for plane in self.inside(box)])
        cv2.transform(pixels, self.matrix, picture)


def pictures_of(held: Sequence[Held], box: Box, side: int, least: int = 2) -> NDArray[np.uint8]:
    """Make pictures, uint8 RGB [F, Y, X, 3], of frames of one size; see `Held.picture`."""
    height, width = (max(least, length) for length in fitted(box[2:], min(side, *held[0].inside(box)[0].shape)))
    pictures = np.empty((len(held), height, width, 3), np.uint8)
    if native.compiled:
        native.compiled.draw([(*frame.inside(box), frame.matrix) for frame in held], pictures)
    else:
        for frame, picture in zip(held, pictures, strict=True):
            frame.draw(box, picture)
    for frame, picture in zip(held, pictures, strict=True):
        if not frame.standard:
            cv2.LUT(picture, standard_range(), picture)
    return pictures


def hold(planes: Planes, size: tuple[int, int], matrix: Matrix, side: int) -> Held:
    """Hold a frame for pictures whose short side is at most `side`.

    Args:
        planes: of the frame.
        size: (height, width) of the frame, upright with square pixels.
        matrix: the signs of its display matrix.
        side: the largest that `Held.picture` is asked for.
    """
    times, shortest = 0, (min(planes.luma.shape), min(planes.blue.shape))
    while shortest[0] >> times >= 2 * side and shortest[1] >> times > 1:
        times += 1
    # Copies, also where nothing is done: a view would keep the frame.
    stored = [halved(plane, times) if times else plane.copy() for plane in planes[:3]]
    if planes.depth > 8:
        stored = [(plane >> (planes.depth - 8)).astype(np.uint8) for plane in stored]
    lines = _lines(planes)
    if matrix != UPRIGHT:
        stored, lines = [upright(plane, matrix) for plane in stored], lines.upright(matrix)
    return Held(
        planes=tuple(stored),
        lines=lines,
        size=size,
        matrix=_to_rgb(planes.space, planes.full),
        standard=planes.transfer != PQ,
    )


def fitted(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    """Return the size of a picture of a shape (height, width) whose short side is at most `side`; even, and never empty."""
    scale = min(1.0, side / min(shape))
    return max(2, round(shape[0] * scale / 2) * 2), max(2, round(shape[1] * scale / 2) * 2)


def shrunk(plane: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Bring a plane to a size: by halves, each the mean of four, and linearly for the rest; areas take seven times as long."""
    times = 0
    while plane.shape[0] >> times >= 2 * height and plane.shape[1] >> times >= 2 * width:
        times += 1
    plane = halved(plane, times) if times else plane
    return plane if plane.shape[:2] == (height, width) else cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)


def halved(plane: Plane, times: int) -> Plane:
    """Halve a plane [h, w], or a picture [h, w, 3], once or more often: each time, four samples become their mean."""
    height, width = plane.shape[0] >> times, plane.shape[1] >> times
    if native.compiled and plane.ndim == 2 and plane.itemsize == plane.strides[1] == 1:
        small = np.empty((height, width), np.uint8)
        native.compiled.halve(plane, times, small)
        return small
    for _ in range(times):
        height, width = plane.shape[0] // 2, plane.shape[1] // 2
        plane = cv2.resize(plane[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    return plane


def _lines(planes: Planes) -> Lines:
    """Take the lines of a frame as it is stored; luma over the full range."""
    depth, plane = planes.depth - 8, planes.luma
    darkest = (DARKEST if planes.full else 16 + DARKEST) << depth
    if native.compiled and min(plane.shape) >= SAMPLES:
        height, width = plane.shape
        rows, columns = np.empty((height, BLOCKS), np.uint8), np.empty((width, BLOCKS), np.uint8)
        filled = native.compiled.lines(plane, darkest, depth, planes.full, rows, columns)
        return Lines(rows=rows, columns=columns) if filled else open_lines(height, width)
    if is_open(plane, darkest):
        return open_lines(*plane.shape)
    stored = lines_of(plane)
    rows, columns = ((levels >> depth).astype(np.uint8) if depth else levels for levels in (stored.rows, stored.columns))
    if not planes.full:
        rows, columns = cv2.LUT(rows, expanded(219)), cv2.LUT(columns, expanded(219))
    return Lines(rows=rows, columns=columns)


@cache
def expanded(span: int) -> NDArray[np.uint8]:
    """Return the table that spreads samples over 0 to 255 which begin at 16 and span so many levels."""
    return np.clip((np.arange(256) - 16) * 255 / span, 0, 255).round().astype(np.uint8)


@cache
def _to_rgb(space: int, full: bool) -> NDArray[np.float32]:
    """Return the matrix [3, 4] from luma and the differences of blue and red, uint8, to red, green and blue (ITU-T H.273)."""
    red, blue = _WEIGHTS.get(space, (0.299, 0.114))
    green = 1 - red - blue
    matrix = np.array(
        [
            [1, 0, 2 * (1 - red)],
            [1, -2 * (1 - blue) * blue / green, -2 * (1 - red) * red / green],
            [1, 2 * (1 - blue), 0],
        ]
    )
    matrix = matrix * (1 if full else np.array([255 / 219, 255 / 224, 255 / 224]))
    offset = matrix @ np.array([0 if full else 16, 128, 128])
    return np.concatenate([matrix, -offset[:, None]], axis=1).astype(np.float32)
