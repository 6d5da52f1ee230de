"""Transitions: where one shot ends and the next begins, from the stream of a source's frames, a few seconds behind it.

Runs in the decoder's process. Every frame becomes a tiny picture of block means (`CELLS`); all is decided on these, over
windows in seconds of presentation time, whatever the frame rate. Three rules:

- A **cut** lies between two sides no frames of which are alike, it stands out from what changes around it, and most of the
  picture changes. A flash, or a strobe light, has frames alike on both sides, and is no cut; nor is a title laid over a shot.
- A **ramp** (dissolve; fade from or to one colour) mixes two pictures: most cells go from one level to another in step, at a
  steady pace, and keep still before and after; or, where shots move, two pictures that are not alike cancel out in their mix.
  What pans, moves or grows changes cell after cell; what gets lighter or darker keeps its structure.
- Cuts and ramps with next to nothing between them, or with nothing but frames of one colour, are one transition.

Memory holds the tiny pictures of a few seconds, however long the source. Cost: some hundredths of a millisecond a frame.

Legend: N frames, K values of a tiny picture (blue, green, red × cells), levels 0 to 255.
"""

import itertools
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean, linear_regression, median
from typing import Any, ClassVar, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import native
from pipeline.planes import CELLS

Cells = NDArray[np.float32]  # [K], or [N, K]
Levels = NDArray[np.uint8]  # [N, K]
Numbers: TypeAlias = "array[float]"  # N
Series = NDArray[np.float64]  # [N]
Around = tuple[int, int, int]  # a frame; the first frame of the same shot or ramp as far as cuts tell, and the end of it

