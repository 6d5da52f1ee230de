"""Wipes: a border goes over the picture, on one side of it the old shot, on the other the next one.

Runs in the decoder's process. Each cell of a tiny picture changes once, at once, and keeps still before and after. When,
depends on where it lies, and on nothing else. What pans changes cell after cell too, but moves along with that border.

Legend: N frames of a window, C cells, levels 0 to 255; a time is counted in frames from the window's first.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import native
from pipeline.planes import CELLS
from pipeline.reel import DENSEST_FPS, REACH_S, Around, Levels, Reel, Transition

Window = NDArray[np.float32]  # [N, C, 3]
Numbers = NDArray[np.floating]  # [C]
Times = NDArray[np.intp]  # [C]
Holds = NDArray[np.bool_]  # [C]

LEAST_STEP = 10  # levels that a cell changes by in a wipe
AT_ONCE_S = 0.25  # in which a cell makes most of its step
MOST_FRAMES = 1024  # of a window
AWAY = 3  # cells: how far the border goes between two frames that are compared
_ROWS, _COLUMNS = CELLS
_Y, _X = (places.ravel() for places in np.mgrid[:_ROWS, :_COLUMNS])
_PLACES = np.stack([np.ones(_ROWS * _COLUMNS), _X - (_COLUMNS - 1) / 2, _Y - (_ROWS - 1) / 2], axis=1)  # [C, 3]


class Border(NamedTuple):
    """Where the border of a wipe is when: the time at the picture's centre, and by how much it is later a cell further."""

    centre: float
    right: float
    down: float

    @property
    def times(self) -> Numbers:
        """When it reaches each cell."""
        times: Numbers = _PLACES @ np.array(self)
        return times

    @property
    def span(self) -> float:
        """How long it is on its way."""
        return abs(self.right) * (_COLUMNS - 1) + abs(self.down) * (_ROWS - 1)


def wipes(reel: Reel, around: Sequence[Around]) -> Iterator[Transition]:
    """Find the wipes near frames; the same one may come again and again, a little different."""
    for first, end in stepping(reel, around):
        border = _border(reel.levels[first:end])
        if border:
            low, high = border.times.min(), border.times.max()
            start = reel.first + first
            yield Transition(start=start + int(np.floor(low)), end=start + int(np.ceil(high)) + 1)


def stepping(reel: Reel, around: Sequence[Around]) -> Iterator[tuple[int, int]]:
    """Give the windows around frames, by their places in the reel, in which most values make one step each."""
    if native.compiled:
        places = np.array(around, np.int64).reshape(-1, 3) - reel.first
        yield from native.compiled.stepping(reel.times, reel.levels, places, REACH_S, AT_ONCE_S, DENSEST_FPS)
        return
    for number, low, high in around:
        first = max(low, reel.back(number, REACH_S)) - reel.first
        end = min(high, reel.ahead(number, REACH_S) + 1) - reel.first
        if end - first >= 10:
            lasts = max(1e-9, reel.times[end - 1] - reel.times[first])
            at_once = max(1, math.floor(AT_ONCE_S * (end - first - 1) / lasts + 0.5))
            if _steps(reel.levels[first:end], at_once):
                yield first, end


def _steps(levels: Levels, at_once: int) -> bool:
    """Tell whether most values of a window change, each mostly in one step over so many frames, and not all in one frame."""
    levels = levels.astype(np.int16)
    size = np.abs(levels[-1] - levels[0])
    changes = size > LEAST_STEP
    if 2 * np.count_nonzero(changes) < len(size) or not at_once < len(levels) <= MOST_FRAMES:
        return False
    levels, size = levels[:, changes], size[changes]
    steps, ways = np.abs(levels[at_once:] - levels[:-at_once]).max(axis=0), np.abs(np.diff(levels, axis=0))
    straight = np.count_nonzero(ways.sum(axis=0) <= 3 * size)
    most = np.bincount(ways.argmax(axis=0)).max()
    step = np.count_nonzero(steps > 0.6 * size)
    return bool(step >= 0.7 * len(size) and 2 * straight >= len(size) and most <= 0.3 * len(size))


