"""The reel: tiny pictures of the last frames of a source, and what tells where one shot ends and the next begins.

Runs in the decoder's process. Memory holds the frames of a few seconds, however long the source.

Legend: N frames, K values of a tiny picture (blue, green, red × cells), levels 0 to 255.
"""

import itertools
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import native
from pipeline.planes import CELLS

Cells = NDArray[np.float32]  # [K], or [N, K]
Levels = NDArray[np.uint8]  # [N, K]
Numbers: TypeAlias = "array[float]"  # N
Around = tuple[int, int, int]  # a frame; the first frame of the same shot or ramp as far as cuts tell, and the end of it

FLASH_S = 0.45  # two frames alike at most so far apart: what lies between them is a flash
USUAL_S = 0.6  # on both sides of a cut: what it has to stand out from
REACH_S = 1.25  # on both sides of a moment inside a ramp: where its ends are looked for
ONE_COLOUR = 0.8  # levels that a picture of one colour spreads at most
ONE_COLOUR_S = 1.0  # longer pictures of one colour are a shot of their own
MOST_S = 2 * REACH_S + 2 * (FLASH_S + USUAL_S) + ONE_COLOUR_S
DENSEST_FPS = 120  # windows are cut short where there are more frames
CAPACITY = int(1.25 * DENSEST_FPS * MOST_S)  # frames
MOST_AT_ONCE = 128  # frames that are added to the reel at a time
_VALUES = CELLS[0] * CELLS[1] * 3


@dataclass(frozen=True, kw_only=True, order=True)
class Transition:
    """The frames `[start, end)` between two shots; a hard cut has none, its start and end are the later shot's first frame."""

    start: int
    end: int


def _no_numbers() -> Numbers:
    return array("d")