FLASH_S = 0.45  # two frames alike at most so far apart: what lies between them is a flash
USUAL_S = 0.6  # on both sides of a cut: what it has to stand out from
JUST_S = 0.08  # on both sides of a moment inside a ramp: how much it changes there
REACH_S = 1.25  # on both sides of a moment inside a ramp: where its ends are looked for
LEAST_CHANGED = 0.28  # of a picture changes at a cut; a title, a subtitle or a small picture that is laid over it is less
LEAST_SHARE = 0.5  # of what changes goes along with a ramp
ONE_COLOUR = 0.8  # levels that a picture of one colour spreads at most
ONE_COLOUR_S = 1.0  # longer pictures of one colour are a shot of their own
REPEAT_S = 0.12  # from a frame that is shown again to others that are not
PLATEAU_S = 0.2  # longer pictures of nearly one colour are no turn of a fade
MOST_BACK = 0.5  # of the change at one end of a flash that may be left between what lies before and after it
MOST_S = 2 * REACH_S + 2 * (FLASH_S + USUAL_S) + ONE_COLOUR_S
DENSEST_FPS = 120  # windows are cut short where there are more frames
_CAPACITY = int(1.25 * DENSEST_FPS * MOST_S)
MOST_AT_ONCE = 64  # frames that are added to the reel at a time
_NEARBY_S = np.linspace(-REACH_S, REACH_S, 11)
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
    levels: Levels = field(default_factory=lambda: np.empty((_CAPACITY, _VALUES), np.uint8))

    @property
    def end(self) -> int:
        """Number of the frame that comes next."""
        return self.first + len(self.times)

    def add(self, times_s: Sequence[float], pictures: NDArray[np.uint8]) -> None:
        """Add the next frames, uint8 [n, *CELLS, 3], few of them."""
        n = len(times_s)
        if len(self.times) + n > _CAPACITY:
            self._forget(_CAPACITY // 5)
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


# ---- cuts --------------------------------------------------------------------------------------------------------------


def cut_strength(reel: Reel, number: int, repeats: Container[int]) -> float:
    """Return how much a frame stands out as the first of a shot: its `apart` over what is usual around it; 0 for no cut.

    Weak changes count less: below 15 levels, or below the spread of the two pictures where that is less (dark, washed out).
    Frames that repeat others say nothing of what is usual: of a film at 24 frames a second in a video at 60 they are most.
    """
    at = number - reel.first
    apart = reel.apart[at]
    # Next to what is far greater and no cut it is the flicker of a flash.
    if apart < 1.5 or apart < 0.12 * max(reel.change[at - 1 : at + 2]):
        return 0.0
    # In the last frames of a source little is left that could be like those before: what is a bit like them is a flicker too.
    if reel.times[-1] - reel.times[at] < FLASH_S and apart < 0.3 * reel.change[at]:
        return 0.0
    low = max(1 if reel.first == 0 else 0, min(reel.back(number, USUAL_S) - reel.first, at - 2))
    high = max(reel.ahead(number, USUAL_S) - reel.first, at + 2) + 1
    numbers = [other for other in range(low, min(high, len(reel.apart))) if other != at and other not in repeats]
    if min(reel.spread[max(0, low - 1) : high]) < ONE_COLOUR:
        # Changes to and from one colour say nothing, unless most are: at a low rate a flash has a third of the frames near it.
        telling = [number for number in numbers if min(reel.spread[max(0, number - 1) : number + 1]) >= ONE_COLOUR]
        numbers = telling if 2 * len(telling) >= len(numbers) else numbers
    others = sorted(reel.apart[number] for number in numbers)
    # Not the largest: there may be other cuts nearby.
    usual = others[3 * len(others) // 4] if others else 0.0
    full = min(15.0, max(3.0, *reel.spread[at - 1 : at + 1]))
    return apart / max(usual, 0.3) * min(1.0, apart / full)


def changed_share(reel: Reel, number: int) -> float:
    """Return the share of a picture that changes at a frame, of what changes by a tenth as much as the most of it.

    Black bars take no part, but four fifths of a picture count at the least, so that a title on black is not all of it.
    """
    before, after = reel.levels[number - 1 - reel.first], reel.levels[number - reel.first]
    change = (np.maximum(before, after) - np.minimum(before, after)).reshape(3, -1).max(axis=0)  # of each cell
    changes = change > max(1.5, 0.1 * float(np.sort(change)[-len(change) // 20]))
    counts = changes | _lit(before, after)
    return int(np.count_nonzero(changes)) / max(0.8 * len(change), int(np.count_nonzero(counts)))


def _lit(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which cells of two pictures are no black bars: lit in one of them at least."""
    lit: NDArray[np.bool_] = np.maximum(a, b).reshape(3, -1).max(axis=0) > 12
    return lit


def _repeats(reel: Reel, start: int) -> Container[int]:
    """Tell the frames that show the one before again, or nearly so, between others that do not; by their places in the reel.

    Of those that count for a frame from `start` on.
    """
    change, times, found = reel.change, reel.times, set[int]()
    for at in range(max(0, min(reel.back(start, USUAL_S), start - 2) - reel.first), len(change)):
        first = bisect_left(times, times[at] - REPEAT_S, 0, at)
        end = bisect_right(times, times[at] + REPEAT_S, at)
        least = min(max(change[first:at], default=0.0), max(change[at + 1 : end], default=0.0))
        if change[at] <= max(0.02, 0.1 * least):
            found.add(at)
    return found


def cut_strengths(reel: Reel, start: int, end: int) -> list[float]:
    """Return the `cut_strength` of frames `[start, end)`."""
    if not native.compiled:
        repeats = _repeats(reel, start) if start < end else ()
        return [cut_strength(reel, number, repeats) for number in range(start, end)]
    series, places = (reel.times, reel.change, reel.apart, reel.spread), (start - reel.first, end - reel.first)
    bounds = FLASH_S, USUAL_S, REPEAT_S, ONE_COLOUR, DENSEST_FPS
    strengths: list[float] = native.compiled.strengths(*series, reel.first == 0, *places, *bounds)
    return strengths


# ---- ramps -------------------------------------------------------------------------------------------------------------


def ramps(reel: Reel, around: Sequence[Around]) -> Iterator[Transition]:
    """Find the ramps that frames are inside of; the same ramp may come again and again, a little different."""
    for (number, low, high), direction in directions(reel, around):
        ramp = _ramp_at(reel, number, low, high, direction)
        if ramp:
            yield ramp


def _ramp_at(reel: Reel, number: int, low: int, high: int, direction: Cells) -> Transition | None:
    """Return the ramp that goes in a direction around a frame, or None."""
    first, end = max(low, reel.back(number, REACH_S)), min(high, reel.ahead(number, REACH_S) + 1)
    inside = slice(first - reel.first, end - reel.first)
    times, cells = reel.times[inside], reel.levels[inside].astype(np.float32)
    size = np.abs(direction)
    usual = _middle(size) + 0.5
    # What changes far more than the rest moves in front of the scene.
    weights = np.where(size < 4 * usual, direction / (direction**2 + usual**2), 0)
    if not weights.any():  # all that changes moves in front of what does not change at all
        return None
    progress = cells @ weights / (direction @ weights)
    ends = _ends(times, progress.tolist(), number - first)
    if ends is None:
        return None
    start, stop = ends
    is_ramp = _is_ramp(np.array(times), cells, start, stop, reel.spread[inside])
    return Transition(start=first + start + 1, end=first + stop) if is_ramp else None


def _middle(values: Cells) -> float:
    """Return about the median; numpy's own takes four times as long."""
    return float(np.sort(values)[len(values) // 2])


def directions(reel: Reel, around: Sequence[Around]) -> Iterator[tuple[Around, Cells]]:
    """Give by how much each value changes from just before a frame to just after it, where that may be part of a ramp."""
    if native.compiled:
        series = reel.times, reel.path, reel.spread, reel.levels
        places = np.array(around, np.int64).reshape(-1, 3) - reel.first
        found = native.compiled.directions(*series, places, JUST_S, REACH_S, DENSEST_FPS)
    else:
        found = _steps(reel, around)
    for i, before, after in found:
        yield around[i], reel.levels[after].astype(np.float32) - reel.levels[before]


def _steps(reel: Reel, around: Sequence[Around]) -> Iterator[tuple[int, int, int]]:
    """Give which frames may be inside of a ramp, and the places just before and just after each."""
    for i, (number, low, high) in enumerate(around):
        before, after = max(low, reel.back(number, JUST_S)), min(high - 1, reel.ahead(number, JUST_S))
        at = before - reel.first, number - reel.first, after - reel.first
        if not before < number < after or reel.times[at[2]] - reel.times[at[0]] > 0.5:
            continue
        changes = reel.path[at[2]] - reel.path[at[0]] >= 0.5
        if changes and _stirs(reel, *at) and _moves_on(reel, number, low, high) and _changes_in_step(reel, *at):
            yield i, at[0], at[2]


def _stirs(reel: Reel, before: int, at: int, after: int) -> bool:
    """Tell whether more changes around a frame than at some other time nearby: what changes all the time is no ramp."""
    times, path = reel.times, reel.path
    least = 0.7 * (path[after] - path[before]) / (times[after] - times[before])
    marks = [min(bisect_left(times, times[at] + nearby_s), len(times) - 1) for nearby_s in _NEARBY_S.tolist()]
    spans = [(first, last) for first, last in itertools.pairwise(marks) if times[last] > times[first]]
    return not spans or any(path[last] - path[first] < least * (times[last] - times[first]) for first, last in spans)


def _moves_on(reel: Reel, number: int, low: int, high: int) -> bool:
    """Tell whether most of the picture becomes another one around a frame: after a ramp it is."""
    before = max(low, reel.back(number, REACH_S / 2)) - reel.first
    after = min(high - 1, reel.ahead(number, REACH_S / 2)) - reel.first
    size = np.abs(reel.levels[after].astype(np.float32) - reel.levels[before])
    least = 0.4 * min(15.0, max(3.0, reel.spread[before], reel.spread[after]))
    return bool(2 * np.count_nonzero(size > np.float32(least)) >= len(size))


def _changes_in_step(reel: Reel, before: int, at: int, after: int) -> bool:
    """Tell whether many values are on a straight way from just before a frame to just after it."""
    a, middle, b = reel.levels[[before, at, after]].astype(np.float32)
    size, times = np.abs(b - a), reel.times
    mean = float(size.sum()) / len(size)
    if mean < 0.5 or np.count_nonzero(size > np.float32(max(0.3, 0.25 * mean))) < 0.4 * len(size):
        return False
    share = np.float32((times[at] - times[before]) / (times[after] - times[before]))
    return bool(np.abs(middle - a - share * (b - a)).mean(dtype=np.float64) < 0.35 * mean)


def _ends(times: Sequence[float], progress: Sequence[float], middle: int) -> tuple[int, int] | None:
    """Return the last frame before and the first frame after a steady rise of `progress` around a frame, or None.

    The rise ends where it is slower than a third of its pace in the middle; the levels on both sides and its pace give when.
    """
    before = min(bisect_left(times, times[middle] - 0.081), middle - 1)
    after = max(bisect_left(times, times[middle] + 0.081) - 1, middle + 1)
    pace = (progress[after] - progress[before]) / (times[after] - times[before])
    if pace <= 0:
        return None
    start = _walk(times, progress, middle, -1, 0.35 * pace)
    stop = _walk(times, progress, middle, 1, 0.35 * pace)
    nearly = 0.25 * (progress[stop] - progress[start])  # beyond that it goes on otherwise: a fade turns round
    sides = range(bisect_left(times, times[start] - 0.25), start + 1), range(stop, bisect_right(times, times[stop] + 0.25))
    low, high = (
        median(progress[number] for number in side if abs(progress[number] - progress[end]) <= nearly)
        for side, end in zip(sides, (start, stop), strict=True)
    )
    rise = high - low
    core = [number for number in range(start, stop + 1) if low + 0.15 * rise < progress[number] < high - 0.15 * rise]
    if rise <= 0 or not core:
        return None
    core_times, core_progress = ([series[number] for number in core] for series in (times, progress))
    middle_s, middle_at = fmean(core_times), fmean(core_progress)
    steady = linear_regression(core_times, core_progress).slope if len(core) > 1 else pace
    if not 0.5 * pace < steady < 2 * pace:
        return None
    start_s, stop_s = middle_s - (middle_at - low) / steady, middle_s + (high - middle_at) / steady
    start, stop = bisect_left(times, start_s + 1e-3) - 1, bisect_left(times, stop_s - 1e-3)
    return (max(0, start), min(len(times) - 1, stop)) if stop - start > 2 else None


def _walk(times: Sequence[float], progress: Sequence[float], at: int, step: int, least: float) -> int:
    """Go on from a frame, forwards or backwards, while `progress` rises at least so much a second.

    To the next frame, or over the next tenth of a second: single frames may be repeated, and a fade may be about to turn round.
    """
    last = len(times) - 1 if step > 0 else 0
    while at != last:
        to = at + step
        while to != last and abs(times[to] - times[at]) < 0.1 - 1e-6:
            to += step
        if max((progress[there] - progress[at]) / (times[there] - times[at]) for there in (at + step, to)) < least:
            break
        at += step
    return at


def _is_ramp(times: Series, cells: Cells, start: int, stop: int, spread: Sequence[float]) -> bool:
    """Tell whether the frames between two frames are mixes of them.

    Most values go straight from their level at the one frame to that at the other, and keep still before and after. In shots
    that move they do not keep still; there the mix itself tells: two pictures that are not alike cancel out in it.
    """
    a, b = cells[start], cells[stop]
    size = np.abs(b - a)
    spread_a, spread_b = spread[start], spread[stop]
    full = min(15.0, max(3.0, spread_a, spread_b))
    # Black bars take no part.
    lit = _lit(a, b)
    if not lit.any() or (usual := _middle(size[np.tile(lit, 3)])) < full:
        return False
    changes = size > max(1.0, 0.25 * float(size.sum()) / len(size))
    if np.count_nonzero(changes) < 0.65 * max(0.25, np.count_nonzero(lit) / len(lit)) * len(changes):
        return False
    shares = ((times[start : stop + 1] - times[start]) / (times[stop] - times[start]))[:, None].astype(np.float32)
    off = np.abs(cells[start : stop + 1] - a - shares * (b - a))
    straight = changes & (off.sum(axis=0) < len(off) * (0.12 * size + 0.3))
    around = max(0.15, 0.3 * (times[stop] - times[start]))
    goes = straight
    # Next to one colour: there a fade turns round, and there is no structure to compare.
    plain_a, plain_b = spread_a < max(1.0, 0.2 * spread_b), spread_b < max(1.0, 0.2 * spread_a)
    if not plain_a:
        goes = goes & _still(cells[(times >= times[start] - around) & (times <= times[start])], a, size)
    if not plain_b:
        goes = goes & _still(cells[(times >= times[stop]) & (times <= times[stop] + around)], b, size)
    share, moving = (float(np.count_nonzero(which) / np.count_nonzero(changes)) for which in (goes, straight))
    if plain_a or plain_b:
        return share >= LEAST_SHARE
    # A mix is near to both, has no more structure than they have, and leads to another picture. What moves while a camera sets
    # its exposure adds structure; a scene in another light is much like what it was.
    sag, likeness = 2 * spread[(start + stop) // 2] / (spread_a + spread_b), _likeness(a, b)
    if sag > 1.02 or likeness > 0.9 or off[1:-1].mean() > 0.2 * size.mean():
        return False
    if not _differ(a, b, 0.55 * full):  # nor do two cards, of which most is of one colour
        return share >= 0.8 and usual >= 70 and likeness < 0.6
    return share >= LEAST_SHARE or (moving >= LEAST_SHARE and sag <= 0.88 and likeness <= 0.45)


def _likeness(a: Cells, b: Cells) -> float:
    """Return the correlation of two pictures without their means: 1 where only the light differs, about 0 of two scenes."""
    x, y = (picture.reshape(3, -1) - picture.reshape(3, -1).mean(axis=1, keepdims=True) for picture in (a, b))
    return float((x * y).sum() / max(1e-6, np.sqrt((x * x).sum() * (y * y).sum())))


def _differ(a: Cells, b: Cells, least: float) -> bool:
    """Tell whether two pictures differ by more than light, exposure and what moves before a scene that stays.

    That is so if no gain from 0.6 to 1.6 and offset turns most of one into most of the other, up to `least` levels.
    """
    kept = np.ones(len(a) // 3, np.bool_)
    before, after = a.reshape(3, -1).T, b.reshape(3, -1).T
    for _ in range(3):
        x, y = before[kept], after[kept]
        gain = float(np.clip(((x - x.mean()) * (y - y.mean())).mean() / max(float(x.var()), 1e-3), 0.6, 1.6))
        errors = np.abs(after - gain * before - np.median(y - gain * x)).mean(axis=1)  # of each cell
        most = float(np.quantile(errors, 0.6))
        kept = errors <= most
    return most > max(least, 0.12 * float(np.quantile(np.abs(b - a), 0.6)))


def _still(cells: Cells, level: Cells, size: Cells) -> NDArray[np.bool_]:
    """Tell which values stay at a level, compared with the size of the ramp; none if there is only one frame to tell from."""
    if len(cells) < 2:
        return np.zeros(len(level), np.bool_)
    still: NDArray[np.bool_] = np.abs(cells - level).max(axis=0) < 0.2 * size + 0.5
    return still


def _agreed(seen: Sequence[Transition]) -> tuple[int, int]:
    """Return start and end of a ramp as most of the frames inside it tell."""
    return sorted(ramp.start for ramp in seen)[len(seen) // 2], sorted(ramp.end for ramp in seen)[len(seen) // 2]


# ---- fades -------------------------------------------------------------------------------------------------------------


def _faded(reel: Reel, span: tuple[int, int]) -> tuple[int, int]:
    """Widen a span that has a picture of next to one colour in it or beside it to all of the fade that this belongs to."""
    spread, times = reel.spread, reel.times
    low, high = max(0, span[0] - 1 - reel.first), min(reel.end - 1, span[1]) - reel.first
    near = max(0, low - 2), min(len(spread), high + 3)
    plain = min(range(*near), key=spread.__getitem__)
    if spread[plain] > max(ONE_COLOUR, 0.2 * max(spread[low : high + 1])):
        return span
    before = _fade_end(times[plain::-1], spread[plain::-1], max(0, plain - low))
    after = _fade_end(times[plain:], spread[plain:], max(0, high - plain))
    return min(span[0], plain - before + 1 + reel.first), max(span[1], plain + after + reel.first)


def _fade_end(times: Sequence[float], spread: Sequence[float], at: int) -> int:
    """Return how many frames after the first, which is of one colour, a fade has brought all of a picture, at least `at`.

    A fade brings structure at a steady pace; where there is none yet, or no more, it has not begun, or is over.
    """
    found, begun = at, spread[at] > 2 * max(ONE_COLOUR, spread[0])
    for number in range(at + 1, len(spread)):
        if abs(times[number] - times[0]) > REACH_S:
            break
        rise = spread[number] - spread[number - 1]
        pace = (spread[number - 1] - spread[0]) / max(1, number - 1)
        if begun and rise < 0.4 * pace:
            break
        waits = spread[0] > ONE_COLOUR and abs(times[number] - times[at]) > PLATEAU_S  # what is not quite plain is a shot
        if not begun and (waits or spread[number] < spread[number - 1] - 0.5):
            break
        begun = begun or spread[number] > 2 * max(ONE_COLOUR, spread[0])
        found = number if begun else found
    return found


# ---- the stream --------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Transitions:
    """Finds the transitions of a source while its frames come in.

    Attributes:
        threshold: how much a frame must stand out from its neighbours to be a cut, a ratio.
        min_shot_frames: shots are never shorter; what is, is part of a transition.
    """

    threshold: float = 3.0
    min_shot_frames: int = 3
    reel: Reel = field(default_factory=Reel)
    next_part: int = 1  # the first frame of which is not yet known how far apart what lies before and after it is
    next_cut: int = 1  # the first frame of which is not yet known whether it is a cut
    next_ramp: int = 1  # the first frame of which is not yet known whether a ramp is around it
    cuts: dict[int, float] = field(default_factory=dict)  # and how strong each is
    ramps: list[list[Transition]] = field(default_factory=list)  # each as it was seen from some frames inside
    given: int = 0  # end of the last transition that was given away

    size: ClassVar[tuple[int, int]] = CELLS

    def take(self, times_s: Sequence[float], pictures: NDArray[np.uint8]) -> list[Transition]:
        """Take the next few frames; return the transitions that are certain now, in order.

        Args:
            times_s: their presentation times.
            pictures: uint8 BGR [n, *size, 3].
        """
        self.reel.add(times_s, pictures)
        self._decide(final=False)
        return list(self._certain(final=False))

    def finish(self) -> list[Transition]:
        """Return the remaining transitions when all frames were taken."""
        self._decide(final=True)
        return list(self._certain(final=True))

    def _decide(self, *, final: bool) -> None:
        reel = self.reel
        seen = reel.end if final else self._seen_up_to(reel.end, self.next_part, FLASH_S)
        reel.part(self.next_part, seen)
        self.next_part = seen
        seen = self.next_part if final else self._seen_up_to(self.next_part, self.next_cut, USUAL_S)
        for number, strength in enumerate(cut_strengths(reel, self.next_cut, seen), self.next_cut):
            if strength >= self.threshold:
                # A flash that goes out over some frames has some that do not stick out from the others.
                reel.part(number, number + 1, all_frames=True)
                (strength,) = cut_strengths(reel, number, number + 1)
            if strength >= self.threshold and changed_share(reel, number) >= LEAST_CHANGED:
                self.cuts[number] = strength
        self.next_cut = seen
        for ramp in ramps(reel, list(self._around(final=final))):
            self._keep(ramp)

    def _around(self, *, final: bool) -> Iterator[Around]:
        """Give the next frames that may be inside of a ramp, each with what belongs to the same shot or ramp."""
        reel = self.reel
        sharp = [cut for cut, strength in self.cuts.items() if strength >= 2 * self.threshold]
        while self.next_ramp < reel.end - 1 and (final or self._seen(self.next_cut - 1, self.next_ramp, REACH_S)):
            low = max([self.given, reel.first, *(cut for cut in sharp if cut <= self.next_ramp)])
            yield self.next_ramp, low, min([reel.end, *(cut for cut in sharp if cut > self.next_ramp)])
            self.next_ramp = reel.ahead(self.next_ramp, JUST_S)

    def _seen(self, last: int, number: int, seconds: float) -> bool:
        """Tell whether enough frames came after a frame, up to `last`, to judge it."""
        late = self.reel.times[last - self.reel.first] - self.reel.times[number - self.reel.first] >= seconds
        return last - number >= 2 and bool(late or last - number >= DENSEST_FPS * seconds)

    def _seen_up_to(self, end: int, start: int, seconds: float) -> int:
        """Return up to which frame, from `start` on, enough frames came before `end` to judge all."""
        return start + bisect_left(range(start, end), True, key=lambda number: not self._seen(end - 1, number, seconds))

    def _keep(self, ramp: Transition) -> None:
        """Put a ramp to the last one if it is the same, seen from another frame."""
        if self.ramps:
            start, end = _agreed(self.ramps[-1])
            if 2 * (min(end, ramp.end) - max(start, ramp.start)) > min(end - start, ramp.end - ramp.start):
                self.ramps[-1].append(ramp)
                return
        self.ramps.append([ramp])

    def _certain(self, *, final: bool) -> Iterator[Transition]:
        """Give away transitions that nothing which is still to be found can touch."""
        if not self.cuts and not self.ramps:
            return
        known = self.reel.end if final else self.reel.back(self.next_ramp, REACH_S)
        self.ramps = [seen for seen in self.ramps if len(seen) > 1 or seen[0].end >= known]
        self.cuts = self._clear_cuts()
        for found in self._merged():
            if not (final or self._closed(found, known) or self._grows_old(found)):
                return
            yield from self._give(found, final=final)

    def _merged(self) -> list[Transition]:
        """Join what is known of cuts and ramps to transitions with shots between them."""
        # What is seen from one frame only is chance.
        ramps = [_faded(self.reel, _agreed(seen)) for seen in self.ramps if len(seen) > 1]
        spans = sorted([*((cut, cut) for cut in self.cuts), *ramps])
        merged: list[tuple[int, int]] = []
        for start, end in spans:
            if merged and self._no_shot(merged[-1], (start, end)):
                merged[-1] = merged[-1][0], max(merged[-1][1], end)
            else:
                merged.append((start, end))
        return [Transition(start=start, end=end) for start, end in merged]

    def _clear_cuts(self) -> dict[int, float]:
        """Return the cuts but those that are one end of a flash at the edge of a shot, right beside the cut itself.

        What lies before and after such a flash moves too much to be alike, and is far more alike than it is to the flash. With
        a clear cut on either side, or frames of one colour in it, a flash is a transition: all its cuts are kept.
        """
        runs = list[list[int]]()
        for cut in sorted(self.cuts):
            if runs and cut - runs[-1][-1] <= self.min_shot_frames:
                runs[-1].append(cut)
            else:
                runs.append([cut])
        kept = [self._clear_of(run) or run for run in runs]
        return {cut: self.cuts[cut] for cut in itertools.chain(*kept)}

    def _clear_of(self, run: Sequence[int]) -> list[int]:
        """Return the one clear cut among cuts close together, where the others are ends of a flash beside it; else none."""
        reel, places = self.reel, [cut - self.reel.first for cut in run]
        clear = [cut for cut, at in zip(run, places, strict=True) if reel.apart[at] >= MOST_BACK * reel.change[at]]
        plain = any(min(reel.spread[at - 1 : at + 1]) < ONE_COLOUR for at in places)
        return clear if len(clear) == 1 and not plain else []

    def _no_shot(self, before: tuple[int, int], after: tuple[int, int]) -> bool:
        """Tell whether what lies between two spans is no shot. Where a fade turns round it is not quite of one colour."""
        spread, times, first, last = self.reel.spread, self.reel.times, self.reel.first, self.reel.end - 1
        outside = min(spread[max(0, before[0] - 1 - first)], spread[min(after[1], last) - first])
        fades = before[0] < before[1] or after[0] < after[1]
        turns = times[min(after[0], last) - first] - times[before[1] - first] <= PLATEAU_S
        most = max(ONE_COLOUR, (0.3 if turns else 0.1) * outside) if fades else ONE_COLOUR
        short = after[0] - before[1] < self.min_shot_frames
        return short or self._one_colour(before[1], after[0], most) or self._flashes(before[1], after[0])

    def _flashes(self, start: int, end: int) -> bool:
        """Tell whether frames `[start, end)` between two cuts are a flash of one colour, with what glimmers through it."""
        first, last = start - self.reel.first, min(end, self.reel.end - 1) - self.reel.first
        spread = self.reel.spread
        inside, outside = spread[first : end - self.reel.first], max(spread[max(0, first - 1)], spread[last])
        brief = self.reel.times[last] - self.reel.times[first] < FLASH_S
        return brief and min(inside) < ONE_COLOUR and max(inside) < 0.7 * outside

    def _one_colour(self, start: int, end: int, most: float = ONE_COLOUR) -> bool:
        """Tell whether frames `[start, end)` are of one colour, up to a spread, and few."""
        first, last = start - self.reel.first, min(end, self.reel.end - 1) - self.reel.first
        if self.reel.times[last] - self.reel.times[first] > ONE_COLOUR_S:
            return False
        return all(spread < most for spread in self.reel.spread[first : end - self.reel.first])

    def _closed(self, found: Transition, known: int) -> bool:
        """Tell whether a transition cannot grow any more, when all before frame `known` is known."""
        end, before = found.end, self.reel.spread[max(0, found.start - 1 - self.reel.first)]
        return known - end >= self.min_shot_frames and not self._one_colour(end, known, max(ONE_COLOUR, 0.3 * before))

    def _grows_old(self, found: Transition) -> bool:
        """Tell whether the reel is soon to forget where a transition starts, which goes on and on where cut follows cut."""
        return self.reel.end - found.start > _CAPACITY - _CAPACITY // 5 - MOST_AT_ONCE

    def _give(self, found: Transition, *, final: bool) -> Iterator[Transition]:
        start, end, reel = found.start, found.end, self.reel
        fades = any(seen[0].start < end and start < seen[0].end for seen in self.ramps if len(seen) > 1)
        if self.given == reel.first == 0 and (start < self.min_shot_frames or (fades and self._one_colour(0, start))):
            start = 0
        if final and (reel.end - end < self.min_shot_frames or (fades and self._one_colour(end, reel.end))):
            end = reel.end
        self.cuts = {cut: strength for cut, strength in self.cuts.items() if cut > found.end}
        self.ramps = [seen for seen in self.ramps if _agreed(seen)[0] > found.end]
        self.given = end
        yield Transition(start=start, end=end)
