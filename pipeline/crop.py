"""Find the black bars around a clip's picture: letterboxes, pillarboxes and frames of both are cropped, not dropped.

Runs in the decoder's process. A bar is dark over its whole length in four of five frames looked at, ends in one straight
sharp step, is followed by a picture that is lit along at least half of that step, and has a twin of nearly its own width on the
other side. A scene that is dark at its edges lacks the step or the twin, a title on black lacks the straight step, a dark clip
lacks the lit picture: whatever is in doubt is left whole.

Legend: Y X rows and columns of pixels, B blocks that a row or column is averaged in, N rows or columns of one axis.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]  # top, left, height, width
Levels = NDArray[np.uint8]  # [N, B], luma 0 to 255

BLOCKS = 16  # of a row or column: their means are free of noise and still show what a mean of all would drown
SAMPLES = 64  # taken of a row or column
DARKEST, STEP = 24, 10  # a bar is no brighter than this; the picture begins at least so much above it
MOST = 0.45  # of a side that one bar may take
TWINS_PX, TWINS = 4, 0.2  # how far two bars may differ: in pixels, or as a share of the larger
STRAY_BLOCKS = 2  # of a bar's line may be lit: a sign or a number in the bar
RINGING = 16  # lines over which coding may smear the dark side of the step: two blocks of 8
SHARP = 4  # lines after which the step is over


class Lines(NamedTuple):
    """Luma of one frame in full height and in full width: rows [Y, B] and columns [X, B]; open if its edges have no bars."""

    rows: Levels
    columns: Levels
    open: bool = False

    def upright(self, matrix: tuple[int, int, int, int]) -> "Lines":
        """Turn and mirror as a display matrix says; the order of the blocks does not matter and stays."""
        a, b, c, d = matrix
        rows, columns = (self.rows, self.columns) if a else (self.columns, self.rows)
        rows, columns = rows[::-1] if (d or b) < 0 else rows, columns[::-1] if (a or c) < 0 else columns
        return Lines(rows=rows, columns=columns, open=self.open)


def lines_of(luma: NDArray[Any]) -> Lines:
    """Take the lines of a full-size luma plane [Y, X] of 8 or 16 bits; the levels keep the plane's range and type."""
    height, width = luma.shape
    if min(height, width) < SAMPLES:
        rows = cv2.resize(np.ascontiguousarray(luma), (BLOCKS, height), interpolation=cv2.INTER_AREA)
        columns = cv2.resize(np.ascontiguousarray(luma), (width, BLOCKS), interpolation=cv2.INTER_AREA)
        return Lines(rows=rows, columns=columns.T)
    return Lines(rows=_in_blocks(luma.T).T, columns=_in_blocks(luma).T)