@dataclass(kw_only=True)
class Reel:
    """The last frames of a source: times, tiny pictures, and how they differ. Frames are numbered from the source's first.

    Attributes:
        first: number of the oldest frame that is kept.
        times: presentation times in seconds. This and what follows are no NumPy arrays because single values are asked for, all
            the time.
        change: mean absolute difference of each frame from the one before, in levels.
        apart: least such difference of a frame before from a frame not before this one, of those at most `FLASH_S` apart.
        path: sum of `change` up to each frame.
        spread: standard deviation inside each picture, mean over colours, in levels; next to 0 for a picture of one colour.
        levels: tiny pictures, uint8 [.., K].
    """

    first: int = 0
    times: Numbers = field(default_factory=_no_numbers)
    change: Numbers = field(default_factory=_no_numbers)
    apart: Numbers = field(default_factory=_no_numbers)
    path: Numbers = field(default_factory=_no_numbers)
    spread: Numbers = field(default_factory=_no_numbers)
    levels: Levels = field(default_factory=lambda: np.empty((CAPACITY, _VALUES), np.uint8))

    @property
    def end(self) -> int:
        """Number of the frame that comes next."""
        return self.first + len(self.times)

    def add(self, times_s: Sequence[float], pictures: NDArray[np.uint8]) -> None:
        """Add the next frames, uint8 [n, *CELLS, 3], few of them."""
        n = len(times_s)
        if len(self.times) + n > CAPACITY:
            self._forget(CAPACITY // 5)
        at = len(self.times)
        change, spread = _compared(pictures, self.levels, at)
        self.times.extend(times_s)
        self.change.extend(change)
        self.apart.extend(change)
        self.path.extend(itertools.accumulate(change[1:], initial=change[0] + (self.path[-1] if self.path else 0.0)))
        self.spread.extend(spread)

    def part(self, start: int, end: int, *, all_frames: bool = False) -> None:
        """Find out how far apart the two sides of frames `[start, end)` are; what follows them must be there.

        Of those that stick out from their neighbours, unless it is of all.
        """
        first, last = start - self.first, end - self.first
        if native.compiled:
            series, bounds = (self.times, self.change, self.apart, self.levels), (FLASH_S, DENSEST_FPS)
            native.compiled.part(*series, first, last, all_frames, *bounds)
        else:
            for at in range(first, last):
                if all_frames or self._sticks_out(at):
                    self._part(at)

    def _sticks_out(self, at: int) -> bool:
        change, last = self.change[at], len(self.change) - 1
        return change >= 1.5 and change >= 1.5 * min(self.change[at - 1], self.change[min(at + 1, last)])

    def _part(self, at: int) -> None:
        low, high = (
            place - self.first for place in (self.back(at + self.first, FLASH_S), self.ahead(at - 1 + self.first, FLASH_S))
        )
        sides = np.arange(at - 1, low - 1, -1), np.arange(at, high + 1)
        earlier, later = (side[_nearest_first(len(side))] for side in sides)
        times = np.array(self.times[low : high + 1])
        near = times[later - low] - times[earlier - low, None] <= FLASH_S + 1e-6
        before, after = (self.levels[side].astype(np.float32) for side in (earlier, later))
        # Of each earlier one, the least sum of absolute differences.
        nearest, _ = cv2.batchDistance(before, after, cv2.CV_32F, normType=cv2.NORM_L1, K=1, mask=near.astype(np.uint8))
        self.apart[at] = min(self.change[at], float(nearest.min()) / _VALUES)

    def back(self, number: int, seconds: float) -> int:
        """Return the first frame at most so many seconds before a frame, at least the one before it where there is one."""
        at = number - self.first
        low = bisect_left(self.times, self.times[at] - seconds - 1e-6, 0, at)
        return self.first + max(0, min(max(low, at - int(DENSEST_FPS * seconds)), at - 1))

    def ahead(self, number: int, seconds: float) -> int:
        """Return the last frame at most so many seconds after a frame, at least the one after it where there is one."""
        at = number - self.first
        high = bisect_left(self.times, self.times[at] + seconds + 1e-6, at) - 1
        return self.first + min(len(self.times) - 1, max(min(high, at + int(DENSEST_FPS * seconds)), at + 1))

    def _forget(self, count: int) -> None:
        for kept in (self.times, self.change, self.apart, self.path, self.spread):
            del kept[:count]
        self.levels[: len(self.times)] = self.levels[count : count + len(self.times)]
        self.first += count


def _nearest_first(count: int) -> list[int]:
    """Choose among so many frames that are compared: all near ones, and fewer of those further away, at no even pace."""
    chosen = [0]
    while (number := chosen[-1] + 1 + chosen[-1] // 5) < count:
        chosen.append(number)
    return chosen


def _compared(pictures: NDArray[np.uint8], levels: Levels, at: int) -> tuple[list[float], list[float]]:
    """Put tiny pictures uint8 [n, *CELLS, 3] into rows of levels; return `change` and `spread` of each."""
    if native.compiled:
        sums, spread = native.compiled.compare(pictures, levels, at)
        return [total / _VALUES for total in sums], spread
    n = len(pictures)
    levels[at : at + n] = pictures.transpose(0, 3, 1, 2).reshape(n, -1)
    rows = levels[max(0, at - 1) : at + n].astype(np.int64)
    change = (np.abs(np.diff(rows, axis=0)).sum(axis=1) / _VALUES).tolist()
    colours = levels[at : at + n].reshape(n, 3, -1).astype(np.int64)
    sums, squares = colours.sum(axis=2), (colours**2).sum(axis=2)
    spread = (np.sqrt(colours.shape[2] * squares - sums**2) / colours.shape[2]).mean(axis=1).tolist()
    return [0.0] * (n - len(change)) + change, spread  # the first of all has not changed


def lit(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which cells of two pictures are no black bars: lit in one of them at least."""
    lit: NDArray[np.bool_] = np.maximum(a, b).reshape(3, -1).max(axis=0) > 12
    return lit


def likeness(a: Cells, b: Cells) -> float:
    """Return the correlation of two pictures without their means: 1 where only the light differs, about 0 of two scenes."""
    x, y = (picture.reshape(3, -1) - picture.reshape(3, -1).mean(axis=1, keepdims=True) for picture in (a, b))
    return float((x * y).sum() / max(1e-6, np.sqrt((x * x).sum() * (y * y).sum())))