def _border(levels: Levels) -> Border | None:
    """Return the border of the wipe in a window, uint8 [N, K], or None."""
    divided = _divided(levels)
    if not divided:
        return None
    times, size, changes = divided
    border, fits = _fitted(times, changes)
    away = np.abs(times - border.times)[fits]
    if np.count_nonzero(fits) < 0.78 * np.count_nonzero(changes) or np.sqrt((away**2).mean()) > 0.08 * border.span + 0.5:
        return None
    # Where it takes no time it is a cut, and before and after it shots are seen.
    if border.span < 4 or border.times.min() < 3 or border.times.max() > len(levels) - 4:
        return None
    window = levels.reshape(len(levels), 3, -1).transpose(0, 2, 1).astype(np.float32)
    if np.count_nonzero(_change_at_once(window, times, size, border.span) & fits) < 0.92 * np.count_nonzero(fits):
        return None
    return border if _stands_still(window, border, float(size[fits].mean())) else None


def _divided(levels: Levels) -> tuple[Times, Numbers, Holds] | None:
    """Divide the levels of each cell in those before a moment and those after it, where that leaves least of their differences.

    Returns:
        The first frame after, by how much levels change, and which cells are the better for it; None if few are.
    """
    count, cells = len(levels), levels.shape[1] // 3
    sums, numbers = levels.cumsum(axis=0, dtype=np.float32), np.arange(1, count, dtype=np.float32)[:, None]
    before, whole = sums[:-1], sums[-1]
    told = (before**2 / numbers + (whole - before) ** 2 / (count - numbers)).reshape(-1, 3, cells).sum(axis=1)  # [N - 1, C]
    times = told.argmax(axis=0) + 1
    common = (whole**2 / count).reshape(3, cells).sum(axis=0)
    differ = np.square(levels, dtype=np.float32).sum(axis=0).reshape(3, cells).sum(axis=0) - common
    left = differ - (told.max(axis=0) - common)
    means = (part.reshape(-1, 3, cells) for part in (before / numbers, (whole - before) / (count - numbers)))
    earlier, later = (mean[times - 1, :, np.arange(cells)] for mean in means)  # [C, 3]
    size = np.abs(later - earlier).max(axis=1)
    changes = (size >= LEAST_STEP) & (left <= 0.4 * differ)
    few = np.count_nonzero(changes) < 0.7 * cells or left.sum() > 0.25 * differ.sum()
    return None if few else (times, size, changes)


def _change_at_once(window: Window, times: Times, size: Numbers, span: float) -> Holds:
    """Tell which cells make most of their change while a border passes them."""
    around, cells = int(np.ceil(0.12 * span + 1)), np.arange(window.shape[1])
    before, after = np.maximum(times - 1 - around, 0), np.minimum(times + around, len(window) - 1)
    changes: Holds = np.abs(window[after, cells] - window[before, cells]).max(axis=1) >= 0.7 * size
    return changes


def _fitted(times: Times, changes: Holds) -> tuple[Border, Holds]:
    """Fit a border to the times at which cells change; tell which of them it fits."""
    fits, border = changes, Border(0.0, 0.0, 0.0)
    for _ in range(3):
        solution, *_ = np.linalg.lstsq(_PLACES[fits], times[fits].astype(np.float64), rcond=None)
        border = Border(*solution.tolist())
        away = np.abs(times - border.times)
        fits = changes & (away <= max(1.5, 2 * float(np.median(away[changes]))))
    return border, fits


def _stands_still(window: Window, border: Border, size: float) -> bool:
    """Tell whether both sides of a border keep still while it passes, and do not move along with it as in a pan."""
    across = abs(border.right) * _COLUMNS >= abs(border.down) * _ROWS
    slope, axis = (border.right, 1) if across else (border.down, 0)
    step, pause = (AWAY if slope > 0 else -AWAY), max(1, round(AWAY * abs(slope)))
    pictures, times = window.reshape(len(window), _ROWS, _COLUMNS, 3), border.times.reshape(_ROWS, _COLUMNS)
    still, moved = [], []
    for first in range(max(0, int(times.min()) - 2), min(len(window) - pause, int(times.max()) + 2)):
        one, other = pictures[first], pictures[first + pause]
        along = np.roll(one, step, axis=axis)
        for side in (times > first + pause + 1 + abs(slope), times < first - 1 - abs(slope)):
            both = side & np.roll(side, step, axis=axis)
            np.moveaxis(both, axis, 0)[slice(None, AWAY) if step > 0 else slice(-AWAY, None)] = False  # what came round
            if np.count_nonzero(both) >= 6:
                still.append(float(np.abs(other - one)[both].mean()))
                moved.append(float(np.abs(other - along)[both].mean()))
    if not still:
        return False
    rest, pan = sum(still) / len(still), sum(moved) / len(moved)
    return pan >= 3 and rest <= 0.5 * pan and rest <= 0.12 * size