def _in_blocks(luma: NDArray[Any]) -> NDArray[Any]:
    """Average evenly spread rows of a plane [N, X] in blocks, [B, X]."""
    each, places = SAMPLES // BLOCKS, (2 * np.arange(SAMPLES) + 1) * len(luma) // (2 * SAMPLES)
    taken = luma[places].astype(np.uint16 if luma.itemsize == 1 else np.uint32)
    total = functools.reduce(np.add, (taken[number::each] for number in range(each)))
    return (total // each).astype(luma.dtype)


def is_open(luma: NDArray[Any], darkest: int) -> bool:
    """Tell whether a frame is so light at its edges that it has no bars, neither at top and bottom nor at the sides.

    Args:
        luma: the full-size plane [Y, X] of 8 or 16 bits.
        darkest: the level of `DARKEST` on the plane's range; well above it, an edge is light.
    """
    rows = _is_lit(luma[0], darkest) or _is_lit(luma[-1], darkest)
    return rows and (_is_lit(luma[:, 0], darkest) or _is_lit(luma[:, -1], darkest))


@functools.lru_cache(maxsize=8)
def open_lines(height: int, width: int) -> Lines:
    """Stand for the lines of a frame that has no bars: all light."""
    rows, columns = np.full((height, BLOCKS), 255, np.uint8), np.full((width, BLOCKS), 255, np.uint8)
    return Lines(rows=rows, columns=columns, open=True)


def _is_lit(line: NDArray[Any], darkest: int) -> bool:
    """Tell whether more blocks of a line than a bar may have are clearly lighter than a bar."""
    length = len(line) // BLOCKS
    if not length:
        return False
    blocks = line[: BLOCKS * length].reshape(BLOCKS, length)[:, :: max(1, length // 4)]
    lit = np.add.reduce(blocks, axis=1, dtype=np.uint32) > 1.5 * darkest * blocks.shape[1]  # a mean takes three times as long
    return int(np.count_nonzero(lit)) > 2 * STRAY_BLOCKS


def find_box(lines: Sequence[Lines], height: int, width: int) -> Box:
    """Return the box of the picture inside its bars, in pixels of an upright frame of height × width; the whole if it has none.

    Args:
        lines: of several frames of a clip, upright; stretched pixels are taken into account.
        height: rows of the upright frame with square pixels.
        width: its columns.
    """
    if sum(line.open for line in lines) >= _ranks(lines):
        return 0, 0, height, width
    top, bottom = _scaled(_inside(_lasting([line.rows for line in lines])), len(lines[0].rows), height)
    left, right = _scaled(_inside(_lasting([line.columns for line in lines])), len(lines[0].columns), width)
    return top, left, bottom - top, right - left


@functools.lru_cache(maxsize=64)
def scaled_box(box: Box, size: tuple[int, int], to: tuple[int, int]) -> Box:
    """Return a box of a frame of `size` (height, width) in pixels of the same frame at another size, never empty."""
    top, bottom = _scaled((box[0], box[0] + box[2]), size[0], to[0])
    left, right = _scaled((box[1], box[1] + box[3]), size[1], to[1])
    return top, left, bottom - top, right - left


def cropped(picture: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Return a view of the part of a picture [Y, X, 3] inside a box."""
    top, left, height, width = box
    return picture[top : top + height, left : left + width]


def _lasting(levels: Sequence[Levels]) -> Levels:
    """Return the level that every block reaches in more than a fifth of the frames: a flash lights the bars too."""
    brightest = [np.zeros_like(levels[0])] * _ranks(levels)
    for level in levels:
        for rank, so_far in enumerate(brightest):
            brightest[rank], level = np.maximum(so_far, level), np.minimum(so_far, level)
    return brightest[-1]


def _ranks(frames: Sequence[Any]) -> int:
    """Return how many of so many frames are more than a fifth."""
    return 1 + len(frames) // 5


def _inside(levels: Levels) -> tuple[int, int]:
    """Return first line and end line of the picture along one axis."""
    count = len(levels)
    first, last = _bar(levels), _bar(levels[::-1])
    twins = abs(first - last) <= max(TWINS_PX, TWINS * max(first, last))
    return (first, count - last) if first and last and twins else (0, count)


def _bar(levels: Levels) -> int:
    """Return how many lines the bar at the beginning of an axis has; 0 if there is none."""
    brightest = np.partition(levels, -1 - STRAY_BLOCKS, axis=1)[:, -1 - STRAY_BLOCKS].astype(np.float64)
    base = float(brightest[:2].max())
    lit = np.flatnonzero(brightest > base + STEP)
    if base > DARKEST or not len(lit) or lit[0] < 2:
        return 0
    end = _step(levels[: lit[-1] + 1].mean(axis=1), int(lit[0]), max(8, len(levels) // 40))
    straight = np.mean(levels[end + 1 : end + 1 + SHARP].max(axis=0, initial=0) > base + STEP) >= 0.5
    return end if straight and end <= MOST * len(levels) else 0


def _step(means: NDArray[np.float64], start: int, reach: int) -> int:
    """Return the line at which a bar that is dark up to `start` becomes picture, which goes on for the rest of the lines.

    0 if it does so slowly, or not at all: within two lines outside there is less than 30 % of the light that the `reach` lines
    inside have, and within three lines inside more than 60 %.
    """
    above = means - means[:start].mean()
    for end in range(start, min(start + RINGING, len(above) - SHARP)):
        inside = above[end:]
        bright = float(np.median(inside[SHARP : SHARP + reach]))
        # Coding smears the step: the picture begins with the line that is past half of it.
        if bright > STEP and inside[:3].max() > 0.6 * bright and inside[0] > 0.5 * np.median(inside[1:7]):
            return end if above[end - 2] < 0.3 * bright else 0
    return 0


def _scaled(span: tuple[int, int], size: int, to: int) -> tuple[int, int]:
    """Return the whole pixels inside a span, at another size; at least one."""
    start = min(-(-span[0] * to // size), to - 1)
    return start, max(start + 1, span[1] * to // size)
